"""What annotations of merge methods are made of: ranges of numbers, one number for each model, and chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

CHANCE = "generator"
"""The parameter by which a method says that it draws lots."""


@dataclass(frozen=True)
class Range:
    """The numbers that are allowed, both ends included; `low` and `high` are also where a search looks."""

    low: float
    high: float


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
