"""The engine: a recipe and its files in, one file out, tensor by tensor; of all the models only one tensor each is in memory at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jpgen.errors import OutputError, WeightsError
from jpgen.merge.methods import group, linear, lora
from jpgen.merge.recipe import Input, Recipe, Stage
from jpgen.safety import BITS, Stored, check_safetensors, sha256_of
from jpgen.types import plain_data

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are merged; tensors of others (counters) must be the same in all models."""

RECIPE_KEY, INPUTS_KEY = "jpgen.recipe", "jpgen.inputs"
"""Metadata of a merged file: the recipe, and the SHA-256 of each file that went in."""

LORA = re.compile(r"(?:lora_unet_|unet\.)?(?P<module>.+?)\.(?P<part>lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up|alpha)(?:\.weight)?")
"""Names of a LoRA's tensors, kohya's and diffusers'."""

PARTS = {"lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_B": "up", "lora_up": "up", "lora.up": "up", "alpha": "alpha"}

Files = Mapping[tuple[str, str], Sequence[Path]]
"""Where the inputs are: of each model and file of the recipe, the file itself or its shards."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and what its header says of it."""

    path: Path
    stored: Stored


def merge_key(recipe: Recipe, files: Files) -> str:
    """32 hex digits that name the result: of the stages of the recipe (their weights, not the remarks) and the SHA-256 of every input."""
    stages = [{**plain_data(stage), "unverified": []} for stage in recipe.stages]
    told = json.dumps([stages, _digests(files)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def merge(recipe: Recipe, files: Files, output: Path) -> Path:
    """Write what the last stage gives to `output` (a temporary file, then renamed); returns it.

    Arithmetic is in fp32; a tensor comes out in the type it has in the first input. Raises WeightsError for inputs that are damaged, differ in names
    or shapes (naming them) or are not finite, and OutputError for a disk that is full or cannot be written.
    """
    places = {key: _places(paths) for key, paths in files.items()}
    _require_alike(recipe, places)
    first = places[_first(recipe)]
    loras = {id(one): _lora_of(one, places, first) for stage in recipe.stages if stage.method == "lora" for one in stage.inputs[1:]}
    order = sorted(first, key=lambda name: (-BITS[first[name].stored.dtype], name))  # as safetensors itself, so that values stay aligned
    header, size = _header(recipe, files, first, order)
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if size > free:
            raise OutputError(_no_space(output, f"{size / 1e9:.1f} GB wanted, {free / 1e9:.1f} GB free"))
        with ExitStack() as opened, partial.open("wb") as file:
            source = _Source(opened, recipe, places, loras)
            file.write(header)
            for name in order:
                file.write(_bytes(source.result(name, first[name].stored)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, output)
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"配合できません / cannot merge by the recipe {recipe.name}: {' '.join(str(error).split())}") from error
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(_no_space(output, error.strerror or str(error))) from error
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
    return output


class _Source:
    """Tensors of every stage, computed when asked for."""

    def __init__(self, opened: ExitStack, recipe: Recipe, places: Mapping[tuple[str, str], Mapping[str, Place]], loras: Mapping[int, Any]) -> None:
        self._stages = {stage.name: stage for stage in recipe.stages}
        self._last = recipe.stages[-1]
        self._places, self._loras = places, loras
        paths = {place.path for tensors in places.values() for place in tensors.values()}
        self._files = {path: opened.enter_context(safe_open(path, framework="pt")) for path in paths}

    def result(self, name: str, stored: Stored) -> Tensor:
        """What the last stage gives for this name, in its stored type; raises WeightsError unless it is finite there."""
        if stored.dtype not in DTYPES:
            return self._same(name)
        made = self._value(self._last, name).to(DTYPES[stored.dtype])
        if not bool(torch.isfinite(made).all()):
            inputs = [(key, tensors[name]) for key, tensors in self._places.items() if name in tensors]
            guilty = [f"{model} ({file})" for (model, file), place in inputs if not self._finite(place, name)]
            why = f"so has {', '.join(guilty)}: fetch it again" if guilty else f"though no input has: the weights are too large for {stored.dtype}"
            raise WeightsError(f"{name} に有限でない値が出ました / {name} comes out with values that are not finite, {why}")
        return made

    def _value(self, stage: Stage, name: str) -> Tensor:
        if stage.method == "linear":
            kind = group(name)
            return linear([self._input(one, name) for one in stage.inputs], [one.weights[kind] for one in stage.inputs])
        base, added = stage.inputs
        value, pair = self._input(base, name), self._loras[id(added)].get(name)
        if pair is None:
            return value
        down, up = (self._read(pair[part], pair[f"{part}.name"]).float() for part in ("down", "up"))
        alpha = float(self._read(pair["alpha"], pair["alpha.name"])) if "alpha" in pair else float(len(down))
        return lora(value, up, down, added.scale * alpha / len(down))

    def _input(self, one: Input, name: str) -> Tensor:
        return self._value(self._stages[one.stage], name) if one.stage else self._read(self._places[one.model, one.file][name], name).float()

    def _same(self, name: str) -> Tensor:
        """A tensor of whole numbers, which no average is of."""
        found = [self._read(tensors[name], name) for tensors in self._places.values() if name in tensors]
        if not all(torch.equal(found[0], other) for other in found[1:]):
            raise WeightsError(f"{name} は整数で、モデルごとに違います / {name} holds whole numbers that differ between the models: no average")
        return found[0]

    def _finite(self, place: Place, name: str) -> bool:
        return bool(torch.isfinite(self._read(place, name)).all())

    def _read(self, place: Place, name: str) -> Tensor:
        read: Tensor = self._files[place.path].get_tensor(name)
        return read


def _digests(files: Files) -> dict[str, list[str]]:
    return {f"{model}/{file}": [sha256_of(path) for path in paths] for (model, file), paths in sorted(files.items())}


def _places(paths: Sequence[Path]) -> dict[str, Place]:
    return {name: Place(path, stored) for path in paths for name, stored in check_safetensors(path).tensors.items()}


def _first(recipe: Recipe) -> tuple[str, str]:
    """The input whose names, shapes and types are those of the result."""
    one = next(given for stage in recipe.stages for given in stage.inputs if given.model)
    return one.model, one.file


def _require_alike(recipe: Recipe, places: Mapping[tuple[str, str], Mapping[str, Place]]) -> None:
    """Raise WeightsError, naming them, if whole models differ in names or shapes from the first."""
    first = _first(recipe)
    wanted, wrong = places[first], []
    whole = [given for stage in recipe.stages for n, given in enumerate(stage.inputs) if given.model and not (stage.method == "lora" and n)]
    for key in dict.fromkeys((one.model, one.file) for one in whole):
        tensors = places[key]
        faults = [f"no {name}" for name in sorted(wanted.keys() - tensors.keys())]
        faults += [f"extra {name}" for name in sorted(tensors.keys() - wanted.keys())]
        for name in sorted(wanted.keys() & tensors.keys()):
            one, other = tensors[name].stored.shape, wanted[name].stored.shape
            faults += [] if one == other else [f"{name} {list(one)} for {list(other)}"]
        if faults:
            wrong.append(f"{key[0]} ({key[1]}): {len(faults)} tensors: {', '.join(faults[:5])}")
    if wrong:
        raise WeightsError(f"モデルの形が揃いません / these models are not of the shape of {first[0]} ({first[1]}): {'; '.join(wrong)}; name others")


def _lora_of(one: Input, places: Mapping[tuple[str, str], Mapping[str, Place]], first: Mapping[str, Place]) -> dict[str, dict[str, Any]]:
    """The LoRA's tensors by the name of the tensor they change; raises WeightsError for those that change nothing or do not fit."""
    modules = {name.removesuffix(".weight"): name for name in first if name.endswith(".weight")}
    modules |= {module.replace(".", "_"): name for module, name in modules.items()}
    found: dict[str, dict[str, Any]] = {}
    strange = []
    for name, place in places[one.model, one.file].items():
        match = LORA.fullmatch(name)
        target = modules.get(match["module"]) if match else None
        if match is None or target is None:
            strange.append(name)
            continue
        part = PARTS[match["part"]]
        found.setdefault(target, {}).update({part: place, f"{part}.name": name})
    for target, pair in found.items():
        shape = first[target].stored.shape
        if "down" not in pair or "up" not in pair:
            strange.append(f"{target} (half a pair)")
            continue
        down, up = (pair[part].stored.shape for part in ("down", "up"))
        if len(down) < 2 or len(up) < 2 or up[0] != shape[0] or up[1] != down[0] or math.prod(down[1:]) * math.prod(up[2:]) != math.prod(shape[1:]):
            strange.append(f"{target} {list(shape)} by {list(up)} and {list(down)}")
    if strange or not found:
        told = f"{len(strange)} of its tensors fit nothing: {', '.join(sorted(strange)[:5])}" if strange else "it holds no LoRA"
        raise WeightsError(f"LoRA が合いません / the LoRA {one.file} of {one.model} does not fit the models: {told}; name one made for them")
    return found


def _header(recipe: Recipe, files: Files, first: Mapping[str, Place], order: Sequence[str]) -> tuple[bytes, int]:
    """The file's first bytes, and the size it will have."""
    told = {RECIPE_KEY: json.dumps(plain_data(recipe), ensure_ascii=False), INPUTS_KEY: json.dumps(_digests(files))}
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **told}}
    reached = 0
    for name, length in _lengths(first, order):
        stored = first[name].stored
        table[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [reached, reached + length]}
        reached += length
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + reached


def _lengths(first: Mapping[str, Place], order: Sequence[str]) -> Iterator[tuple[str, int]]:
    for name in order:
        yield name, math.prod(first[name].stored.shape) * BITS[first[name].stored.dtype] // 8


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _no_space(output: Path, why: str) -> str:
    return f"{output} に書き込めません / cannot write {output} ({why}): free some space, or name another folder with the variable XDG_CACHE_HOME"
