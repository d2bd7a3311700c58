"""Between pictures and the latents that sampling sees: one way each, whatever an autoencoder's config tells of their scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jpgen.backbones.tiling import tiles_if_large


def to_pixels(image: Image.Image) -> Tensor:
    """A picture in RGB as fp32 [1, 3, height, width] in −1…1."""
    return torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def encode(vae: Any, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Latents of a picture [1, 3, height, width], fp32 on the CPU and scaled for sampling, one row sampled by each generator."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    with tiles_if_large(vae, 1, pixels.shape[-2] // factor, pixels.shape[-1] // factor):
        distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    latents = torch.cat([distribution.sample(generator) for generator in generators]).float().cpu()
    mean, scale = _scale(vae, latents)
    return (latents - mean) * scale


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels fp32 [batch, 3, height, width] in about −1…1 of latents [batch, channels, rows, columns] as sampling scales them."""
    latents = latents.to(vae.device, vae.dtype)
    mean, scale = _scale(vae, latents)
    with tiles_if_large(vae, len(latents), *latents.shape[-2:]):
        pictures: Tensor = vae.decode(latents / scale + mean, return_dict=False)[0]
    return pictures.float()


def _scale(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """What sampling takes from the autoencoder's own latents, and then multiplies them by: [1, channels or 1, 1, 1] each."""
    told = vae.config.get
    means, deviations = told("latents_mean"), told("latents_std")
    known = means is not None and deviations is not None
    mean = latents.new_tensor(means if known else told("shift_factor") or 0.0)
    scale = told("scaling_factor") / latents.new_tensor(deviations if known else 1.0)
    return mean.view(1, -1, 1, 1), scale.view(1, -1, 1, 1)
