"""Backbones: one file a family, each with `load(entry, dtype)` and `toy()`; the only place that calls diffusers pipelines."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, cast

import torch

from jpgen.catalog import Entry
from jpgen.compute import best_device, best_dtype
from jpgen.errors import UnknownNameError
from jpgen.protocols import Backbone, TextBackbone

PARTS = frozenset({
    "autoencoder", "caches", "configs", "controlnet", "denoising", "forwards", "latents", "lean", "loading", "packing", "passes", "placement",
    "preview", "schedulers", "single_file", "starting", "tiling", "unet",
})  # fmt: skip
"""Files here that are parts of backbones."""


def families() -> list[str]:
    """The families there are files for."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)


def load_backbone(entry: Entry, dtype: torch.dtype | None = None, *, optimize: bool = False) -> Backbone | TextBackbone:
    """The backbone of this catalogue entry on the machine's best device, in the number type that suits it unless told.

    `optimize`: see `jpgen.backbones.placement.optimise`. Raises UnknownNameError or WeightsError.
    """
    if entry.family not in families():
        raise UnknownNameError.of("バックボーン / backbone family", entry.family, families())
    from jpgen.backbones.placement import optimise, place

    device = best_device()
    backbone: Any = importlib.import_module(f"jpgen.backbones.{entry.family}").load(entry, dtype or best_dtype(device))
    place(backbone._pipeline, device)
    if optimize:
        optimise(backbone._pipeline, device)
    return cast("Backbone | TextBackbone", backbone)
