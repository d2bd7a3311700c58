"""Two kinds of tiles: textures without a seam (convolutions that wrap around), and autoencoders that work on a large picture piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from jpgen.compute import memory_available, needs_tiles


@contextmanager
def seamless(*modules: nn.Module) -> Iterator[None]:
    """Lets every convolution of these wrap around, so that the left edge continues the right one and the top the bottom; put back at the end."""
    changed = [
        (layer, layer.padding_mode)
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and any(layer._reversed_padding_repeated_twice)
    ]
    for layer, _ in changed:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer, mode in changed:
            layer.padding_mode = mode


@contextmanager
def tiles_if_large(vae: Any, latents: Tensor) -> Iterator[None]:
    """Lets an autoencoder decode piece by piece and row by row where it can (AutoencoderKL) and the memory that is free would not hold the whole.

    The pieces overlap by a quarter and are blended; the picture is then not quite the same. What was switched on before stays on.
    """
    before = (getattr(vae, "use_tiling", None), getattr(vae, "use_slicing", None))
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    pixels = latents.shape[-1] * latents.shape[-2] * factor**2
    if None in before or not needs_tiles(pixels, vae.config.block_out_channels[0], vae.dtype.itemsize, memory_available(vae.device)):
        yield
        return
    vae.use_tiling = vae.use_slicing = True
    try:
        yield
    finally:
        vae.use_tiling, vae.use_slicing = before
