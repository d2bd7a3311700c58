r"""Prompts that leave a choice: {猫|犬} {0.7::猫|0.3::犬} {2$$と$$猫|犬|鳥} __季節__, decided by a seed.

The syntax is that of the web UI's Dynamic Prompts; variables and commands of that are not read. Curly brackets without | and without $$ are text,
so are those that do not balance and \{ \}.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

from jpgen.errors import PromptError
from jpgen.prompt.fullwidth import ascii_syntax
from jpgen.prompt.scan import WILDCARD, Pair, find_pairs, separator
from jpgen.prompt.tags import TAG
from jpgen.prompt.wildcards import Wildcards
from jpgen.types import require_seed

__all__ = ["Wildcards", "expand"]

Find = Callable[..., dict[str, list[str]]]
"""`Wildcards.find`, its answers kept."""

MOST_CHOICES = 10_000
LONGEST_SHOWN = 60
TOKEN = re.compile(rf"\\.|{WILDCARD}|[()\[\]{{}}|]|\$\$", re.DOTALL)
SHARE = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})::")
HOW_MANY = re.compile(r"\s*(?:(?P<low>[0-9]{1,9})?(?P<dash>-)(?P<high>[0-9]{1,9})?|(?P<exactly>[0-9]{1,9}))\s*")


@dataclass(frozen=True)
class Template:
    """A text that may hold choices, and where they are: variants as pairs of curly brackets, wildcards as matches."""

    text: str

    @cached_property
    def choices(self) -> dict[int, Pair | re.Match[str]]:
        """By their starts."""
        tags = [tag.span() for tag in TAG.finditer(self.text)] if "<" in self.text else []
        tokens = list(TOKEN.finditer(self.text))
        found: list[tuple[int, Pair | re.Match[str]]] = []
        for token in tokens:
            # <lora:my__style__v2:1> is the name of a file, <lora:__絵柄__:1> is a choice of one
            beside = self.text[max(token.start() - 1, 0)] + self.text[token.end() : token.end() + 1]
            if token["wildcard"] and not (re.search("[A-Za-z0-9]", beside) and any(start < token.start() < end for start, end in tags)):
                found.append((token.start(), token))
        for pair in find_pairs(tokens):
            if self.text[pair.start] == "{" and any(self.text[mark] in "|$" for mark in pair.marks):
                found.append((pair.start, pair))
        return dict(sorted(found))

    @cached_property
    def starts(self) -> list[int]:
        """Where choices start, sorted."""
        return list(self.choices)


@dataclass(frozen=True)
class Option:
    """A stretch of a template still to be written: its weight, and the wildcards it came out of."""

    template: Template
    start: int
    end: int
    weight: float = 1.0
    origin: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As it stands there."""
        return self.template.text[self.start : self.end]


def expand(text: str, seed: int, wildcards: Wildcards) -> tuple[str, list[str]]:
    """The text with its choices made, and a line for each choice, outer ones first. The same for text and seed on every machine.

    Several options are picked without repeating one, in the order they are drawn, and joined by 、 if an option is Japanese, else by ", ".
    Raises PromptError for a wildcard that is not known, cannot be read or comes out of itself, and for more than 10,000 choices.

        >>> expand("{2$$と$$猫|犬|鳥}の絵", 7, Wildcards.default())
        ('猫と鳥の絵', ['{2$$と$$猫|犬|鳥} → 猫と鳥'])
    """
    require_seed(seed)
    if not any(sign in text for sign in ("{", "}", "__")):
        return text, []
    draw = random.Random(seed)
    find = cache(wildcards.find)  # a file is read once in a call
    written: list[str] = []
    made: list[str] = []
    waiting: list[Option | str] = [_whole(text)]
    while waiting:
        option = waiting.pop()
        if isinstance(option, str):
            written.append(option)
            continue
        template, starts = option.template, option.template.starts
        index = bisect_left(starts, option.start)
        if index == len(starts) or starts[index] >= option.end:
            written.append(_unescaped(option.text))
            continue
        if len(made) == MOST_CHOICES:
            raise PromptError(f"選択が {MOST_CHOICES} を超えました。入れ子を減らしてください / more than {MOST_CHOICES} choices: nest less")
        written.append(_unescaped(template.text[option.start : starts[index]]))
        choice = template.choices[starts[index]]
        if isinstance(choice, Pair):
            end = choice.end + 1
            picked = _of_variant(option, choice, draw, find)
        else:
            end = choice.end()
            picked = list(_drawn(_of_wildcard(choice["wildcard"], option.origin, find), 1, draw))
        shown = "".join(part if isinstance(part, str) else _shown(part.template.text, part.start, part.end) for part in picked)
        made.append(f"{_shown(template.text, starts[index], end)} → {shown}")
        waiting += [Option(template, end, option.end, 1.0, option.origin), *reversed(picked)]
    return "".join(written), made


def _of_variant(outer: Option, pair: Pair, draw: random.Random, find: Find) -> list[Option | str]:
    """What is picked from {…}, with what joins it."""
    text = outer.template.text
    dollars = [mark for mark in pair.marks if text[mark] == "$"]
    bars = [mark for mark in pair.marks if text[mark] == "|"]
    start, joint, count = pair.start + 1, None, None
    if dollars and (count := HOW_MANY.fullmatch(text, start, dollars[0])):
        start = dollars[0] + 2
        if len(dollars) > 1:
            joint, start = _unescaped(text[start : dollars[1]]), dollars[1] + 2
    cuts = [start, *(bar + 1 for bar in bars if bar >= start), pair.end + 1]
    options = [_weighted(outer, left, right - 1) for left, right in pairwise(cuts)]
    if len(options) == 1 and (only := re.fullmatch(WILDCARD, options[0].text.strip())):  # {2$$__花__} picks two different lines
        options = list({option.text: option for option in _of_wildcard(only["wildcard"], outer.origin, find)}.values())
    if not count:
        return list(_drawn(options, 1, draw))
    least = int(count["exactly"] or count["low"] or 1)
    most = int(count["exactly"] or count["high"] or len(options))
    least, most = sorted((min(least, len(options)), min(most, len(options))))
    picked = _drawn(options, least + int(draw.random() * (most - least + 1)), draw)
    if joint is None:
        joint = separator(option.text for option in options)
    return [part for option in picked for part in (joint, option)][1:]


def _of_wildcard(name: str, origin: tuple[str, ...], find: Find) -> list[Option]:
    """A wildcard's lines."""
    options = []
    for known, lines in find(name, but=origin).items():
        if known in origin:
            cycle = " → ".join([*origin[origin.index(known) :], known])
            raise PromptError(f"ワイルドカードが輪になっています: {cycle}。どれかを消してください / wildcards form a cycle: remove one")
        options += [_weighted(Option(Template(line), 0, len(line), origin=(*origin, known)), 0, len(line)) for line in map(ascii_syntax, lines)]
    return options


def _weighted(outer: Option, start: int, end: int) -> Option:
    """The option of this place, its weight taken off; spaces go where the option is on lines of its own."""
    text = outer.template.text
    weight = 1.0
    if share := SHARE.match(text, start, end):
        weight, start = float(share[1]), share.end()
    words = text[start:end]
    before, after = len(words) - len(words.lstrip()), len(words) - len(words.rstrip())
    if words.strip() and "\n" in words[:before]:
        start += before
    if words.strip() and "\n" in words[len(words) - after :]:
        end -= after
    return Option(outer.template, start, end, weight, outer.origin)


def _drawn(options: Sequence[Option], count: int, draw: random.Random) -> list[Option]:
    """So many of the options, none twice, by their weights; only `random()`, which is the same in every Python."""
    left, drawn = list(options), []
    for _ in range(count):
        weights = [option.weight for option in left]
        if not any(weights):
            weights = [1.0] * len(left)
        point = draw.random() * math.fsum(weights)  # sum() of floats is not the same in every Python
        index = max(index for index, weight in enumerate(weights) if weight)
        for at, weight in enumerate(weights):
            point -= weight
            if point < 0:
                index = at
                break
        drawn.append(left.pop(index))
    return drawn


def _shown(text: str, start: int, end: int) -> str:
    return text[start:end] if end - start <= LONGEST_SHOWN else f"{text[start : start + LONGEST_SHOWN - 1]}…"


def _whole(text: str) -> Option:
    return Option(Template(text), 0, len(text))


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: found[1] if found[1] in "{}" else found[0], text, flags=re.DOTALL)
