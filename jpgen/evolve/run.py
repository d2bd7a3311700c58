"""`evolve()`: a study file in, the best recipe out, with its front, its log and what held-out prompts say of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jpgen.errors import StudyError
from jpgen.evaluate.statistics import bootstrap
from jpgen.evolve.live import formulas_of
from jpgen.evolve.plan import Plan, read_plan
from jpgen.evolve.recipes import Formulas, Recipe
from jpgen.evolve.report import draw_front, save_recipe, write_page, write_text
from jpgen.evolve.trials import Spec, Tryout, threads, workers
from jpgen.merge.search import Genome
from jpgen.merge.study import Finished, Outcome, Study, Trial
from jpgen.pipeline import Pipeline

LOG, BEST, PICTURE, PAGE, HELD_OUT = "study.jsonl", "best.recipe.yaml", "front.png", "front.html", "held_out.json"
"""What is in a study's folder."""


@dataclass(frozen=True)
class Progress:
    """A trial that was just judged, how many are, of how many, and the seconds that are left (None: nobody knows yet)."""

    trial: Trial
    outcome: Outcome
    done: int
    total: int
    left: float | None
    best: Outcome | None


@dataclass(frozen=True)
class Rival:
    """Held-out scores of the best recipe beside another's: means, and the 95 % interval of best − rival, paired by prompt."""

    objective: str
    rival: str
    best_mean: float
    rival_mean: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Evolved:
    """What a study came to: its folder, the best trial's numbers and scores, the front, and the held-out comparison (empty: not asked for)."""

    folder: Path
    recipe: Path
    trial: int
    numbers: Mapping[str, float]
    scores: Mapping[str, float]
    front: tuple[int, ...]
    hypervolumes: tuple[float, ...]
    rivals: tuple[Rival, ...]


def evolve(
    study: str | Path, *, output: Path | None = None, workers: int = 1, evaluations: int | None = None, weights: Mapping[str, float] | None = None,
    held_out: bool = True, on_progress: Callable[[Progress], None] | None = None,
) -> Evolved:  # fmt: skip
    """Search by a study file, or go on with a search that was stopped; its folder is `output`, else the file's name without `.yaml`.

    `evaluations` (else the file's) may be raised to search on; `weights` of the objectives choose the best of the front. At the end held-out prompts
    are drawn by the best, by each parent and by the plain average. Raises StudyError, RecipeError, PromptError, WeightsError, MissingExtraError.

        >>> from jpgen.evolve.run import evolve
        >>> evolve("study.yaml").recipe  # doctest: +SKIP
        PosixPath('study/best.recipe.yaml')
    """
    from jpgen.merge.reading import load_recipe

    path = Path(study)
    plan = read_plan(path, load_recipe)
    opened = partial(open_live, plan.model, plan.recipe, plan.folder)
    return run_plan(
        plan, output or path.with_suffix(""), opened, workers=workers, evaluations=evaluations, weights=weights, held_out=held_out,
        on_progress=on_progress,
    )  # fmt: skip


def open_live(model: str, recipe: Recipe, folder: Path) -> tuple[Pipeline, Formulas]:
    """The pipeline whose weights are merged in place, and the recipe's formulas for them."""
    pipeline = Pipeline(model)
    return pipeline, formulas_of(pipeline, recipe, folder)


def run_plan(
    plan: Plan, folder: Path, opened: Callable[[], tuple[Pipeline, Formulas]], *, workers: int = 1, evaluations: int | None = None,
    weights: Mapping[str, float] | None = None, held_out: bool = True, on_progress: Callable[[Progress], None] | None = None,
) -> Evolved:  # fmt: skip
    """`evolve` for a plan that is read, with parts that `opened` (which can be sent to processes) opens."""
    if workers < 1:
        raise StudyError(f"workers={workers}: 1 以上にしてください / must be at least 1")
    total = evaluations or plan.evaluations
    genome = Genome.of(plan.recipe.free())
    spec = Spec(opened, genome, plan.search, plan.scorers, plan.sampling, plan.threads, plan.ratio)
    with Study.open(folder / LOG, genome=genome, method=plan.method, objectives=plan.objectives, inputs=identity(plan, *opened())) as study:
        _search(study, spec, plan, total, workers, on_progress)
        finished = study.finished(total)
        best = study.best(weights) or finished.trial
        finished = Finished(best, study.told[best.id])
        recipe = _written(study, plan, best, folder)
        rivals = compare(spec, plan, finished) if held_out else ()
        if rivals:
            write_text(folder / HELD_OUT, json.dumps([asdict(one) for one in rivals], ensure_ascii=False, indent=1) + "\n")
        scores = {one.name: float(score or 0) for one, score in zip(plan.objectives, finished.outcome.scores, strict=True)}
        front = tuple(trial.id for trial in study.front())
        return Evolved(folder, recipe, best.id, genome.numbers(best.point), scores, front, tuple(study.hypervolumes()), rivals)


def identity(plan: Plan, pipeline: Pipeline, formulas: Formulas) -> dict[str, Any]:
    """All that the scores of a study depend on besides its genome and optimiser, as plain data."""
    return {
        "model": {"name": str(pipeline.info), "weights": pipeline.info.weights_hash},
        "recipe": plan.recipe.to_data(),
        "weights": formulas.digests,
        "prompts": plan.search.digest,
        "held_out": plan.held_out.digest,
        "scorers": [scorer.identity for scorer in plan.scorers],
        "sampling": {**asdict(pipeline.config(**plan.sampling))},
        "threads": plan.threads,
        "norm_ratio": list(plan.ratio),
        "torch": torch.__version__.partition("+")[0],
    }


def compare(spec: Spec, plan: Plan, finished: Finished) -> tuple[Rival, ...]:
    """The best recipe on held-out prompts beside each parent and their plain average: scores prompt by prompt, with paired bootstrap intervals."""
    with threads(spec.threads):
        tryout = Tryout(spec)
        panel, formulas = plan.held_out.open(finished), tryout.formulas
        scores = tryout.scores_of(panel)
        drawn = {"best": tryout.draw(finished.trial.point, formulas.merged(spec.genome.numbers(finished.trial.point)), panel)}
        for n, model in enumerate(formulas.parents):
            drawn[f"parent {n}: {model.name}"] = tryout.draw(("parent", n), formulas.parent(n), panel)
        drawn["average"] = tryout.draw("average", formulas.average(), panel)
        rows = []
        for objective, score in zip(plan.objectives, scores, strict=True):
            of = {name: np.array([score(made[i : i + panel.pictures]) for i in range(0, len(made), panel.pictures)]) for name, made in drawn.items()}
            best = of.pop("best")
            for name, values in of.items():
                low, high = bootstrap(best - values) or (float("nan"), float("nan"))
                difference = float((best - values).mean())
                rows.append(Rival(objective.name, name, float(best.mean()), float(values.mean()), difference, (low, high)))
        return tuple(rows)


def _search(
    study: Study, spec: Spec, plan: Plan, total: int, count: int, on_progress: Callable[[Progress], None] | None
) -> None:
    """Judge trials until so many are; after each generation the front is drawn and the best recipe so far is written."""
    began, new, drawn = time.perf_counter(), 0, -1

    def on_told(trial: Trial, outcome: Outcome) -> None:
        nonlocal new, drawn
        new += 1
        done = len(study.told)
        best = study.best()
        left = (time.perf_counter() - began) / new * max(0, total - done)
        if on_progress:
            on_progress(Progress(trial, outcome, done, total, left, study.told[best.id] if best else None))
        generation = done // study.method.population
        if best and generation != drawn:
            drawn = generation
            _written(study, plan, best, study.path.parent)

    with workers(spec, count) as evaluate:
        study.run(total, evaluate, on_told)


def _written(study: Study, plan: Plan, best: Trial, folder: Path) -> Path:
    """The recipe of a trial, and the front as picture and page."""
    draw_front(study, best, folder / PICTURE)
    write_page(study, best, folder / PAGE)
    return save_recipe(plan.recipe.fixed(study.genome.numbers(best.point)), folder / BEST)


def summary(rivals: Sequence[Rival]) -> str:
    """The held-out comparison, a line each."""
    return "\n".join(
        f"{one.objective}: {one.best_mean:.4f}、{one.rival} {one.rival_mean:.4f}、差 / difference {one.difference:+.4f} "
        f"[95 %: {one.interval[0]:+.4f}, {one.interval[1]:+.4f}]"
        for one in rivals
    )
