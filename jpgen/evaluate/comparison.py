"""What a comparison found: scores of every picture, as tables of pandas, paired differences, and a page to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jpgen.errors import MissingExtraError, UnknownNameError
from jpgen.evaluate.cases import Arm, Case
from jpgen.evaluate.statistics import Difference, paired

if TYPE_CHECKING:
    import pandas

REPORT = "report.html"
STATISTICS: Mapping[str, Callable[[np.ndarray], Any]] = {"mean": np.mean, "median": np.median, "std": np.std}


@dataclass(frozen=True)
class Outcome:
    """One picture: its arm's name, the number of its case, seed and score (NaN where nothing was drawn, for the `problem`), file, seconds."""

    arm: str
    case: int
    seed: int
    score: float
    file: str
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """All outcomes, in the order of arms, cases and seeds; the pictures are in `folder/pictures`."""

    cases: tuple[Case, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    scorer: str
    outcomes: tuple[Outcome, ...]
    folder: Path

    @property
    def scores(self) -> pandas.DataFrame:
        """A row a picture: arm, prompt (Japanese), tags, seed, score, file, seconds, problem. Raises MissingExtraError without pandas."""
        rows = [
            {
                "arm": one.arm, "prompt": self.cases[one.case].ja, "tags": " ".join(self.cases[one.case].tags), "seed": one.seed, "score": one.score,
                "file": one.file, "seconds": one.seconds, "problem": one.problem,
            }
            for one in self.outcomes
        ]  # fmt: skip
        return _pandas().DataFrame(rows)

    @property
    def table(self) -> pandas.DataFrame:
        """A row an arm: pictures, mean and median score, standard deviation, how many prompts could not be drawn, and for every arm after the first
        the difference to it with its 95 % interval and win rate. It has no times: the same comparison gives the same table."""
        rows = []
        for number, arm in enumerate(self.arms):
            values = self.values(arm.name)
            known = values[np.isfinite(values)]
            row: dict[str, Any] = {"arm": arm.name, "pictures": len(known), "undrawn": len(values) - len(known)}
            row |= {name: float(of(known)) if len(known) else float("nan") for name, of in STATISTICS.items()}
            if number and len(known):
                found = self.difference(arm.name, self.arms[0].name)
                row |= {"difference": found.mean, "low": found.low, "high": found.high, "wins": found.wins}
            rows.append(row)
        return _pandas().DataFrame(rows).set_index("arm").round(4)

    def values(self, arm: str, *, tag: str = "") -> np.ndarray:
        """The scores of an arm, [cases · seeds], those of a tag alone if one is named; raises UnknownNameError."""
        if arm not in (names := [one.name for one in self.arms]):
            raise UnknownNameError.of("腕 / arm", arm, names)
        return np.array([one.score for one in self.outcomes if one.arm == arm and self._has(one, tag)])

    def difference(self, first: str, second: str, *, tag: str = "") -> Difference:
        """How much the first arm's pictures suit their prompts better than the second's, on the same prompts and seeds.

        Raises UnknownNameError for an arm that is not there, ValueError where no pair was drawn.
        """
        prompts = np.array([one.case for one in self.outcomes if one.arm == first and self._has(one, tag)])
        return paired(self.values(first, tag=tag), self.values(second, tag=tag), prompts)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of all cases, the commonest first."""
        counts: dict[str, int] = {}
        for case in self.cases:
            for tag in case.tags:
                counts[tag] = counts.get(tag, 0) + 1
        return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag)))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every two arms, the later one first: how much better than the one before."""
        return tuple((two.name, one.name) for one, two in combinations(self.arms, 2))

    def write_report(self, path: Path | None = None) -> Path:
        """Write the page that stands alone (`folder/report.html`); returns where it is. Raises OutputError, MissingExtraError (no matplotlib)."""
        from jpgen.evaluate.comparison_page import write_page

        return write_page(self, path or self.folder / REPORT)

    def _has(self, outcome: Outcome, tag: str) -> bool:
        return not tag or tag in self.cases[outcome.case].tags


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("表には pandas が要ります / tables are made with pandas: pip install 'jpgen[evaluate]'") from error
    return pandas
