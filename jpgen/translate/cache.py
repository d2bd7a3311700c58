"""Translations kept on disk, so that a prompt that comes again is not translated again."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from jpgen.catalog import xdg_folder
from jpgen.protocols import Translator

log = logging.getLogger("jpgen")

MOST_KEPT = 4096
"""Translations of one model that are kept; the oldest go first."""


def cache_folder() -> Path:
    """Where translations are kept: translations/ under $XDG_CACHE_HOME/jpgen (~/.cache/jpgen)."""
    return xdg_folder("XDG_CACHE_HOME", ".cache") / "translations"


class Remembering:
    """A translator that remembers, in one JSON file for each `key`: a hash of everything that a translation depends on.

    The file is read once and written whole by way of a temporary file; one that is damaged counts as empty, and where nothing can be written
    nothing is kept. Processes that write at the same time each leave a whole file; what one of them lost is translated again.
    """

    def __init__(self, translator: Translator, key: str, *, name: str = "", folder: Path | None = None, most: int = MOST_KEPT) -> None:
        self.name = name or translator.name
        self.knows_markers = bool(getattr(translator, "knows_markers", False))
        self._translator, self._most = translator, most
        self._file = (folder or cache_folder()) / f"{key}.json"
        self._known: dict[str, str] | None = None
        self._lock = threading.Lock()

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The English of each text; the translator is asked for those alone that it was not asked for before."""
        with self._lock:
            known = self._read() if self._known is None else self._known
            new = [text for text in dict.fromkeys(texts) if text not in known]
            made = dict(zip(new, self._translator.translate(new), strict=True)) if new else {}
            both = {**known, **made}
            said = [both[text] for text in texts]
            if new:  # what another process wrote meanwhile is kept
                known = dict(list({**known, **self._read(), **made}.items())[-self._most :])
                self._write(known)
            self._known = known
            return said

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        good = isinstance(found, dict) and all(isinstance(english, str) for english in found.values())
        return found if good else {}

    def _write(self, known: dict[str, str]) -> None:
        partial = self._file.with_name(f".{self._file.name}.{os.getpid()}.tmp")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(known, ensure_ascii=False), "utf-8")
            os.replace(partial, self._file)
        except OSError as error:
            log.debug("翻訳を覚えておけません / translations cannot be kept: %s", error)
        finally:
            if partial.parent.is_dir():
                partial.unlink(missing_ok=True)
