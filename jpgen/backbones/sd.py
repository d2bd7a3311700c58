"""Stable Diffusion 1 and 2 (Rombach et al. 2022, arXiv 2112.10752) and everything trained from them."""

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
    """Two levels of random weights for conditioning of width 32; pictures of 64 pixels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    return UnetBackbone("toy-sd", unet, toy_vae(), SCHEDULE, SamplingConfig(width=64, height=64, steps=2, guidance_scale=2.0))
