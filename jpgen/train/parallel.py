"""Japanese and English side by side, for the translator: the Tanaka Corpus, captions of scenes, practice sentences of prompts.

The Tanaka pairs come as the files train.ja, train.en … of small_parallel_enja (https://github.com/odashi/small_parallel_enja): 50,000 sentence
pairs of the Tanaka Corpus, now part of Tatoeba (https://tatoeba.org), CC BY 2.0 FR. They are cut into words and in small letters; here the spaces
go away again. 1,000 of them, chosen by a hash, are held out for the benchmark and never learnt from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from jpgen.errors import TrainingDataError
from jpgen.prompt.lexicon import load_lexicon
from jpgen.train.captions import article, caption
from jpgen.train.phrases import Pair, Phrases, phrase_words
from jpgen.train.scenes import Scene, Stage, concepts, plan
from jpgen.train.sprites import Drawing
from jpgen.translate.markers import MARKERS, NOUNS

HELD_OUT = 1000
"""Pairs of the Tanaka Corpus that are for the benchmark alone."""

CHUNK = 12_000
"""Pairs that are made, sorted by length and trained on together."""

SHARES = {"tanaka": 0.38, "caption": 0.12, "phrase": 0.47, "word": 0.03}
"""Share of each source in a chunk."""

CAPTION_SEED = 60_000_000
"""First seed of the scenes whose captions are learnt from."""

JOINED = re.compile(r" (?=[.,!?;:)%])| (?='(?:s|m|re|ve|ll|d|t)\b)|(?<=\() |(?<=\$) ")
SIDES = (("左", "left"), ("右", "right"), ("隣", "next to"))


def tanaka(folder: Path) -> tuple[list[Pair], list[Pair]]:
    """The pairs to learn from, and those held out: the 1,000 whose Japanese has the smallest SHA-256; raises TrainingDataError without the files.

    `folder` holds train.ja and train.en of small_parallel_enja. A pair with the Japanese or the English of a held-out one is in neither list.
    """
    sides = []
    for name in ("train.ja", "train.en"):
        try:
            sides.append((folder / name).read_text("utf-8").splitlines())
        except OSError as error:
            raise TrainingDataError(
                f"{folder / name} がありません。small_parallel_enja（github.com/odashi）の置き場を --data に書いてください / "
                f"no {folder / name}: give --data the folder of small_parallel_enja (github.com/odashi/small_parallel_enja)"
            ) from error
    if len(sides[0]) != len(sides[1]):
        raise TrainingDataError(f"{folder}: 行数が合いません / {len(sides[0])} lines of Japanese, {len(sides[1])} of English: fetch them again")
    pairs = {ja.replace(" ", ""): plain_english(en) for ja, en in zip(*sides, strict=True)}
    order = sorted(pairs, key=lambda ja: hashlib.sha256(ja.encode()).digest())
    held = order[:HELD_OUT]
    held_english = {pairs[ja] for ja in held}
    return [(ja, pairs[ja]) for ja in order[HELD_OUT:] if pairs[ja] not in held_english], [(ja, pairs[ja]) for ja in held]


def plain_english(words: str) -> str:
    """Tokenised English as it is written.

    >>> plain_english("i 'm sorry , i can 't .")
    "i'm sorry, i can't."
    """
    return JOINED.sub("", words.replace("`` ", '"').replace(" ''", '"').replace("-lrb-", "(").replace("-rrb-", ")"))


class Parallel:
    """Chunks of pairs by number; the same number gives the same pairs."""

    def __init__(self, folder: Path) -> None:
        """Tanaka pairs of `folder` (see `tanaka`)."""
        self._pairs, _ = tanaka(folder)
        self._stage = Stage([Drawing(concept.emoji, art, 0) for concept in concepts() for art in ("noto", "fluent")])
        self._words = _single_words()
        self._known = {ja: en for word in (*_nouns(),) for ja, en in word}

    def chunk(self, number: int) -> list[Pair]:
        """`CHUNK` pairs of all sources; the Tanaka pairs are gone through in turn, everything else is new."""
        rng = np.random.default_rng((11, number))
        count = {name: round(CHUNK * share) for name, share in SHARES.items()}
        turns = np.arange(number * count["tanaka"], (number + 1) * count["tanaka"]) % len(self._pairs)
        made = [self._varied(self._pairs[int(turn)], rng) for turn in turns]
        first = CAPTION_SEED + number * count["caption"]
        made += [captions_of(plan(seed, self._stage), rng) for seed in range(first, first + count["caption"])]
        phrases = Phrases(rng)
        made += [phrases.prompt() for _ in range(count["phrase"])]
        made += [self._words[int(i)] for i in rng.integers(len(self._words), size=count["word"])]
        return [(ja, en.lower()) for ja, en in made]

    def _varied(self, pair: Pair, rng: np.random.Generator) -> Pair:
        """A Tanaka pair, a third of the time without its full stops, a sixth with a marker in the place of a noun that both sides have."""
        ja, en = pair
        if rng.random() < 0.33 and ja.endswith("。") and en.endswith("."):
            ja, en = ja[:-1], en[:-1]
        if rng.random() < 0.17:
            for surface in (word for word in self._known if len(word) > 1 and ja.count(word) == 1):
                replaced, times = re.subn(rf"\b(?:(?:a|an|the) )?{re.escape(self._known[surface])}\b", NOUNS[int(rng.integers(len(NOUNS)))], en)
                if times == 1:
                    marker = next(sign for sign in replaced if sign in NOUNS)
                    return ja.replace(surface, marker), replaced
        return ja, en


def captions_of(scene: Scene, rng: np.random.Generator) -> Pair:
    """Captions of a scene that say the same of left and right in both languages."""
    ja = caption(scene, "ja", rng)
    for ending in ("。", "の絵", "のイラスト"):
        ja = ja.removesuffix(ending)
    while True:
        en = caption(scene, "en", rng)
        if scene.layout != "beside" or all((a in ja) == (b in en) for a, b in SIDES) or not any(a in ja for a, _ in SIDES):
            break
    if scene.layout == "beside" and not any(a in ja for a, _ in SIDES):
        while any(b in en for _, b in SIDES):
            en = caption(scene, "en", rng)
    return ja, en


def sentences(data: Parallel, chunks: int) -> Iterator[str]:
    """Both sides of the first chunks without their markers, for a vocabulary."""
    gone = dict.fromkeys(map(ord, MARKERS))
    for number in range(chunks):
        for ja, en in data.chunk(number):
            yield ja.translate(gone)
            yield en.translate(gone)


def _nouns() -> Iterator[Iterator[Pair]]:
    for concept in concepts():
        yield ((ja, concept.en[0]) for ja in concept.ja)
    for kind in ("person", "animal", "plant", "food", "thing"):
        for word in phrase_words()[kind]:
            yield ((ja, word.en.lstrip("~")) for ja in word.ja)


@cache
def _single_words() -> list[Pair]:
    """Nouns alone, and expressions of the lexicon that are short in English (in longer texts they are markers)."""
    made = [(ja, article(en)) for word in _nouns() for ja, en in word]
    return made + [(entry.surface, entry.english) for entry in load_lexicon() if len(entry.english.split()) <= 4 and entry.kind != "homograph"]
