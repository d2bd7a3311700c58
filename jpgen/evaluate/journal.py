"""The journal of a comparison: one JSON object a line, appended as pictures are drawn and scored, read again when it goes on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jpgen.errors import OutputError

FILE = "journal.jsonl"
PICTURES = "pictures"


def key_of(**facts: object) -> str:
    """32 hex digits that name what has these facts."""
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """Rows by their keys, in `folder/journal.jsonl`, beside the folder of pictures. What was written before is there again."""

    def __init__(self, folder: Path) -> None:
        """Open it, making the folder if need be; a last line that a kill cut short is dropped. Raises OutputError."""
        self.folder = folder
        self.rows: dict[str, dict[str, Any]] = {}
        self._path = folder / FILE
        try:
            (folder / PICTURES).mkdir(parents=True, exist_ok=True)
            self._read()
        except OSError as error:
            raise OutputError(f"{folder} に記録できません / cannot keep a journal in {folder}: {error.strerror or error}") from error

    def _read(self) -> None:
        if not self._path.exists():
            return
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self._path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self._path} の {number} 行目が壊れています / line {number} of {self._path} is damaged ({error}): "
                    "remove that line to go on without it"
                ) from error

    def picture(self, key: str) -> Path:
        """Where the picture of this key is or will be."""
        return self.folder / PICTURES / f"{key}.png"

    def write(self, key: str, **facts: Any) -> None:
        """Append a row; raises OutputError."""
        row = {"key": key, **facts}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OutputError(f"{self._path} に書けません / cannot write {self._path}: {error.strerror or error}") from error
        self.rows[key] = row
