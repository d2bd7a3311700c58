"""Words and their parts of speech, by fugashi with unidic-lite, which is loaded when first needed."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

_UNREADABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # MeCab would stop at them


class Word(NamedTuple):
    """A word of a text: where it stands, its part of speech (two levels), dictionary form, reading in katakana (as written where unknown)."""

    start: int
    end: int
    surface: str
    pos: str
    kind: str
    lemma: str
    reading: str


@lru_cache(maxsize=1)
def _tagger() -> Any:
    import fugashi

    return fugashi.Tagger()


@lru_cache(maxsize=256)
def words(text: str) -> tuple[Word, ...]:
    """The words of the text, in order; spaces between them belong to none."""
    found, at = [], 0
    for node in _tagger()(_UNREADABLE.sub(" ", text)):
        start = text.find(node.surface, at)
        if start < 0:
            continue
        at = start + len(node.surface)
        feature = node.feature
        lemma = (feature.lemma or node.surface).split("-")[0]  # 差す-他動詞, ロゴ-logotype
        found.append(Word(start, at, node.surface, feature.pos1, feature.pos2 or "", lemma, feature.kana or node.surface))
    return tuple(found)
