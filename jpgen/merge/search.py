"""Search: a generation of points asked, their costs told. CMA-ES for one objective (the package `cmaes`), NSGA-II for several.

Both are functions of their seed and of what they were told alone, so that a study is continued by asking and telling again what its log says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jpgen.errors import MissingExtraError, SettingError
from jpgen.merge.front import Costs, crowding, fronts

Point = tuple[float, ...]
"""A place in the unit cube, a coordinate for each free number."""

WORST = 1e30
"""What CMA-ES, which counts ranks only, is told of a trial that failed."""

SPREAD = 0.25
"""The first standard deviation, as a part of each range."""

ETA_CROSSOVER, ETA_MUTATION, CROSSOVER = 15.0, 20.0, 0.9
"""NSGA-II's distribution indices and share of crossed pairs (Deb et al. 2002, section V)."""

METHODS = ("cma-es", "nsga2")


@runtime_checkable
class FreeNumber(Protocol):
    """A free number of a recipe: its range and, if told, where to begin."""

    @property
    def low(self) -> float:
        """The least it may be."""

    @property
    def high(self) -> float:
        """The most it may be."""

    @property
    def initial(self) -> float | None:
        """Where the search begins; None: in the middle."""


@dataclass(frozen=True)
class Genome:
    """The free numbers of a recipe: their paths, in its order, their ranges and where they begin."""

    paths: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    start: Point

    @classmethod
    def of(cls, free: Mapping[str, FreeNumber]) -> Genome:
        """The genome of `Recipe.free()`; raises SettingError if there is nothing to search, or a range is none, telling every one."""
        wrong = [f"{path}: {one.low!r}…{one.high!r}" for path, one in free.items() if not -np.inf < one.low < one.high < np.inf]
        wrong += [
            f"{path}: initial {one.initial!r} ∉ {one.low!r}…{one.high!r}"
            for path, one in free.items() if one.initial is not None and not one.low <= one.initial <= one.high
        ]  # fmt: skip
        if wrong:
            raise SettingError(f"範囲になっていません / no range: {'; '.join(wrong)}: write {{free: [low, high], initial: between}}")
        if not free:
            raise SettingError("レシピに探す数がありません / the recipe has no free number: write {free: [0, 1]} in place of a number")
        middle = ((one.high + one.low) / 2 if one.initial is None else one.initial for one in free.values())
        low, high = tuple(float(one.low) for one in free.values()), tuple(float(one.high) for one in free.values())
        start = tuple((value - a) / (b - a) for value, a, b in zip(middle, low, high, strict=True))
        return cls(tuple(free), low, high, start)

    def numbers(self, point: Point) -> dict[str, float]:
        """The recipe's numbers at a point of the unit cube."""
        return {path: a + (b - a) * x for path, a, b, x in zip(self.paths, self.low, self.high, point, strict=True)}


@runtime_checkable
class Optimiser(Protocol):
    """Asks for generations of points and is told their costs, in turn."""

    @property
    def population(self) -> int:
        """Points a generation."""

    def ask(self) -> list[Point]:
        """The points of the next generation."""

    def tell(self, points: Sequence[Point], costs: Costs) -> None:
        """What the points of the generation cost, [population, objectives], in the order they were asked."""


class CmaEs:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) on the unit cube, by the package `cmaes`. The first point of all is where the search begins."""

    def __init__(self, genome: Genome, *, population: int, spread: float, seed: int) -> None:
        cube = np.tile([0.0, 1.0], (len(genome.paths), 1))
        made = _cmaes().CMA(mean=np.array(genome.start), sigma=spread, bounds=cube, seed=seed, population_size=population)
        self._cma: Any = made
        self._start: Point | None = genome.start
        self.population = population

    def ask(self) -> list[Point]:
        """Samples of the present distribution, inside the cube."""
        points: list[Point] = [tuple(self._cma.ask().tolist()) for _ in range(self.population)]
        if self._start is not None:
            points[0], self._start = self._start, None
        return points

    def tell(self, points: Sequence[Point], costs: Costs) -> None:
        """Move the distribution; equal costs count in the order asked."""
        finite = np.where(np.isfinite(costs[:, 0]), costs[:, 0], WORST)
        self._cma.tell([(np.array(point), float(cost)) for point, cost in zip(points, finite, strict=True)])  # a list of its own: it sorts it


class Nsga2:
    """NSGA-II (Deb et al. 2002, doi 10.1109/4235.996017) on the unit cube: simulated binary crossover, polynomial mutation, elitist selection."""

    def __init__(self, genome: Genome, *, population: int, seed: int) -> None:
        self.population = population
        self._genome, self._rng = genome, np.random.RandomState(seed)
        self._points: NDArray[np.float64] = np.empty((0, len(genome.paths)))
        self._costs: Costs | None = None

    def ask(self) -> list[Point]:
        """Random points and the start of the search; afterwards children of the selected."""
        if self._costs is None:
            made = self._rng.uniform(size=(self.population, len(self._genome.paths)))
            made[0] = self._genome.start
        else:
            made = self._children(*_ranked(self._costs))
        return [tuple(row) for row in made.tolist()]

    def tell(self, points: Sequence[Point], costs: Costs) -> None:
        """Keep the best of parents and children: whole fronts, of the last one those with most room."""
        both = np.concatenate([self._points, np.array(points)])
        told = costs if self._costs is None else np.concatenate([self._costs, costs])
        told = np.where(np.isfinite(told).all(axis=1, keepdims=True), told, np.inf)
        kept: list[int] = []
        for front in fronts(told):
            room = crowding(told[front])
            order = np.argsort(-room, kind="stable") if len(kept) + len(front) > self.population else range(len(front))
            kept += [front[i] for i in order][: self.population - len(kept)]
        self._points, self._costs = both[kept], told[kept]

    def _children(self, rank: NDArray[np.int64], room: NDArray[np.float64]) -> NDArray[np.float64]:
        rng, size = self._rng, len(self._points)

        def parent() -> NDArray[np.float64]:
            a, b = rng.randint(size, size=2)
            better = (rank[a], -room[a]) <= (rank[b], -room[b])
            chosen: NDArray[np.float64] = self._points[a if better else b]
            return chosen

        made: list[NDArray[np.float64]] = []
        while len(made) < self.population:
            made += [self._mutated(child) for child in self._crossed(parent(), parent())]
        return np.array(made[: self.population])

    def _crossed(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Simulated binary crossover: children as far apart as their parents are, on average."""
        rng, size = self._rng, len(a)
        whole, each, swapped, u = rng.uniform(), rng.uniform(size=size) < 0.5, rng.uniform(size=size) < 0.5, rng.uniform(size=size)
        if whole > CROSSOVER:
            return a.copy(), b.copy()
        power = 1 / (ETA_CROSSOVER + 1)
        beta = np.where(u <= 0.5, (2 * u) ** power, (1 / (2 * (1 - u))) ** power)
        beta = np.where(each, beta, 1.0)
        one, other = ((1 + beta) * a + (1 - beta) * b) / 2, ((1 - beta) * a + (1 + beta) * b) / 2
        return np.clip(np.where(swapped, other, one), 0, 1), np.clip(np.where(swapped, one, other), 0, 1)

    def _mutated(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Polynomial mutation of one number on average."""
        rng, size = self._rng, len(point)
        chosen, u = rng.uniform(size=size) < 1 / size, rng.uniform(size=size)
        power = 1 / (ETA_MUTATION + 1)
        low = (2 * u + (1 - 2 * u) * (1 - point) ** (ETA_MUTATION + 1)) ** power - 1
        high = 1 - (2 * (1 - u) + 2 * (u - 0.5) * point ** (ETA_MUTATION + 1)) ** power
        return np.clip(point + np.where(chosen, np.where(u < 0.5, low, high), 0.0), 0, 1)


@dataclass(frozen=True)
class Method:
    """Which optimiser and its settings; "" is CMA-ES for one objective and NSGA-II for several, 0 points a generation is its own choice."""

    name: str = ""
    population: int = 0
    spread: float = SPREAD
    seed: int = 0

    def resolved(self, genome: Genome, objectives: int) -> Method:
        """With nothing left open; raises SettingError naming what does not go together."""
        name = self.name or ("cma-es" if objectives == 1 else "nsga2")
        size = len(genome.paths)
        population = self.population or (4 + int(3 * np.log(size)) if name == "cma-es" else 12)
        wrong = [] if name in METHODS else [f"optimiser {name!r}: {', '.join(METHODS)}"]
        wrong += ["cma-es は目的が一つのときだけ / cma-es is for one objective: use nsga2"] if name == "cma-es" and objectives > 1 else []
        wrong += [f"population={population}: 4 以上 / at least 4"] if population < 4 else []
        wrong += [f"spread={self.spread}: 0 < … ≤ 1"] if not 0 < self.spread <= 1 else []
        wrong += [f"seed={self.seed}: 0…2^32-1"] if not 0 <= self.seed < 2**32 else []
        if wrong:
            raise SettingError(f"最適化の設定が変です / settings of the optimiser: {'; '.join(wrong)}")
        return Method(name, population, self.spread, self.seed)

    def start(self, genome: Genome) -> Optimiser:
        """A new optimiser; raises MissingExtraError without the package `cmaes` where that is wanted."""
        if self.name == "nsga2":
            return Nsga2(genome, population=self.population, seed=self.seed)
        return CmaEs(genome, population=self.population, spread=self.spread, seed=self.seed)

    @property
    def version(self) -> str:
        """What the points depend on besides the seed: the program and its version."""
        return f"cmaes {_cmaes().__version__}" if self.name == "cma-es" else "nsga2 1"


def _ranked(costs: Costs) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Front and crowding of each row."""
    rank, room = np.zeros(len(costs), dtype=np.int64), np.zeros(len(costs))
    for number, front in enumerate(fronts(costs)):
        rank[front], room[front] = number, crowding(costs[front])
    return rank, room


def _cmaes() -> Any:
    try:
        import cmaes
    except ImportError as error:
        raise MissingExtraError("cmaes がありません / evolve wants the package cmaes: pip install 'jpgen[evolve]'") from error
    return cmaes
