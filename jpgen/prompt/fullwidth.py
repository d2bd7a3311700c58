"""Full-width syntax （猫：１．２） （（猫）） ［春：秋：０．５］ ｛猫｜犬｝ ＿＿季節＿＿ ＜lora：名前：０．８＞ ＼（ as ASCII."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from jpgen.prompt.scan import NUMBER, OPENING, WILDCARD, Pair, find_pairs, to_ascii
from jpgen.prompt.tags import TAG

TOKEN = re.compile(
    rf"\\.|(?P<escape>＼[()\[\]{{}}（）［］｛｝])|(?P<tag>{TAG.pattern})|{WILDCARD}|[()\[\]{{}}（）［］｛｝:：|｜]|[$＄]{{2}}",
    re.DOTALL | re.IGNORECASE,
)
FOREIGN = re.compile("[^\x00-\x7f]")
AMOUNT = re.compile(rf"\s*({NUMBER})\s*")
SHARE = re.compile(r"\s*[0-9０-９.．]+[:：]{2}")  # of an option of a variant
HOW_MANY = re.compile(r"\s*[0-9０-９]*[-－−]?[0-9０-９]*(?=[$＄]{2})")
LIMIT = 10  # of a weight: （年齢：２０） and （高さ：１８０） are none


def ascii_syntax(text: str) -> str:
    r"""The text with its full-width syntax as ASCII, of the same length; words and punctuation stay as they are typed.

    Syntax are: round brackets that are doubled or end in a weight （猫：１．２）; square ones that are doubled, end in a step
    ［春：秋：０．５］ or have alternatives ［春｜秋］; curly ones with options ｛猫｜犬｝; wildcards, LoRA tags, and ＼ before a bracket.
    Each pair is judged alone, pairs of mixed width by the same test; ASCII brackets always are syntax, so their colon, bar and number
    become ASCII. Not a weight: times and ratios （３：３０）, and ten and more （年齢：２０）. Applied again it changes nothing.

        >>> ascii_syntax("東京（新宿）の（夜景：１．２）")
        '東京（新宿）の(夜景:1.2)'
    """
    if not FOREIGN.search(text):
        return text
    tokens = list(TOKEN.finditer(text))
    chars = list(text)
    for start, end in [*_of_atoms(tokens), *_of_pairs(text, find_pairs(tokens))]:
        chars[start:end] = to_ascii(text[start:end])
    return "".join(chars)


def _of_atoms(tokens: Sequence[re.Match[str]]) -> Iterator[tuple[int, int]]:
    """The places in escapes, wildcards and tags that become ASCII: all but the names."""
    for token in tokens:
        if token["escape"]:
            yield token.span()
        for name in ("wildcard", "name", "wide_name"):
            if token[name]:
                yield token.start(), token.start(name)
                yield token.end(name), token.end()


def _of_pairs(text: str, pairs: Sequence[Pair]) -> Iterator[tuple[int, int]]:
    """The places that become ASCII of the brackets that are syntax: themselves, their marks, their numbers."""
    ends = {pair.start: pair.end for pair in pairs if OPENING[text[pair.start]] != "}"}
    inner = {start for start, end in ends.items() if ends.get(start - 1) == end + 1 and OPENING[text[start]] == OPENING[text[start - 1]]}
    for pair in pairs:
        match OPENING[text[pair.start]]:
            case ")":
                places = _of_weight(text, pair)
            case "]":
                places = _of_schedule(text, pair)
            case _:
                places = _of_variant(text, pair)
        if places or pair.start in inner or pair.start + 1 in inner:
            yield from [*places, (pair.start, pair.start + 1), (pair.end, pair.end + 1)]


def _of_weight(text: str, pair: Pair) -> list[tuple[int, int]]:
    number = _number(text, pair)
    return [(pair.marks[-1], pair.end)] if number and abs(float(to_ascii(number))) < LIMIT else []


def _of_schedule(text: str, pair: Pair) -> list[tuple[int, int]]:
    colons, bars, _ = _marks(text, pair)
    if bars:
        return [(bar, bar + 1) for bar in bars]
    return [(colons[0], colons[0] + 1), (colons[-1], pair.end)] if len(colons) in (1, 2) and _number(text, pair) else []


def _of_variant(text: str, pair: Pair) -> list[tuple[int, int]]:
    _, bars, dollars = _marks(text, pair)
    if not bars and not dollars:
        return []
    numbers = [SHARE.match(text, at, pair.end) for at in [pair.start + 1, *(bar + 1 for bar in bars), *(dollar + 2 for dollar in dollars)]]
    if dollars:
        numbers.append(HOW_MANY.match(text, pair.start + 1))
    return [*((bar, bar + 1) for bar in bars), *((dollar, dollar + 2) for dollar in dollars), *(number.span() for number in numbers if number)]


def _marks(text: str, pair: Pair) -> tuple[list[int], list[int], list[int]]:
    """The colons, bars and dollar signs of the pair's own level."""
    colons, bars, dollars = ([mark for mark in pair.marks if text[mark] in signs] for signs in (":：", "|｜", "$＄"))
    return colons, bars, dollars


def _number(text: str, pair: Pair) -> str:
    """The number after the last colon, if the bracket ends in one that is not the second half of a time or a ratio, else ""."""
    if not pair.marks or text[colon := pair.marks[-1]] not in ":：" or not (found := AMOUNT.fullmatch(text, colon + 1, pair.end)):
        return ""
    return "" if text[colon - 1].isdecimal() and text[colon + 1 : pair.end].isdecimal() else found[1]
