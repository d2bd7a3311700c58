"""One thread of the engine: how a job is read, computed in fp32 and written to its place."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jpgen.errors import WeightsError
from jpgen.merge.evaluation import (
    PIECE,
    STRIP,
    TILE,
    Apply,
    Read,
    Tile,
    by_chance,
    by_rows,
    compute,
    compute_tile,
    look_at_tile,
    models_of,
    tile_length,
)
from jpgen.merge.names import label
from jpgen.merge.plan import COPY, STEPS, WHOLE, Job, Plan
from jpgen.merge.ranges import Part
from jpgen.merge.recipe import Model
from jpgen.merge.sources import TYPES, Reader, turned
from jpgen.merge.survey import Survey, Surveys
from jpgen.safety import BITS

LARGE = 1 << 22
"""Values from which tensors that are needed whole are made one at a time, for the memory's sake."""

PAD = 64
"""Values by which the ends of tiles are filled up: kernels are then the same for every value."""

HALVES = ("F16", "BF16")


@dataclass(frozen=True)
class Common:
    """What threads share: what they have seen of tensors, whether one of them failed, and whose turn it is to have a large tensor whole."""

    surveys: Surveys
    stop: threading.Event
    large: threading.Lock


class Worker:
    """One thread's buffers, and how it does a job."""

    def __init__(self, made: Plan, reader: Reader, room: Sequence[tuple[int, int]], common: Common, copy_only: bool) -> None:
        self._plan, self._reader, self._room, self._common, self._copy_only = made, reader, room, common, copy_only
        self._buffers: list[np.ndarray] = []
        self._tiles: list[Tensor] = []
        self._out = np.empty(0, np.uint8)

    def do(self, job: Job) -> None:
        """Read, compute and write."""
        if not job.count:
            return
        if job.dtype not in TYPES:
            self._write(job, self._same(job))
        elif self._copy_only:
            self._write(job, self._read_all(job)[0])
        elif job.kind == COPY:
            data = self._read_all(job)[0]
            self._require_finite(job, data.view(TYPES[job.dtype]))
            self._write(job, data)
        elif job.kind == STEPS:
            self._in_steps(job)
        elif job.kind == WHOLE:
            if job.count >= LARGE:
                with self._common.large:
                    self._whole(job)
            else:
                self._whole(job)
        else:
            self._in_tiles(job)

    def _whole(self, job: Job) -> None:
        try:
            value = compute(job.made, job.target, self._read_whole)
        except RuntimeError as error:  # of linear algebra on values that are not finite
            name, told = job.target.name, " ".join(str(error).split())[:200]
            raise WeightsError(f"{name} を計算できません / {name} cannot be computed{self._guilty(name)}: {told}") from error
        out = _in_range(value, job.dtype).reshape(-1).to(TYPES[job.dtype])
        del value
        self._require_finite(job, out)
        self._write(job, out.view(torch.uint8))

    def _read_whole(self, model: Model, name: str) -> Tensor:
        return self._reader.tensor(self._plan.sources[model].tensors[name]).float()

    def _in_steps(self, job: Job) -> None:
        """Look at a piece, or make its values; or both, of a tensor that is one piece."""
        surveys, survey = self._common.surveys, self._common.surveys.of(job)
        if not survey.wait(job.step, self._common.stop):
            return
        kept = survey.kept.get(job.piece)
        if kept is None and not job.makes and (kept := surveys.take([place.size for place in job.places])) is not None:
            survey.kept[job.piece] = kept
            for place, room in zip(job.places, kept, strict=True):
                self._reader.fill(place, room.numpy())
        data = self._read_all(job) if kept is None else kept
        held = {
            model: one.view(TYPES[place.stored.dtype]) for model, one, place in zip(models_of(job.made), data, job.places, strict=True)
        }
        for step in range(len(survey.passes)) if job.pieces == 1 else () if job.makes else (job.step,):
            survey.add(step, job.piece, self._look(job, step, held, survey))
        if job.makes:
            self._make(job, held, survey)
            surveys.done(job)

    def _look(self, job: Job, step: int, held: Mapping[Model, Tensor], survey: Survey) -> list[Tensor]:
        """What the looks of a pass give for a piece."""
        totals: list[Tensor] = []
        for tile, values in self._tiles_of(job, held):
            shares = [
                look_at_tile(node, number, job.target, self._tile_reader(values), tile=tile, seen=survey.seen)
                for node, number in survey.passes[step]
            ]
            totals = [total.add_(one) for total, one in zip(totals, shares, strict=True)] if totals else shares
        return totals

    def _make(self, job: Job, held: Mapping[Model, Tensor], survey: Survey) -> None:
        """The values of a piece."""
        out, at = self._space(job, job.count), 0
        for tile, values in self._tiles_of(job, held):
            made = compute_tile(job.made, job.target, self._tile_reader(values), tile=tile, seen=survey.seen)
            end = at + made.numel()
            out[at:end].copy_(_in_range(made, job.dtype))
            at = end
        self._require_finite(job, out)
        self._write(job, out.view(torch.uint8))

    def _tiles_of(self, job: Job, held: Mapping[Model, Tensor]) -> Iterator[tuple[Tile, dict[Model, Tensor]]]:
        """The tiles of a piece of one tensor, and the values of the models there."""
        length = tile_length(job.shape, by_rows(job.made))
        for number, begin in enumerate(range(0, job.count, length), job.first):
            yield Tile(number, Part(number * length, job.shape)), {model: values[begin : begin + length] for model, values in held.items()}

    def _space(self, job: Job, count: int) -> Tensor:
        """Room for so many values of the result, used again and again."""
        size = count * BITS[job.dtype] // 8
        if len(self._out) < size:
            self._out = np.empty(max(size, (PIECE + PAD) * BITS[job.dtype] // 8), np.uint8)
        return torch.from_numpy(self._out[:size]).view(TYPES[job.dtype])

    def _in_tiles(self, job: Job) -> None:
        inputs = [data.view(TYPES[place.stored.dtype]) for data, place in zip(self._read_all(job, PAD), job.places, strict=True)]
        padded = -(-job.count // PAD) * PAD
        out, made = self._space(job, padded), job.made
        way = _way(made)
        if job.dtype in HALVES and way is not None and len(inputs) == 2 and all(place.stored.dtype == job.dtype for place in job.places):
            torch.lerp(inputs[0], inputs[1], way, out=out)  # rounds the fp32 result once (tests/merge/test_engine.py)
        else:
            held = dict(zip(models_of(made), inputs, strict=True))
            length = TILE if by_chance(made) else STRIP
            for number, begin in enumerate(range(0, padded, length)):
                end = min(begin + length, padded)
                read = self._tile_reader({model: values[begin:end] for model, values in held.items()})
                values = compute_tile(made, job.target, read, tile=Tile(job.first + number), seen={})
                out[begin:end].copy_(_in_range(values, job.dtype))
        self._require_finite(job, out[: job.count])
        self._write(job, out[: job.count].view(torch.uint8))

    def _tile_reader(self, held: Mapping[Model, Tensor]) -> Callable[[Model, str], Tensor]:
        """Gives the values of the models, in fp32, each time in another of the buffers that are used again for every tile."""
        return partial(self._in_next_buffer, held, itertools.count())

    def _in_next_buffer(self, held: Mapping[Model, Tensor], taken: Iterator[int], model: Model, _name: str) -> Tensor:
        index, values = next(taken), held[model]
        count = values.numel()
        if index == len(self._tiles):
            self._tiles.append(torch.empty(STRIP))
        if self._tiles[index].numel() < count:  # a row that is longer
            self._tiles[index] = torch.empty(count)
        return self._tiles[index][:count].copy_(values)

    def _read_all(self, job: Job, more: int = 0) -> list[Tensor]:
        """The bytes of each place in a buffer that is used again, filled up to a multiple of `more` values."""
        made = []
        for index, place in enumerate(job.places):
            if place.view:
                made.append(self._reader.tensor(place).reshape(-1).view(torch.uint8))
                continue
            bits = BITS[place.stored.dtype] // 8
            room = -(-job.count // more) * more * bits if more else place.size
            if index == len(self._buffers):
                self._buffers.append(np.empty(0, np.uint8))
            if len(self._buffers[index]) < room:
                self._buffers[index] = np.zeros(max(room, (PIECE + PAD) * bits), np.uint8)
            self._reader.fill(place, self._buffers[index][: place.size])
            made.append(torch.from_numpy(self._buffers[index][:room]))
        return made

    def _same(self, job: Job) -> Tensor:
        """The bytes of a tensor that no average is of."""
        first, *others = self._read_all(job)
        if not all(torch.equal(first, other) for other in others):
            name = job.names[0][1]
            raise WeightsError(f"{name} は整数で、モデルごとに違います / {name} holds whole numbers that differ between the models: no average")
        return first

    def _write(self, job: Job, data: Tensor) -> None:
        if job.view:
            values = data.view(TYPES[job.dtype]).reshape(job.places[0].stored.shape)
            data = turned(values, job.view).reshape(-1).view(torch.uint8)
        number, start = self._room[job.file]
        put(number, data.numpy(), start + job.begin)

    def _require_finite(self, job: Job, out: Tensor) -> None:
        """Raise WeightsError naming the tensor and the inputs it comes from unless all values are finite."""
        if out.element_size() > 1:
            low, high = torch.aminmax(out)  # not a number comes through
            if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
                return
        bad = (~torch.isfinite(out.float())).nonzero()
        if not len(bad):
            return
        at = int(bad[0])
        name = next(name for begin, name in reversed(job.names) if begin <= at)
        why = self._guilty(name) or f", though no input has: the weights are too large for {job.dtype}"
        raise WeightsError(f"{name} に有限でない値が出ました / {name} comes out with values that are not finite{why}")

    def _guilty(self, name: str) -> str:
        """Which inputs have values that are not finite in the tensor."""
        places = [(model, source.tensors[name]) for model, source in self._plan.sources.items() if name in source.tensors]
        guilty = [label(model) for model, place in places if not bool(torch.isfinite(self._reader.tensor(place).float()).all())]
        return f", so has {', '.join(guilty)}: fetch it again" if guilty else ""


def _way(made: object) -> float | None:
    """t, if it is a `lerp` of two models and nothing else."""
    if isinstance(made, Apply) and made.method.name == "lerp" and all(isinstance(one, Read) for one in made.inputs):
        return float(dict(made.values)["t"])
    return None


def _in_range(values: Tensor, dtype: str) -> Tensor:
    """Values beyond the largest of an 8-bit type as no numbers: torch would write the largest instead."""
    if BITS[dtype] > 8:
        return values
    return values.masked_fill(values.abs() > torch.finfo(TYPES[dtype]).max, torch.nan)


def put(number: int, data: object, begin: int) -> None:
    """All of the data at this place of an open file."""
    view = memoryview(data).cast("B")  # type: ignore[arg-type]
    reached = 0
    while reached < len(view):
        reached += os.pwrite(number, view[reached:], begin + reached)
