"""What several objectives agree on: dominance, fronts, crowding, hypervolume, and the choice of one point afterwards. Costs: smaller is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
"""[trials, objectives]; a trial that failed has infinity everywhere."""


def dominates(costs: Costs) -> NDArray[np.bool_]:
    """[trials, trials]: whether row i is nowhere worse than column j and somewhere better; raises nothing, equal points dominate nobody."""
    worse = (costs[:, None, :] > costs[None, :, :]).any(axis=2)
    better = (costs[:, None, :] < costs[None, :, :]).any(axis=2)
    return np.asarray(~worse & better)


def fronts(costs: Costs) -> list[list[int]]:
    """Indices sorted into fronts, the undominated first (Deb et al. 2002, NSGA-II, section III A); within a front in the order given.

    >>> fronts(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    [[0, 1], [2], [3]]
    """
    above = dominates(costs)
    left = np.ones(len(costs), dtype=bool)
    found = []
    while left.any():
        free = left & ~above[left].any(axis=0)
        found.append([int(i) for i in np.flatnonzero(free)])
        left &= ~free
    return found


def crowding(costs: Costs) -> NDArray[np.float64]:
    """How much room each point of one front has: the sides of the box between its neighbours, each over the front's range; infinite at its ends.

    Deb et al. 2002, section III B. Points that failed have none.
    """
    room = np.zeros(len(costs))
    for values in costs.T:
        order = np.argsort(values, kind="stable")
        sorted_ = values[order]
        span = sorted_[-1] - sorted_[0] if np.isfinite(sorted_).all() else 0.0
        if span > 0:
            room[order[0]] = room[order[-1]] = np.inf
            room[order[1:-1]] += (sorted_[2:] - sorted_[:-2]) / span
    return room


def hypervolume(costs: Costs, reference: Sequence[float]) -> float:
    """The volume that the points dominate below the `reference` [objectives]; points that are not below it count for nothing.

    Exact, for any number of objectives: the sum of what each point dominates and those after it do not (While et al. 2012, WFG).

    >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), (3.0, 3.0))
    3.0
    """
    corner = np.asarray(reference, dtype=float)
    inside = costs[(costs < corner).all(axis=1)]
    return _volume(_undominated(inside), corner)


def _volume(points: Costs, corner: NDArray[np.float64]) -> float:
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(corner[0] - points[:, 0].min())
    points = points[np.lexsort(points.T[::-1])]
    if points.shape[1] == 2:  # stairs
        heights = np.concatenate(([corner[1]], points[:-1, 1]))
        return float(((corner[0] - points[:, 0]) * (heights - points[:, 1])).sum())
    total = 0.0
    for i, point in enumerate(points):
        limited = _undominated(np.maximum(points[i + 1 :], point))
        total += float(np.prod(corner - point)) - _volume(limited, corner)
    return total


def _undominated(points: Costs) -> Costs:
    """The first front, each point once."""
    once = np.unique(points, axis=0)
    return once[~dominates(once).any(axis=0)] if len(once) else once


def pareto(costs: Costs) -> list[int]:
    """Indices of the trials that did not fail and that no other dominates; of equal ones the first."""
    first: dict[tuple[float, ...], int] = {}
    for i, row in enumerate(costs):
        if np.isfinite(row).all():
            first.setdefault(tuple(row.tolist()), i)
    alive = sorted(first.values())
    return [alive[i] for i in fronts(costs[alive])[0]] if alive else []


def choose(costs: Costs, weights: Sequence[float]) -> int | None:
    """The trial of the Pareto front that is best for these weights of the objectives, the earliest of equals; None if every trial failed.

    Each objective is counted in parts of the front's range, so that weights do not depend on units.
    """
    front = pareto(costs)
    if not front:
        return None
    values = costs[front]
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    total = ((values - low) / span) @ np.asarray(weights, dtype=float)
    return front[int(np.argmin(total))]
