"""Tensors from files to files by a plan of slices: one tensor in memory at a time, written to a temporary file that is renamed when it is whole."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jpgen.errors import OutputError, WeightsError
from jpgen.merge.keys import COMPONENTS, Headers, Moved, Slice
from jpgen.merge.sources import ONLY_SINGLE, stem_of
from jpgen.safety import BITS, check_safetensors, read_json
from jpgen.weights import find_weights

ORDER = ("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16")
"""The types in the order in which safetensors writes them, so that values stay aligned; those of a byte come last."""

ROOTS = {
    "UNet2DConditionModel": "unet", "AutoencoderKL": "vae", "FluxTransformer2DModel": "transformer", "PixArtTransformer2DModel": "transformer",
    "Transformer2DModel": "transformer",
}  # fmt: skip
"""Classes of a config.json beside weights -> component."""


class Tensors:
    """The tensors of some safetensors files, by names of one's own; open for the time of the block."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self.places = places
        self.headers: Headers
        checked = {path: check_safetensors(path) for path in dict.fromkeys(path for path, _ in places.values())}
        self.headers = {name: checked[path].tensors[inner] for name, (path, inner) in places.items()}
        self.metadata = {path: header.metadata for path, header in checked.items()}
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    @classmethod
    def of_file(cls, path: Path) -> Tensors:
        """Of one file, by the names in it."""
        return cls({name: (path, name) for name in check_safetensors(path).tensors})

    @classmethod
    def of_folder(cls, folder: Path) -> Tensors:
        """Of a diffusers folder, as "<component>.<name>", or of one component's own folder; raises WeightsError where there are no weights."""
        places: dict[str, tuple[Path, str]] = {}
        for component in COMPONENTS:
            if (folder / component).is_dir():
                places |= cls._component(folder / component, component)
        if not places and (folder / "config.json").is_file():
            kind = str(read_json(folder / "config.json").get("_class_name"))
            if kind in ROOTS:
                places = cls._component(folder, ROOTS[kind])
        if not places:
            raise WeightsError(f"{folder} に重みがありません / no weights in {folder}: wanted folders {', '.join(COMPONENTS)}, or a component's own")
        if (folder / ONLY_SINGLE).is_file():
            places |= {name: (folder / ONLY_SINGLE, name) for name in check_safetensors(folder / ONLY_SINGLE).tensors}
        return cls(places)

    @staticmethod
    def _component(folder: Path, component: str) -> dict[str, tuple[Path, str]]:
        paths = find_weights(folder, stem_of(component), None)
        return {f"{component}.{name}": (path, name) for path in paths for name in check_safetensors(path).tensors}

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.clear()
        self._stack.close()

    def read(self, wanted: Slice) -> Tensor:
        """The values of a slice, in their own type."""
        path, name = self.places[wanted.source]
        try:
            if path not in self._open:
                self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            file = self._open[path]
            made: Tensor = file.get_tensor(name) if wanted.rows is None else file.get_slice(name)[wanted.rows[0] : wanted.rows[1]]
        except (SafetensorError, OSError, RuntimeError) as error:
            raise WeightsError(f"{path} は壊れています / damaged weight file {path} ({error}); fetch it again") from error
        return made


def standard_order(headers: Headers) -> list[str]:
    """The order in which safetensors itself writes these tensors."""

    def rank(name: str) -> tuple[int, str]:
        dtype = headers[name].dtype
        return (ORDER.index(dtype) if dtype in ORDER else len(ORDER), name)

    return sorted(headers, key=rank)


def write_tensors(
    path: Path,
    plan: Mapping[str, Moved],
    read: Callable[[Slice], Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
) -> Path:
    """Write the planned tensors to `path`, one after the other, in `order` (None: as safetensors does); returns it.

    The file is there whole or not at all. Raises OutputError where there is no space (before anything is written) or no right to write.
    """
    headers = {name: moved.stored for name, moved in plan.items()}
    names = standard_order(headers) if order is None else list(order)
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name in names:
        stored = headers[name]
        end = reached + math.prod(stored.shape) * BITS[stored.dtype] // 8
        table[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, 8 + len(text) + reached)
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(plan[name].made(read).contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} に書き込めません / cannot write {path}: {error.strerror or error}") from error
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
    return path


def require_space(folder: Path, size: int) -> None:
    """Raise OutputError unless so many bytes can be written in the folder."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OutputError(
            f"{folder} の空きが足りません / not enough space in {folder}: {size / 1e9:.1f} GB wanted, {free / 1e9:.1f} GB free; "
            "free some, or write elsewhere"
        )


def joined(metadata: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The metadata of several files as those of one: what they disagree on is numbered."""
    made: dict[str, str] = {}
    for n, one in enumerate(metadata):
        for key, value in one.items():
            made[key if made.get(key, value) == value else f"{key}.{n}"] = value
    return made
