"""A study: every point that was asked and what it cost, in a log that only grows; begun again, it continues where it was, bit by bit.

The log is JSON lines, each flushed to the disk before the search goes on. The first says what is searched (`config`), then a line for each trial
that was begun (`ask`) and one for what came of it (`tell`). Nothing else is kept: the optimiser's state is made again by asking and telling in the
same order, a generation at a time and sorted by trial, whoever was done first.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jpgen.errors import OutputError, StudyError
from jpgen.merge.front import Costs, choose, hypervolume, pareto
from jpgen.merge.search import Genome, Method, Point

log = logging.getLogger("jpgen")

GOALS = ("maximise", "minimise")
MARGIN = 0.1
"""How far beyond the worst of the first generation the hypervolume's reference lies, as a part of its range."""

SAME = 1e-9
"""How far a point of the log may be from the one asked again: another machine's rounding, nothing else."""


@dataclass(frozen=True)
class Objective:
    """What is judged and which way is better; `weight` is its part in the choice of one trial."""

    name: str
    goal: str = "maximise"
    weight: float = 1.0


@dataclass(frozen=True)
class Trial:
    """One point that is to be judged."""

    id: int
    generation: int
    point: Point


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: a score for each objective (None: it failed, and `faults` tell why), seconds it took, the trial it repeats."""

    id: int
    scores: tuple[float | None, ...]
    faults: tuple[str, ...] = ()
    seconds: float = 0.0
    same_as: int | None = None

    @property
    def failed(self) -> bool:
        """Whether it counts as the worst there is."""
        return any(score is None for score in self.scores)


Evaluate = Callable[[Sequence[Trial]], Iterable[Outcome]]
"""Judges trials, in any order; the seam for one process, several, or other machines. What it gives must depend on a trial's point alone."""


@dataclass(frozen=True)
class Finished:
    """The search is over: the best trial. Only `Study.finished` makes one, and held-out prompts are not opened without it."""

    trial: Trial
    outcome: Outcome


@dataclass
class Study:
    """An open log (a context manager: one process at a time has it). `told` and `asked` are by trial, in order."""

    path: Path
    genome: Genome
    method: Method
    objectives: tuple[Objective, ...]
    asked: dict[int, Trial] = field(default_factory=dict)
    told: dict[int, Outcome] = field(default_factory=dict)
    dropped: str = ""
    _descriptor: int = -1

    @classmethod
    def open(cls, path: Path, *, genome: Genome, method: Method, objectives: Sequence[Objective], inputs: Mapping[str, Any]) -> Study:
        """Begin the study or continue it.

        `inputs` (plain data) are all else that its results depend on: recipe, hashes of the weights, prompts, scorers. Raises StudyError if the log
        is of another study, naming all that differs, or damaged anywhere but in its last line; OutputError if it cannot be written.
        """
        method = method.resolved(genome, len(objectives))
        config = {
            "genome": {path: [a, b, x] for path, a, b, x in zip(genome.paths, genome.low, genome.high, genome.start, strict=True)},
            "order": list(genome.paths),
            "optimiser": {
                "name": method.name, "version": method.version, "population": method.population, "spread": method.spread, "seed": method.seed,
            },
            "objectives": [{"name": one.name, "goal": one.goal} for one in objectives],  # weights choose afterwards
            "inputs": json.loads(json.dumps(inputs, ensure_ascii=False)),
        }  # fmt: skip
        study = cls(path, genome, method, tuple(objectives))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            study._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise OutputError(f"{path} に書き込めません / cannot write the study {path}: {error.strerror or error}; name another folder") from error
        try:
            _lock(study._descriptor, path)
            study._replay(config)
        except BaseException:
            study.close()
            raise
        return study

    def __enter__(self) -> Study:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the log."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def run(self, evaluations: int, evaluate: Evaluate, on_told: Callable[[Trial, Outcome], None] | None = None) -> None:
        """Search until so many trials are told, those of the log among them; `on_told` is called after each new one.

        A trial asked but not told is judged again at its very point; a point that was told before is not judged twice. Raises StudyError if the log's
        points are not those that the optimiser asks.
        """
        optimiser = self.method.start(self.genome)
        size, generation = optimiser.population, 0
        while generation * size < evaluations:
            points = self._same(optimiser.ask(), generation * size)
            trials = [Trial(generation * size + n, generation, point) for n, point in enumerate(points)]
            due = [trial for trial in trials if trial.id < evaluations and trial.id not in self.told]
            for trial in due:
                if trial.id not in self.asked:
                    self._append({"event": "ask", "trial": trial.id, "generation": generation, "x": list(trial.point)})
                    self.asked[trial.id] = trial
            known = {self.asked[id].point: outcome for id, outcome in self.told.items() if self.asked[id].generation < generation}
            repeats = [(trial, known[trial.point]) for trial in due if trial.point in known]
            for trial, outcome in repeats:
                self._tell(Outcome(trial.id, outcome.scores, outcome.faults, 0.0, outcome.id), on_told)
            new = [trial for trial in due if trial.point not in known]
            for outcome in evaluate(new) if new else ():
                self._tell(outcome, on_told)
            if missing := [trial.id for trial in due if trial.id not in self.told]:
                raise StudyError(f"試行 {missing} の結果がありません / no outcome of the trials {missing}: run again to continue")
            if all(trial.id in self.told for trial in trials):
                optimiser.tell([trial.point for trial in trials], self.costs([trial.id for trial in trials]))
            generation += 1

    def costs(self, trials: Sequence[int] | None = None) -> Costs:
        """[trials, objectives] of those that are told (or of these), in order: scores with the sign that makes smaller better, infinite if failed."""
        rows = [self.told[id] for id in (sorted(self.told) if trials is None else trials)]
        signs = [-1.0 if one.goal == "maximise" else 1.0 for one in self.objectives]
        made = [[math.inf] * len(signs) if row.failed else [sign * float(s or 0) for s, sign in zip(row.scores, signs, strict=True)] for row in rows]
        return np.array(made, dtype=float).reshape(len(rows), len(signs))

    def front(self) -> list[Trial]:
        """The trials that no other dominates, by their numbers."""
        ids = sorted(self.told)
        return [self.asked[ids[i]] for i in pareto(self.costs())]

    def best(self, weights: Mapping[str, float] | None = None) -> Trial | None:
        """The trial of the front that is best for these weights of the objectives (else their own); None if none succeeded yet."""
        given = dict(weights or {})
        if strange := given.keys() - {one.name for one in self.objectives}:
            raise StudyError(f"目的 {sorted(strange)} はありません / no such objective: {', '.join(one.name for one in self.objectives)}")
        chosen = choose(self.costs(), [given.get(one.name, 0.0 if given else one.weight) for one in self.objectives])
        return None if chosen is None else self.asked[sorted(self.told)[chosen]]

    def hypervolumes(self) -> list[float]:
        """The volume that is dominated after each generation, below a reference a little beyond the worst of the first that had a success."""
        costs, ids = self.costs(), sorted(self.told)
        last = [self.asked[id].generation for id in ids]
        finite = [not self.told[id].failed for id in ids]
        if not any(finite):
            return [0.0] * (max(last, default=-1) + 1)
        began = min(g for g, ok in zip(last, finite, strict=True) if ok)
        first = costs[[ok and g == began for g, ok in zip(last, finite, strict=True)]]
        span = first.max(axis=0) - first.min(axis=0)
        reference = first.max(axis=0) + MARGIN * np.where(span > 0, span, 1.0)
        return [hypervolume(costs[[g <= n for g in last]], reference.tolist()) for n in range(max(last) + 1)]

    def finished(self, evaluations: int) -> Finished:
        """The best trial of a search that is over; raises StudyError if it is not, or if every trial failed."""
        if len(self.told) < evaluations:
            raise StudyError(f"探索が途中です / the search is not over: {len(self.told)} of {evaluations} trials are told")
        best = self.best()
        if best is None:
            faults = sorted({fault for outcome in self.told.values() for fault in outcome.faults})
            raise StudyError(f"どの試行も失敗しました / every trial failed: {'; '.join(faults[:3])}")
        return Finished(best, self.told[best.id])

    def _tell(self, outcome: Outcome, on_told: Callable[[Trial, Outcome], None] | None) -> None:
        if outcome.id not in self.asked or outcome.id in self.told or len(outcome.scores) != len(self.objectives):
            raise StudyError(f"試行 {outcome.id} の結果は頼んでいません / an outcome of trial {outcome.id} that was not asked for: {outcome}")
        outcome = _checked(outcome, self.objectives)
        event = {"event": "tell", "trial": outcome.id, "scores": list(outcome.scores), "seconds": round(outcome.seconds, 3)}
        event |= {"faults": list(outcome.faults)} if outcome.faults else {}
        event |= {"same_as": outcome.same_as} if outcome.same_as is not None else {}
        self._append(event)
        self.told[outcome.id] = outcome
        for fault in outcome.faults:
            log.warning("試行 %d は最下位とします / trial %d counts as the worst: %s", outcome.id, outcome.id, fault)
        if on_told:
            on_told(self.asked[outcome.id], outcome)

    def _append(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            raise OutputError(f"{self.path} に書き込めません / cannot write the study {self.path}: {error.strerror or error}") from error
        if written != len(line):
            raise OutputError(f"{self.path} に書き込めません / cannot write the study {self.path}: no space; free some and run again")

    def _same(self, points: Sequence[Point], first: int) -> list[Point]:
        """The points with those of the log in their places; raises StudyError if they are others."""
        made = []
        for n, point in enumerate(points, first):
            logged = self.asked[n].point if n in self.asked else point
            if len(logged) != len(point) or max(abs(a - b) for a, b in zip(logged, point, strict=True)) > SAME:
                raise StudyError(
                    f"{self.path}: 試行 {n} の点が記録と違います / trial {n} is at another point than the optimiser asks: the log was changed, or "
                    "numpy draws otherwise here; begin a new study"
                )
            made.append(logged)
        return made

    def _replay(self, config: Mapping[str, Any]) -> None:
        """Read the log; a last line that was cut off is taken away, and said."""
        data = self.path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        if torn:
            self.dropped = torn.decode("utf-8", "replace")
            log.warning("%s: 書きかけの最後の行を捨てました / dropped a last line that was cut off: %.60s", self.path, self.dropped)
            os.ftruncate(self._descriptor, len(data) - len(torn))
        for number, line in enumerate(lines, 1):
            try:
                self._read(json.loads(line), number, config)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if isinstance(error, StudyError):
                    raise
                raise StudyError(
                    f"{self.path} の {number} 行目は壊れています / line {number} is damaged ({error!r}): put a copy back, or begin anew"
                ) from error
        if not lines:
            self._append({"event": "config", "config": config})

    def _read(self, event: Mapping[str, Any], number: int, config: Mapping[str, Any]) -> None:
        kind = event["event"]
        if (kind == "config") != (number == 1):
            raise ValueError("config is the first line, and only there")
        if kind == "config":
            if changed := differences(event["config"], json.loads(json.dumps(config))):
                raise StudyError(
                    f"{self.path} は別の条件の探索です / {self.path} is of another study, these changed: {'; '.join(changed)}; put them back, or "
                    "name another folder with --output"
                )
        elif kind == "ask":
            trial = Trial(int(event["trial"]), int(event["generation"]), tuple(float(x) for x in event["x"]))
            if trial.id in self.asked or trial.generation != trial.id // self.method.population:
                raise ValueError(f"trial {trial.id} is asked twice, or in another generation")
            self.asked[trial.id] = trial
        elif kind == "tell":
            scores = tuple(None if score is None else float(score) for score in event["scores"])
            outcome = Outcome(int(event["trial"]), scores, tuple(event.get("faults", ())), float(event["seconds"]), event.get("same_as"))
            if outcome.id not in self.asked or outcome.id in self.told or len(scores) != len(self.objectives):
                raise ValueError(f"trial {outcome.id} is told twice, or was never asked")
            self.told[outcome.id] = outcome
        else:
            raise ValueError(f"unknown event {kind!r}")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two plain values differ, a line each: "inputs.model: 'a' → 'b'"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for n, (a, b) in enumerate(zip(old, new, strict=True)) for line in differences(a, b, f"{path}[{n}]")]
    return [] if old == new else [f"{path}: {_short(old)} → {_short(new)}"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _checked(outcome: Outcome, objectives: Sequence[Objective]) -> Outcome:
    """With None in the place of scores that are no finite numbers, and the fault told."""
    faults, scores = list(outcome.faults), []
    for score, one in zip(outcome.scores, objectives, strict=True):
        if score is not None and not math.isfinite(score):
            faults.append(f"{one.name} = {score}")
            score = None
        scores.append(score)
    return Outcome(outcome.id, tuple(scores), tuple(faults), outcome.seconds, outcome.same_as)


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes apart there
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StudyError(f"{path} は別のプロセスが使っています / another process is at {path}: wait for it, or stop it") from error
