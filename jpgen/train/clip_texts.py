"""What mame-clip is asked about a picture: the names of things, backgrounds, styles, colours and numbers, as text states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jpgen.evaluate.judge import MAX_COUNT
from jpgen.evaluate.mame_clip import pooled
from jpgen.protocols import TextEncoder
from jpgen.train.backgrounds import BACKGROUNDS
from jpgen.train.captions import ENGLISH_DIGITS, KANJI_DIGITS
from jpgen.train.scenes import COLORLESS, COLORS, Scene, concepts
from jpgen.train.styles import STYLES

QUESTIONS = {"first": 0, "second": 1, "background": 2, "style": 3, "color": 4, "count": 5}
"""Question -> its column in what `facts` gives."""

COLORFUL = ("background", "style", "color")
"""Questions whose answers colours tell."""

UNSAID = -1
FRAMES = {"ja": ("{}", "{}の絵"), "en": ("{}", "a picture of {}")}
"""What a name may stand in."""


def facts(scene: Scene) -> list[int]:
    """The classes of what the scene shows, in the order of `QUESTIONS`; `UNSAID` where nothing is to be said.

    Count: one less than there are, of one kind.
    """
    known = concepts()
    first, color = scene.things[0], scene.things[0].color
    alone = len(scene.things) == 1
    return [
        known.index(first.concept),
        UNSAID if alone else known.index(scene.things[1].concept),
        BACKGROUNDS.index(scene.background) - 1,  # the first is none: UNSAID
        STYLES.index(scene.style) - 1,
        COLORS.index(color) if color and scene.style.key not in COLORLESS else UNSAID,
        scene.count - 1 if alone else UNSAID,
    ]


@dataclass(frozen=True)
class Bank:
    """Text states [texts, width] in each language of the classes of a question, the n-th class those of rows `ends[n-1]` up to `ends[n]`."""

    states: dict[str, Tensor]
    ends: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ends["ja"])

    def draw(self, language: str, rng: np.random.Generator) -> Tensor:
        """One text of each class: [classes, width]."""
        ends = self.ends[language]
        begins = np.concatenate([[0], ends[:-1]])
        return self.states[language][torch.from_numpy(rng.integers(begins, ends))]


@torch.no_grad()
def read_banks(encoder: TextEncoder) -> dict[str, Bank]:
    """A bank of each question but "second", which has the names of "first" (some 4,000 texts in all)."""
    numbers = range(1, MAX_COUNT + 1)
    said: dict[str, dict[str, list[tuple[str, ...]]]] = {
        "first": {language: [_framed(getattr(c, language), FRAMES[language]) for c in concepts()] for language in FRAMES},
        "background": {language: [getattr(b, language) for b in BACKGROUNDS[1:]] for language in FRAMES},
        "style": {language: [getattr(s, language) for s in STYLES[1:]] for language in FRAMES},
        "color": {"ja": [_framed(c.ja, ("{}もの",)) for c in COLORS], "en": [(c.en[0], f"a {c.en[0]} thing") for c in COLORS]},
        "count": {
            "ja": [(f"{KANJI_DIGITS[n]}つ", f"{KANJI_DIGITS[n]}匹", f"{n}つのもの") for n in numbers],
            "en": [(ENGLISH_DIGITS[n], f"{n} things") for n in numbers],
        },
    }
    return {name: _bank(encoder, texts) for name, texts in said.items()}


def _framed(words: Sequence[str], frames: Sequence[str]) -> tuple[str, ...]:
    return tuple(frame.format(word) for word in words for frame in frames)


def _bank(encoder: TextEncoder, texts: dict[str, list[tuple[str, ...]]]) -> Bank:
    states = {language: pooled(encoder, [text for one in classes for text in one]) for language, classes in texts.items()}
    return Bank(states, {language: np.cumsum([len(one) for one in classes]) for language, classes in texts.items()})
