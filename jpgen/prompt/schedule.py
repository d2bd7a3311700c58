"""Prompts that change as the picture is sampled: [猫:犬:0.5] [桜:5] [桜::0.7] [春|夏|秋|冬]."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from jpgen.prompt.scan import Pair, find_pairs

TOKEN = re.compile(r"\\.|[()\[\]:|]", re.DOTALL)
STEP = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*")


@dataclass(frozen=True)
class Switch:
    """A bracket whose text switches: its place and that of each of its texts, and the last step of the first text (None: a new one each step)."""

    start: int
    end: int
    texts: tuple[tuple[int, int], ...]
    until: int | None

    def at(self, step: int) -> tuple[int, int]:
        """The place of the text that stands there at this step (from 1)."""
        return self.texts[(step - 1) % len(self.texts) if self.until is None else int(step > self.until)]


def schedule(text: str, steps: int) -> list[tuple[int, str]]:
    """The texts of a sampling of so many steps, each with the last step (from 1) that it is for.

    [a:b:n] is a up to step n, then b; [b:n] is b after step n; [a::n] is a up to step n; [a|b|c] takes turns. A number with a dot is a share
    of the steps. What is in no such bracket, and brackets that are none of these, stay as they are, also where they do not balance.

        >>> schedule("[猫:犬:0.5]が走る", 20)
        [(10, '猫が走る'), (20, '犬が走る')]
    """
    switches = _switches(text, steps)
    ends = {steps}
    for switch in switches:
        if switch.until is None:
            ends.update(range(1, steps + 1))
        elif switch.until >= 1:
            ends.add(switch.until)
    return [(end, _text_at(text, switches, end)) for end in sorted(ends)]


def has_schedule(text: str) -> bool:
    """Whether the text switches as the picture is sampled.

        >>> has_schedule("[春|秋]の京都"), has_schedule("[春]の京都")
        (True, False)
    """
    return bool(_switches(text, 1))


def _switches(text: str, steps: int) -> list[Switch]:
    """All brackets of the text that change it, in order of their starts."""
    if "[" not in text:
        return []
    pairs = find_pairs(TOKEN.finditer(text))
    found = [switch for pair in pairs if text[pair.start] == "[" and (switch := _switch(text, pair, steps))]
    return sorted(found, key=lambda switch: switch.start)


def _switch(text: str, pair: Pair, steps: int) -> Switch | None:
    cuts = [pair.start, *pair.marks, pair.end]
    places = [(left + 1, right) for left, right in pairwise(cuts)]
    marks = {text[mark] for mark in pair.marks}
    if marks == {"|"}:
        return Switch(pair.start, pair.end, tuple(places), None)
    number = STEP.fullmatch(text, *places[-1])
    if marks != {":"} or len(places) > 3 or not number:
        return None
    until = float(number[1]) * (steps if "." in number[1] else 1)
    texts = places[:-1] if len(places) == 3 else [(pair.start, pair.start), places[0]]
    return Switch(pair.start, pair.end, tuple(texts), int(max(-1.0, min(steps, until))))


def _text_at(text: str, switches: list[Switch], step: int) -> str:
    """The text of one step. A stack of places still to write, not recursion: brackets may be nested ten thousand deep."""
    starts = [switch.start for switch in switches]
    written: list[str] = []
    places = [(0, len(text))]
    while places:
        start, end = places.pop()
        index = bisect_left(starts, start)
        if index == len(starts) or starts[index] >= end:
            written.append(text[start:end])
            continue
        switch = switches[index]
        written.append(text[start : switch.start])
        places += [(switch.end + 1, end), switch.at(step)]
    return "".join(written)
