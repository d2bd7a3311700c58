r"""The syntax of prompts as AUTOMATIC1111's web UI reads it, also beside Japanese: (強く) [弱く] (猫:1.3) \( \) BREAK AND.

    text ──▶ strip_comments ──▶ ascii_syntax ──▶ extract_loras ──▶ split_and ──▶ schedule ──▶ parse_attention ──▶ spans

Every function here works alone, on any text, and raises nothing but what its docstring says. Two dialects: "a1111" reads as the web UI does;
"jpgen" also knows BREAK and AND directly beside Japanese (猫BREAK犬).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Literal

from jpgen.errors import PromptError, UnknownNameError
from jpgen.prompt.fullwidth import ascii_syntax
from jpgen.prompt.scan import NUMBER, to_ascii
from jpgen.prompt.schedule import has_schedule, schedule
from jpgen.prompt.tags import extract_loras, strip_comments

__all__ = [
    "BREAK",
    "Dialect",
    "ascii_syntax",
    "escape",
    "extract_loras",
    "has_schedule",
    "parse_attention",
    "render",
    "schedule",
    "split_and",
    "strip_comments",
]

Dialect = Literal["jpgen", "a1111"]
BREAK = ("BREAK", -1.0)
"""The span that ends a chunk."""

STRONGER = 1.1
MAX_WEIGHT = sys.float_info.max
TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)"  # a backslash before anything else vanishes
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<words>[^\\()\[\]:]+|:)"
)
TAIL_WEIGHT = {
    "a1111": re.compile(r"\s*:\s*([+-]?(?:\d+\.?|\d*\.\d+))$"),
    "jpgen": re.compile(rf"\s*[:：]\s*({NUMBER})$"),
}


def parse_attention(text: str, *, dialect: Dialect = "jpgen") -> list[tuple[str, float]]:
    r"""The text in pieces with their attention weights, neighbours of equal weight as one; BREAK comes as ("BREAK", -1.0).

    (x) is ×1.1, [x] is ÷1.1, (x:1.3) is ×1.3, and nesting multiplies. A bracket left open reaches to the end, one that closes nothing is text,
    `\( \) \[ \] \\` are text. Differs from the web UI in two places, in both dialects: a number that is none, as in (猫:1.2.3), is text in
    plain brackets, and BREAK stays BREAK inside brackets. Weights are finite. Full-width syntax is text: see `ascii_syntax`.

        >>> parse_attention("赤い帽子の(猫:1.3)BREAK夕焼け")
        [('赤い帽子の', 1.0), ('猫', 1.3), ('', 1.0), ('BREAK', -1.0), ('夕焼け', 1.0)]
    """
    word = _word("BREAK", dialect)
    texts: list[str] = []
    weights: list[float | None] = []  # None: a BREAK
    waiting: dict[str, list[int]] = {"(": [], "[": []}

    def add(piece: str) -> None:
        parts = word.split(piece)
        for index, part in enumerate(parts):
            if index:
                texts.append("BREAK")
                weights.append(None)
                part = part.lstrip()
            texts.append(part if index == len(parts) - 1 else part.rstrip())
            weights.append(1.0)

    def multiply(start: int, factor: float) -> None:
        for index in range(start, len(weights)):
            weight = weights[index]
            if weight is not None:
                weights[index] = max(-MAX_WEIGHT, min(MAX_WEIGHT, weight * factor))

    for token in TOKEN.finditer(text):
        match token.lastgroup, token.group():
            case "escaped", _:
                texts.append(token["escaped"])
                weights.append(1.0)
            case "bracket", "(" | "[" as bracket:
                waiting[bracket].append(len(texts))
            case "bracket", ")" if waiting["("]:
                multiply(waiting["("].pop(), STRONGER)
            case "bracket", "]" if waiting["["]:
                multiply(waiting["["].pop(), 1 / STRONGER)
            case "weight", _ if waiting["("] and math.isfinite(factor := float(token["weight"])):
                multiply(waiting["("].pop(), factor)
            case "weight", ending if waiting["("]:
                add(ending[:-1])
                multiply(waiting["("].pop(), STRONGER)
            case _, piece:
                add(piece)
    for bracket, factor in (("(", STRONGER), ("[", 1 / STRONGER)):
        for start in waiting[bracket]:
            multiply(start, factor)
    return _merged((text, -1.0 if weight is None else weight) for text, weight in zip(texts, weights, strict=True)) or [("", 1.0)]


def without_weights(text: str) -> str:
    """The text of a prompt without its attention weights and BREAKs."""
    return "".join(piece for piece, weight in parse_attention(text) if (piece, weight) != ("BREAK", -1.0))


def escape(text: str) -> str:
    r"""The text with a backslash before each of ( ) [ ] \, so that it is read as it stands.

        >>> escape("カメラ(望遠)")
        'カメラ\\(望遠\\)'
    """
    return re.sub(r"[()\[\]\\]", r"\\\g<0>", text)


def render(spans: Sequence[tuple[str, float]]) -> str:
    r"""The text that `parse_attention` (and the web UI) reads as these spans; raises PromptError for a weight that is not finite.

    Reads back exactly, neighbours of equal weight as one, for any texts and weights and for everything that `parse_attention` gives. A BREAK
    whose two neighbours have different weights reads back with an empty span beside it. The word BREAK as text is written BRE\AK.

        >>> render([("赤い帽子の", 1.0), ("猫", 1.3)])
        '赤い帽子の(猫:1.3)'
    """
    groups: list[tuple[float, list[str]]] = []  # a weight and texts with BREAK between them
    ended = False
    merged = _merged(spans)
    for index, (text, weight) in enumerate(merged):
        if (text, weight) == BREAK:
            if ended:
                groups[-1][1].append("")
            else:
                following = merged[index + 1] if index + 1 < len(merged) else BREAK
                wanted = following[1] if following != BREAK else groups[-1][0] if groups else 1.0
                if not groups or groups[-1][0] != wanted:
                    groups.append((wanted, [""]))
            ended = True
        elif ended and groups[-1][0] == weight:
            groups[-1][1].append(text)
            ended = False
        else:
            if ended:
                groups[-1][1].append("")
            groups.append((weight, [text]))
            ended = False
    if ended:
        groups[-1][1].append("")
    return "".join(_rendered(weight, texts, alone=len(groups) == 1) for weight, texts in groups)


def split_and(text: str, *, dialect: Dialect = "jpgen") -> list[tuple[str, float]]:
    """The prompts that AND composes, each with the weight after its last colon (1.0 without one). Composition is for positive prompts.

    In the dialect "jpgen" the weight may be full-width, and a prompt without AND stays whole: 時刻は3:30 is no prompt of weight 30.

        >>> split_and("猫AND夕焼け:0.7")
        [('猫', 1.0), ('夕焼け', 0.7)]
    """
    parts = _word("AND", dialect).split(text)
    if len(parts) == 1 and dialect == "jpgen":
        return [(text, 1.0)]
    found = []
    for part in map(str.rstrip, parts):
        tail = TAIL_WEIGHT[dialect].search(part)
        weight = float(to_ascii(tail[1])) if tail else 1.0
        found.append((part[: tail.start()], weight) if tail and math.isfinite(weight) else (part, 1.0))
    return found


def _word(word: str, dialect: Dialect) -> re.Pattern[str]:
    if dialect not in TAIL_WEIGHT:
        raise UnknownNameError.of("dialect", dialect, TAIL_WEIGHT)
    return re.compile(rf"\b{word}\b", re.ASCII if dialect == "jpgen" else 0)


def _merged(spans: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    runs: list[tuple[list[str], float]] = []
    for text, weight in spans:
        if runs and runs[-1][1] == weight and BREAK not in ((text, weight), (runs[-1][0][0], weight)):
            runs[-1][0].append(text)
        else:
            runs.append(([text], weight))
    return [("".join(texts), weight) for texts, weight in runs]


def _rendered(weight: float, texts: list[str], *, alone: bool) -> str:
    """One pair of brackets (none for weight 1) around texts with BREAK between them."""
    if not math.isfinite(weight):
        raise PromptError(f"重み {weight} は書けません。有限の数にしてください / weight {weight} cannot be written: use a finite number")
    pieces = []
    for index, text in enumerate(texts):
        piece = re.sub(r"\bBREAK\b", r"BRE\\AK", escape(text), flags=re.ASCII)
        before = "\\" if index and text[:1].isspace() else ""  # keeps BREAK from taking the spaces
        after = "\\" if index < len(texts) - 1 and text[-1:].isspace() else ""
        pieces.append(f"{before}{piece}{after}")
    body = " BREAK ".join(pieces)
    if weight == 1.0 and (body or alone):
        return body
    number = format(Decimal(repr(float(weight))), "f")
    return f"({body or chr(92)}:{number.removesuffix('.0')})"
