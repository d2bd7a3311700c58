"""Two kinds of tiles: textures without a seam (convolutions that wrap around), and autoencoders that work on a large picture piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from jpgen.compute import memory_available, needs_tiles

log = logging.getLogger("jpgen")

TILE = 512
"""Pixels of a side of a piece: what every autoencoder was trained on at least."""


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
def tiles_if_large(vae: Any, rows: int, height: int, width: int) -> Iterator[None]:
    """Lets an AutoencoderKL work row by row where the free memory would not hold `rows` pictures, and piece by piece where it would not hold one.

    Sides in latents. The pieces overlap by a quarter and are blended: the picture is then not quite the same, which is logged. What is seamless stays
    whole.
    """
    if not hasattr(vae, "use_tiling") or "block_out_channels" not in vae.config:  # another kind of autoencoder
        yield
        return
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    pixels, free = height * width * factor**2, memory_available(vae.device)
    whole = any(isinstance(layer, nn.Conv2d) and layer.padding_mode == "circular" for layer in vae.modules())

    def too_much(pixels: int) -> bool:
        return needs_tiles(pixels, vae.config.block_out_channels[0], vae.dtype.itemsize, free)

    if whole or not too_much(rows * pixels):
        yield
        return
    settings: dict[str, int] = {"use_slicing": True}
    if too_much(pixels):
        settings |= {"use_tiling": True, "tile_sample_min_size": TILE, "tile_latent_min_size": TILE // factor}
        log.warning(
            "メモリが足りないので、絵を分けて復号します / short of memory (%.1f GiB free): the picture is decoded in pieces, and differs a little",
            free / 2**30,
        )
    before = {name: getattr(vae, name) for name in settings}
    for name, value in settings.items():
        setattr(vae, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
