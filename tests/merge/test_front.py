"""Fronts against brute force, hypervolumes against numbers computed by hand and by counting cells."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jpgen.merge.front import choose, crowding, dominates, fronts, hypervolume, pareto

INF = float("inf")

rows = st.integers(1, 4).flatmap(
    lambda objectives: st.lists(st.lists(st.integers(0, 5), min_size=objectives, max_size=objectives), min_size=1, max_size=12)
)


def beats(a: list[int], b: list[int]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(rows)
def test_dominance_and_fronts_are_those_of_brute_force(given_rows: list[list[int]]) -> None:
    costs = np.array(given_rows, dtype=float)
    assert dominates(costs).tolist() == [[beats(a, b) for b in given_rows] for a in given_rows]
    left, wanted = set(range(len(given_rows))), []
    while left:
        free = sorted(i for i in left if not any(beats(given_rows[j], given_rows[i]) for j in left))
        wanted.append(free)
        left -= set(free)
    assert fronts(costs) == wanted


@given(rows)
def test_the_pareto_front_has_each_point_once_and_none_that_is_beaten(given_rows: list[list[int]]) -> None:
    found = pareto(np.array(given_rows, dtype=float))
    free = [row for row in given_rows if not any(beats(other, row) for other in given_rows)]
    assert sorted(map(tuple, (given_rows[i] for i in found))) == sorted({tuple(row) for row in free})
    assert all(given_rows.index(given_rows[i]) == i for i in found)


@given(rows)
def test_hypervolume_counts_the_cells_that_are_dominated(given_rows: list[list[int]]) -> None:
    corner = [5.0] * len(given_rows[0])
    cells = itertools.product(*(range(5) for _ in corner))
    wanted = sum(any(all(x <= c for x, c in zip(row, cell, strict=True)) for row in given_rows) for cell in cells)
    assert hypervolume(np.array(given_rows, dtype=float), corner) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("costs", "reference", "wanted"),
    [
        ([[1.0]], [3.0], 2.0),
        ([[1.0, 3.0], [2.0, 1.0]], [4.0, 4.0], 3 * 1 + 2 * 2),  # stairs: 3×1 above the second, then 2×3 of which 2×1 is counted
        ([[1.0, 2.0, 3.0]], [2.0, 4.0, 6.0], 1 * 2 * 3),
        ([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [2.0, 2.0, 2.0], 7.0),  # the cube of 8 without the corner cell
        ([[5.0, 0.0]], [4.0, 4.0], 0.0),
        ([[INF, INF]], [4.0, 4.0], 0.0),
    ],
)
def test_hypervolume_by_hand(costs: list[list[float]], reference: list[float], wanted: float) -> None:
    assert hypervolume(np.array(costs), reference) == pytest.approx(wanted)


def test_crowding_is_half_the_perimeter_of_the_neighbours_box() -> None:
    front = np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])
    assert crowding(front).tolist() == [INF, 4 / 4 + 4 / 4, INF]
    assert crowding(np.full((3, 2), INF)).tolist() == [0, 0, 0]


def test_failed_trials_are_on_no_front_and_weights_choose_whatever_the_units() -> None:
    costs = np.array([[0.0, 1000.0], [0.5, 100.0], [1.0, 0.0], [INF, INF]])
    assert pareto(costs) == [0, 1, 2]
    assert [choose(costs, weights) for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))] == [0, 2, 1]
    assert choose(costs[3:], (1.0, 1.0)) is None
