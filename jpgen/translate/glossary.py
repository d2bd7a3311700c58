"""The glossary: words with an English of their own pass through a translator as markers (terminology as placeholders, Crego et al. 2016, arXiv
1610.05540), and none is lost: what a translator drops is said at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from jpgen.protocols import Translator
from jpgen.translate.markers import MARKERS, NOUNS, OF_KIND

Find = Callable[[str], Sequence[tuple[int, int, str, str]]]
"""Gives the words of a text to protect, from the left: start, end, kind, English."""

FOREIGN = "ZX{}Q"
"""The marker for translators that have not learnt jpgen's own: letters and digits, which they copy as they copy a name."""

NAMES = ("place", "yokai", "culture", "craft", "festival", "clothing", "food", "game", "building", "idiom")
"""Kinds that are hidden from such translators; colours, light, weather and styles they know, and put better where they see them."""

_LATIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .'+-]*[A-Za-z0-9]|[A-Za-z]")
_GAPS = ((re.compile(r"\s+([,.!?;:])"), r"\1"), (re.compile(r"([,;:])(?:\s*[,;:])+"), r"\1"), (re.compile(r"\s{2,}"), " "))


class Glossed:
    """A translator with a glossary before and behind it."""

    def __init__(self, translator: Translator, find: Find) -> None:
        self.name = translator.name
        self._translator, self._find = translator, find
        self._own = bool(getattr(translator, "knows_markers", False))

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The English of each text, with the glossary's English for the words that it knows: its first words in their place, the rest at the end."""
        marked = [mark(text, self._find(text), own=self._own) for text in texts]
        asked = list(dict.fromkeys(text for text, words in marked if text not in words))  # a word alone needs no translator
        made = dict(zip(asked, self._translator.translate(asked), strict=True)) if asked else {}
        return [unmark(made.get(text, text), words) for text, words in marked]


def mark(text: str, found: Iterable[tuple[int, int, str, str]], *, own: bool) -> tuple[str, dict[str, str]]:
    """The text with markers for the words found, and the English of each marker; `own` takes jpgen's markers, as far as there are of a kind."""
    free = {row: iter(row) for row in (NOUNS, *OF_KIND.values())}
    numbers, made, words, done = count(1), "", {}, 0
    for start, end, kind, english in found:
        if not own and kind not in NAMES:
            continue
        marker = next(free[OF_KIND.get(kind, NOUNS)], "") if own else FOREIGN.format(next(numbers))
        if marker:
            made, done = made + text[done:start] + marker, end
        words[marker or text[start:end]] = english  # what finds no marker is translated, and looked for afterwards
    return made + text[done:], words


def unmark(english: str, words: dict[str, str]) -> str:
    """The translation with the English of every marker: its head at the marker, what follows its first comma after the sentence.

    >>> unmark("a ZX1Q cat.", {"ZX1Q": "orange, warm as a fire", "ZX2Q": "rain"})
    'an orange cat, rain, warm as a fire.'
    """
    if not words and not {*MARKERS} & {*english}:
        return english
    lost, more = [], []
    for marker, meaning in words.items():
        head, _, rest = meaning.partition(", ")
        there = re.search(rf"(\ban? )?{re.escape(marker)}", english, re.IGNORECASE)
        if there:
            before = f"{english[: there.start()]}{_article(head) if there[1] else ''}{head}"
            english = before + re.sub(re.escape(marker), "", english[there.end() :], flags=re.IGNORECASE)
        elif head.lower() not in english.lower():
            lost.append(head)
        more += [rest] if rest else []
    for marker in MARKERS:
        english = english.replace(marker, "")
    body = english.rstrip(" .,")
    stop = "." if english.rstrip().endswith(".") else ""
    english = ", ".join(filter(None, (body, *lost, *more))) + (stop if body else "")
    for gap, closed in _GAPS:
        english = gap.sub(closed, english)
    return english.strip(" ,")


def _article(head: str) -> str:
    """The indefinite article of a word of the glossary; none if it brings its own."""
    return "" if re.match(r"(a|an|the) ", head) else "an " if head[:1].lower() in "aeiou" else "a "


class Gloss:
    """The last resort: the English of the words that the glossary knows, one after the other, and what is in Latin letters; the rest is lost."""

    name = "gloss"

    def __init__(self, find: Find) -> None:
        self._find = find

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The glosses of each text; "" of one that has none of the glossary's words."""
        return [self._glossed(text) for text in texts]

    def _glossed(self, text: str) -> str:
        said, done = [], 0
        for start, end, _, english in [*self._find(text), (len(text), len(text), "", "")]:
            said += [*_LATIN.findall(text[done:start]), english]
            done = end
        return ", ".join(filter(None, said))
