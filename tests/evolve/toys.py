"""A toy pipeline, two parents for it, a study of them and scorers, importable by processes that the tests start."""

import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from jpgen.backbones import pixart
from jpgen.encoders import bert
from jpgen.evaluate.bench_mame import Question
from jpgen.evaluate.judge import Facts
from jpgen.evolve.live import formulas_of
from jpgen.evolve.panel import halves
from jpgen.evolve.plan import Plan
from jpgen.evolve.recipes import Formulas
from jpgen.evolve.scorers import Scorer
from jpgen.merge.recipe import Free, Merge, Model, Recipe
from jpgen.merge.search import Method
from jpgen.merge.study import Objective
from jpgen.pipeline import Pipeline
from jpgen.types import Generation, ModelInfo


def toy() -> Pipeline:
    torch.manual_seed(5)
    return Pipeline.from_parts(bert.toy(), pixart.toy(), ModelInfo("toy", "0", "Apache-2.0", "0000000000"))


def write_parents(folder: Path) -> tuple[Path, Path]:
    """The toy with noise in all but its attention, and with noise in its attention alone: t = (attn 0, other 1) is the toy itself."""
    weights = toy().backbone.modules["denoiser"].state_dict()
    made = []
    for name, spoilt in (("a", lambda key: ".to_" not in key), ("b", lambda key: ".to_" in key)):
        generator = torch.Generator().manual_seed(ord(name))
        tensors = {k: v + 0.2 * torch.randn(v.shape, generator=generator) if spoilt(f".{k}") else v.clone() for k, v in weights.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        made.append(folder / f"{name}.safetensors")
    return made[0], made[1]


def opened(recipe: Recipe, folder: Path) -> tuple[Pipeline, Formulas]:
    pipeline = toy()
    return pipeline, formulas_of(pipeline, recipe, folder)


def questions(*texts: str) -> list[Question]:
    return [Question(text, "", text, text, Facts()) for text in texts]


def plan(folder: Path, scorers: Sequence[str] = ("toys:like_the_toy",), **changed: Any) -> Plan:
    if not (folder / "a.safetensors").exists():
        write_parents(folder)
    recipe = Recipe(Merge("lerp", (Model("a.safetensors"), Model("b.safetensors")), {"t": {"attn": Free(0.0, 1.0), "other": Free(0.0, 1.0)}}))
    search, held_out = halves(questions("猫", "赤い船"), questions("富士山", "犬", "雨の街"), seed=3, pictures=1)
    goals = {"drift": "minimise"}
    given = {
        "folder": folder, "model": "toy", "recipe": recipe, "search": search, "held_out": held_out,
        "scorers": tuple(Scorer(name, n, str(Path(__file__).parent)) for n, name in enumerate(scorers)),
        "objectives": tuple(Objective(f"{name}{n}", goals.get(name, "maximise")) for n, name in enumerate(scorers)),
        "sampling": {"steps": 1}, "method": Method("", 4, 0.3, 1), "evaluations": 8, "threads": 1,
    }  # fmt: skip
    return Plan(**{**given, **changed})


def opener(given: Plan) -> Callable[[], tuple[Pipeline, Formulas]]:
    return partial(opened, given.recipe, given.folder)


def like_the_toy(generations: Sequence[Generation]) -> float:
    """How near the pictures are to those that the toy draws with its own weights; a log of what was seen, for the tests."""
    if log := os.environ.get("TOYS_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write("".join(f"{made.prompt.source}\n" for made in generations))
    return -float(np.mean([np.abs(drawn_by_toy(made.prompt.source, made.seed) - np.asarray(made.image, dtype=float)).mean() for made in generations]))


@lru_cache
def drawn_by_toy(prompt: str, seed: int) -> np.ndarray:
    own = toy()
    return np.asarray(own.generate(prompt, seed=seed, config=own.config(steps=1)).image, dtype=float)


def slowly(generations: Sequence[Generation]) -> float:
    time.sleep(0.2)
    return like_the_toy(generations)


def brightness(generations: Sequence[Generation]) -> float:
    return float(np.mean([np.asarray(made.image).mean() for made in generations]))


def sometimes_nan(generations: Sequence[Generation]) -> float:
    value = brightness(generations)
    return float("nan") if int(value * 1000) % 2 else value


def always_raises(generations: Sequence[Generation]) -> float:
    raise ZeroDivisionError("no")


def sometimes_raises(generations: Sequence[Generation]) -> float:
    value = brightness(generations)
    if int(value * 1000) % 2:
        raise ValueError("odd")
    return value
