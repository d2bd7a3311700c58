"""The gallery's index: an SQLite file that can be made again, as every picture says how it was made. Only marks (favourites, tags) are here alone."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import jpgen

log = logging.getLogger("jpgen.demo")
T = TypeVar("T")

VERSION = 1
COLUMNS = (
    "id", "owner", "kind", "made", "prompt", "negative", "english", "model", "seed", "width", "height", "steps", "guidance_scale", "route",
    "favourite", "tags", "deleted",
)  # fmt: skip
SCHEMA = (
    """CREATE TABLE pictures(
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, made REAL NOT NULL, prompt TEXT NOT NULL, negative TEXT NOT NULL,
    english TEXT NOT NULL, model TEXT NOT NULL, seed INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, steps INTEGER NOT NULL,
    guidance_scale REAL NOT NULL, route TEXT NOT NULL, favourite INTEGER NOT NULL DEFAULT 0, tags TEXT NOT NULL DEFAULT '', deleted REAL)""",
    "CREATE INDEX by_time ON pictures(owner, made DESC)",
    "CREATE TABLE features(id TEXT NOT NULL, source TEXT NOT NULL, vector BLOB NOT NULL, PRIMARY KEY(id, source))",
)
TRIGRAMS = "CREATE VIRTUAL TABLE words USING fts5(words, tokenize='trigram')"
PLAIN = "CREATE TABLE words(words TEXT NOT NULL)"  # for an SQLite without FTS5 or older than 3.34
TRIGRAM = 3
KATAKANA = {code: code - 0x60 for code in range(ord("ァ"), ord("ヶ") + 1)}
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class GalleryError(jpgen.OutputError):
    """The gallery cannot be read or written; nothing of it is lost."""


def folded(text: str) -> str:
    """Text as it is searched: widths and case made one, katakana as hiragana, no control characters."""
    return UNPRINTABLE.sub(" ", unicodedata.normalize("NFKC", text).casefold().translate(KATAKANA))


class Index:
    """The SQLite file of a gallery, one connection for all threads of a process, WAL for other processes.

    A file that is damaged, foreign or of another version is put aside under another name and made again; `notice` then says so.
    """

    def __init__(self, path: Path, rebuild: Callable[[], int]) -> None:
        """Opens or makes the file; `rebuild` fills it, through `write`, and returns how many pictures there are. Raises GalleryError."""
        self.path, self._rebuild = path, rebuild
        self.notice = ""
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._repairing = False

    def read(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run `act` on the file as it stands at one moment; raises GalleryError."""
        return self._do(act, "BEGIN")

    def write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run `act` in a transaction: all of it happens or nothing; raises GalleryError."""
        return self._do(act, "BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the file; it opens again with the next use."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _do(self, act: Callable[[sqlite3.Connection], T], begin: str) -> T:
        with self._lock:
            try:
                try:
                    return self._transaction(act, begin)
                except sqlite3.DatabaseError as error:
                    if type(error) is not sqlite3.DatabaseError or self._repairing:  # classes below it are no damage
                        raise
                    self._repair(error)
                    return self._transaction(act, begin)
            except (sqlite3.Error, OSError) as error:
                raise GalleryError(
                    f"ギャラリーを読み書きできません（{error}）。空きを作るか、設定の gallery を別の場所にしてください / "
                    f"the gallery cannot be read or written ({error}): free some space, or name another folder as gallery in the settings"
                ) from error

    def _transaction(self, act: Callable[[sqlite3.Connection], T], begin: str) -> T:
        if self._connection is not None and self._file != self._found():  # another process has put it aside
            self.close()
            self._open()
            self._rebuild()
        connection = self._connection or self._open()
        connection.execute(begin)
        with connection:
            return act(connection)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=20, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                connection.execute("BEGIN IMMEDIATE")
                with connection:  # another process may have made it meanwhile
                    _create(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._file = connection, self._found()
        return connection

    def _found(self) -> tuple[int, int] | None:
        """Which file is there now."""
        with suppress(OSError):
            found = self.path.stat()
            return found.st_dev, found.st_ino
        return None

    def _repair(self, error: sqlite3.Error) -> None:
        """Put the file aside, make it again from the pictures, and save the marks that the old one still tells."""
        self.close()
        aside = self.path.with_name(f"{self.path.stem}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.urandom(2).hex()}{self.path.suffix}")
        marks = _marks(self.path)
        for ending in ("", "-wal", "-shm"):
            old = self.path.with_name(self.path.name + ending)
            if old.exists():
                os.replace(old, aside.with_name(aside.name + ending))
        self._repairing = True
        try:
            count = self._rebuild()
            self.write(lambda connection: connection.executemany("UPDATE pictures SET favourite=?, tags=?, deleted=? WHERE id=?", marks))
        finally:
            self._repairing = False
        saved = f"お気に入り・タグ・ごみ箱の印 {len(marks)} 枚分も戻しました" if marks else "お気に入りとタグは読み取れませんでした"
        self.notice = (
            f"ギャラリーの索引が壊れていたので {aside.name} に退け、絵 {count} 枚の中の記録から作り直しました（{saved}） / "
            f"the gallery's index was damaged; it was put aside and made again from {count} pictures (marks of {len(marks)} saved)"
        )
        log.warning("%s: %s", self.notice, error)


def insert(connection: sqlite3.Connection, row: Sequence[Any], words: str) -> None:
    """A picture (values in the order of COLUMNS) and its words; one that is there already stays as it is."""
    done = connection.execute(f"INSERT OR IGNORE INTO pictures({','.join(COLUMNS)}) VALUES({','.join('?' * len(COLUMNS))})", row)
    if done.rowcount:
        connection.execute("INSERT INTO words(rowid, words) SELECT rowid, ? FROM pictures WHERE id=?", (folded(words), row[0]))


def drop(connection: sqlite3.Connection, ids: Iterable[str]) -> None:
    """Forget pictures for good."""
    for one in ids:
        connection.execute("DELETE FROM words WHERE rowid=(SELECT rowid FROM pictures WHERE id=?)", (one,))
        connection.execute("DELETE FROM features WHERE id=?", (one,))
        connection.execute("DELETE FROM pictures WHERE id=?", (one,))


def matching(connection: sqlite3.Connection, text: str) -> tuple[str, list[str]]:
    """The SQL condition (and its values) for pictures that have every word of the text; terms of one and two characters work, too."""
    trigrams = "fts5" in str(connection.execute("SELECT sql FROM sqlite_master WHERE name='words'").fetchone()[0])
    conditions, values = [], []
    for term in folded(text).split():
        if trigrams and len(term) >= TRIGRAM:
            conditions.append("rowid IN (SELECT rowid FROM words WHERE words MATCH ?)")
            values.append('"' + term.replace('"', '""') + '"')
        else:
            conditions.append("rowid IN (SELECT rowid FROM words WHERE instr(words, ?))")
            values.append(term)
    return " AND ".join(conditions), values


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables of a new file; raises sqlite3.DatabaseError for a file that has others."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        return
    if version or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise sqlite3.DatabaseError(f"version {version}, wanted {VERSION}")
    for statement in SCHEMA:
        connection.execute(statement)
    try:
        connection.execute(TRIGRAMS)
    except sqlite3.OperationalError:
        connection.execute(PLAIN)
    connection.execute(f"PRAGMA user_version={VERSION}")


def _marks(path: Path) -> list[tuple[Any, ...]]:
    """Favourites, tags and deletions by id, as far as a damaged file still tells them."""
    found: list[tuple[Any, ...]] = []
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
    except sqlite3.Error:
        return found
    try:
        found += connection.execute("SELECT favourite, tags, deleted, id FROM pictures WHERE favourite OR tags<>'' OR deleted IS NOT NULL")
    except (sqlite3.Error, UnicodeError) as error:
        log.info("marks are lost: %s", error)
    finally:
        connection.close()
    return [row for row in found if row[0] in (0, 1) and isinstance(row[1], str) and isinstance(row[2], float | None) and isinstance(row[3], str)]
