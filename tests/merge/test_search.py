"""The optimisers: they find what is known, depend on seed and costs alone, and say what does not go together."""

import sys
from dataclasses import dataclass

import cmaes
import numpy as np
import pytest

from jpgen.errors import MissingExtraError, SettingError
from jpgen.merge.front import pareto
from jpgen.merge.search import CmaEs, Genome, Method, Nsga2


@dataclass(frozen=True)
class Free:
    low: float
    high: float
    initial: float | None = None


GENOME = Genome.of({"root.t.attn": Free(0, 1), "root.t.other": Free(-1, 3, 0), "root.density": Free(0, 0.5)})


def run(method: Method, generations: int, cost, genome: Genome = GENOME) -> list[tuple[tuple[float, ...], list[float]]]:
    optimiser = method.resolved(genome, len(cost(genome.start))).start(genome)
    told = []
    for _ in range(generations):
        points = optimiser.ask()
        costs = np.array([cost(point) for point in points], dtype=float)
        optimiser.tell(points, costs)
        told += list(zip(points, costs.tolist(), strict=True))
    return told


def sphere(point: tuple[float, ...]) -> list[float]:
    return [sum((x - y) ** 2 for x, y in zip(point, (0.2, 0.7, 0.5), strict=True))]


def test_the_genome_maps_the_unit_cube_to_the_ranges() -> None:
    assert GENOME.paths == ("root.t.attn", "root.t.other", "root.density") and GENOME.start == (0.5, 0.25, 0.5)
    assert GENOME.numbers((0.0, 0.0, 0.0)) == {"root.t.attn": 0, "root.t.other": -1, "root.density": 0}
    assert GENOME.numbers((1.0, 0.25, 1.0)) == {"root.t.attn": 1, "root.t.other": 0, "root.density": 0.5}


def test_ranges_that_are_none_are_told_all_at_once() -> None:
    with pytest.raises(SettingError, match=r"a: 1…0.*b: initial 7"):
        Genome.of({"a": Free(1, 0), "b": Free(0, 1, 7), "c": Free(0, 1)})
    with pytest.raises(SettingError, match="no free number"):
        Genome.of({})


def test_cma_es_finds_the_middle_of_a_sphere_and_begins_where_it_is_told() -> None:
    told = run(Method("cma-es", 8, 0.25, 1), 40, sphere)
    assert told[0][0] == GENOME.start and min(cost[0] for _, cost in told) < 1e-6
    assert all(0 <= x <= 1 for point, _ in told for x in point)


def test_points_are_those_of_the_package_itself() -> None:
    cma = cmaes.CMA(np.array(GENOME.start), 0.25, bounds=np.tile([0.0, 1.0], (3, 1)), seed=3, population_size=6)
    ours = CmaEs(GENOME, population=6, spread=0.25, seed=3)
    for generation in range(5):
        theirs, points = [cma.ask() for _ in range(6)], ours.ask()
        if not generation:
            theirs[0] = np.array(GENOME.start)
        assert points == [tuple(x.tolist()) for x in theirs]
        costs = np.array([sphere(point) for point in points])
        ours.tell(points, costs)
        cma.tell([(x, cost[0]) for x, cost in zip(theirs, costs.tolist(), strict=True)])


@pytest.mark.parametrize("method", [Method("cma-es", 6, 0.25, 5), Method("nsga2", 8, 0.25, 5)])
def test_seed_and_costs_alone_decide(method: Method) -> None:
    assert run(method, 6, sphere) == run(method, 6, sphere)
    other = Method(method.name, method.population, method.spread, 6)
    assert run(method, 2, sphere) != run(other, 2, sphere)


def test_a_trial_that_failed_counts_as_the_worst() -> None:
    def cost(point: tuple[float, ...]) -> list[float]:
        return [float("inf")] if point[0] < 0.15 else sphere(point)

    assert min(c[0] for _, c in run(Method("cma-es", 8, 0.25, 1), 30, cost)) < 1e-4
    optimiser = CmaEs(GENOME, population=4, spread=0.25, seed=0)
    optimiser.tell(optimiser.ask(), np.full((4, 1), np.inf))
    assert np.isfinite(optimiser.ask()).all()


def zdt1(point: tuple[float, ...]) -> list[float]:
    """Zitzler et al. 2000: the front is f₂ = 1 − √f₁."""
    g = 1 + 9 * sum(point[1:]) / (len(point) - 1)
    return [point[0], g * (1 - (point[0] / g) ** 0.5)]


def test_nsga2_spreads_along_the_known_front_of_zdt1() -> None:
    genome = Genome.of({f"x{n}": Free(0, 1) for n in range(5)})
    told = run(Method("nsga2", 24, 0.25, 0), 80, zdt1, genome)
    costs = np.array([cost for _, cost in told])
    front = costs[pareto(costs)]
    assert np.abs(front[:, 1] - (1 - np.sqrt(front[:, 0]))).max() < 0.02
    spread = np.sort(front[:, 0])
    assert spread[0] < 0.02 and spread[-1] > 0.95 and np.diff(spread).max() < 0.15
    assert told[0][0] == genome.start and all(0 <= x <= 1 for point, _ in told for x in point)


def test_nsga2_keeps_the_best_whatever_comes_after() -> None:
    optimiser = Nsga2(GENOME, population=4, seed=0)
    points = optimiser.ask()
    optimiser.tell(points, np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 3.0]]))
    for _ in range(3):
        optimiser.tell(optimiser.ask(), np.full((4, 2), np.inf))
    assert {(0.0, 1.0), (1.0, 0.0)} <= {tuple(row) for row in optimiser._costs.tolist()}


def test_one_objective_is_for_cma_es_and_several_for_nsga2() -> None:
    assert Method().resolved(GENOME, 1) == Method("cma-es", 7) and Method().resolved(GENOME, 2) == Method("nsga2", 12)
    with pytest.raises(SettingError, match=r"cma-es is for one objective.*population=2.*spread=0"):
        Method("cma-es", 2, 0.0, 0).resolved(GENOME, 2)
    with pytest.raises(SettingError, match="nsga2"):
        Method("tpe").resolved(GENOME, 1)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(MissingExtraError, match=r"jpgen\[evolve\]"):
        Method("cma-es", 4).start(GENOME)
