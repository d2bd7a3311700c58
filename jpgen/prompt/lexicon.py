"""The lexicon: Japanese expressions of image prompts, what they look like in English, and what to watch for; rows of lexicon/*.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jpgen.errors import PromptError
from jpgen.prompt.morphology import words

_KANJI = re.compile("[一-鿿]")
FOLDER = Path(__file__).parent / "lexicon"
COLUMNS = ("surface", "reading", "kind", "canonical", "english", "note")


@dataclass(frozen=True)
class Entry:
    """An expression: as typed, its reading in hiragana, kind, standard form, visual English rendering, note in Japanese."""

    surface: str
    reading: str
    kind: str
    canonical: str
    english: str
    note: str = ""


class Lexicon:
    """Entries by surface; finds the longest that start at each place of a text."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {entry.surface: entry for entry in entries}
        lengths: dict[str, set[int]] = {}
        for surface in self._entries:
            lengths.setdefault(surface[:2], set()).add(len(surface))
        self._lengths = {head: sorted(found, reverse=True) for head, found in lengths.items()}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, surface: str) -> Entry | None:
        """The entry of exactly this surface."""
        return self._entries.get(surface)

    def of(self, *kinds: str) -> Lexicon:
        """Those of these kinds."""
        return Lexicon(entry for entry in self if entry.kind in kinds)

    def find(self, text: str) -> list[tuple[int, Entry]]:
        """Every entry in the text with its place: the longest at each place, none inside another."""
        found: list[tuple[int, Entry]] = []
        lengths, entries, end = self._lengths, self._entries, 0
        for at in range(len(text)):
            head = text[at : at + 2]
            if at < end or (head not in lengths and text[at] not in lengths):
                continue
            for length in (*lengths.get(head, ()), *(lengths.get(text[at], ()) if len(head) > 1 else ())):
                entry = entries.get(text[at : at + length])
                if entry is not None:
                    found.append((at, entry))
                    end = at + length
                    break
        return found


def read_entries(path: Path) -> list[Entry]:
    """The rows of a lexicon file; raises PromptError naming the line that is not a row."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: 辞書を読めません / cannot read the lexicon ({error}): give a UTF-8 file of tab-separated rows") from error
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise PromptError(f"{path}: 一行目は {' '.join(COLUMNS)}（タブ区切り）にしてください / the first line must name these columns, tab-separated")
    entries = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) != len(COLUMNS) or not cells[0]:
            raise PromptError(
                f"{path}:{number}: 列は {len(COLUMNS)} 個のはずが {len(cells)} 個です / {len(cells)} columns, wanted {len(COLUMNS)}: {line!r}"
            )
        entries.append(Entry(*cells))
    return entries


def load_lexicon(*more: Path) -> Lexicon:
    """jpgen's own entries, and those of more files on top (read again when they change); raises PromptError."""
    return _loaded(tuple((path, _stamp(path)) for path in more))


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise PromptError(f"{path}: 辞書がありません / no such lexicon file: correct the path") from error


@lru_cache(maxsize=8)
def _loaded(more: tuple[tuple[Path, int], ...]) -> Lexicon:
    paths = [*sorted(FOLDER.glob("*.tsv")), *(path for path, _ in more)]
    return Lexicon(entry for path in paths for entry in read_entries(path))


@lru_cache(maxsize=8)
def _noted(lexicon: Lexicon) -> Lexicon:
    return lexicon.of("idiom", "homograph")


def reading_notes(text: str, more: Sequence[Path] = ()) -> list[str]:
    """What a reader should know: figurative idioms, words in kana that say several things."""
    notes = []
    for at, entry in _noted(load_lexicon(*more)).find(text):
        if entry.kind == "idiom":
            notes.append(f"「{entry.surface}」は慣用句です（{entry.note or entry.english}）。文字どおりの絵になるかもしれません")
        elif entry.surface != entry.reading and _KANJI.search(entry.surface):
            notes.append(f"「{entry.surface}」は {entry.canonical} のどれか分かりません。{entry.note}")
        elif _stands_alone(text, at, entry.surface):
            notes.append(f"「{entry.surface}」は {entry.canonical} のどれか分かりません。漢字で書くと伝わります")
    return notes


def _stands_alone(text: str, at: int, surface: str) -> bool:
    return any(word.start == at and word.surface == surface and word.pos in ("名詞", "動詞") for word in words(text))
