"""What is compared: prompts with what their pictures should show, and arms, the ways to draw them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jpgen.errors import PromptError, SettingError

LANGUAGES = ("ja", "en")


@dataclass(frozen=True)
class Case:
    """One prompt: Japanese, the same in English ("": none), what it means without trappings ("": as it says), tags by which results are grouped."""

    ja: str
    en: str = ""
    clean: str = ""
    tags: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The texts that pictures of every arm are scored against: what is meant, in each language there is."""
        return tuple(text for text in (self.clean or self.ja, self.en) if text)

    def prompt(self, language: str) -> str:
        """The prompt in "ja" or "en"; raises PromptError if there is none."""
        if text := {"ja": self.ja, "en": self.en}[language]:
            return text
        raise PromptError(f"「{self.ja[:40]}」に英語がありません / no English for {self.ja[:40]!r}, which an arm wants: give it or drop the arm")


@dataclass(frozen=True)
class Arm:
    """One way to draw: a model (a name, a folder), in which language it is asked, with the normaliser or without, through a translator ("": none).

    `steps` and `guidance_scale` 0 are the model's own.
    """

    name: str
    model: str = "mame"
    language: str = "ja"
    normalize: bool = True
    translator: str = ""
    steps: int = 0
    guidance_scale: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Arm:
        """An arm as the command line takes it: NAME:key=value,…, e.g. "raw:normalize=off,steps=8"; raises SettingError naming what is wrong."""
        name, _, rest = text.partition(":")
        kinds = {field.name: field.type for field in fields(cls) if field.name != "name"}
        values: dict[str, Any] = {}
        for pair in filter(None, rest.split(",")):
            key, equals, value = pair.partition("=")
            if key not in kinds or not equals:
                raise SettingError(
                    f"--arm {text!r}: {pair!r} は使えません / cannot use {pair!r}: write NAME:key=value,… with keys of {', '.join(kinds)}"
                )
            values[key] = _value(str(kinds[key]), value, text)
        return cls(name, **values)


def _value(kind: str, value: str, text: str) -> object:
    if kind == "bool":
        if value in ("on", "off"):
            return value == "on"
        raise SettingError(f"--arm {text!r}: {value!r} は on か off にしてください / write on or off")
    try:
        return {"int": int, "float": float}.get(kind, str)(value)
    except ValueError as error:
        raise SettingError(f"--arm {text!r}: {value!r} は数ではありません / {value!r} is no number") from error


JAPANESE_AND_ENGLISH = (Arm("ja"), Arm("en", language="en"))
WITH_AND_WITHOUT_NORMALIZER = (Arm("normalized"), Arm("as typed", normalize=False))


def checked_arms(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """The arms; raises SettingError for none, for two of one name, or for a language that is not there."""
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise SettingError(f"比べる腕には別々の名前を付けてください / give one arm or more, each with a name of its own, got {names}")
    if wrong := [arm.language for arm in arms if arm.language not in LANGUAGES]:
        raise SettingError(f"language={wrong[0]!r} は {', '.join(LANGUAGES)} のどれかに / must be one of {', '.join(LANGUAGES)}")
    return tuple(arms)


def cases_of(prompts: Iterable[str | tuple[str, str] | Case] | Path) -> tuple[Case, ...]:
    """Cases of Japanese texts, of (Japanese, English) pairs, or of a TSV file (`read_cases`); raises PromptError for none or an empty one."""
    if isinstance(prompts, str):
        raise PromptError(f"プロンプトはリストか Path で渡してください / pass a list of prompts or a Path, got the text {prompts[:20]!r}")
    if isinstance(prompts, Path):
        return read_cases(prompts)
    cases = tuple(one if isinstance(one, Case) else Case(one) if isinstance(one, str) else Case(*one) for one in prompts)
    if not cases or not all(case.ja.strip() for case in cases):
        raise PromptError("プロンプトがないか、空のものがあります / no prompts, or an empty one: say what to draw")
    return tuple(dict.fromkeys(cases))


def read_cases(path: Path, *, split: str = "", limit: int | None = None) -> tuple[Case, ...]:
    """The rows of a TSV file with a column `ja` and, if they are there, `en`, `clean`, `tags` (separated by spaces; or `category`) and `split`.

    `split`: only rows of it; `limit`: only so many, evenly from the whole. Raises PromptError for a file that is missing or not like that.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PromptError(f"{path} を読めません / cannot read the prompts {path}: {error}") from error
    if not rows or "ja" not in rows[0]:
        raise PromptError(f"{path} に列 ja がありません / {path} has no rows or no column ja: wanted ja and, if any, en, clean, tags, split")
    kept = [row for row in rows if not split or row.get("split") == split]
    cases = [_case(row) for row in kept]
    if not cases or not all(case.ja.strip() for case in cases):
        raise PromptError(f"{path}: 使える行がありません / no usable row (split {split!r}), or one whose ja is empty")
    return tuple(evenly(tuple(dict.fromkeys(cases)), limit))


def evenly(items: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """At most `limit` of them (None: all; at least one), at even distances from the whole."""
    if limit is None or limit >= len(items):
        return items
    wanted = max(1, limit)
    return [items[i * len(items) // wanted] for i in range(wanted)]


def _case(row: dict[str, str]) -> Case:
    return Case(row["ja"], row.get("en") or "", row.get("clean") or "", tuple((row.get("tags") or row.get("category") or "").split()))
