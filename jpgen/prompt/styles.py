"""Styles: a name for words that go around a prompt. Read from the web UI's styles.csv, from JSON as Fooocus has it, and from our styles.tsv."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jpgen.errors import OutputError, PromptError, UnknownNameError
from jpgen.prompt.data import data_folder
from jpgen.prompt.scan import separator

SLOT = "{prompt}"
COLUMNS = ("name", "english", "prompt", "negative")  # of our styles.tsv
EDGES = "、。,， \n"  # what two joined texts need only one of
MOST_PROBLEMS = 5


@dataclass(frozen=True)
class Style:
    """Words to put around a prompt, at `{prompt}` or behind it, and what to add to the negative one. `english`: another name, may be empty."""

    name: str
    prompt: str = ""
    negative: str = ""
    english: str = ""


def load_styles(path: Path | None = None) -> dict[str, Style]:
    """The styles of a .csv, .json or .tsv file (without a path: those that come with jpgen) by name; of two with one name the later counts.

    Raises PromptError if the file is missing, not UTF-8 or not of its format, naming every line that is wrong.

        >>> load_styles()["水彩画"].english
        'watercolor'
    """
    path = path or data_folder() / "styles.tsv"
    readers = {".csv": _read_csv, ".json": _read_json, ".tsv": _read_tsv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PromptError(f"{path} は読めません。.csv、.json、.tsv から選んでください / not a style file: give .csv, .json or .tsv")
    try:
        records = list(reader(path.read_bytes().decode("utf-8-sig")))
    except FileNotFoundError as error:
        raise PromptError(f"{path} がありません。場所を確かめてください / no style file {path}: correct its path") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} は UTF-8 ではありません。UTF-8 で保存してください / {path} is not UTF-8: save it as UTF-8") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise PromptError(f"{path} を読めません: {error} / cannot read {path}: correct it, or save it again from the program it is of") from error
    problems = [f"{place}: {_problem(record)}" for place, record in records if _problem(record)]
    if problems:
        more = f" (+{len(problems) - MOST_PROBLEMS})" if len(problems) > MOST_PROBLEMS else ""
        raise PromptError(f"{path} に誤りがあります。直してください / correct {path}: {'; '.join(problems[:MOST_PROBLEMS])}{more}")
    found = [Style(**{field: str(record.get(field) or "") for field in COLUMNS}) for _, record in records]
    return {style.name: style for style in found}


def find_style(styles: Mapping[str, Style], name: str) -> Style:
    """The style of this name, Japanese or English; raises UnknownNameError, offering the nearest.

        >>> find_style(load_styles(), "Watercolor").name
        '水彩画'
    """
    english = {style.english.lower(): style for style in styles.values() if style.english}
    style = styles.get(name) or english.get(name.lower())
    if style is None:
        raise UnknownNameError.of("style", name, [*styles, *english])
    return style


def save_styles(styles: Mapping[str, Style], path: Path) -> None:
    """Write the styles as .csv or .json that the web UI or Fooocus reads; `load_styles` gives exactly the same back.

    The old file or the new one is there, never half. Raises OutputError if it cannot be written, and for names that are empty or, in .csv, start
    with # or hold NUL.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise OutputError(f"{path} には保存できません。.csv か .json にしてください / unknown suffix {path.suffix!r}: choose .csv or .json")
    unwritable = [style.name for style in styles.values() if not style.name.strip() or (suffix == ".csv" and not _fits_csv(style))]
    if unwritable:
        raise OutputError(f"保存できない名前があります。変えてください / names that cannot be saved, change them: {', '.join(map(repr, unwritable))}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        data = (_csv if suffix == ".csv" else _json)(list(styles.values()))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} に保存できません: {error}。別の場所にしてください / cannot write {path}: try another place") from error


def apply_style(style: Style, prompt: str, negative: str = "") -> tuple[str, str]:
    """Prompt and negative prompt with the style's words: at its `{prompt}`, or behind, after 、 if any of it is Japanese, else ", ".

        >>> apply_style(Style("夜", "{prompt}、夜景", "昼間"), "東京")
        ('東京、夜景', '昼間')
    """
    return _applied(style.prompt, prompt), _applied(style.negative, negative)


def extract_style(style: Style, prompt: str, negative: str = "") -> tuple[str, str]:
    """What `apply_style` made these of; as they are unless both hold the style's words.

        >>> extract_style(Style("夜", "{prompt}、夜景", "昼間"), "東京、夜景", "昼間")
        ('東京', '')
    """
    found = _extracted(style.prompt, prompt), _extracted(style.negative, negative)
    return (prompt, negative) if found[0] is None or found[1] is None else (found[0], found[1])


def _applied(words: str, text: str) -> str:
    if not words.strip():
        return text
    if SLOT not in words:
        parts = [part for part in (text.strip().rstrip(EDGES), words.strip()) if part]
        return separator(parts).join(parts)
    following = words.partition(SLOT)[2].lstrip()[:1]
    text = text.strip().rstrip(EDGES) if following and following in EDGES else text.strip()
    return words.replace(SLOT, text) if text else words.replace(SLOT, "").strip(EDGES)


def _extracted(words: str, text: str) -> str | None:
    """The text without the style's words, None if they are not there."""
    if not words.strip():
        return text
    text = text.strip()
    if text == _applied(words, ""):
        return ""
    if SLOT not in words:
        before = text.removesuffix(words.strip())
        joint = next((joint for joint in ("、", ", ") if before.endswith(joint)), "")
        return before.removesuffix(joint) if before != text and joint else None
    parts = words.strip().split(SLOT)
    length = (len(text) - sum(map(len, parts))) // (len(parts) - 1)
    candidate = text[len(parts[0]) : len(parts[0]) + length]
    return candidate if candidate and candidate.join(parts) == text else None


def _read_csv(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    columns = next(reader, [])
    words = "prompt" if "prompt" in columns else "text"  # old files have name,text
    if "name" not in columns or words not in columns:
        raise ValueError(f"name,prompt,negative_prompt の列が要ります / wanted columns name,prompt,negative_prompt, got {','.join(columns)[:80]!r}")
    for row in reader:
        record = dict(zip(columns, row, strict=False))
        if any(cell.strip() for cell in row) and not record.get("name", "").startswith("#"):
            record |= {"prompt": record.get(words, ""), "negative": record.get("negative_prompt", "")}
            yield f"{reader.line_num} 行目 / line {reader.line_num}", record


def _read_json(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    records = json.loads(text)
    if not isinstance(records, list):
        raise ValueError(f"{{name, prompt, negative_prompt}} の配列が要ります / wanted a list of such, got {type(records).__name__}")
    for number, record in enumerate(records, 1):
        known = record if isinstance(record, dict) else {"name": [record]}
        yield f"{number} 番目 / item {number}", {**known, "negative": known.get("negative_prompt")}


def _read_tsv(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    first, *lines = text.replace("\r\n", "\n").split("\n")
    if tuple(first.split("\t")) != COLUMNS:
        raise ValueError(f"{' '.join(COLUMNS)} のタブ区切りの列が要ります / wanted tab-separated columns {' '.join(COLUMNS)}, got {first[:80]!r}")
    for number, line in enumerate(lines, 2):
        cells = line.split("\t")
        if line.strip() and not line.startswith("#"):
            record = dict(zip(COLUMNS, cells, strict=False)) if len(cells) == len(COLUMNS) else {"name": cells}
            yield f"{number} 行目 / line {number}", record


def _problem(record: dict[str, Any]) -> str:
    """What is wrong with a record, "" for nothing."""
    wrong = [f"{field}={record[field]!r:.60}" for field in COLUMNS if not isinstance(record.get(field) or "", str)]
    if wrong:
        return f"文字列ではありません / not text: {', '.join(wrong)}"
    return "" if str(record.get("name") or "").strip() else "name がありません / name is missing"


def _fits_csv(style: Style) -> bool:
    return not style.name.startswith("#") and "\0" not in style.name + style.prompt + style.negative + style.english


def _csv(styles: list[Style]) -> bytes:
    english = any(style.english for style in styles)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["name", "prompt", "negative_prompt", *(["english"] if english else [])])
    writer.writerows([style.name, style.prompt, style.negative, *([style.english] if english else [])] for style in styles)
    return buffer.getvalue().encode("utf-8-sig")


def _json(styles: list[Style]) -> bytes:
    records = [
        {"name": style.name, **({"english": style.english} if style.english else {}), "prompt": style.prompt, "negative_prompt": style.negative}
        for style in styles
    ]
    return (json.dumps(records, ensure_ascii=False, indent=2) + "\n").encode()
