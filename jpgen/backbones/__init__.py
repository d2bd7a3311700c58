"""Backbones: one file a family, each with `load(entry, dtype)` and `toy()`; the only place that calls diffusers pipelines."""

from __future__ import annotations

import importlib
import pkgutil

import torch

from jpgen.catalog import Entry
from jpgen.compute import best_dtype
from jpgen.errors import UnknownNameError
from jpgen.types import Backbone, TextBackbone

PARTS = frozenset({"autoencoder", "controlnet", "loading", "schedulers", "single_file", "starting", "tiling", "unet"})
"""Files here that are parts of backbones."""


def families() -> list[str]:
    """The families there are files for."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)


def load_backbone(entry: Entry, dtype: torch.dtype | None = None) -> Backbone | TextBackbone:
    """The backbone of this catalogue entry, in the number type that suits the machine unless told; raises UnknownNameError or WeightsError."""
    if entry.family not in families():
        raise UnknownNameError.of("バックボーン / backbone family", entry.family, families())
    backbone: Backbone | TextBackbone = importlib.import_module(f"jpgen.backbones.{entry.family}").load(entry, dtype or best_dtype())
    return backbone
