"""Resumable training state on disk, a log of figures, and the pace of a run."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from jpgen.errors import TrainingDataError

log = logging.getLogger("jpgen.train")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to `path` by way of a temporary file, so that a kill leaves the old file or the new one."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None if there is none yet; raises TrainingDataError if it is damaged."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise TrainingDataError(f"{path} を読めません。消せば最初からになります / cannot read {path} ({error}): delete it to start over") from error
    return state


class Curve:
    """Appends rows of figures to a JSON-lines file and tells samples per second since the last row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._since = time.monotonic()
        self._samples = 0

    def count(self, samples: int) -> None:
        """Note that this many more samples were trained on."""
        self._samples += samples

    def row(self, **figures: int | float) -> None:
        """Append one row, with the pace since the last."""
        now = time.monotonic()
        figures["samples_per_second"] = round(self._samples / max(now - self._since, 1e-9), 1)
        self._since, self._samples = now, 0
        rounded = {name: round(value, 5) for name, value in figures.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        log.info("%s", rounded)
