"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952) and everything trained, distilled or merged from it."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from jpgen.backbones.unet import SCHEDULE, UnetBackbone, load_unet, toy_vae
from jpgen.catalog import Entry
from jpgen.types import SamplingConfig


def load(entry: Entry, dtype: torch.dtype) -> UnetBackbone:
    """The backbone of a diffusers folder or a single file, with what its parts tell (see `load_unet`); raises WeightsError, IncompatibleError."""
    return load_unet(entry, dtype)


def toy() -> UnetBackbone:
    """Two levels of random weights for conditioning of width 64 and pooled 24; pictures of 64 pixels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2), cross_attention_dim=64, attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8,
        norm_num_groups=8,
    )  # fmt: skip
    return UnetBackbone("toy-sdxl", unet, toy_vae(), SCHEDULE, SamplingConfig(width=64, height=64, steps=2, guidance_scale=2.0))
