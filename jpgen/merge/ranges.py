"""What annotations of merge methods are made of: ranges of numbers, one number for each model, chance, and what is seen of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

CHANCE = "generator"
"""The parameter by which a method says that it draws lots."""

SEEN = "seen"
"""The parameter by which a method says that tensors must be looked at whole before a value can be made; its annotation holds `looks.Looks`."""

PART = "part"
"""The parameter by which a method asks where in the tensor the values are that it is given (a `Part`)."""


@dataclass(frozen=True)
class Range:
    """The numbers that are allowed, both ends included; `low` and `high` are also where a search looks."""

    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """Where a tile lies: its first value is the value `start` of a tensor of this shape."""

    start: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values of the whole tensor."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Values for each step along the first side."""
        return math.prod(self.shape[1:])

    @property
    def row(self) -> int:
        """Values that go to one output: all of a vector's, which is one row."""
        return self.columns if len(self.shape) > 1 else max(self.count, 1)


class Each:
    """Marks a number that each model has of its own."""


Generators = Callable[[int], np.random.Generator]
"""Gives for the index of a model the generator of its lots; the same whenever the recipe, the tensor's name and the index are."""

Fraction = Annotated[float, Range(0.0, 1.0)]
Weights = Annotated[float | Sequence[float], Range(-10.0, 10.0), Each]
"""One for each model, or one for all."""

Scale = Annotated[float, Range(-10.0, 10.0)]


def spread(weights: float | Sequence[float], count: int) -> list[float]:
    """The weight of each of so many models."""
    return list(weights) if isinstance(weights, Sequence) else [float(weights)] * count
