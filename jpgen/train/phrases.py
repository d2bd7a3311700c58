"""Practice sentences for the translator: the words of image prompts put together as prompts are, in both languages at once.

Every sentence is made from `phrases.tsv` by a few rules of Japanese and English (の, relative clauses, 〜ている, tag lists); some of its words
are markers (`jpgen.translate.markers`), so that a translator learns to carry them over.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import cycle

import numpy as np

from jpgen.train.captions import ENGLISH_DIGITS, KANJI_DIGITS, article, plural
from jpgen.translate.markers import LOOKS, NOUNS, PLACES, STYLES

MARKED = 0.16
"""Share of the slots that a marker fills."""

COUNTERS = {"person": "人", "animal": "匹", "plant": "本", "food": "つ", "thing": "つ"}
WORN = (("wear", "を着た"), ("wear", "を着ている"), ("wear", "姿の"), ("head", "をかぶった"), ("face", "をかけた"), ("face", "をつけた"))
PREPOSITIONS = ("in", "on", "at", "by", "under")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Word:
    """A word of phrases.tsv: its kind, Japanese forms, English, that within a sentence ("in the forest"), and what an `at` verb joins."""

    kind: str
    ja: tuple[str, ...]
    en: str
    within: str = ""
    by: tuple[str, ...] = ()
    to: tuple[str, ...] = ()


@cache
def phrase_words() -> dict[str, tuple[Word, ...]]:
    """The words of phrases.tsv by kind, in file order."""
    text = (resources.files("jpgen.train") / "phrases.tsv").read_text("utf-8")
    found: dict[str, list[Word]] = {}
    for kind, ja, en, *joined in csv.reader((x for x in text.splitlines() if not x.startswith("#")), delimiter="\t", quoting=csv.QUOTE_NONE):
        usual, _, within = en.partition("|")
        by, to = (tuple(kinds.split(",")) for kinds in joined) if joined else ((), ())
        found.setdefault(kind, []).append(Word(kind, tuple(ja.split("、")), usual, within, by, to))
    return {kind: tuple(words) for kind, words in found.items()}


def a(english: str) -> str:
    """With its article, if it takes one; a marker takes none."""
    return english.lstrip("~") if english.startswith("~") or english[0] >= NOUNS[0] else article(english)


class Phrases:
    """Sentences from one generator of random numbers; the same generator gives the same sentences."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._words = phrase_words()
        self._markers = {row: cycle(row) for row in (NOUNS, LOOKS, PLACES, STYLES)}
        self._core: Sequence[Callable[[], Pair]] = (
            self._plain, self._placed, self._timed, self._dressed, self._looking, self._acting, self._moving, self._joined_by_a_verb,
            self._joined_by_a_verb, self._joined_by_a_verb, self._doing, self._counted, self._two, self._place, self._styled,
        )  # fmt: skip

    def prompt(self) -> Pair:
        """A prompt: a phrase and what follows it, or a list of tags."""
        self._markers = {row: cycle(row) for row in (NOUNS, LOOKS, PLACES, STYLES)}
        if self._chance(0.15):
            items = [self._item() for _ in range(int(self._rng.integers(1, 8)))]
        else:
            items = [self._of(self._core)(), *(self._item() for _ in range(int(self._rng.choice(5, p=(0.35, 0.3, 0.2, 0.1, 0.05)))))]
            if self._chance(0.1):
                items.insert(0, self._item())
        comma = self._of(("、", "、", "、", "，", ", ", " "))
        return comma.join(ja for ja, _ in items), ", ".join(en for _, en in items)

    # ── words ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def _of(self, choices):  # type: ignore[no-untyped-def]
        return choices[int(self._rng.integers(len(choices)))]

    def _form(self, word: Word) -> str:
        return word.ja[0] if self._chance(0.4) else str(self._of(word.ja))

    def _marker(self, row: tuple[str, ...]) -> str | None:
        return next(self._markers[row]) if self._chance(MARKED) else None

    def _noun(self, *kinds: str) -> Pair:
        """A noun with some adjectives, in English without its article."""
        if marker := self._marker(NOUNS):
            ja = en = marker
        else:
            word = self._of([word for kind in kinds for word in self._words[kind]])
            ja, en = self._form(word), word.en
        for _ in range(int(self._rng.choice(3, p=(0.55, 0.36, 0.09)))):
            before, look = self._look()
            ja, en = before + ja, f"{'~' if en.startswith('~') or look[0] >= NOUNS[0] else ''}{look} {en.lstrip('~')}"
        return ja, en

    def _look(self) -> Pair:
        if marker := self._marker(LOOKS):
            return marker + self._of(("の", "の", "の", "な", "した", "とした", "")), marker
        word = self._of(self._words["adj"])
        return self._form(word), word.en

    def _within(self, kind: str) -> Pair:
        """A place or a time, in English as it stands in a sentence."""
        if marker := self._marker(PLACES):
            return marker + ("の中" if self._chance(0.15) else ""), f"in {marker}"
        word = self._of(self._words[kind])
        return self._form(word), word.within

    def _someone(self) -> Pair:
        return self._noun("person", "animal")

    def _something(self) -> Pair:
        return self._noun("person", "animal", "thing", "plant", "food")

    # ── phrases ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plain(self) -> Pair:
        ja, en = self._something()
        return ja, a(en)

    def _placed(self) -> Pair:
        (ja, en), (place, within) = self._something(), self._within("place")
        if self._chance(0.15):
            then, when = self._within("time")
            return f"{then}の{place}の{ja}", f"{a(en)} {within} {when}"
        return f"{place}{self._of(('の', 'の', 'と'))}{ja}", f"{a(en)} {within}"

    def _timed(self) -> Pair:
        (ja, en), (then, when) = self._something(), self._within("time")
        return f"{then}の{ja}", f"{a(en)} {when}"

    def _place(self) -> Pair:
        """A place alone, maybe at some time or as it looks."""
        place, within = self._within("place")
        en = self._bare(within)
        if self._chance(0.5):
            then, when = self._within("time")
            return f"{then}の{place}", f"{en} {when}"
        if self._chance(0.4) and en.split()[0] in ("a", "an", "the"):
            before, look = self._look()
            return f"{before}{place}", a(f"{look} {en.split(' ', 1)[1]}")
        return place, en

    def _bare(self, within: str) -> str:
        """in the forest → the forest; what has no such preposition stays."""
        first, _, rest = within.partition(" ")
        return rest if first in PREPOSITIONS and rest else within

    def _dressed(self) -> Pair:
        person, one = self._noun("person")
        kind, verb = self._of(WORN)
        worn, what = self._noun(kind)
        return f"{worn}{verb}{person}", f"{a(one)} {'in' if verb == '姿の' else 'wearing'} {a(what)}"

    def _looking(self) -> Pair:
        (ja, en), word = self._someone(), self._of(self._words["look"])
        look, what = self._form(word), a(word.en) if word.en in ("tail", "smile", "gentle smile", "beard", "tattoo") else word.en
        if self._chance(0.3):
            other = self._of(self._words["look"])
            return f"{look}と{self._form(other)}の{ja}", f"{a(en)} with {what} and {other.en}"
        return f"{look}{self._of(('の', 'の', 'を持つ', 'が美しい'))}{ja}", f"{a(en)} with {what}"

    def _acting(self) -> Pair:
        (ja, en), word = self._someone(), self._of(self._words["act"])
        act = self._form(word)
        if self._chance(0.45):
            place, within = self._within("place")
            return f"{place}で{act}{ja}", f"{a(en)} {word.en} {within}"
        if self._chance(0.2) and (marker := next(self._markers[LOOKS])):
            return f"{marker}{self._of(('と', ''))}{act}{ja}", f"{a(en)} {word.en}, {marker}"
        return f"{act}{ja}", f"{a(en)} {word.en}"

    def _moving(self) -> Pair:
        (ja, en), word = self._noun("thing", "plant"), self._of(self._words["move"])
        if self._chance(0.4):
            place, within = self._within("place")
            return f"{place}に{self._form(word)}{ja}", f"{a(en)} {word.en} {within}"
        return f"{self._form(word)}{ja}", f"{a(en)} {word.en}"

    def _joined_by_a_verb(self) -> Pair:
        """A relative clause: 海に浮かぶ船, 傘を持った少女."""
        word = self._of(self._words["at"])
        to = self._of(word.to)
        if word.by == ("place",):
            ja, within = self._within("place")
            one = self._bare(within)
        else:
            ja, en = self._noun(*(kind for kind in word.by if kind != "place"))
            one = a(en)
        if to != "place":
            object_ja, object_en = self._noun(to)
            done = f"{word.en} {a(object_en)}"
        else:
            object_ja, within = self._within("place")
            verb, _, last = word.en.rpartition(" ")
            before_place = f"{verb} {within}".strip() if last in ("in", "on") else f"{word.en} {self._bare(within)}"
            done = before_place
        form = self._form(word)
        if self._chance(0.25) and form.endswith("いる") and word.by != ("place",):
            return f"{ja}が{object_ja}{form}", f"{one} {done}"
        return f"{object_ja}{form}{ja}", f"{one} {done}"

    def _doing(self) -> Pair:
        """A whole sentence: 少女が森で踊っている."""
        (ja, en), word = self._someone(), self._of([word for word in self._words["act"] if word.ja[-1].endswith("いる")])
        place, within = self._within("place")
        form = word.ja[-1]
        if self._chance(0.3):
            return f"{ja}が{form}", f"{a(en)} {word.en}"
        return self._of((f"{ja}が{place}で{form}", f"{place}で{ja}が{form}")), f"{a(en)} {word.en} {within}"

    def _counted(self) -> Pair:
        kind = self._of(tuple(COUNTERS))
        ja, en = self._noun(kind)
        number = int(self._rng.integers(2, 6))
        if en.startswith("~") or en[-1] >= NOUNS[0]:
            return f"たくさんの{ja}", f"many {en.lstrip('~')}"
        counted = self._of((KANJI_DIGITS[number], str(number))) if COUNTERS[kind] != "つ" else KANJI_DIGITS[number]
        return f"{counted}{COUNTERS[kind]}の{ja}", f"{ENGLISH_DIGITS[number]} {plural(en)}"

    def _two(self) -> Pair:
        (ja, en), (other, second) = self._something(), self._something()
        if self._chance(0.2):
            where, there = self._of((("の上に", "on"), ("の下に", "under"), ("の隣に", "next to"), ("の前に", "in front of"), ("の後ろに", "behind")))
            return f"{other}{where}{ja}", f"{a(en)} {there} {a(second)}"
        if self._chance(0.15):
            return f"{ja}の{other}", f"{a(second)} of {a(en)}"
        return f"{ja}と{other}", f"{a(en)} and {a(second)}"

    def _styled(self) -> Pair:
        ja, en = self._of((self._plain, self._placed, self._joined_by_a_verb, self._dressed))()
        if marker := (next(self._markers[STYLES]) if self._chance(0.6) else None):
            style = look = marker
        else:
            word = self._of(self._words["tag"])
            style, look = self._form(word), word.en
        return self._of((f"{style}の{ja}", f"{style}の{ja}", f"{style}で描いた{ja}", f"{style}で{ja}")), f"{a(en) if en[0] == '~' else en}, {look}"

    # ── tags ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _item(self) -> Pair:
        """One item of a list."""
        kinds = ("tag", "style", "place", "time", "look", "noun", "wear", "phrase")
        kind = str(self._rng.choice(kinds, p=(0.3, 0.15, 0.1, 0.12, 0.1, 0.1, 0.05, 0.08)))
        if kind == "style":
            return (marker := next(self._markers[self._of((STYLES, STYLES, PLACES, LOOKS))])), marker
        if kind == "noun":
            return self._plain()
        if kind == "phrase":
            return self._of(self._core)()
        word = self._of(self._words[kind])
        if kind == "place":
            return self._form(word), self._bare(word.within)
        return self._form(word), a(word.en) if kind == "wear" else word.en.lstrip("~")
