"""One tensor of a recipe: its numbers chosen by groups, what need not be computed left out, then the methods in fp32."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jpgen.errors import RecipeError
from jpgen.merge.groups import chosen
from jpgen.merge.methods import ADD_LORA, Method, find_method
from jpgen.merge.ranges import CHANCE, PART, SEEN, Part
from jpgen.merge.recipe import Lora, Merge, Model, Node, Param, Recipe
from jpgen.merge.sources import Share, component_of

TILE = 1 << 17
"""Values that a method that works value by value is given at a time; each tile of a tensor has its own lots."""

PIECE = 8 * TILE
"""Values that are read and written at a time; what looks see is summed in each, then over all."""

STRIP = 1 << 18
"""The same of methods without lots that look at values alone: as long as the buffers stay in the processor's caches, fewer calls are faster."""

Shares = Mapping[Lora, Mapping[str, Sequence[Share]]]
"""What each adapter adds to which tensors (`jpgen.merge.sources.shares_of`)."""


@dataclass(frozen=True)
class Read:
    """The tensor as a model has it."""

    model: Model


@dataclass(frozen=True)
class Apply:
    """A method on what its inputs give, with the numbers for this tensor; `place` is where in the tree, of which chance depends."""

    method: Method = field(hash=False)
    inputs: tuple[Expression, ...]
    values: tuple[tuple[str, Any], ...]
    place: str


@dataclass(frozen=True)
class Adapt:
    """What `base` gives and Σ scale·Δ of the adapters that change this tensor; `node` is the base's place in the tree, for other tensors of it."""

    base: Expression
    node: Node = field(hash=False)
    place: str
    shares: tuple[tuple[Share, float], ...] = field(hash=False)


Expression = Read | Apply | Adapt


@dataclass(frozen=True)
class Target:
    """The tensor that is wanted: its name, the block it is of, the seed of the recipe, what adapters there are, and what files call it (`also`)."""

    name: str
    block: str = ""
    seed: int = 0
    shares: Shares = field(default_factory=dict, hash=False, compare=False)
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """A tile: which of the tensor's it is, and where it lies (None: its values are of several tensors that are merged alike)."""

    number: int
    part: Part | None = None


def evaluate(
    recipe: Recipe | Node, name: str, read: Callable[[Model, str], Tensor], *, block: str = "", seed: int = 0, shares: Shares | None = None
) -> Tensor:
    """The tensor `name` that a recipe gives, fp32; `read` gives those of the models, in any type, `block` comes of `jpgen.merge.groups.block_namer`.

    It is what the engine writes, before it is rounded. Raises RecipeError for numbers that are still free.
    """
    root, seed = (recipe.root, recipe.seed) if isinstance(recipe, Recipe) else (recipe, seed)
    target = Target(name, block, seed, shares or {})
    return compute(expression(root, target), target, lambda model, one: read(model, one).to(torch.float32, copy=True))


def expression(node: Node, target: Target, place: str = "root") -> Expression:
    """How the tensor is made, without what makes no difference to it."""
    if isinstance(node, Model):
        return Read(node)
    if isinstance(node, Lora):
        raise RecipeError(f"{place}: アダプターはモデルではありません / an adapter is no model: use {ADD_LORA}")
    method = find_method(node.method)
    count = len(node.inputs) - (method.first if method.variadic is not None else 0)
    values = {name: _value(f"{place}.{name}", node, name, target, count) for name in method.parameters}
    if method.name == ADD_LORA:
        base = expression(node.inputs[0], target, f"{place}.0")
        pairs = zip(node.inputs[1:], values["scale"], strict=True)
        shares = tuple((one, scale) for lora, scale in pairs if isinstance(lora, Lora) and scale for one in target.shares[lora].get(target.name, ()))
        return Adapt(base, node.inputs[0], f"{place}.0", shares) if shares else base
    copied = method.copies(values, len(node.inputs))
    if copied is not None:
        return expression(node.inputs[copied], target, f"{place}.{copied}")
    inputs = tuple(expression(one, target, f"{place}.{index}") for index, one in enumerate(node.inputs))
    if method.name == "weighted_sum":
        method, values = _simpler(method, values, len(inputs))
    return Apply(method, inputs, tuple(values.items()), place)


def models_of(made: Expression) -> tuple[Model, ...]:
    """The models that are read for it, each once."""
    return tuple(dict.fromkeys(_models(made)))


def in_tiles(made: Expression) -> bool:
    """Whether it may be computed piece by piece, also of several tensors at a time."""
    return isinstance(made, Read) or (isinstance(made, Apply) and made.method.elementwise and all(map(in_tiles, made.inputs)))


def in_steps(made: Expression) -> bool:
    """Whether it may be computed piece by piece of one tensor, after looking at all of its pieces as often as `passes` says."""
    return isinstance(made, Read) or (isinstance(made, Apply) and not made.method.whole and all(map(in_steps, made.inputs)))


def by_chance(made: Expression) -> bool:
    """Whether lots are drawn for it."""
    return isinstance(made, Adapt) or (isinstance(made, Apply) and (made.method.chance or any(map(by_chance, made.inputs))))


def by_rows(made: Expression) -> bool:
    """Whether its tiles must be whole rows."""
    return by_rows(made.base) if isinstance(made, Adapt) else isinstance(made, Apply) and (made.method.rows or any(map(by_rows, made.inputs)))


def tile_length(shape: Sequence[int], rows: bool) -> int:
    """Values of a tile of a tensor of this shape."""
    row = Part(0, tuple(shape)).row
    return max(TILE // row, 1) * row if rows else TILE


def passes(made: Expression) -> tuple[tuple[tuple[Apply, int], ...], ...]:
    """What is looked at in each pass over the pieces of a tensor, before its values are made: nodes of the tree, and which of their looks it is."""
    found: dict[int, list[tuple[Apply, int]]] = {}
    _find_passes(made, found)
    return tuple(tuple(found[number]) for number in sorted(found))


def _find_passes(node: Expression, found: dict[int, list[tuple[Apply, int]]]) -> int:
    """In which pass all is known that the node's values are made of; the looks at it and at what it is made of are added to `found`."""
    if not isinstance(node, Apply):
        return 0
    begin = max((_find_passes(one, found) for one in node.inputs), default=0)
    for number in range(len(node.method.looks)):
        found.setdefault(begin + number, []).append((node, number))
    return begin + len(node.method.looks)


def compute(made: Expression, target: Target, read: Callable[[Model, str], Tensor], *, rows: bool | None = None) -> Tensor:
    """The whole tensor, fp32. What `read` gives, in fp32 and each time anew, is written on."""
    if isinstance(made, Read):
        return read(made.model, target.name)
    rows = by_rows(made) if rows is None else rows
    if isinstance(made, Adapt):
        return _adapted(made, target, read, rows)
    inputs = [compute(one, target, read, rows=rows) for one in made.inputs]
    if made.method.whole or (made.method.elementwise and not made.method.chance):
        result: Tensor = made.method.call(*inputs, **dict(made.values))
        return result
    return _in_tiles(made, target, inputs, rows)


def compute_tile(made: Expression, target: Target, read: Callable[[Model, str], Tensor], *, tile: Tile, seen: Mapping[str, Any]) -> Tensor:
    """The values of one tile, of which `read` gives those of the models; `seen` is what looks have told, by the nodes' places in the tree."""
    if isinstance(made, Read):
        return read(made.model, target.name)
    if isinstance(made, Adapt):
        raise TypeError("adapters are added to whole tensors")
    inputs = [compute_tile(one, target, read, tile=tile, seen=seen) for one in made.inputs]
    return _applied(made, target, inputs, tile, seen)


def look_at_tile(
    made: Apply, number: int, target: Target, read: Callable[[Model, str], Tensor], *, tile: Tile, seen: Mapping[str, Any]
) -> Tensor:
    """The share of one tile in what is summed by a look of this node."""
    inputs = [compute_tile(one, target, read, tile=tile, seen=seen) for one in made.inputs]
    return made.method.looks[number].of(inputs, dict(made.values), seen.get(made.place), _placed(tile))


def _in_tiles(made: Apply, target: Target, inputs: Sequence[Tensor], rows: bool) -> Tensor:
    """The method on whole inputs, tile by tile."""
    if not inputs[0].numel():
        return inputs[0]
    shape, flat, seen = inputs[0].shape, [one.reshape(-1) for one in inputs], dict[str, Any]()
    length = tile_length(shape, rows)
    tiles = [(Tile(number, Part(start, tuple(shape))), start) for number, start in enumerate(range(0, flat[0].numel(), length))]
    for look in made.method.looks:
        pieces: list[Tensor] = []
        for tile, start in tiles:
            share = look.of([one[start : start + length].clone() for one in flat], dict(made.values), seen.get(made.place), _placed(tile))
            if tile.number % max(PIECE // length, 1):
                pieces[-1] = pieces[-1].add_(share)
            else:
                pieces.append(share)
        total = sum(pieces[1:], start=pieces[0])
        seen[made.place] = look.told(total, dict(made.values), seen.get(made.place), flat[0].numel())
    whole = torch.empty_like(flat[0])
    for tile, start in tiles:
        whole[start : start + length] = _applied(made, target, [one[start : start + length] for one in flat], tile, seen)
    return whole.reshape(shape)


def _applied(made: Apply, target: Target, inputs: Sequence[Tensor], tile: Tile, seen: Mapping[str, Any]) -> Tensor:
    more: dict[str, Any] = {}
    if made.method.chance:
        more[CHANCE] = partial(_lots, made.place, target, tile.number)
    if made.method.placed:
        more[PART] = _placed(tile)
    if made.method.looks:
        more[SEEN] = seen[made.place]
    result: Tensor = made.method.call(*inputs, **dict(made.values), **more)
    return result


def _placed(tile: Tile) -> Part:
    if tile.part is None:
        raise TypeError("this method wants tiles of one tensor")
    return tile.part


def _lots(place: str, target: Target, tile: int, index: int) -> np.random.Generator:
    """The generator of a model's lots: of the seed, the place in the tree, the tensor's name, the model's index and the tile."""
    told = f"{target.seed}\0{place}\0{target.name}\0{index}\0{tile}".encode()
    return np.random.Generator(np.random.SFC64(int.from_bytes(hashlib.sha256(told).digest()[:16], "little")))


def _adapted(made: Adapt, target: Target, read: Callable[[Model, str], Tensor], rows: bool) -> Tensor:
    base = compute(made.base, target, read, rows=rows)
    total = base.clone()
    for share, scale in made.shares:
        if share.bias:
            delta = share.change.bias_delta()
        elif len(share.targets) == 1:
            delta = share.change.delta(base)
        else:
            others = [replace(target, name=name, also=()) for name in share.targets]
            delta = share.change.delta(torch.cat([compute(expression(made.node, one, made.place), one, read, rows=rows) for one in others]))
        total.add_(delta[share.start : share.end].reshape(total.shape), alpha=scale)
    return total


def _models(made: Expression) -> Iterator[Model]:
    if isinstance(made, Read):
        yield made.model
    elif isinstance(made, Adapt):
        yield from _models(made.base)
    else:
        for one in made.inputs:
            yield from _models(one)


def _simpler(method: Method, values: dict[str, Any], count: int) -> tuple[Method, dict[str, Any]]:
    """A weighted sum of two as the way between them, which has a kernel of its own (and the same bits: see `linear.combined`)."""
    weights = values["weights"]
    if count == 2 and not values["normalize"] and abs(weights[0] + weights[1] - 1) < 1e-9:
        return find_method("lerp"), {"t": weights[1]}
    return method, values


def _value(place: str, node: Merge, name: str, target: Target, count: int) -> Any:
    """The number, or numbers, of a parameter for this tensor."""
    parameter = find_method(node.method).parameters[name]
    given: Param | None = node.params.get(name)
    if isinstance(given, Mapping):
        given = chosen(given, target.name, component_of(target.name), target.block, target.also)
    if given is None:
        given = parameter.default
    if given is None:
        raise RecipeError(f"{place}: {target.name} の数がありません / {place} says nothing for {target.name}: give global, too")
    if parameter.each:
        numbers = given if isinstance(given, tuple) else (given,) * count
        return tuple(_number(place, one) for one in numbers)
    return bool(given) if parameter.flag else _number(place, given)


def _number(place: str, value: Any) -> float:
    if not isinstance(value, int | float):
        raise RecipeError(f"{place}: まだ決まっていない数です / {place} is still free: search it, or write a number")
    return float(value)
