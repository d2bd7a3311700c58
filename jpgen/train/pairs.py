"""Japanese sentences and what they say in English: the texts on which an adapter is trained.

A file is tab-separated, Japanese then English a line; a first line `ja<TAB>en` is a header, further columns are passed over. Public sources: the
Tanaka corpus (https://github.com/odashi/small_parallel_enja; part of Tatoeba, CC BY 2.0 FR), whose two files `paste train.ja train.en` joins, and
whatever of one's own. The lexicon comes with jpgen.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from jpgen.errors import TrainingDataError
from jpgen.prompt.lexicon import load_lexicon
from jpgen.train.captions import caption
from jpgen.train.latents import LANGUAGES
from jpgen.train.scenes import Stage, plan, read_staging
from jpgen.train.sprites import Drawing

Pair = tuple[str, str]

SCENES = range(80_000_000, 80_010_000)
"""Seeds of the scenes whose captions are pairs."""

ART = ("noto", "fluent")
"""The drawings that captions know of: what stands for each thing, and what the style 3D asks for."""

HELD_OUT = 40
"""Every so many-th pair, by the hash of its Japanese, is for measuring alone."""

NOT_SHOWN = frozenset({"homograph", "idiom", "onomatopoeia"})
"""Kinds of the lexicon that say how, or say two things, and show nothing by themselves."""


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a TSV file, spaces between Japanese words taken out; raises TrainingDataError naming the first line that is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{path} を読めません / cannot read {path}: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        cells = unicodedata.normalize("NFC", line).split("\t")
        if len(cells) < 2 or not cells[0].strip() or not cells[1].strip():
            raise TrainingDataError(f"{path} の {number} 行目が「日本語<TAB>英語」ではありません / line {number} is no Japanese<TAB>English")
        if number == 1 and cells[:2] == ["ja", "en"]:
            continue
        pairs.append((_joined(cells[0]), _joined_english(cells[1])))
    return pairs


def _joined(text: str) -> str:
    """Japanese that a tokenizer cut with spaces, as it is written."""
    words = text.split(" ")
    return "".join(a + (" " if a.isascii() and b.isascii() else "") for a, b in zip(words, [*words[1:], "。"], strict=True))


def _joined_english(text: str) -> str:
    for sign in (" .", " ,", " ?", " !", " '"):
        text = text.replace(sign, sign[1:])
    return text


def lexicon_pairs() -> list[Pair]:
    """Every expression of the lexicon that shows something, with its visual English."""
    return [(entry.surface, entry.english) for entry in load_lexicon() if entry.english and entry.kind not in NOT_SHOWN]


def scene_pairs(staging: str, seeds: Iterable[int]) -> list[Pair]:
    """Captions of the scenes of a staging: Japanese in many words, English in the usual ones, so that what is meant alone decides what is learnt.

    Every layout is equally likely: two things are harder to say than one.
    """
    told = read_staging(staging)
    told = replace(told, layouts={layout: 1 / len(told.layouts) for layout in told.layouts})
    stage = Stage([Drawing(concept.emoji, art, 0) for concept in told.concepts() for art in ART], art=ART[:1], staging=told)
    ja, en = LANGUAGES
    return [(caption(scene, ja, np.random.default_rng((seed, 2))), caption(scene, en, None)) for seed in seeds for scene in [plan(seed, stage)]]


def split(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and those to measure on: the same always, whatever else is in the list."""
    train: list[Pair] = []
    held_out: list[Pair] = []
    for pair in dict.fromkeys(pairs):
        (train if zlib.crc32(pair[0].encode()) % HELD_OUT else held_out).append(pair)
    return train, held_out
