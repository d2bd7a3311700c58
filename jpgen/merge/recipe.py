"""A merge recipe as plain values: a tree of models and methods. `jpgen.merge.reading` reads it from YAML or JSON, `check` tells all that is wrong."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from jpgen.errors import RecipeError, UnknownNameError
from jpgen.merge.groups import ATTN, GLOBAL, OTHER, is_group

TOLERANCE = 1e-6
"""How far from 1 the weights of a weighted sum may sum up."""

MAX_NODES, MAX_DEPTH = 2000, 32
"""How large the tree may be."""

DTYPES = ("", "fp32", "bf16", "fp16", "fp8")
"""Types of the result ("": of each tensor that of the first model)."""

LAYOUTS = ("", "single", "diffusers")
"""How the result lies ("": as the first model): a single file as of A1111, or a folder as of diffusers."""

VERSION = 1


@dataclass(frozen=True)
class Free:
    """A number that a search is to find, from `low` to `high`; `initial`: where it begins (None: in the middle)."""

    low: float
    high: float
    initial: float | None = None


Number = float | Free

Param = Number | tuple[Number, ...] | Mapping[str, Number | tuple[Number, ...]]
"""A number, one for each model, or either of them by group (see `jpgen.merge.groups`)."""


@dataclass(frozen=True)
class Model:
    """Weights: a path, or a row of the catalogue; `file` says which of its repository, `component` which part is used ("unet" …; "": all)."""

    name: str
    file: str = ""
    component: str = ""


@dataclass(frozen=True)
class Lora:
    """An adapter file (see `jpgen.lora`), or one of a row of the catalogue."""

    name: str
    file: str = ""


@dataclass(frozen=True)
class Merge:
    """A method, what it is used on, and its numbers."""

    method: str
    inputs: tuple[Node, ...]
    params: Mapping[str, Param] = field(default_factory=dict, hash=False)


Node = Model | Lora | Merge


@dataclass(frozen=True)
class Recipe:
    """A tree and what comes out of it: `dtype` of DTYPES, `layout` of LAYOUTS, `seed` of the methods of chance.

    `base` and `text_encoder` are, of a recipe for a picture model, the rows of the catalogue that bring all but the U-Net; `sources` and `unverified`
    are remarks and change nothing.
    """

    root: Node
    dtype: str = ""
    seed: int = 0
    name: str = "recipe"
    base: str = ""
    text_encoder: str = ""
    sources: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    layout: str = ""

    @property
    def leaves(self) -> tuple[Model | Lora, ...]:
        """The models and adapters, each once, in their order."""
        return tuple(dict.fromkeys(node for _, node in walk(self.root) if not isinstance(node, Merge)))

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all that is needed, each once."""
        return tuple(dict.fromkeys(name for name in (self.base, self.text_encoder, *(leaf.name for leaf in self.leaves)) if name))

    def free(self) -> dict[str, Free]:
        """The free numbers by their place in the tree ("root.t.attn"), in the order of the tree."""
        found: dict[str, Free] = {}
        for place, node in walk(self.root):
            for name, param in node.params.items() if isinstance(node, Merge) else ():
                found.update((at, one) for at, one in _numbers(f"{place}.{name}", param) if isinstance(one, Free))
        return found

    def fixed(self, values: Mapping[str, float]) -> Recipe:
        """The recipe with these numbers in the place of free ones; raises RecipeError for places where none is."""
        if strange := sorted(values.keys() - self.free().keys()):
            raise RecipeError(f"自由な数がありません / no free number at {', '.join(strange[:5])}; there are: {', '.join(self.free()) or 'none'}")
        return replace(self, root=_fixed("root", self.root, values))

    def to_data(self) -> dict[str, Any]:
        """The recipe as it would be written, in one form, without the folders of files that are given by absolute paths."""
        names = short_names(self.leaves)
        told: dict[str, Any] = {"version": VERSION, "name": self.name, "seed": self.seed}
        told |= {key: value for key in ("dtype", "layout", "base", "text_encoder") if (value := getattr(self, key))}
        told |= {key: list(value) for key in ("sources", "unverified") if (value := getattr(self, key))}
        return {**told, "root": _node_data(self.root, names)}

    @property
    def digest(self) -> str:
        """64 hex digits of what the recipe does: remarks and name do not count."""
        bare = replace(self, name="recipe", sources=(), unverified=()).to_data()
        return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def walk(root: Node) -> Iterator[tuple[str, Node]]:
    """Every node with its place, the root first; raises RecipeError for a tree that is too large."""
    waiting: list[tuple[str, Node, int]] = [("root", root, 1)]
    count = 0
    while waiting:
        place, node, depth = waiting.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise RecipeError(f"レシピが大きすぎます / the recipe is too large: at most {MAX_NODES} nodes, {MAX_DEPTH} deep")
        yield place, node
        if isinstance(node, Merge):
            waiting += [(f"{place}.{index}", one, depth + 1) for index, one in reversed(list(enumerate(node.inputs)))]


def check(recipe: Recipe) -> list[str]:
    """All that is wrong with it, each with its place."""
    wrong: list[str] = []
    for place, node in walk(recipe.root):
        if isinstance(node, Merge):
            wrong += _faults(place, node)
        elif not node.name:
            wrong.append(f"{place}: no name")
        elif isinstance(node, Model) and node.file and not node.file.endswith(".safetensors"):
            wrong.append(f"{place}: file = {node.file!r}, wanted a .safetensors file of {node.name}")
    if isinstance(recipe.root, Lora):
        wrong.append("root: an adapter is no model: use add_lora")
    if recipe.dtype not in DTYPES:
        wrong.append(f"dtype: {recipe.dtype!r}, known: {', '.join(DTYPES[1:])}")
    if recipe.layout not in LAYOUTS:
        wrong.append(f"layout: {recipe.layout!r}, known: {', '.join(LAYOUTS[1:])}")
    return wrong


def require_valid(recipe: Recipe) -> None:
    """Raise RecipeError naming all that is wrong."""
    if wrong := check(recipe):
        raise RecipeError(f"レシピ {recipe.name} が正しくありません / recipe {recipe.name}: {'; '.join(wrong)}; correct it")


def require_fixed(recipe: Recipe) -> None:
    """Raise RecipeError if numbers are still free."""
    if free := recipe.free():
        told = ", ".join(list(free)[:5])
        raise RecipeError(f"レシピ {recipe.name} には自由な数があります / recipe {recipe.name} has free numbers: {told}: search them")


def _faults(place: str, node: Merge) -> list[str]:
    from jpgen.merge.methods import ADD_LORA, find_method  # here: it loads torch

    try:
        method = find_method(node.method)
    except UnknownNameError as error:
        return [f"{place}: {error}"]
    wrong = []
    if not method.takes(len(node.inputs)):
        wrong.append(f"{place}: {node.method} takes {method.inputs} inputs, got {len(node.inputs)}")
    for index, one in enumerate(node.inputs):
        if isinstance(one, Lora) != (node.method == ADD_LORA and index > 0):
            what = "an adapter is an input of add_lora alone, after the first" if isinstance(one, Lora) else "wanted {lora: …}"
            wrong.append(f"{place}.{index}: {what}")
    known = ", ".join(method.parameters) or "none"
    wrong += [f"{place}: {node.method} has no {name!r}: {known}" for name in node.params if name not in method.parameters]
    for name, parameter in method.parameters.items():
        if name not in node.params:
            wrong += [f"{place}: no {name}"] if parameter.default is None else []
            continue
        given = node.params[name]
        count = len(node.inputs) - (method.first if method.variadic is not None else 0) if parameter.each else 0
        wrong += _faults_of(f"{place}.{name}", given, count, parameter.range)
        if isinstance(given, Mapping) and parameter.default is None and not (GLOBAL in given or {ATTN, OTHER} <= given.keys()):
            wrong.append(f"{place}.{name}: not for all tensors: give {GLOBAL}, or both {ATTN} and {OTHER}")
        if node.method == "weighted_sum" and name == "weights" and not node.params.get("normalize"):
            wrong += _sums(f"{place}.{name}", given, count)
    return wrong


def _faults_of(place: str, given: Any, count: int, allowed: Any, inside: bool = False) -> list[str]:
    """What is wrong with a number, numbers for `count` models (0: one number is wanted), or groups of them."""
    if isinstance(given, Mapping):
        if inside:
            return [f"{place}: groups in groups"]
        wrong = [f"{place}: no groups"] if not given else []
        wrong += [f"{place}: unknown group {key!r}: global, unet, attn, other, IN04, block.3, /expression/ …" for key in given if not is_group(key)]
        return wrong + [fault for key, one in given.items() for fault in _faults_of(f"{place}.{key}", one, count, allowed, True)]
    if isinstance(given, tuple):
        if not count:
            return [f"{place}: one number is wanted, got a list"]
        wrong = [f"{place}: {len(given)} numbers for {count} models"] if len(given) != count else []
        return wrong + [fault for index, one in enumerate(given) for fault in _faults_of(f"{place}.{index}", one, 0, allowed, True)]
    if isinstance(given, Free):
        ends = (given.low, given.high, given.low if given.initial is None else given.initial)
        if not all(_is_number(one) for one in ends) or not given.low < given.high or not given.low <= ends[2] <= given.high:
            return [f"{place}: a free number wants low < high, both finite, and its initial between them"]
        return [fault for one in ends[:2] for fault in _faults_of(place, one, 0, allowed)]
    if not _is_number(given):
        return [f"{place}: {given!r:.40} is no finite number"]
    return [] if allowed.low <= given <= allowed.high else [f"{place}: {given:g} is not in [{allowed.low:g}, {allowed.high:g}]"]


def _sums(place: str, given: Any, count: int) -> list[str]:
    if isinstance(given, Mapping):
        return [fault for key, one in given.items() for fault in _sums(f"{place}.{key}", one, count)]
    numbers = given if isinstance(given, tuple) else (given,) * count
    if not all(_is_number(one) for one in numbers) or abs(sum(numbers) - 1) <= TOLERANCE:
        return []
    return [f"{place}: the weights sum to {sum(numbers):.6f}, wanted 1 (or normalize: true)"]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _numbers(place: str, param: Param) -> Iterator[tuple[str, Number]]:
    if isinstance(param, Mapping):
        for key, one in param.items():
            yield from _numbers(f"{place}.{key}", one)
    elif isinstance(param, tuple):
        yield from ((f"{place}.{index}", one) for index, one in enumerate(param))
    else:
        yield place, param


def _fixed(place: str, node: Node, values: Mapping[str, float]) -> Node:
    if not isinstance(node, Merge):
        return node
    params = {name: _fixed_param(f"{place}.{name}", one, values) for name, one in node.params.items()}
    return Merge(node.method, tuple(_fixed(f"{place}.{index}", one, values) for index, one in enumerate(node.inputs)), params)


def _fixed_param(place: str, param: Param, values: Mapping[str, float]) -> Param:
    if isinstance(param, Mapping):
        return {key: _fixed_numbers(f"{place}.{key}", one, values) for key, one in param.items()}
    return _fixed_numbers(place, param, values)


def _fixed_numbers(place: str, param: Number | tuple[Number, ...], values: Mapping[str, float]) -> Number | tuple[Number, ...]:
    if isinstance(param, tuple):
        return tuple(_fixed_number(f"{place}.{index}", one, values) for index, one in enumerate(param))
    return _fixed_number(place, param, values)


def _fixed_number(place: str, param: Number, values: Mapping[str, float]) -> Number:
    return float(values[place]) if isinstance(param, Free) and place in values else param


def short_names(leaves: Sequence[Model | Lora]) -> dict[str, str]:
    """Names without the folders of absolute paths; of two that would be one, with the last folder, then with a number."""
    short: dict[str, str] = {}
    for name in dict.fromkeys(leaf.name for leaf in leaves):
        path = PurePath(name)
        tried = [name] if not path.is_absolute() and not name.startswith("~") else [path.name, "/".join(path.parts[-2:])]
        tried += [f"{n}/{path.name}" for n in range(2, len(leaves) + 3)]
        short[name] = next(one for one in tried if one not in short.values())
    return short


def _node_data(node: Node, names: Mapping[str, str]) -> Any:
    if isinstance(node, Merge):
        params = {name: _param_data(one) for name, one in node.params.items()}
        return {"method": node.method, "inputs": [_node_data(one, names) for one in node.inputs], **params}
    told = {"model" if isinstance(node, Model) else "lora": names[node.name]}
    return told | {key: value for key in ("file", "component") if (value := getattr(node, key, ""))}


def _param_data(param: Param) -> Any:
    if isinstance(param, Mapping):
        return {key: _param_data(one) for key, one in param.items()}
    if isinstance(param, tuple):
        return [_param_data(one) for one in param]
    if isinstance(param, Free):
        return {"free": [param.low, param.high]} | ({} if param.initial is None else {"initial": param.initial})
    return param if isinstance(param, bool) else float(param)
