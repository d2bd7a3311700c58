"""The words that edits by words know (edits.toml and the styles of jpgen), and where they stand in a prompt."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import jpgen

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KATAKANA = {code: code - 0x60 for code in range(ord("ァ"), ord("ヶ") + 1)}
KANJI = re.compile("[一-鿿々〆]")
LATIN = re.compile("[a-z]")
JAPANESE = re.compile("[ぁ-ゟ゠-ヿ一-鿿]")

TABLES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("edits.toml").read_text(encoding="utf-8"))
COLOURS: dict[str, str] = {way: adjective for adjective, told in TABLES["colours"].items() for way in (*told, adjective, adjective[:-1])}
OPPOSITES: dict[str, str] = {one: other for pair in TABLES["opposites"]["pairs"] for one, other in (pair, pair[::-1])}
SLOTS: dict[str, str] = {name: slot for slot, names in TABLES["slots"].items() for name in names}
GROUPS: dict[str, tuple[str, ...]] = {word: tuple(words) for words in TABLES["groups"].values() for word in words}


def folded(text: str) -> str:
    """The text with katakana as hiragana and small letters, character for character."""
    return "".join(lower if len(lower := one.lower()) == 1 else one for one in text).translate(KATAKANA)


def plain(text: str) -> str:
    """Widths made one (NFKC), spaces trimmed."""
    return unicodedata.normalize("NFKC", text).strip()


@lru_cache(maxsize=1)
def styles() -> frozenset[str]:
    """Names of styles without 風, 調 and タッチ."""
    return frozenset(core(name) for name in (*jpgen.load_styles(), *TABLES["styles"]["names"]))


def core(style: str) -> str:
    """A style's name without 風, 調, タッチ."""
    return re.sub("(?:風|調|タッチ|っぽい)$", "", style) or style


def ways(word: str) -> tuple[str, ...]:
    """The word and, behind it, others for the same thing."""
    for row in TABLES["same"]:
        if folded(word) in map(folded, row):
            return tuple(dict.fromkeys((word, *row)))
    return (word,)


def native(word: str, prompt: str) -> str:
    """An English word as a Japanese prompt has it, where it is known; an article goes."""
    bare = re.sub(r"^(?:an?|the|some)\s+", "", word, flags=re.IGNORECASE).strip()
    if not JAPANESE.search(prompt) or JAPANESE.search(bare):
        return bare
    if colour := COLOURS.get(bare.lower()):
        return colour
    return next((str(row[0]) for row in TABLES["same"] if bare.lower() in row), bare)


def find(word: str, prompt: str) -> tuple[int, int] | None:
    """Where the word (or another for the same thing) stands: not at the head of a longer word of kanji, not within a word of letters."""
    for way in ways(word):
        for match in re.finditer(re.escape(folded(way)), folded(prompt)):
            start, end = match.span()
            before, after = prompt[start - 1 : start], prompt[end : end + 1]
            cut = (KANJI.match(way[-1]) and KANJI.match(after)) or (LATIN.match(way[-1].lower()) and LATIN.match(after.lower()))
            cut = cut or (LATIN.match(way[0].lower()) and LATIN.match(before.lower()))
            if not cut:
                return start, end
    return None
