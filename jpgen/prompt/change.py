"""What a rule gives: changes of a text, each a replaced stretch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """`text[start:end]` becomes `after`; `negative` goes to the negative prompt; `note` is for the reader (a change of nothing may just note)."""

    start: int
    end: int
    after: str = ""
    negative: tuple[str, ...] = ()
    note: str = ""


Rule = Callable[[str], Sequence[Change]]
"""Reads a text and gives its changes, in order, never overlapping. Applied to its own result it gives none that alter the text."""


def splice(text: str, changes: Iterable[Change]) -> str:
    """The text with the changes made."""
    pieces, done = [], 0
    for change in changes:
        pieces += [text[done : change.start], change.after]
        done = change.end
    return "".join([*pieces, text[done:]])


def substitute(pattern: re.Pattern[str], after: str | Callable[[re.Match[str]], str], text: str) -> list[Change]:
    """A change for every match whose replacement differs from it."""
    found = []
    for match in pattern.finditer(text):
        new = after if isinstance(after, str) else after(match)
        if new != match[0]:
            found.append(Change(match.start(), match.end(), new))
    return found


def difference(before: str, after: str, start: int = 0) -> list[Change]:
    """The change that makes one text the other without the ends they share, or none; `start` is where `before` stands."""
    if before == after:
        return []
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return [Change(start + head, start + len(before) - tail, after[head : len(after) - tail])]
