"""The plan of a merge, made of headers alone: what the result holds, where each of its bytes comes from, and in what pieces it is made."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jpgen.errors import WeightsError
from jpgen.lora import Adapter
from jpgen.merge.evaluation import TILE, Expression, Read, Shares, Target, by_chance, by_rows, expression, in_steps, in_tiles, models_of, passes
from jpgen.merge.evaluation import tile_length as length_of_tiles
from jpgen.merge.groups import block_namer
from jpgen.merge.recipe import Lora, Model, Recipe, require_fixed, require_valid
from jpgen.merge.sources import TYPES, Find, Place, Source, find_files, open_adapter, open_source, shares_of
from jpgen.safety import BITS, Stored

OUTPUT = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3"}

PIECE = 8 * TILE
"""Values that are read and written at a time."""

COPY, TILES, STEPS, WHOLE = "copy", "tiles", "steps", "whole"


@dataclass(frozen=True)
class Job:
    """A piece of the result: `count` values of type `dtype` at byte `begin` of its values, made by `made` of what is at `places`, in the way `kind`.

    `names` are the tensors in it, with the value of the piece at which each begins; `first` is the number of its first tile. A tensor made in STEPS
    has for each pass a job for each of its `pieces`, of which this is number `piece`; those of the last `step` make its values. One that is a single
    piece is one job.
    """

    kind: str
    made: Expression
    target: Target
    dtype: str
    begin: int
    count: int
    places: tuple[Place, ...]
    names: tuple[tuple[int, str], ...]
    first: int = 0
    shape: tuple[int, ...] = ()
    step: int = 0
    piece: int = 0
    pieces: int = 1
    makes: bool = True


@dataclass(frozen=True)
class Plan:
    """All of it: `tensors` of the result in their order, `jobs` in that order, and the inputs."""

    recipe: Recipe
    sources: Mapping[Model, Source]
    adapters: Mapping[Lora, Adapter]
    tensors: Mapping[str, Stored]
    jobs: tuple[Job, ...]
    shares: Shares

    @property
    def files(self) -> dict[Model | Lora, tuple[Path, ...]]:
        """The files of each input."""
        return {**{one: source.files for one, source in self.sources.items()}, **{one: (adapter.path,) for one, adapter in self.adapters.items()}}

    @property
    def size(self) -> int:
        """Bytes of the result's values."""
        return sum(_bytes(stored) for stored in self.tensors.values())

    @property
    def bytes_needed(self) -> int:
        """Bytes of the inputs that must be read."""
        return sum(place.size for job in self.jobs if job.makes for place in job.places)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The first bytes of the result."""
        table: dict[str, object] = {"__metadata__": dict(metadata)}
        reached = 0
        for name, stored in self.tensors.items():
            end = reached + _bytes(stored)
            table[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [reached, end]}
            reached = end
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def plan(recipe: Recipe, find: Find | None = None) -> Plan:
    """How the recipe is merged; reads headers and adapters, no weights.

    Raises RecipeError for what is wrong with the recipe, WeightsError for inputs that are missing or damaged, or differ in names or shapes.
    """
    require_valid(recipe)
    require_fixed(recipe)
    find = find or find_files
    sources: dict[Model, Source] = {}
    adapters: dict[Lora, Adapter] = {}
    for leaf in recipe.leaves:
        found = find(leaf)
        if isinstance(leaf, Model):
            sources[leaf] = open_source(leaf, found)
        else:
            adapters[leaf] = open_adapter(leaf, found if not isinstance(found, Mapping) else [path for paths in found.values() for path in paths])
    first = next(iter(sources))
    _require_alike(first, sources)
    headers = {name: place.stored for name, place in sources[first].tensors.items()}
    shares = {leaf: shares_of(adapter, headers) for leaf, adapter in adapters.items()}
    wanted = OUTPUT.get(recipe.dtype)
    stored = {name: Stored(wanted if wanted and one.dtype in TYPES else one.dtype, one.shape) for name, one in headers.items()}
    order = sorted(stored, key=lambda name: (-BITS[stored[name].dtype], name))  # as safetensors itself, so that values stay aligned
    tensors = {name: stored[name] for name in order}
    block = block_namer(order)
    jobs = tuple(_pieces(_runs(recipe, sources, tensors, block, shares)))
    return Plan(recipe, sources, adapters, tensors, jobs, shares)


def _runs(
    recipe: Recipe, sources: Mapping[Model, Source], tensors: Mapping[str, Stored], block: Callable[[str], str], shares: Shares
) -> Iterator[Job]:
    """A job for each tensor; neighbours that are made alike of neighbours are one."""
    last: Job | None = None
    begin = 0
    for name, stored in tensors.items():
        job = _job(recipe, sources, name, stored, block(name), shares, begin)
        begin += _bytes(stored)
        if last is not None and _follows(last, job):
            names = (*last.names, (last.count, name))
            places = tuple(_longer(one, other) for one, other in zip(last.places, job.places, strict=True))
            last = replace(last, count=last.count + job.count, names=names, places=places)
            continue
        if last is not None:
            yield last
        last = job
    if last is not None:
        yield last


def _job(recipe: Recipe, sources: Mapping[Model, Source], name: str, stored: Stored, block: str, shares: Shares, begin: int) -> Job:
    target = Target(name, block, recipe.seed, shares)
    count = math.prod(stored.shape)
    first = next(iter(sources))
    if stored.dtype not in TYPES:
        made: Expression = Read(first)
        places = tuple(source.tensors[name] for source in sources.values())
        return Job(COPY, made, target, stored.dtype, begin, count, places, ((0, name),))
    made = expression(recipe.root, target)
    places = tuple(sources[model].tensors[name] for model in models_of(made))
    copied = isinstance(made, Read) and places[0].stored.dtype == stored.dtype
    kind = COPY if copied else TILES if in_tiles(made) else STEPS if in_steps(made) else WHOLE
    return Job(kind, made, target, stored.dtype, begin, count, places, ((0, name),), shape=stored.shape)


def _follows(last: Job, job: Job) -> bool:
    """Whether the two may be one piece."""
    if last.kind != job.kind or last.kind in (STEPS, WHOLE) or last.dtype != job.dtype or last.dtype not in TYPES or not _alike(last.made, job.made):
        return False
    pairs = zip(last.places, job.places, strict=True)
    return all(
        one.path == other.path and one.stored.dtype == other.stored.dtype and one.stored.begin + one.size == other.stored.begin
        for one, other in pairs
    )


def _alike(one: Expression, other: Expression) -> bool:
    return not by_chance(one) and one == other


def _longer(one: Place, other: Place) -> Place:
    stored = one.stored
    return Place(one.path, Stored(stored.dtype, (math.prod(stored.shape) + math.prod(other.stored.shape),), stored.begin))


def _pieces(runs: Iterator[Job]) -> Iterator[Job]:
    """Runs cut into pieces of PIECE values; whole tensors and those of other types stay whole."""
    for run in runs:
        if run.kind == STEPS:
            yield from _steps(run)
            continue
        if run.kind == WHOLE or run.dtype not in TYPES or run.count <= PIECE:
            yield run
            continue
        bytes_out = BITS[run.dtype] // 8
        at = 0
        for start in range(0, run.count, PIECE):
            count = min(PIECE, run.count - start)
            while at + 1 < len(run.names) and run.names[at + 1][0] <= start:
                at += 1
            end = at
            while end + 1 < len(run.names) and run.names[end + 1][0] < start + count:
                end += 1
            names = tuple((max(offset - start, 0), name) for offset, name in run.names[at : end + 1])
            places = tuple(_cut(place, start, count) for place in run.places)
            yield replace(run, begin=run.begin + start * bytes_out, count=count, places=places, names=names, first=start // TILE)


def _steps(run: Job) -> Iterator[Job]:
    """The jobs of a tensor that is looked at before it is made: every piece in a pass before any of the next."""
    tile = length_of_tiles(run.shape, by_rows(run.made))
    length = max(PIECE // tile, 1) * tile
    if run.count <= length:
        yield run
        return
    starts, last = range(0, run.count, length), len(passes(run.made))
    for step in range(last + 1):
        for piece, start in enumerate(starts):
            count = min(length, run.count - start)
            begin, places = run.begin + start * BITS[run.dtype] // 8, tuple(_cut(place, start, count) for place in run.places)
            yield replace(
                run, begin=begin, count=count, places=places, first=start // tile, step=step, piece=piece, pieces=len(starts), makes=step == last
            )


def _cut(place: Place, start: int, count: int) -> Place:
    stored = place.stored
    return Place(place.path, Stored(stored.dtype, (count,), stored.begin + start * BITS[stored.dtype] // 8))


def _bytes(stored: Stored) -> int:
    return math.prod(stored.shape) * BITS[stored.dtype] // 8


def _require_alike(first: Model, sources: Mapping[Model, Source]) -> None:
    """Raise WeightsError, naming them, if models differ in names or shapes from the first."""
    wanted, wrong = sources[first].tensors, []
    for model, source in sources.items():
        tensors = source.tensors
        faults = [f"no {name}" for name in sorted(wanted.keys() - tensors.keys())]
        faults += [f"extra {name}" for name in sorted(tensors.keys() - wanted.keys())]
        for name in sorted(wanted.keys() & tensors.keys()):
            one, other = tensors[name].stored, wanted[name].stored
            faults += [] if one.shape == other.shape else [f"{name} {list(one.shape)} for {list(other.shape)}"]
            if (one.dtype in TYPES) != (other.dtype in TYPES) or (one.dtype not in TYPES and one.dtype != other.dtype):
                faults.append(f"{name} {one.dtype} for {other.dtype}")
        if faults:
            wrong.append(f"{label(model)}: {len(faults)} tensors: {', '.join(faults[:5])}")
    if wrong:
        raise WeightsError(f"モデルの形が揃いません / these models are not of the shape of {label(first)}: {'; '.join(wrong)}; name others")


def label(node: Model | Lora) -> str:
    """How messages call an input."""
    return f"{node.name} ({node.file})" if node.file else node.name
