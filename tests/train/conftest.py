"""What several stages of the training of mame begin with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.encoders import bert
from jpgen.train import backbone, decoder
from jpgen.train.autoencoder import save_autoencoder

SMALL = backbone.CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "cross_attention_dim": 32, "caption_channels": 32}


@pytest.fixture
def small_mame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Makes a folder with an untrained backbone, for pictures of so many latents a side, and a tiny autoencoder; its texts are read by a toy."""

    def made(side: int) -> Path:
        toy = bert.toy()
        monkeypatch.setattr(decoder, "load_text_encoder", lambda _folder: (toy._model, toy._tokenizer))
        monkeypatch.setattr(backbone, "CONFIG", SMALL | {"sample_size": side})
        torch.manual_seed(0)
        backbone.write_backbone(backbone.new_backbone(), tmp_path)
        save_autoencoder(AutoencoderShuffle(block_out_channels=(4, 0, 0, 16, 16), encoder_layers=(1, 1), decoder_layers=(1, 1)), tmp_path)
        return tmp_path

    return made
