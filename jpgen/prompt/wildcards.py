"""Wildcards: files of options, one a line, that `__季節__` in a prompt stands for."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from jpgen.errors import PromptError, UnknownNameError
from jpgen.prompt.data import data_folder


@dataclass(frozen=True)
class Wildcards:
    """The wildcards of some folders: 季節.txt is 季節, 和風/色.txt is 和風/色. Where two folders have a name, the first one's counts.

    Files are read when they are asked for: UTF-8, an option a line, blank lines and lines that start with # left out. Names are the same in any
    width and case.

        >>> Wildcards.default().lines("季節")[:2]
        ['春', '初夏']
    """

    folders: tuple[Path, ...]

    @classmethod
    def default(cls) -> Wildcards:
        """Those that come with jpgen."""
        return cls((data_folder() / "wildcards",))

    def names(self) -> list[str]:
        """All names, sorted; raises PromptError if a folder is not there."""
        return list(self._files())

    def lines(self, name: str) -> list[str]:
        """The options of a name, or with * or ? of every name that fits; raises PromptError as `find` does."""
        return [line for lines in self.find(name).values() for line in lines]

    def find(self, name: str, *, but: Collection[str] = ()) -> dict[str, list[str]]:
        """What `lines` gives, by the names it comes from, in their order; with * or ? those named in `but` are left out.

        Raises PromptError if there is no such name, offering the nearest; if it leads out of the folder; if a file is empty or cannot be read.
        """
        wanted = _key(name)
        if wanted.startswith("/") or "\\" in wanted or ":" in wanted or ".." in wanted.split("/"):
            raise PromptError(f"wildcard {name!r} はフォルダーの外です。名前だけにしてください / leads out of its folder: use a plain name")
        files = self._files()
        if set("*?") & set(wanted):
            fitting = [known for known in files if fnmatchcase(_key(known), wanted)]
            found = [known for known in fitting if known not in but] or fitting
        else:
            found = [known for known in files if _key(known) == wanted]
        if not found:
            near = difflib.get_close_matches(name, files, n=1, cutoff=0.3) or list(files)[:20]
            raise PromptError(str(UnknownNameError.of("wildcard", name, near)))
        return {known: _read(files[known]) for known in found}

    def _files(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        seen: set[str] = set()
        for folder in self.folders:
            if not folder.is_dir():
                raise PromptError(f"ワイルドカードのフォルダー {folder} がありません / no wildcard folder {folder}: correct its path")
            names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.txt")}
            inside = folder.resolve()
            for name in sorted(names):
                normal = unicodedata.normalize("NFC", name)
                if _key(name) not in seen and names[name].resolve().is_relative_to(inside):  # a link may lead out
                    files[normal] = names[name]
                    seen.add(_key(name))
        return dict(sorted(files.items()))


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _read(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} を読めません。UTF-8 で保存してください / cannot read {path} ({error}): save it as UTF-8") from error
    lines = [stripped for line in text.replace("\r", "\n").split("\n") if (stripped := line.strip()) and not stripped.startswith("#")]
    if not lines:
        raise PromptError(f"{path} に候補がありません。一行に一つ書いてください / {path} has no options: write one a line")
    return lines
