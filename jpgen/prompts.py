"""Prompts to begin with and to measure by: pairs of Japanese and English, messy ones, names of Japanese things, negative presets.

Read from the data room prompts/ when first asked for; its card (prompts/README.md) says how they were written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

from jpgen.errors import PromptError, UnknownNameError
from jpgen.prompt.data import data_folder
from jpgen.prompt.lexicon import load_lexicon
from jpgen.prompt.morphology import words

TAGS: Mapping[str, str] = MappingProxyType(
    {
        "object": "物", "colour": "色", "count": "数", "place": "場所", "relation": "位置・関係", "style": "画風", "season": "季節",
        "culture": "日本の文化", "negation": "否定", "long": "長文", "colloquial": "話しことば", "dialect": "方言", "kana": "かなだけ",
        "request": "お願い",
    }
)  # fmt: skip
"""What a pair can be tagged with, and how Japanese says it."""

MESSY_TAGS: Mapping[str, str] = MappingProxyType(
    {
        "request": "お願い", "negation": "否定", "syntax": "全角の記法", "width": "全角・半角", "emoji": "絵文字", "repetition": "くり返し",
        "greeting": "あいさつ", "kaomoji": "顔文字", "dialect": "方言", "colloquial": "話しことば", "count": "数",
    }
)  # fmt: skip
"""What is messy about a messy prompt."""

CATEGORIES: Mapping[str, str] = MappingProxyType(
    {
        "festival": "祭り・行事", "food": "食べ物", "place": "名所", "craft": "工芸", "yokai": "妖怪", "clothing": "装い", "building": "建物",
        "nature": "自然・生き物", "game": "遊び・武道", "season": "季節", "stage": "芸能・人",
    }
)  # fmt: skip
"""Kinds of Japanese things."""

SPLITS = ("dev", "held-out")
"""Halves of the pairs: one to work with, one that only measures."""

_KANJI = re.compile("[一-鿿々]")
_TO_HIRAGANA = {katakana: katakana - 0x60 for katakana in range(ord("ァ"), ord("ヶ") + 1)}

Row = TypeVar("Row")


@dataclass(frozen=True)
class PromptPair:
    """A Japanese prompt, the English a careful translator would give an image model, its tags, and its half (see `SPLITS`)."""

    ja: str
    en: str
    tags: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class MessyPrompt:
    """A prompt as it is typed, what it asks to see, what must not appear (items joined by 、, may be empty), the English of the former, tags."""

    ja: str
    clean: str
    negative: str
    en: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class CultureClass:
    """The name of a Japanese thing, in English with a gloss, and its category (see `CATEGORIES`)."""

    ja: str
    en: str
    category: str


@dataclass(frozen=True)
class NegativePreset:
    """A negative prompt by name: its English name, what it is for in Japanese, the text itself."""

    name: str
    english: str
    ja: str
    negative: str


def pairs(*, tag: str | None = None, split: str | None = None) -> tuple[PromptPair, ...]:
    """The pairs, all of them or those with this tag and of this half; raises UnknownNameError.

        >>> pairs(tag="request")[0].en
        'a landscape with a view of Enoshima island and Mount Fuji'
    """
    _require("tag", tag, TAGS)
    _require("split", split, SPLITS)
    return tuple(pair for pair in _read("pairs", PromptPair) if tag in (None, *pair.tags) and split in (None, pair.split))


def messy(*, tag: str | None = None) -> tuple[MessyPrompt, ...]:
    """Prompts as people type them, all or those with this tag; raises UnknownNameError."""
    _require("tag", tag, MESSY_TAGS)
    return tuple(prompt for prompt in _read("messy", MessyPrompt) if tag in (None, *prompt.tags))


def culture(*, category: str | None = None) -> tuple[CultureClass, ...]:
    """Names of Japanese things to be recognised, all or those of this category; raises UnknownNameError."""
    _require("category", category, CATEGORIES)
    return tuple(one for one in _read("culture", CultureClass) if category in (None, one.category))


def negatives() -> dict[str, NegativePreset]:
    """The negative presets by name.

        >>> negatives()["文字なし"].negative.split("、")[:2]
        ['文字', 'ロゴ']
    """
    return {preset.name: preset for preset in _read("negatives", NegativePreset)}


def examples() -> tuple[PromptPair, ...]:
    """A few that differ: the first pair of each tag."""
    return tuple(dict.fromkeys(pairs(tag=tag)[0] for tag in TAGS))


def search(text: str, *, tag: str | None = None, split: str | None = None) -> tuple[PromptPair, ...]:
    """The pairs with this text in their Japanese or English, in any width, case and kana; a word is also found by its reading (さくら: 桜).

    Raises UnknownNameError for a tag or a half that is not there, PromptError if there is nothing to search for.

        >>> {"桜" in pair.ja for pair in search("さくら")}
        {False, True}
    """
    needle = _folded(text.strip())
    if not needle:
        raise PromptError("探すことばが空です。ことばを一つ書いてください / nothing to search for: give a word")
    spellings, readings = _ways(text.strip(), needle)
    as_kana = _KANJI.search(text) is not None  # 柿 is not every かき: only one that is written in kana
    index = _index()
    return tuple(pair for pair in pairs(tag=tag, split=split) if index[pair.ja].has(spellings, readings, as_kana=as_kana))


def _ways(text: str, needle: str) -> tuple[set[str], set[str]]:
    """Other spellings and the readings of what is searched for, as the dictionary and the lexicon know them."""
    spoken, lexicon = words(text), load_lexicon()
    known = lexicon.get(text)
    spellings = {needle} | {_folded(word.lemma) for word in spoken[:1] if len(spoken) == 1}  # さくら finds 夜桜 too
    spellings |= {_folded(entry.surface) for entry in lexicon if entry.reading == needle}
    return spellings - {""}, {"".join(_folded(word.reading) for word in spoken)} | ({known.reading} if known else set())


@dataclass(frozen=True)
class _Entry:
    """What a search looks through: the folded Japanese and English; readings of words, and of each whether it has kanji."""

    text: str
    readings: tuple[tuple[str, bool], ...]

    def has(self, spellings: set[str], readings: set[str], *, as_kana: bool) -> bool:
        """Whether one of the spellings is in the text, or whole words are read one of these ways (with `as_kana`: words written in kana)."""
        return any(one in self.text for one in spellings) or any(self._is_said(one, as_kana=as_kana) for one in readings)

    def _is_said(self, reading: str, *, as_kana: bool) -> bool:
        for start in range(len(self.readings)):
            rest = reading
            for said, has_kanji in self.readings[start:]:
                if not rest.startswith(said) or (as_kana and has_kanji):
                    break
                rest = rest[len(said) :]
                if not rest:
                    return True
        return False


@lru_cache(maxsize=1)
def _index() -> dict[str, _Entry]:
    return {
        pair.ja: _Entry(
            f"{_folded(pair.ja)}\n{_folded(pair.en)}",
            tuple((_folded(word.reading), _KANJI.search(word.surface) is not None) for word in words(pair.ja)),
        )
        for pair in pairs()
    }


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().translate(_TO_HIRAGANA)


def _require(kind: str, got: str | None, known: Mapping[str, str] | tuple[str, ...]) -> None:
    if got is not None and got not in known:
        raise UnknownNameError.of(kind, got, known)


@lru_cache(maxsize=8)
def _read(name: str, kind: type[Row]) -> tuple[Row, ...]:
    """The rows of a file of the data room as values of this kind; raises PromptError naming the line that is wrong."""
    path = data_folder() / f"{name}.tsv"
    columns = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass: those above
    try:
        first, *lines = path.read_bytes().decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} を読めません。jpgen を入れ直してください / cannot read {path} ({error}): install jpgen again") from error
    if first.split("\t") != columns:
        raise PromptError(f"{path}: 一行目は {' '.join(columns)}（タブ区切り）のはずです / the first line must name these columns, got {first!r}")
    rows = []
    for number, line in enumerate(lines, 2):
        cells = dict(zip(columns, line.split("\t"), strict=False))
        if line.count("\t") != len(columns) - 1:
            raise PromptError(f"{path}:{number}: 列は {len(columns)} 個のはずです / wanted {len(columns)} columns: {line!r}")
        tags = {"tags": tuple(cells["tags"].split(" "))} if "tags" in cells else {}
        rows.append(kind(**{**cells, **tags}))
    return tuple(rows)
