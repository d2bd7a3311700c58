"""How well a picture fits words, and the features by which pictures are found: by jpgen's own scorer, where its weights are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jpgen

if TYPE_CHECKING:
    from PIL import Image

    from demo.gallery import Gallery, Item
    from demo.worker import Desk

SCORER = "mame-clip"
"""jpgen's own, which is also its default."""

AT_ONCE = 16


def likeness(image: Image.Image, text: str) -> float:
    """The score of the picture with the words (see jpgen.clip_score)."""
    return jpgen.clip_score([image], [text])[0]


def nearest(kept: Gallery, words: str, desk: Desk, *, limit: int) -> list[Item]:
    """The pictures of a gallery that show what the words say, the best first; each picture is read once and remembered."""
    scorer = jpgen.open_scorer(SCORER)
    while new := kept.unread(scorer.name, AT_ONCE):
        if desk.cancelled:
            raise jpgen.Cancelled("取り消されました / cancelled")
        for item in new:
            kept.remember(item.id, scorer.name, _features(scorer, item))
    wanted = scorer.text_features([words])[0].tolist()
    return [item for item, _ in kept.nearest(scorer.name, wanted, limit)]


def _features(scorer: jpgen.ImageTextScorer, item: Item) -> list[float]:
    """The features of a picture; all 0, near to nothing, if its file cannot be read."""
    try:
        return list(scorer.image_features([jpgen.read_picture(item.path)])[0].tolist())
    except jpgen.JpgenError:
        return [0.0] * scorer.text_features(["絵"]).shape[1]
