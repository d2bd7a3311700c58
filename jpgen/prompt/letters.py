"""A clause as letters, one a word, so that grammar can be a pattern: 帽子をかぶっていない少年 reads `NwVtBxN`.

    N noun      Q number, counter     W verbal noun of `shown`    J adjectival noun   A adjective   D determiner   R adverb
    V verb of `shown`   Z of `appears`   B いる/ある   S する   P 込む   r 抜く   v other verb   L くださる, もらう …
    X 無い   G なく   x the auxiliary ない/ず/ぬ   q its なく   K なし   E 以外   U 抜き   C 除く   c 避ける …   u 消す   F 不要 …   I 要る   Y 必要
    o の   g が   w を   h は   m も   i に   d で   z じゃ   a な   t て   T てる   k た   j な (forbidding)   y other auxiliary
    & と/や/・   e など   p other particle, and words that negate in part (あまり)   s sign
"""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from typing import Any, NamedTuple

from jpgen.prompt.characters import WORDS
from jpgen.prompt.morphology import Word, words

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES: dict[str, Any] = tomllib.loads((WORDS / "negation.toml").read_text(encoding="utf-8"))


def _by_word(table: str) -> dict[str, str]:
    return {word: letter for letter, listed in TABLES[table].items() for word in listed}


_SURFACES, _LEMMAS, _PARTICLES = _by_word("surface"), _by_word("lemma"), _by_word("particle")
_SHOWN, _APPEARS = frozenset(TABLES["shown"]), frozenset(TABLES["appears"])


class Spelling(NamedTuple):
    """A text, its words, and a letter for each."""

    text: str
    words: tuple[Word, ...]
    letters: str


def spell(text: str) -> Spelling:
    """The text in letters."""
    row = words(text)
    letters = "".join(map(letter, row))
    for n, (one, two) in enumerate(pairwise(row)):
        if (one.surface, two.surface) == ("と", "らん"):  # 咲いとらん, read as と and an adverb
            letters = f"{letters[:n]}yx{letters[n + 2 :]}"
    letters = re.sub("(?<=Q)n", "Q", letters).replace("n", "N")  # a counter belongs to its number
    return Spelling(text, row, re.sub("[vVZ](?=[KUE])", "N", letters))  # 透かしなし: a verb's form as noun


def letter(word: Word) -> str:
    """The letter of a word alone; n for a suffix, which `spell` resolves."""
    surface, pos, kind, lemma = word.surface, word.pos, word.kind, word.lemma
    if pos == "助詞":
        if kind == "終助詞" and surface == "な":
            return "j"
        return "t" if kind == "接続助詞" and surface == "で" else _SURFACES.get(surface) or _PARTICLES.get(surface, "p")
    known = _SURFACES.get(surface) or _LEMMAS.get(lemma)
    if known:
        return known
    if pos == "助動詞":
        if lemma in ("ない", "ず", "ぬ", "へん"):
            return "q" if surface == "なく" else "x"
        return {"てる": "T", "で": "d", "じゃ": "z", "な": "a", "た": "k"}.get(lemma if lemma in ("てる", "た") else surface, "y")
    if pos == "形容詞":
        return ("G" if surface == "なく" else "X") if lemma == "無い" else "A"
    if pos == "動詞":
        return "V" if lemma in _SHOWN else "Z" if lemma in _APPEARS else "v"
    if kind == "数詞":
        return "Q"
    if pos == "接尾辞":
        return "n"
    if pos in ("名詞", "代名詞", "接頭辞", "記号"):
        return "W" if surface in _SHOWN else "N"
    return {"形状詞": "J", "連体詞": "D", "副詞": "R"}.get(pos, "s")
