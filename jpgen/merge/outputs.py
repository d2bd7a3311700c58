"""The files of a result: one, or one of each component; what is in them, and where in them the tensors go that are merged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jpgen.merge.files import standard_order
from jpgen.merge.keys import Headers, Moved, Slice, single
from jpgen.merge.names import COMPONENT, FOLDER, SINGLE, Form, is_aside
from jpgen.merge.sources import ONLY_SINGLE, stem_of
from jpgen.safety import BITS, Stored


@dataclass(frozen=True)
class File:
    """A file of the result: its place in the result's folder ("": the result is this file), and its tensors in their order."""

    path: str
    tensors: Mapping[str, Stored]

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return sum(size_of(stored) for stored in self.tensors.values())

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Its first bytes."""
        table: dict[str, object] = {"__metadata__": dict(metadata)}
        reached = 0
        for name, stored in self.tensors.items():
            end = reached + size_of(stored)
            table[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [reached, end]}
            reached = end
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Seat:
    """Where a merged tensor goes: the file, the byte of its values, what it is there called or a part of, and how it lies ("transpose", "swap")."""

    file: int
    begin: int
    name: str
    view: str = ""


def size_of(stored: Stored) -> int:
    """Bytes of a tensor's values."""
    return math.prod(stored.shape) * BITS[stored.dtype] // 8


def laid_out(tensors: Headers, form: Form) -> tuple[tuple[File, ...], dict[str, Seat]]:
    """The files that these tensors make up, and where in them each goes; raises WeightsError for tensors that have no place in a single file."""
    files, seats = [], {}
    for number, (path, inside) in enumerate(_files(tensors, form).items()):
        headers = {name: moved.stored for name, moved in inside.items()}
        order = standard_order(headers) if form.kind in (SINGLE, FOLDER) else sorted(headers, key=lambda name: (-BITS[headers[name].dtype], name))
        files.append(File(path, {name: headers[name] for name in order}))
        reached = 0
        for name in order:
            parts = inside[name].slices
            view = "swap" if parts[0].rows else inside[name].view if inside[name].view == "transpose" else ""
            for source in dict.fromkeys(part.source for part in parts):
                seats[source] = Seat(number, reached, name, view)
                reached += size_of(tensors[source])
    return tuple(files), seats


def _files(tensors: Headers, form: Form) -> dict[str, dict[str, Moved]]:
    if form.kind == SINGLE:
        return {"": single(tensors, form.family)}
    made: dict[str, dict[str, Moved]] = {}
    for name, stored in tensors.items():
        path, inner = "", name
        if form.kind == COMPONENT:
            inner = name.partition(".")[2]
        elif form.kind == FOLDER and is_aside(name):
            path = ONLY_SINGLE
        elif form.kind == FOLDER:
            component, _, inner = name.partition(".")
            path = f"{component}/{stem_of(component)}.safetensors"
        made.setdefault(path, {})[inner] = Moved(stored, (Slice(name),))
    return dict(sorted(made.items()))
