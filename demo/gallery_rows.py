"""A picture of the gallery as a row of its index: of a Generation, or of what a file tells."""

from __future__ import annotations

import calendar
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jpgen
from demo.gallery_index import COLUMNS

log = logging.getLogger("jpgen.demo")

FILE = re.compile(r"(\d{8}T\d{6})(\d{3})-[0-9a-f]{8}-([a-z]{1,20})\.png")
"""Names of files, which are their ids: when (UTC, milliseconds), chance, kind."""

STAMP = "%Y%m%dT%H%M%S"
MAX_TAG, MAX_TAGS = 40, 20


@dataclass(frozen=True)
class Item:
    """A picture of the gallery: where it is and what the index knows. All else is inside the file: `jpgen.read_settings(item.path)`.

    `made` and `deleted` are seconds since 1970, `deleted` is None unless it is in the bin; `english` is what an English encoder saw.
    """

    id: str
    path: Path
    kind: str
    made: float
    prompt: str
    negative: str
    english: str
    model: str
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    route: str
    favourite: bool
    tags: tuple[str, ...]
    deleted: float | None

    @property
    def download_name(self) -> str:
        """A file name that says what it is, safe on every system."""
        return jpgen.picture_name(self.prompt, self.seed)


def new_id(kind: str) -> str:
    """The id, and file name, of a picture made now; raises ValueError for a kind that is no word of a–z."""
    seconds, thousandths = divmod(time.time_ns() // 1_000_000, 1000)
    id = f"{time.strftime(STAMP, time.gmtime(seconds))}{thousandths:03d}-{os.urandom(4).hex()}-{kind}.png"
    if not FILE.fullmatch(id):
        raise ValueError(kind)
    return id


def item_of(row: Sequence[Any], path: Path) -> Item:
    """The Item of a row (values of COLUMNS)."""
    told = dict(zip(COLUMNS, row, strict=True))
    del told["owner"]
    told |= {"favourite": bool(told["favourite"]), "tags": tuple(filter(None, told["tags"].split("\n")))}
    return Item(path=path, **told)


def read_row(path: Path, owner: str) -> tuple[list[Any], str] | None:
    """The row and words of a file; None, and a warning, if it does not say how it was made."""
    try:
        told = jpgen.read_settings(path)
        return row_of(path.name, owner, told.prompt, told.config, told.seed, told.model, told.route)
    except (jpgen.MetadataError, ValueError) as error:
        log.warning("%s", error)
        return None


def row_of(
    id: str, owner: str, prompt: jpgen.Prompt, config: jpgen.SamplingConfig, seed: int, model: str, route: str, *, tags: Sequence[str] = ()
) -> tuple[list[Any], str]:  # fmt: skip
    """The values of COLUMNS, and the words by which it is found."""
    when, thousandths, kind = FILE.fullmatch(id).groups()  # type: ignore[union-attr]  # new_id made it, or it was found by FILE
    made = calendar.timegm(time.strptime(when, STAMP)) + int(thousandths) / 1000
    source, negative, english, model = map(_text, (prompt.source, prompt.negative, prompt.translation.text, model))
    row = [
        id, owner, kind, made, source, negative, english, model, seed, config.width, config.height, config.steps, float(config.guidance_scale),
        _text(route), 0, "\n".join(tags), None,
    ]  # fmt: skip
    return row, words_of(source, english, model, tags)


def words_of(prompt: str, english: str, model: str, tags: Sequence[str]) -> str:
    """All by which a picture is found."""
    return "\n".join((prompt, english, model, *tags))


def clean_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags as they are kept: trimmed, in one line, each once, at most MAX_TAGS of MAX_TAG characters."""
    trimmed = (" ".join(_text(tag).split())[:MAX_TAG] for tag in tags)
    return tuple(dict.fromkeys(filter(None, trimmed)))[:MAX_TAGS]


def _text(text: str) -> str:
    """Text that SQLite can keep: no lone surrogates, no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
