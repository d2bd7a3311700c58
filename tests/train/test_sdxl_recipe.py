"""The first steps of the recipe for real SDXL at full width: a random U-Net of SDXL's own config (2.57 G parameters), 16 × 16 latents.

It takes 5 GB in bf16, 10 GB where the machine computes in fp32.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from jpgen.backbones.unet import SCHEDULE, UnetBackbone, toy_vae
from jpgen.compute import best_dtype
from jpgen.encoders.clip import TOY_MERGES, ClipEncoder
from jpgen.encoders.pairing import read_pairing
from jpgen.encoders.sdxl import SdxlEncoder
from jpgen.encoders.tokenizers import bpe_tokenizer
from jpgen.train import adapter
from jpgen.train.adapter import read_recipe, train_adapter
from jpgen.types import SamplingConfig

PAIRS = [("赤い猫", "a red cat"), ("青い船", "a blue ship"), ("海", "the sea"), ("犬と猫", "a dog and a cat")]
SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}  # fmt: skip
"""What stabilityai/stable-diffusion-xl-base-1.0 says of its U-Net."""


def wide_encoder(width: int, projection: bool) -> ClipEncoder:
    """CLIP of SDXL's width but two layers: its states have the shape that matters here."""
    tokenizer = bpe_tokenizer(TOY_MERGES)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, projection_dim=1280, num_hidden_layers=2, num_attention_heads=width // 64,
        intermediate_size=4 * width, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return ClipEncoder("wide", kind(config), tokenizer, clip_skip=1, final_norm=False)


class WideTeacher(adapter.Teacher):
    def __init__(self, model: str) -> None:
        torch.manual_seed(0)
        self.name, self.encoder = model, SdxlEncoder("wide", wide_encoder(768, False), wide_encoder(1280, True))
        torch.set_default_dtype(best_dtype())
        try:
            unet = UNet2DConditionModel(**SDXL)
        finally:
            torch.set_default_dtype(torch.float32)
        self.backbone = UnetBackbone(model, unet, toy_vae(), SCHEDULE, SamplingConfig(steps=30, guidance_scale=5.0, width=1024, height=1024))
        self.backbone.modules["denoiser"].requires_grad_(False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_recipe_for_sdxl_takes_its_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "Teacher", WideTeacher)
    recipe = replace(read_recipe("sdxl"), batch=1, accumulate=2, latent_side=16, warm_up=1, learning_rate=1e-3, empty=0.0)
    path = train_adapter(recipe, PAIRS, tmp_path, steps=2)
    rows = [json.loads(line) for line in (tmp_path / "adapter.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row[name] < float("inf") for row in rows for name in ("pooled", "noise", "features"))
    made = read_pairing(path)
    assert (made.spec.source_width, made.spec.width, made.spec.pooled_width) == (384, 2048, 1280)
    assert 5e6 < sum(parameter.numel() for parameter in made.network.parameters()) < 12e6
