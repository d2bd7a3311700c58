"""The words of a text that the lexicon knows, with the English they look like: what a translator must not lose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jpgen.prompt.lexicon import Lexicon, load_lexicon
from jpgen.prompt.morphology import words

_AFFIXES = ("接尾辞", "接頭辞")
_SURE = 3
"""Characters from which on an expression is taken even where the dictionary of words cuts it elsewhere (つるんと, きびだんご)."""


class Term(NamedTuple):
    """A word of the lexicon in a text: where it stands, its kind, its English."""

    start: int
    end: int
    kind: str
    english: str


def terms(text: str, more: Sequence[Path] = ()) -> list[Term]:
    """The lexicon's words in a text, none inside another: whole words alone, not the 赤 of 赤い nor the 風 of 油絵風.

    Words in kana that say several things (はし, くも) are left to the translator. `more` are lexicon files on top; raises PromptError for one that
    cannot be read.

        >>> [text[t.start:t.end] for text in ("江ノ島の赤い風車、油絵風",) for t in terms(text)]
        ['江ノ島', '油絵風']
    """
    found = _clear(load_lexicon(*more)).find(text)
    if not found:
        return []
    there = words(text)
    starts, ends = {word.start for word in there}, {word.end for word in there}
    affixes = {(word.start, word.end) for word in there if word.pos in _AFFIXES}
    made = [Term(at, at + len(entry.surface), entry.kind, entry.english) for at, entry in found]
    whole = [term for term in made if term.start in starts and (term.end in ends or term.end - term.start >= _SURE)]
    return [term for term in whole if (term.start, term.end) not in affixes]


@lru_cache(maxsize=8)
def _clear(lexicon: Lexicon) -> Lexicon:
    return Lexicon(entry for entry in lexicon if entry.kind != "homograph" and entry.english)
