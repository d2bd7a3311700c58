"""The plan of a merge, made of headers alone: what the result holds, where each of its bytes comes from, and in what pieces it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jpgen.errors import SettingError
from jpgen.lora import Adapter
from jpgen.merge.evaluation import (
    PIECE,
    TILE,
    Expression,
    Read,
    Shares,
    Target,
    by_chance,
    by_rows,
    expression,
    in_steps,
    in_tiles,
    models_of,
    passes,
    tile_length,
)
from jpgen.merge.groups import block_namer
from jpgen.merge.names import FOLDER, SINGLE, in_common_names, is_aside, require_alike
from jpgen.merge.outputs import File, Seat, laid_out
from jpgen.merge.recipe import Lora, Model, Recipe, require_fixed, require_valid
from jpgen.merge.sources import TYPES, Find, Place, Source, find_files, open_adapter, open_source, shares_of
from jpgen.safety import BITS, Stored

OUTPUT = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3"}

COPY, TILES, STEPS, WHOLE = "copy", "tiles", "steps", "whole"


@dataclass(frozen=True)
class Job:
    """A piece of the result: `count` values of type `dtype` at byte `begin` of a file's, made by `made` of what is at `places`, in the way `kind`.

    `names` are the tensors in it, with the value of the piece at which each begins; `first` is the number of its first tile, `file` that of the file.
    Where `view` says so it lies the other way round there; then, or where a place does, the piece is a whole tensor. A tensor made in STEPS has for
    each pass a job for each of its `pieces`, of which this is number `piece`; those of the last `step` make its values. One that is a single piece
    is one job.
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
    file: int = 0
    view: str = ""
    shape: tuple[int, ...] = ()
    step: int = 0
    piece: int = 0
    pieces: int = 1
    makes: bool = True

    @property
    def turned(self) -> bool:
        """Whether it lies otherwise in a file than it is computed."""
        return bool(self.view) or any(place.view for place in self.places)


@dataclass(frozen=True)
class Plan:
    """All of it: the files of the result, `jobs` in their order there, and the inputs, with names that are the same in all of them."""

    recipe: Recipe
    sources: Mapping[Model, Source]
    adapters: Mapping[Lora, Adapter]
    outputs: tuple[File, ...]
    jobs: tuple[Job, ...]
    shares: Shares

    @property
    def files(self) -> dict[Model | Lora, tuple[Path, ...]]:
        """The files of each input."""
        return {**{one: source.files for one, source in self.sources.items()}, **{one: (adapter.path,) for one, adapter in self.adapters.items()}}

    @property
    def folder(self) -> bool:
        """Whether the result is a folder."""
        return any(file.path for file in self.outputs)

    @property
    def tensors(self) -> dict[str, Stored]:
        """The tensors of the result, those of a folder with their file before them."""
        return {f"{file.path}:{name}" if file.path else name: stored for file in self.outputs for name, stored in file.tensors.items()}

    @property
    def size(self) -> int:
        """Bytes of the result's values."""
        return sum(file.size for file in self.outputs)

    @property
    def bytes_needed(self) -> int:
        """Bytes of the inputs' values that must be read (of packed ones as fp32)."""
        return sum(place.size for job in self.jobs if job.makes for place in job.places)


def plan(recipe: Recipe, find: Find | None = None, *, output: Path | None = None) -> Plan:
    """How the recipe is merged; reads headers and adapters, no weights. The name of the `output` tells the layout where the recipe does not.

    Raises RecipeError for what is wrong with the recipe, SettingError for an output that is named otherwise than its layout wants, and WeightsError
    for inputs that are missing or damaged, or differ in names or shapes.
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
    if output is not None:
        recipe = replace(recipe, layout=_layout(recipe.layout, output, sources[first]))
    sources, form = in_common_names(sources, recipe.layout)
    require_alike(sources)
    headers = sources[first].headers
    shares = {leaf: shares_of(adapter, headers) for leaf, adapter in adapters.items()}
    wanted = OUTPUT.get(recipe.dtype)
    stored = {name: Stored(wanted if wanted and one.dtype in TYPES else one.dtype, one.shape) for name, one in headers.items()}
    outputs, seats = laid_out(stored, form)
    tensors = {name: stored[name] for name in sorted(seats, key=lambda name: (seats[name].file, seats[name].begin))}
    parts = _Parts(recipe, sources, seats, block_namer(list(tensors)), shares)
    return Plan(recipe, sources, adapters, outputs, tuple(_pieces(_runs(tensors, parts))), shares)


def _layout(layout: str, output: Path, first: Source) -> str:
    """The layout of an output of this name ("": that of the first input)."""
    is_file = output.suffix == ".safetensors"
    if layout and is_file != (layout == SINGLE):
        wanted = "a .safetensors file" if layout == SINGLE else "a folder"
        raise SettingError(f"{output}: 出力先が形式と合いません / the layout {layout} is {wanted}: name one, or another layout")
    if not layout and is_file == bool(first.folder):
        return SINGLE if is_file else FOLDER
    return layout


@dataclass(frozen=True)
class _Parts:
    """What jobs are made of."""

    recipe: Recipe
    sources: Mapping[Model, Source]
    seats: Mapping[str, Seat]
    block: Callable[[str], str]
    shares: Shares


def _runs(tensors: Mapping[str, Stored], parts: _Parts) -> Iterator[Job]:
    """A job for each tensor; neighbours that are made alike of neighbours are one."""
    last: Job | None = None
    for name, stored in tensors.items():
        job = _job(parts, name, stored)
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


def _job(parts: _Parts, name: str, stored: Stored) -> Job:
    sources, seat = parts.sources, parts.seats[name]
    first = next(iter(sources))
    spelt = dict.fromkeys((*(source.tensors[name].name for source in sources.values() if name in source.tensors), seat.name))
    target = Target(name, parts.block(name), parts.recipe.seed, parts.shares, tuple(one for one in spelt if one != name))
    made: Expression = Read(first)
    if is_aside(name):
        places: tuple[Place, ...] = (sources[first].tensors[name],)
    elif stored.dtype not in TYPES:
        places = tuple(source.tensors[name] for source in sources.values())
    else:
        made = expression(parts.recipe.root, target)
        places = tuple(sources[model].tensors[name] for model in models_of(made))
    copied = isinstance(made, Read) and places[0].stored.dtype == stored.dtype
    kind = COPY if copied else TILES if in_tiles(made) else STEPS if in_steps(made) else WHOLE
    count = math.prod(stored.shape)
    job = Job(kind, made, target, stored.dtype, seat.begin, count, places, ((0, name),), file=seat.file, view=seat.view, shape=stored.shape)
    return replace(job, kind=WHOLE) if job.turned and kind != COPY else job


def _follows(last: Job, job: Job) -> bool:
    """Whether the two may be one piece."""
    if last.kind != job.kind or last.kind in (STEPS, WHOLE) or last.dtype != job.dtype or last.dtype not in TYPES or not _alike(last.made, job.made):
        return False
    if last.file != job.file or last.turned or job.turned:
        return False
    pairs = zip(last.places, job.places, strict=True)
    return all(
        one.path == other.path and one.packed is other.packed and one.stored.dtype == other.stored.dtype
        and one.stored.begin + one.size == other.stored.begin
        for one, other in pairs
    )


def _alike(one: Expression, other: Expression) -> bool:
    return not by_chance(one) and one == other


def _longer(one: Place, other: Place) -> Place:
    stored = one.stored
    return replace(one, stored=Stored(stored.dtype, (math.prod(stored.shape) + math.prod(other.stored.shape),), stored.begin))


def _pieces(runs: Iterator[Job]) -> Iterator[Job]:
    """Runs cut into pieces of PIECE values; whole tensors and those of other types stay whole."""
    for run in runs:
        if run.kind == STEPS:
            yield from _steps(run)
            continue
        if run.kind == WHOLE or run.turned or run.dtype not in TYPES or run.count <= PIECE:
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
    tile = tile_length(run.shape, by_rows(run.made))
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
    return replace(place, stored=Stored(stored.dtype, (count,), stored.begin + start * BITS[stored.dtype] // 8))
