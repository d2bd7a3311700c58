"""What a step looks like so far, for a small part of what decoding costs: a tiny autoencoder where the model has one, else one matrix.

The matrix is the best linear guess of the autoencoder's own colours, found by least squares on a few random latents when it is first asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.backbones.loading import filled, part_folder
from jpgen.catalog import Entry
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.types import SamplingConfig
from jpgen.weights import load_weights

PART = "preview_vae"
"""The part of an entry that names a tiny autoencoder: a folder as diffusers lays it out, or its `.safetensors` file alone."""

SAMPLES, SIDE = 6, 12
"""Random latents that the matrix is fitted on, and their side."""


class Preview:
    """Pictures of latents (as the denoiser sees them) by a tiny autoencoder, else by a matrix fitted to the autoencoder itself.

    mame's own decoder is tiny: its previews are exact.
    """

    def __init__(self, decode: Any, vae: Any, tiny: AutoencoderTiny | None = None) -> None:
        """`decode`: latents to pictures [rows, 3, height, width] in −1…1, the whole way."""
        self._decode = decode
        self._vae = vae
        self._tiny = tiny
        self._matrix: Tensor | None = None

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        """RGB fp32 in −1…1 [rows, 3, height, width], full size or, of the matrix, one pixel a latent."""
        if isinstance(self._vae, AutoencoderShuffle):
            return self._decode(latents)
        if self._tiny is not None:
            tiny = self._tiny.to(latents.device)
            return tiny.decode(latents.to(tiny.dtype) / tiny.config.scaling_factor).sample.float()
        if self._matrix is None:
            self._matrix = self._fitted(latents)
        return torch.einsum("rcyx,cp->rpyx", _with_one(latents.float()), self._matrix.to(latents.device)).clamp(-1, 1)

    def images(self, latents: Tensor, config: SamplingConfig) -> list[Image.Image]:
        """Those pictures at their full size."""
        made = ((self.pictures(latents).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(one).resize((config.width, config.height), Image.Resampling.BILINEAR) for one in made]

    def _fitted(self, like: Tensor) -> Tensor:
        """The matrix [channels + 1, 3] that comes nearest to the decoder: of smooth and of rough latents, each of unit variance."""
        generator = torch.Generator().manual_seed(0)
        rough = torch.randn(SAMPLES, like.shape[1], SIDE, SIDE, generator=generator)
        smooth = F.interpolate(torch.randn(SAMPLES, like.shape[1], 3, 3, generator=generator), size=(SIDE, SIDE), mode="bicubic")
        latents = torch.cat([rough, smooth]).to(like)
        seen = torch.cat([F.adaptive_avg_pool2d(self._decode(one[None]).float(), SIDE) for one in latents])
        known = _with_one(latents.float()).movedim(1, -1).flatten(0, -2).cpu()
        return torch.linalg.lstsq(known, seen.movedim(1, -1).flatten(0, -2).cpu()).solution


def load_tiny(entry: Entry, channels: int, dtype: torch.dtype) -> AutoencoderTiny | None:
    """The tiny autoencoder the entry's part `preview_vae` names, for latents of this many channels; None if it names none. Raises WeightsError."""
    told = entry.parts.get(PART)
    if not told:
        return None
    place = entry.folder / Path(str(told)).expanduser()
    if place.is_file():
        tiny = AutoencoderTiny(latent_channels=channels)
        try:
            tiny.load_state_dict(load_weights(place, dtype))
        except RuntimeError as error:
            why = " ".join(str(error).split())[:160]
            raise WeightsError(f"{place} は小さなデコーダではありません / {place} is no AutoencoderTiny as diffusers saves it: {why}") from error
        tiny = tiny.to(dtype).requires_grad_(False).eval()
    else:
        tiny = filled(AutoencoderTiny, part_folder(entry, PART), dtype)
    if tiny.config.latent_channels != channels:
        raise IncompatibleError(
            f"{entry.name}: {place} とつながりません / the tiny autoencoder {place} has {tiny.config.latent_channels} latent channels, the model "
            f"{channels}: name another in parts.{PART}"
        )
    return tiny.to(memory_format=torch.channels_last)


def _with_one(latents: Tensor) -> Tensor:
    return torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
