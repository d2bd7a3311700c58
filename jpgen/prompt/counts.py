"""Counts: a kanji numeral before a counter of things becomes digits (猫が三匹 → 猫が3匹); words that only look so (三日月) stay."""

from __future__ import annotations

import re
from functools import lru_cache

from jpgen.prompt.change import Change
from jpgen.prompt.characters import WORDS
from jpgen.prompt.morphology import words

_DIGITS = {"〇": 0, "零": 0, "一": 1, "二": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_NUMERAL = "[〇零一二三四五六七八九十百千万]"
_COUNTERS = sorted(set((WORDS / "counters.txt").read_text(encoding="utf-8").split()), key=len, reverse=True)
_GOES_ON = re.compile(
    "(?:つ|人|個|匹|本|枚|番|台|羽|頭|冊|組|着|列)目|"  # ordinals
    "人(?:間|形|魚|物|気|生|工)|名(?:前|物)|本(?:気|当|格|人|来|日|堂)|個(?:性|室)|台地|体(?:力|格)|機(?:嫌|械)|足元|玉ねぎ|枚方"  # other words
)
COUNTED = re.compile(f"({_NUMERAL}+)(?:([、・])({_NUMERAL}+))?(?={'|'.join(map(re.escape, _COUNTERS))})")
"""A kanji numeral (or two, 二、三羽) before a counter."""


@lru_cache(maxsize=1)
def _words() -> dict[str, tuple[str, ...]]:
    """Words that only look like counts, by their first character."""
    by_first: dict[str, list[str]] = {}
    for word in (WORDS / "not_counts.txt").read_text(encoding="utf-8").split():
        by_first.setdefault(word[0], []).append(word)
    return {first: tuple(rest) for first, rest in by_first.items()}


def counts(text: str) -> list[Change]:
    """A change for every kanji numeral that counts things."""
    matches = [match for match in COUNTED.finditer(text) if not _stays(text, match)]
    if not matches:
        return []
    numerals = {at for word in words(text) if word.kind == "数詞" or word.surface[0] in _DIGITS or word.surface[0] in _UNITS for at in (word.start,)}
    found = []
    for match in matches:
        if match.start() not in numerals:  # inside a name, such as 六本木 behind other signs
            continue
        after = f"{_digits(match[1])}{match[2] or ''}{_digits(match[3]) if match[3] else ''}"
        found.append(Change(match.start(), match.end(), after))
    return found


def _stays(text: str, match: re.Match[str]) -> bool:
    start = match.start()
    before = text[start - 1 : start]
    if before and (before in "数何幾第毎" or before in "〇零一二三四五六七八九十百千万億0123456789"):
        return True
    if text.startswith("一杯", start) and before and before in "がでにも力精目腹胸":  # 花が一杯
        return True
    if any(text.startswith(word, start) for word in _words().get(text[start], ())):
        return True
    return bool(_GOES_ON.match(text, match.end()))


def _digits(numeral: str) -> str:
    """三百 → 300, 二〇 → 20, 三万五千 → 3万5000."""
    head, ten_thousand, tail = numeral.partition("万")
    if ten_thousand:
        return f"{_below(head) if head else ''}万{_below(tail) if tail else ''}"
    return str(_below(numeral))


def _below(numeral: str) -> int:
    if not any(unit in numeral for unit in _UNITS):
        return int("".join(str(_DIGITS[sign]) for sign in numeral))
    total, current = 0, 0
    for sign in numeral:
        if sign in _UNITS:
            total += (current or 1) * _UNITS[sign]
            current = 0
        else:
            current = _DIGITS[sign]
    return total + current
