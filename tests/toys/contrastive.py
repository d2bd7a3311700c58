"""Tiny Japanese text towers of contrastive models as the hub has them (models.md section 8: 8): waon-siglip2, and rinna's CLIP."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from transformers import RobertaModel, SiglipConfig, SiglipModel, SiglipVisionConfig

from jpgen.encoders import roberta_clip, siglip
from tests.toys.stable_diffusion import write_sentencepiece


@dataclass(frozen=True)
class Tower:
    """What was written, before it was: the text model, and how a text becomes ids."""

    path: Path
    model: Any
    pieces: Any
    projection: Any = None


def _spread(model: Any) -> None:
    """Larger matrices, so that the states of two texts differ by more than rounding."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)


def waon(folder: Path) -> Tower:
    """A whole SiglipModel, pictures and all, with Gemma's kind of tokenizer.json."""
    tokenizer = siglip.toy_tokenizer()
    torch.manual_seed(7)
    vision = SiglipVisionConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    model = SiglipModel(SiglipConfig(text_config=siglip.toy_config(tokenizer.get_vocab_size()).to_dict(), vision_config=vision.to_dict())).eval()
    _spread(model.text_model)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>", "do_lower_case": True}))
    return Tower(folder, model.text_model, tokenizer)


def rinna_clip(folder: Path) -> Tower:
    """The tensors by rinna's names, picture tower and position ids of old among them, a config of type "clip", and its tokenizer."""
    write_sentencepiece(folder)
    pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    torch.manual_seed(8)
    model = RobertaModel(roberta_clip.toy_config(len(pieces)), add_pooling_layer=False).eval()
    _spread(model)
    projection = torch.randn(24, 32)
    state = {f"text_model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"text_model.embeddings.position_ids": torch.arange(80)[None], "text_projection.weight": projection}
    state |= {"vision_model.embeddings.class_embedding": torch.zeros(24), "visual_projection.weight": torch.zeros(24, 24)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = {**model.config.to_dict(), "model_type": "roberta"}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"], "text_config": text, "vision_config": {}}))
    return Tower(folder, model, pieces, projection)
