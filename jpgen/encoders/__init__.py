"""Text encoders: one file a kind, each with `load(folder)` and `toy()`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from jpgen.errors import UnknownNameError
from jpgen.types import TextEncoder


def kinds() -> list[str]:
    """The kinds of encoder there are files for."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_encoder(kind: str, folder: Path) -> TextEncoder:
    """The encoder of this kind with the weights in `folder`; raises UnknownNameError or WeightsError."""
    if kind not in kinds():
        raise UnknownNameError.of("エンコーダ / text encoder", kind, kinds())
    encoder: TextEncoder = importlib.import_module(f"jpgen.encoders.{kind}").load(folder)
    return encoder
