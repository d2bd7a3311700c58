"""What methods must know of whole tensors before they can make a value, found in passes over tiles: inner products, and the k-th largest of sizes.

So no tensor is ever whole in memory: a pass sums something over all tiles, the next one, or the method, is given what the sum tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jpgen.merge.ranges import Part

Values = Mapping[str, Any]
"""The numbers of the method."""

LOW = 15
"""Bits of a size (as its fp32 pattern, which grows as it does) that the first pass for the k-th largest leaves open."""

BINS = 1 << (31 - LOW)


@dataclass(frozen=True)
class Look:
    """A pass: `of` is summed over all tiles, and `told` makes of the sum what is seen.

    `of(inputs, values, seen, part)`: a tile of each model, fp32 and its own to write on, with what the pass before told.
    `told(total, values, seen, count)`: `count` is how many values the tensor has.
    """

    of: Callable[[Sequence[Tensor], Values, Any, Part], Tensor]
    told: Callable[[Tensor, Values, Any, int], Any]


Looks = tuple[Look, ...]


def dots(tensors: Sequence[Tensor]) -> Tensor:
    """All inner products of the tensors, fp64 [n, n]."""
    flat = [one.reshape(-1).double() for one in tensors]
    half = [[torch.dot(one, other).item() for other in flat[: row + 1]] for row, one in enumerate(flat)]
    return torch.tensor([[half[max(i, j)][min(i, j)] for j in range(len(flat))] for i in range(len(flat))], dtype=torch.float64)


def gram(told: Callable[[Tensor, Values], Any]) -> Looks:
    """One pass for the inner products of the models, of which `told(dots, values)` makes what is seen."""
    return (Look(lambda inputs, _values, _seen, _part: dots(inputs), lambda total, values, _seen, _count: told(total, values)),)


def apart(told: Callable[[Tensor, Values], Any]) -> Looks:
    """The same of the differences from the first model to the others."""
    return (Look(lambda inputs, _values, _seen, _part: dots(differences(inputs)), lambda total, values, _seen, _count: told(total, values)),)


def by_column(told: Callable[[Tensor, Values], Any]) -> Looks:
    """The same of a·a, a·b and b·b, fp64 [3, columns], of each column of two models."""

    def of(inputs: Sequence[Tensor], _values: Values, _seen: Any, part: Part) -> Tensor:
        a, b = (one.double().view(-1, part.columns) for one in inputs)
        return torch.stack([(a * a).sum(0), (a * b).sum(0), (b * b).sum(0)])

    return (Look(of, lambda total, values, _seen, _count: told(total, values)),)


def differences(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Each model but the first less the first, in its place."""
    return [one.sub_(inputs[0]) for one in inputs[1:]]


def largest(sizes: Callable[[Sequence[Tensor]], Sequence[Tensor]], ranks: Callable[[Values, int], Sequence[int]]) -> Looks:
    """Passes that find, exactly, the k-th largest (from 1) of each of the `sizes` (≥ 0) that are made of the models, for each k of `ranks`.

    `ranks(values, count)` gives the k's. What is seen is a list of them for each of the sizes: ∞ for k < 1, and 0 from k = `count` on, so that
    "size ≥ what is seen" holds for the k largest. First comes a histogram over the upper bits, then one over the others in the bin that it tells.
    """

    def upper(inputs: Sequence[Tensor], _values: Values, _seen: Any, _part: Part) -> Tensor:
        return torch.stack([torch.bincount(_bits(one) >> LOW, minlength=BINS) for one in sizes(inputs)])

    def bins(total: Tensor, values: Values, _seen: Any, count: int) -> list[list[tuple[int, int]]]:
        return [[_from_the_top(row, k) if 1 <= k < count else (-1, k) for k in ranks(values, count)] for row in total]

    def lower(inputs: Sequence[Tensor], _values: Values, seen: Any, _part: Part) -> Tensor:
        return torch.stack([_within(_bits(one), bin) for one, found in zip(sizes(inputs), seen, strict=True) for bin, _ in found])

    def told(total: Tensor, _values: Values, seen: Any, _count: int) -> list[list[float]]:
        rows = iter(total)
        return [[_size(next(rows), bin, rest) for bin, rest in found] for found in seen]

    return Look(upper, bins), Look(lower, told)


def _bits(sizes: Tensor) -> Tensor:
    return sizes.reshape(-1).view(torch.int32)


def _from_the_top(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest is, and which of the bin it is."""
    above = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(above, k))
    return len(counts) - 1 - at, k - (int(above[at - 1]) if at else 0)


def _within(bits: Tensor, bin: int) -> Tensor:
    """How many values of this bin have each pattern of the lower bits."""
    if bin < 0:
        return torch.zeros(1 << LOW, dtype=torch.int64)
    below = (bits - (bin << LOW)).clamp_(-1, 1 << LOW).add_(1)
    return torch.bincount(below, minlength=(1 << LOW) + 2)[1:-1]


def _size(counts: Tensor, bin: int, rest: int) -> float:
    if bin < 0:
        return math.inf if rest < 1 else 0.0
    pattern = (bin << LOW) + _from_the_top(counts, rest)[0]
    return float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))
