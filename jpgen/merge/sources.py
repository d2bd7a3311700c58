"""Where the tensors of a recipe's inputs are: files, folders and shards, told by their headers; and the bytes of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jpgen.errors import WeightsError
from jpgen.lora import DENOISER, Adapter, Change, read_adapter, some
from jpgen.lora_modules import bfl_spellings, ldm_spellings, plain_spelling
from jpgen.merge.groups import COMPONENTS
from jpgen.merge.keys import KeySpace, canonical
from jpgen.merge.recipe import Lora, Model
from jpgen.safety import BITS, Stored, check_safetensors
from jpgen.weights import SCALE, find_weights, packed_tensors, unpack

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types that are merged; tensors of others (counters, positions) must be the same in all models, and stay as they are."""

PACKED_TYPES = {"I8": torch.int8, "U8": torch.uint8}
"""Types of packed values."""

Files = Sequence[Path]
Find = Callable[[Model | Lora], Files | Mapping[str, Files]]
"""Finds the files of an input: one, or the shards, of one model; or those of each component of a folder."""

ONLY_SINGLE = "single_file_only.safetensors"
"""In a folder made of a single file: what of it no component has a place for, so that the file can be made again."""

ORIGINALS = ("model.diffusion_model.", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
"""What names begin with in single files, before the names of the module."""


@dataclass(frozen=True)
class Packed:
    """How a tensor is quantised (see `jpgen.weights`): `bits` a value, in a file's `values` [rows, bytes], with a scale for each row in `scales`."""

    bits: int
    values: Stored
    scales: Stored


@dataclass(frozen=True)
class Place:
    """A tensor in a file: from which byte on, its type and shape, and what the file calls the tensor that it is, or is a part of.

    `view` is how it lies there: "" as it is, "transpose", or "swap" (its lower half comes first). One that is `packed` counts its bytes as if it lay
    unpacked, in fp32, in a file of its own.
    """

    path: Path
    stored: Stored
    name: str = ""
    view: str = ""
    packed: Packed | None = None

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return math.prod(self.stored.shape) * BITS[self.stored.dtype] // 8


@dataclass(frozen=True)
class Source:
    """An input that has been looked at: its files and its tensors by name; `folder` if its components are in folders, `space` where it is known."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Place]
    folder: Path | None = None
    space: KeySpace | None = None

    @property
    def headers(self) -> dict[str, Stored]:
        """The tensors as the headers have them."""
        return {name: place.stored for name, place in self.tensors.items()}


@dataclass(frozen=True)
class Share:
    """What an adapter adds to one tensor: the rows from `start` to `end` of a change for the tensors `targets`, one below the other."""

    change: Change
    targets: tuple[str, ...]
    start: int
    end: int
    bias: bool


def find_files(node: Model | Lora) -> Files | Mapping[str, Files]:
    """The files of an input that is a path; raises WeightsError if there is none."""
    path = Path(node.name).expanduser()
    if path.is_file() or not path.is_dir():
        if not path.exists():
            raise WeightsError(f"{node.name} がありません / no file or folder {node.name}: correct the recipe, or give the path")
        return [path]
    if node.file:
        return [path / node.file]
    inside = [name for name in COMPONENTS if (path / name).is_dir()]
    if inside and isinstance(node, Model):
        found: dict[str, Files] = {name: find_weights(path / name, stem_of(name), None) for name in inside if node.component in ("", name)}
        return {**found, "": [path / ONLY_SINGLE]} if not node.component and (path / ONLY_SINGLE).is_file() else found
    for stem in ("diffusion_pytorch_model", "model"):
        if any(path.glob(f"{stem}*")):
            return find_weights(path, stem, None)
    return find_weights(path, dtype=None)


def open_source(node: Model, found: Files | Mapping[str, Files]) -> Source:
    """The tensors of a model by their names, those of a folder with their component before it; raises WeightsError for damage."""
    if not isinstance(found, Mapping):
        found = {"": found}
    folder = next((paths[0].parent.parent for component, paths in found.items() if component and paths), None)
    tensors: dict[str, Place] = {}
    for component, paths in found.items():
        for path in paths:
            for name, place in _places(path).items():
                full = f"{component}.{name}" if component else name
                if full in tensors:
                    raise WeightsError(f"{node.name}: {full} が二つのファイルにあります / {node.name}: {full} is in two of its files: fetch it again")
                tensors[full] = replace(place, name=full)
    if node.component:
        inside = _of_component(node.component, tensors)
        if not inside:
            raise WeightsError(f"{node.name} に {node.component} がありません / {node.name} holds no {node.component}: {some(tensors)}")
        tensors = inside
    return Source(tuple(path for paths in found.values() for path in paths), tensors, folder)


def _places(path: Path) -> dict[str, Place]:
    """The tensors of a file; quantised ones are one with their scales."""
    header = check_safetensors(path)
    made = {name: Place(path, stored) for name, stored in header.tensors.items()}
    for name, (bits, shape) in packed_tensors(path, header).items():
        made[name] = Place(path, Stored("F32", tuple(shape)), packed=Packed(bits, made[name].stored, made.pop(name + SCALE).stored))
    return made


def stem_of(component: str) -> str:
    """How the file of a component's weights is called."""
    return "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"


def component_of(name: str) -> str:
    """The component that a name begins with; "unet" for A1111's U-Nets and for names without."""
    first = name.split(".", 1)[0]
    if first in COMPONENTS:
        return first
    if name.startswith(("cond_stage_model.", "conditioner.embedders.0.")):
        return "text_encoder"
    if name.startswith("conditioner.embedders.1."):
        return "text_encoder_2"
    return "vae" if name.startswith("first_stage_model.") else "unet"


def open_adapter(node: Lora, paths: Files) -> Adapter:
    """The adapter of one file; raises WeightsError as `jpgen.lora.read_adapter` does."""
    if len(paths) != 1:
        raise WeightsError(f"{node.name}: どのファイルか決められません / {node.name} is {len(paths)} files: an adapter is one, say which by file")
    return read_adapter(Path(paths[0]))


def shares_of(adapter: Adapter, tensors: Mapping[str, Stored]) -> dict[str, list[Share]]:
    """What the adapter adds to each of these tensors; raises WeightsError, listing them, unless all of it fits and is used."""
    names = {part: _modules(part, tensors) for part in {change.part for change in adapter.changes}}
    made: dict[str, list[Share]] = {}
    strange: list[str] = []
    taken: set[tuple[str, ...]] = set()
    for change in adapter.changes:
        targets = _targets(change, names[change.part])
        where = change.module if change.part == DENOISER else f"{change.part}.{change.module}"
        if targets is None:
            strange.append(f"{where} (no such tensor)")
            continue
        weights = [tensors[f"{target}.weight"] for target in targets]
        shape = (sum(one.shape[0] for one in weights if one.shape), *weights[0].shape[1:])
        if targets in taken:
            strange.append(f"{where} (there twice, by two names)")
        elif not change.fits(torch.empty(1).expand(shape) if shape else torch.empty(())):
            strange.append(f"{where} {list(change.shape())} for a weight {list(shape)}")
        elif change.changes_bias and not _bias_fits(change, [tensors.get(f"{target}.bias") for target in targets]):
            strange.append(f"{where} (its bias has no place)")
        else:
            start = 0
            for target, weight in zip(targets, weights, strict=True):
                end = start + weight.shape[0]
                for leaf in [leaf for leaf, changes in (("weight", change.changes_weight), ("bias", change.changes_bias)) if changes]:
                    share = Share(change, tuple(f"{one}.{leaf}" for one in targets), start, end, leaf == "bias")
                    made.setdefault(f"{target}.{leaf}", []).append(share)
                start = end
        taken.add(targets)
    if strange or not adapter.changes:
        told = f"{len(strange)} of its {len(adapter.changes)} modules fit nothing: {some(strange)}" if strange else "it holds nothing"
        raise WeightsError(
            f"{adapter.path.name} はモデルに合いません / the adapter {adapter.path.name} does not fit the model: {told}; choose one made for it"
        )
    return made


class Reader:
    """Reads bytes of files into given buffers; files stay open until `close`. Threads may share it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.count = 0
        self._files: dict[Path, int] = {}
        for path in dict.fromkeys(paths):
            try:
                self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                self.close()
                raise WeightsError(f"{path} を読めません / cannot read {path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def read(self, path: Path, begin: int, into: Any) -> None:
        """Fill the writable buffer from the byte `begin` on; raises WeightsError if the file has become shorter."""
        view, reached = memoryview(into).cast("B"), 0
        while reached < len(view):
            got = os.preadv(self._files[path], [view[reached:]], begin + reached)
            if got <= 0:
                raise WeightsError(f"{path} が途中で短くなりました / {path} was cut off while it was read: fetch it again")
            reached += got

    def fill(self, place: Place, into: Any) -> None:
        """Fill the writable buffer with the values at a place, of what is packed with those that it stands for; raises as `read` does."""
        if place.packed is None:
            self.read(place.path, place.stored.begin, into)
            return
        bits, values, scales = place.packed.bits, place.packed.values, place.packed.scales
        row, wanted = values.shape[1] * 8 // bits, torch.frombuffer(into, dtype=torch.float32)
        begin = place.stored.begin // wanted.element_size()
        first, last = begin // row, -(-(begin + len(wanted)) // row)
        rows, scale = (self._rows(place.path, stored, first, last) for stored in (values, scales))
        wanted.copy_(unpack(rows, scale, bits).view(-1)[begin - first * row :][: len(wanted)])

    def _rows(self, path: Path, stored: Stored, first: int, last: int) -> Tensor:
        """Rows of a matrix as it is stored."""
        made = torch.empty((last - first, stored.shape[1]), dtype=PACKED_TYPES.get(stored.dtype) or TYPES[stored.dtype])
        self.read(path, stored.begin + first * stored.shape[1] * made.element_size(), made.view(torch.uint8).numpy())
        return made

    def tensor(self, place: Place) -> Tensor:
        """The whole tensor as it is stored, or unpacked."""
        made = torch.empty(place.size, dtype=torch.uint8)
        if place.size:
            self.fill(place, made.numpy())
        shape = place.stored.shape[::-1] if place.view == "transpose" else place.stored.shape
        return turned(made.view(TYPES[place.stored.dtype]).reshape(shape), place.view)


def turned(values: Tensor, view: str) -> Tensor:
    """Values the other way round: "transpose", or "swap" (the halves of the rows change places); done twice, either is nothing."""
    if view == "transpose":
        return values.T.contiguous()
    return values.roll(len(values) // 2, 0) if view == "swap" else values


def _of_component(component: str, tensors: Mapping[str, Place]) -> dict[str, Place]:
    """The tensors of a component, in the names of any layout."""
    try:
        known = canonical({name: place.stored for name, place in tensors.items()})
    except WeightsError:
        return {name: place for name, place in tensors.items() if component_of(name) == component}
    inside = {part.source for name, moved in known.items() if name.startswith(f"{component}.") for part in moved.slices}
    return {name: place for name, place in tensors.items() if name in inside}


def _modules(part: str, tensors: Mapping[str, Stored]) -> dict[str, tuple[str, ...]]:
    """Every way to spell the modules of a part that have a weight -> the names of their tensors without the leaf."""
    wanted = ("unet", "transformer") if part == DENOISER else (part,)
    bare: dict[str, str] = {}
    for name in tensors:
        if name.endswith(".weight") and component_of(name) in wanted:
            full = name.removesuffix(".weight")
            inner = full
            for prefix in (*(f"{one}." for one in wanted), *ORIGINALS):
                inner = inner.removeprefix(prefix)
            bare[inner] = full
    made: dict[str, tuple[str, ...]] = {plain_spelling(part, inner): (full,) for inner, full in bare.items()}
    if part == DENOISER:
        for spelling, targets in {**ldm_spellings(list(bare)), **bfl_spellings(list(bare))}.items():
            made.setdefault(spelling, tuple(bare[target] for target in targets))
    return made


def _targets(change: Change, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    spelling = plain_spelling(change.part, change.module)
    return known.get(f"{spelling}_0") if spelling.endswith("to_out") and spelling not in known else known.get(spelling)


def _bias_fits(change: Change, biases: Sequence[Stored | None]) -> bool:
    return all(bias is not None for bias in biases) and change.bias_delta().numel() == sum(math.prod(bias.shape) for bias in biases if bias)
