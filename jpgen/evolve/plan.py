"""A study file (YAML): what is searched, by which pictures, for what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jpgen.errors import JpgenError, StudyError
from jpgen.evolve.panel import HeldOut, Panel, halves, read_prompts, split
from jpgen.evolve.recipes import Recipe
from jpgen.evolve.scorers import GOALS, Scorer
from jpgen.merge.live import RATIO
from jpgen.merge.search import Method
from jpgen.merge.study import GOALS as WAYS
from jpgen.merge.study import Objective

SETTINGS = frozenset({"width", "height", "steps", "guidance_scale", "scheduler", "emphasis", "clip_skip"})
PARTS = {
    "": {"model", "recipe", "prompts", "seed", "pictures", "sampling", "objectives", "optimiser", "evaluations", "threads", "norm_ratio"},
    "prompts": {"file", "search", "held_out"},
    "optimiser": {"method", "population", "spread", "seed"},
}
"""What may stand in a study file, by the place it stands in."""

NEEDED = ("recipe", "prompts", "objectives")


@dataclass(frozen=True)
class Plan:
    """A study file, read and checked. `folder` is where it is: names of files in it begin there."""

    folder: Path
    model: str
    recipe: Recipe
    search: Panel
    held_out: HeldOut
    scorers: tuple[Scorer, ...]
    objectives: tuple[Objective, ...]
    sampling: Mapping[str, Any]
    method: Method
    evaluations: int = 40
    threads: int = 1
    ratio: tuple[float, float] = RATIO


def read_plan(path: Path, load_recipe: Callable[[Any], Recipe]) -> Plan:
    """The study in a file; raises StudyError telling all that is wrong with their places, and what the recipe and the prompts raise.

    `load_recipe` takes a path, or the text of a recipe that stands in the study itself.
    """
    try:
        told = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise StudyError(f"{path} を読めません / cannot read the study {path}: {' '.join(str(error).split())}") from error
    if not isinstance(told, dict):
        raise StudyError(f"{path} は study ではありません / {path} is no study: wanted a mapping with {', '.join(NEEDED)}")
    wrong = _strange(told)
    objectives, scorers = _objectives(told.get("objectives"), path.parent, wrong)
    optimiser = told.get("optimiser") or {}
    method = Method(**{"name" if key == "method" else key: value for key, value in optimiser.items()}) if not wrong else Method()
    numbers = {"seed": 1000, "pictures": 1, "evaluations": 40, "threads": 1}
    whole = {key: told.get(key, value) for key, value in numbers.items()}
    wrong += [
        f"{key}: {value!r}, 1 以上の整数 / a whole number from 1" for key, value in whole.items() if type(value) is not int or value < (key != "seed")
    ]
    ratio = told.get("norm_ratio", list(RATIO))
    if not (isinstance(ratio, list) and len(ratio) == 2 and all(isinstance(one, int | float) for one in ratio) and 0 <= ratio[0] < ratio[1]):
        wrong.append(f"norm_ratio: {ratio!r}, [0.25, 4] のように / as [0.25, 4]")
    if wrong:
        raise StudyError(f"{path}: {'; '.join(wrong)}")
    search, held_out = _prompts(told["prompts"], path.parent, whole["seed"], whole["pictures"])
    recipe = told["recipe"]
    try:
        loaded = load_recipe(path.parent / recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False))
    except OSError as error:
        if isinstance(error, JpgenError):
            raise
        raise StudyError(f"{path}: recipe {recipe} を読めません / cannot read the recipe: {error}") from error
    return Plan(
        path.parent, str(told.get("model", "mame")), loaded, search, held_out, scorers, objectives, dict(told.get("sampling") or {}), method,
        whole["evaluations"], whole["threads"], (float(ratio[0]), float(ratio[1])),
    )  # fmt: skip


def _strange(told: Mapping[str, Any]) -> list[str]:
    """What is missing, unknown or of the wrong kind."""
    wrong = [f"{name} がありません / is missing" for name in NEEDED if not told.get(name)]
    for part, known in {**PARTS, "sampling": SETTINGS}.items():
        values = told if not part else told.get(part) or {}
        if not isinstance(values, dict):
            wrong.append(f"{part}: {values!r}, wanted a mapping")
            continue
        told_of = ", ".join(sorted(known))
        wrong += [f"{f'{part}.' if part else ''}{name}? 使えるのは / known: {told_of}" for name in sorted(map(str, values.keys() - known))]
    optimiser = told.get("optimiser") or {}
    if isinstance(optimiser, dict):
        kinds: dict[str, type | tuple[type, ...]] = {"method": str, "population": int, "seed": int, "spread": (int, float)}
        wrong += [f"optimiser.{key}: {value!r}" for key, value in optimiser.items() if key in kinds and not isinstance(value, kinds[key])]
    recipe = told.get("recipe")
    return wrong if isinstance(recipe, str | dict | None) else [*wrong, f"recipe: {recipe!r}, a file or a mapping"]


def _objectives(told: Any, folder: Path, wrong: list[str]) -> tuple[tuple[Objective, ...], tuple[Scorer, ...]]:
    rows = told if isinstance(told, list) else [told] if told else []
    objectives, scorers = [], []
    for n, row in enumerate(rows):
        row = {"scorer": row} if isinstance(row, str) else row
        known = {"scorer", "goal", "weight", "parent", "name"}
        if not isinstance(row, dict) or not isinstance(row.get("scorer"), str) or row.keys() - known:
            wrong.append(f"objectives[{n}]: {row!r}, wanted scorer and, if need be, {', '.join(sorted(known - {'scorer'}))}")
            continue
        scorer, weight, parent = row["scorer"], row.get("weight", 1.0), row.get("parent", 0)
        goal = row.get("goal", GOALS.get(scorer, "maximise"))
        if ":" not in scorer and scorer not in GOALS:
            wrong.append(f"objectives[{n}].scorer: {scorer!r}, wanted {', '.join(GOALS)} or module:function")
        if goal not in WAYS or not isinstance(weight, int | float) or not weight >= 0 or type(parent) is not int:
            wrong.append(f"objectives[{n}]: goal {goal!r} ({', '.join(WAYS)}), weight {weight!r} (≥ 0), parent {parent!r} (0, 1 …)")
        objectives.append(Objective(str(row.get("name", scorer)), goal, float(weight) if isinstance(weight, int | float) else 1.0))
        scorers.append(Scorer(scorer, parent, str(folder.resolve())))
    names = [one.name for one in objectives]
    twice = sorted({name for name in names if names.count(name) > 1})
    wrong += [f"objectives: {name} が二度あります / is there twice: give one a name" for name in twice]
    return tuple(objectives), tuple(scorers)


def _prompts(told: Mapping[str, Any], folder: Path, seed: int, pictures: int) -> tuple[Panel, HeldOut]:
    """One file and two numbers, or two files."""
    search, held_out = told.get("search"), told.get("held_out")
    if isinstance(told.get("file"), str) and type(search) is int and type(held_out) is int:
        return split(read_prompts(folder / told["file"]), search, held_out, seed=seed, pictures=pictures)
    if "file" not in told and isinstance(search, str) and isinstance(held_out, str):
        return halves(read_prompts(folder / search), read_prompts(folder / held_out), seed=seed, pictures=pictures)
    raise StudyError(
        f"prompts: {dict(told)!r}: {{file: prompts.tsv, search: 16, held_out: 32}} か {{search: a.tsv, held_out: b.tsv}} / "
        "write one file and how many of it, or two files"
    )
