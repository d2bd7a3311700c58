"""Everything made, kept: PNG files that say how they were made, and an index to find them by words.

    gallery = Gallery(folder)
    item = gallery.add(generation, kind="create")
    gallery.search("夕焼け 船", favourite=True).items

Files are the truth: the index is made again from them when it is damaged, and what was written but not indexed is found at the next start.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jpgen
from demo.gallery_index import COLUMNS, GalleryError, Index, drop, folded, insert, matching
from demo.gallery_rows import FILE, Item, clean_tags, item_of, new_id, read_row, row_of, words_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Found", "Gallery", "GalleryError", "Item"]

log = logging.getLogger("jpgen.demo")

THUMBNAIL = 320  # pixels of its longer side


@dataclass(frozen=True)
class Found:
    """Some pictures of those that were found, and how many there are in all."""

    items: tuple[Item, ...]
    total: int


class Gallery:
    """The pictures of one owner ("": of this computer); `of` gives those of another from the same files. Safe for threads and processes."""

    def __init__(self, folder: Path, owner: str = "") -> None:
        """Opens or makes the folder; raises GalleryError if it cannot be written."""
        self.folder = folder
        self._owner = _owner_key(owner)
        self._index = Index(folder / "gallery.sqlite", self._find_new)
        self._find_new()

    def __reduce__(self) -> tuple[Callable[..., Gallery], tuple[Path, str]]:
        """In another process: the same owner's, by an index that is opened there once."""
        return _elsewhere, (self.folder, self._owner)

    def of(self, owner: str) -> Gallery:
        """The same gallery as another owner sees it: nobody sees, changes or exports what is another's."""
        return self._of(_owner_key(owner))

    def _of(self, owner_key: str) -> Gallery:
        other = Gallery.__new__(Gallery)
        other.folder, other._owner, other._index = self.folder, owner_key, self._index
        return other

    @property
    def notice(self) -> str:
        """What a person should know (the index was damaged and made again), "" if there is nothing."""
        return self._index.notice

    def add(self, generation: jpgen.Generation, *, kind: str = "create", tags: Sequence[str] = ()) -> Item:
        """Keep a picture; `kind` is a word of a–z. Raises GalleryError if it cannot be written: then nothing is, and the Generation is as it was."""
        id = new_id(kind)
        path = self._path(self._owner, id)
        try:
            generation.save(path)
        except jpgen.OutputError as error:
            raise GalleryError(str(error)) from error
        told = (generation.prompt, generation.config, generation.seed, generation.model.name, generation.route)
        row, words = row_of(id, self._owner, *told, tags=clean_tags(tags))
        try:
            self._index.write(lambda connection: insert(connection, row, words))
        except GalleryError:
            path.unlink(missing_ok=True)  # all or nothing
            raise
        return self._item(row)

    def search(
        self, text: str = "", *, favourite: bool = False, model: str = "", kind: str = "", tag: str = "", deleted: bool = False, limit: int = 60,
        offset: int = 0,
    ) -> Found:  # fmt: skip
        """Pictures that have every word of `text` in prompt, English, model or tags, the newest first; `deleted`: those in the bin."""

        def read(connection: sqlite3.Connection) -> Found:
            where, values = ["owner=?", f"deleted IS {'NOT ' if deleted else ''}NULL"], [self._owner]
            for condition, value in (("model=?", model), ("kind=?", kind), ("instr(char(10)||tags||char(10), char(10)||?||char(10))", tag)):
                if value:
                    where.append(condition)
                    values.append(value)
            if favourite:
                where.append("favourite")
            if folded(text).split():
                condition, terms = matching(connection, text)
                where.append(condition)
                values += terms
            wanted = f"FROM pictures WHERE {' AND '.join(where)}"
            total = connection.execute(f"SELECT count(*) {wanted}", values).fetchone()[0]
            page = f"SELECT {','.join(COLUMNS)} {wanted} ORDER BY made DESC, id DESC LIMIT ? OFFSET ?"
            rows = connection.execute(page, [*values, max(0, limit), max(0, offset)]).fetchall()
            return Found(tuple(map(self._item, rows)), total)

        return self._index.read(read)

    def get(self, id: str) -> Item | None:
        """The picture of this id, in the bin or not; None if there is none of this owner."""
        found = self._index.read(lambda connection: list(self._rows(connection, [id])))
        return self._item(found[0]) if found else None

    def facets(self) -> dict[str, list[str]]:
        """What can be filtered by: the "model", "kind" and "tag" values that are there, sorted."""

        def read(connection: sqlite3.Connection) -> dict[str, list[str]]:
            rows = connection.execute("SELECT DISTINCT model, kind, tags FROM pictures WHERE owner=? AND deleted IS NULL", [self._owner]).fetchall()
            tags = {tag for row in rows for tag in row[2].split("\n")}
            return {"model": sorted({row[0] for row in rows}), "kind": sorted({row[1] for row in rows}), "tag": sorted(tags - {""})}

        return self._index.read(read)

    def favourite(self, id: str, on: bool = True) -> None:
        """Mark a picture, or unmark it."""
        self._update("favourite=?", [int(on)], [id])

    def tag(self, id: str, tags: Sequence[str]) -> tuple[str, ...]:
        """Give a picture these tags in the place of those it has; returns them as they are kept."""
        kept = clean_tags(tags)

        def write(connection: sqlite3.Connection) -> None:
            for row in self._rows(connection, [id]):
                item = self._item(row)
                connection.execute("UPDATE pictures SET tags=? WHERE id=?", ["\n".join(kept), id])
                words = folded(words_of(item.prompt, item.english, item.model, kept))
                connection.execute("UPDATE words SET words=? WHERE rowid=(SELECT rowid FROM pictures WHERE id=?)", [words, id])

        self._index.write(write)
        return kept

    def delete(self, ids: Iterable[str]) -> None:
        """Put pictures into the bin, from where `restore` takes them back until `empty_bin`."""
        self._update("deleted=?", [time.time()], ids)

    def restore(self, ids: Iterable[str]) -> None:
        """Take pictures out of the bin."""
        self._update("deleted=?", [None], ids)

    def empty_bin(self) -> int:
        """Remove what is in the bin from the disk, for good; returns how many pictures."""

        def remove(connection: sqlite3.Connection) -> list[Path]:
            rows = connection.execute("SELECT id FROM pictures WHERE owner=? AND deleted IS NOT NULL", [self._owner]).fetchall()
            drop(connection, [row[0] for row in rows])
            return [self._path(self._owner, row[0]) for row in rows]

        paths = self._index.write(remove)
        for path in paths:
            path.unlink(missing_ok=True)
            self._thumbnail_path(path).unlink(missing_ok=True)
        return len(paths)

    def thumbnail(self, item: Item) -> bytes:
        """A small WebP of the picture, made when it is first wanted; b"" if the file is gone or damaged."""
        place = self._thumbnail_path(item.path)
        try:
            if place.is_file():
                return place.read_bytes()
            small = jpgen.read_picture(item.path)
            small.thumbnail((THUMBNAIL, THUMBNAIL))
        except (jpgen.SettingError, OSError):
            return b""
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=80)
        try:
            _replace(place, lambda file: file.write_bytes(buffer.getvalue()))
        except OSError as error:  # it is only kept to be quicker the next time
            log.info("thumbnail not kept: %s", error)
        return buffer.getvalue()

    def export(self, ids: Iterable[str], target: Path) -> Path:
        """Write a ZIP file of pictures, one at a time whatever their number, named by prompt and seed; `target` is whole or not there.

        Raises GalleryError.
        """
        items = self._index.read(lambda connection: [self._item(row) for row in self._rows(connection, ids)])

        def write(file: Path) -> None:
            with zipfile.ZipFile(file, "x", zipfile.ZIP_STORED) as archive:
                for number, item in enumerate(items, 1):
                    if item.path.is_file():
                        archive.write(item.path, jpgen.picture_name(f"{number:04d} {item.prompt}", item.seed))

        try:
            _replace(target, write)
        except OSError as error:
            raise GalleryError(
                f"ZIP を書けません（{error.strerror}）。空きを作ってください / the ZIP cannot be written ({error.strerror}): free some space"
            ) from error
        return target

    def remember(self, id: str, source: str, vector: Sequence[float] | NDArray[Any]) -> None:
        """Keep what a picture encoder (`source`: its name) made of a picture, for `nearest`."""
        import numpy as np

        data = np.asarray(vector, np.float32).tobytes()

        def write(connection: sqlite3.Connection) -> None:
            for _ in self._rows(connection, [id]):
                connection.execute("INSERT OR REPLACE INTO features VALUES(?,?,?)", (id, source, data))

        self._index.write(write)

    def unread(self, source: str, limit: int = 100) -> tuple[Item, ...]:
        """Pictures of which `remember` was not told yet what this encoder makes, the newest first."""
        query = (
            f"SELECT {','.join(COLUMNS)} FROM pictures WHERE owner=? AND deleted IS NULL AND id NOT IN (SELECT id FROM features WHERE source=?) "
            "ORDER BY made DESC LIMIT ?"
        )
        return tuple(map(self._item, self._index.read(lambda connection: connection.execute(query, (self._owner, source, limit)).fetchall())))

    def nearest(self, source: str, vector: Sequence[float] | NDArray[Any], limit: int = 24) -> list[tuple[Item, float]]:
        """Pictures whose features lie nearest to these (of a text, of a picture), with their cosines, the nearest first."""
        import numpy as np

        query = f"SELECT vector, {','.join(COLUMNS)} FROM features JOIN pictures USING(id) WHERE source=? AND owner=? AND deleted IS NULL"
        rows = self._index.read(lambda connection: connection.execute(query, (source, self._owner)).fetchall())
        wanted = np.asarray(vector, np.float32)
        rows = [row for row in rows if len(row[0]) == wanted.nbytes]
        if not rows:
            return []
        kept = np.stack([np.frombuffer(row[0], np.float32) for row in rows])
        lengths = np.linalg.norm(kept, axis=1) * np.linalg.norm(wanted)
        cosines = kept @ wanted / np.where(lengths > 0, lengths, 1)
        return [(self._item(rows[i][1:]), float(cosines[i])) for i in np.argsort(-cosines, kind="stable")[:limit]]

    def close(self) -> None:
        """Close the index; the next use opens it again."""
        self._index.close()

    # ── files and rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _path(self, owner: str, id: str) -> Path:
        return self.folder / "pictures" / owner / id[:6] / id

    def _thumbnail_path(self, path: Path) -> Path:
        return self.folder / "thumbnails" / f"{path.stem}.webp"

    def _item(self, row: Sequence[Any]) -> Item:
        return item_of(row, self._path(str(row[1]), str(row[0])))

    def _rows(self, connection: sqlite3.Connection, ids: Iterable[str]) -> Iterator[Sequence[Any]]:
        """The rows of those ids that are this owner's."""
        for id in ids:
            yield from connection.execute(f"SELECT {','.join(COLUMNS)} FROM pictures WHERE id=? AND owner=?", [id, self._owner]).fetchall()

    def _update(self, change: str, values: Sequence[Any], ids: Iterable[str]) -> None:
        rows = [[*values, id, self._owner] for id in ids]
        self._index.write(lambda connection: connection.executemany(f"UPDATE pictures SET {change} WHERE id=? AND owner=?", rows))

    def _find_new(self) -> int:
        """Index the files that are not yet (the process ended between the two, or the index is new); returns how many are indexed in all."""
        known = {row[0] for row in self._index.read(lambda connection: connection.execute("SELECT id FROM pictures").fetchall())}
        new = [read for path, owner in self._files() if path.name not in known and (read := read_row(path, owner))]

        def write(connection: sqlite3.Connection) -> None:
            for row, words in new:
                insert(connection, row, words)

        if new:
            self._index.write(write)
        return len(known) + len(new)

    def _files(self) -> Iterator[tuple[Path, str]]:
        for path in sorted((self.folder / "pictures").glob("*/*/*.png")):
            if FILE.fullmatch(path.name) and not path.is_symlink():
                yield path, path.parent.parent.name


@cache
def _opened(folder: Path) -> Gallery:
    return Gallery(folder)


def _elsewhere(folder: Path, owner_key: str) -> Gallery:
    return _opened(folder)._of(owner_key)


def _owner_key(owner: str) -> str:
    """The folder of an owner: it does not tell who that is, and cannot lead anywhere."""
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:16] if owner else "local"


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file beside the target, then put it in its place; nothing stays behind if that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
