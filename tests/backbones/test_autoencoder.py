"""The autoencoder behaves as diffusers expects of one."""

from pathlib import Path

import torch

from jpgen.backbones.autoencoder import AutoencoderShuffle


def test_it_saves_and_loads_as_diffusers_models_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderShuffle(block_out_channels=(4, 0, 0, 16, 16), encoder_layers=(1, 1), decoder_layers=(1, 1)).eval()
    model.latent_mean.fill_(0.5)
    model.save_pretrained(tmp_path)
    again = AutoencoderShuffle.from_pretrained(tmp_path)
    pictures = torch.rand(1, 3, 64, 32) * 2 - 1
    with torch.no_grad():
        latents = model.encode(pictures).latent_dist.mode()
        assert latents.shape == (1, 16, 4, 2)
        assert torch.equal(again.encode(pictures).latent_dist.mode(), latents)
        assert torch.equal(again.decode(latents).sample, model.decode(latents).sample)
        assert model.decode(latents).sample.shape == pictures.shape
