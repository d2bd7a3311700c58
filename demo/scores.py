"""How well a picture fits words, where this jpgen can say it: jpgen.clip_score, jpgen.zero_shot, jpgen.retrieve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jpgen

if TYPE_CHECKING:
    from PIL import Image


def scorable() -> bool:
    """Whether there is a score of pictures and words."""
    return hasattr(jpgen, "clip_score")


def likeness(image: Image.Image, text: str) -> float | None:
    """The CLIP score of the picture with the words; None where nothing can say it."""
    return None
