"""What all of the prompt syntax stands on: bracket pairs with the marks of their own level, numbers of either width, Japanese or not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from jpgen.prompt.characters import JAPANESE

OPENING = {"(": ")", "（": ")", "[": "]", "［": "]", "{": "}", "｛": "}"}
CLOSING = {")": ")", "）": ")", "]": "]", "］": "]", "}": "}", "｝": "}"}
MARKS = frozenset({":", "：", "|", "｜", "$$", "＄＄", "$＄", "＄$"})
WIDE, ASCII = "０１２３４５６７８９．＋－−：｜＄（）［］｛｝＜＞＿＼ＡＣＬＯＲＹａｃｌｏｒｙ", "0123456789.+--:|$()[]{}<>_\\ACLORYaclory"
TWINS = dict(zip(WIDE, ASCII, strict=True))
"""Full-width characters of the syntax (the letters are those of lora and lyco) and their ASCII twins."""

NUMBER = r"[+\-＋－−]?(?:[0-9０-９]+[.．]?[0-9０-９]*|[.．][0-9０-９]+)"
"""A regular expression: a decimal number of either width."""

WORD = r"[^\s_＿、。,，:：;；!！\"|｜<>＜＞()\[\]{}（）［］｛｝「」『』$＄#\\]+"
WILDCARD = rf"(?<![_＿])[_＿]{{2}}(?P<wildcard>{WORD}(?:[ _＿]{WORD})*)[_＿]{{2}}(?![_＿])"
"""A regular expression: `__季節__`. Blanks to fill in (____、____) and names with punctuation are none."""

IS_JAPANESE = re.compile(f"[{JAPANESE}]")


@dataclass(frozen=True)
class Pair:
    """A bracket and the one that closes it, by index, with the indices of the marks between them that are in no inner pair."""

    start: int
    end: int
    marks: tuple[int, ...]


def find_pairs(tokens: Iterable[re.Match[str]]) -> list[Pair]:
    """The bracket pairs among the tokens, inner ones before outer ones, width ignored; a bracket left open or closing nothing is no pair.

    Tokens that are neither brackets nor MARKS (escapes, tags) are passed over, so brackets inside them do not count.

        >>> find_pairs(re.finditer(r"[][:]", "[a:[b]:5]"))
        [Pair(start=3, end=5, marks=()), Pair(start=0, end=8, marks=(2, 6))]
    """
    pairs: list[Pair] = []
    stack: list[tuple[str, int, list[int]]] = []
    waiting: Counter[str] = Counter()
    for token in tokens:
        text, at = token.group(), token.start()
        if text in OPENING:
            stack.append((OPENING[text], at, []))
            waiting[OPENING[text]] += 1
        elif text in MARKS and stack:
            stack[-1][2].append(at)
        elif text in CLOSING and waiting[CLOSING[text]]:
            marks: list[int] = []
            while True:
                kind, start, own = stack.pop()
                waiting[kind] -= 1
                marks = own + marks if own else marks  # an inner bracket that was left open is text: its marks are ours
                if kind == CLOSING[text]:
                    break
            pairs.append(Pair(start, at, tuple(marks)))
    return pairs


def to_ascii(text: str) -> str:
    """The text with every character of TWINS as its ASCII twin.

        >>> to_ascii("：－０．５")
        ':-0.5'
    """
    return "".join(TWINS.get(char, char) for char in text)


def separator(texts: Iterable[str]) -> str:
    """What joins the texts of a list: 、 if any of them is Japanese, else a comma and a space.

        >>> separator(["a cat", "夕焼け"])
        '、'
    """
    return "、" if any(IS_JAPANESE.search(text) for text in texts) else ", "
