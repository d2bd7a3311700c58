"""A recipe of the least kind, a toy pipeline and scorers, importable by processes that the tests start."""

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from jpgen.evolve.panel import halves
from jpgen.evolve.plan import Plan
from jpgen.evolve.recipes import Formulas, parents
from jpgen.evolve.scorers import Scorer
from jpgen.evolve.sources import Sources
from jpgen.merge.search import Method
from jpgen.merge.study import Objective
from jpgen.pipeline import Pipeline
from jpgen.types import Generation, ModelInfo


@dataclass(frozen=True)
class Free:
    low: float = 0.0
    high: float = 1.0
    initial: float | None = None


@dataclass(frozen=True)
class Model:
    name: str
    file: str = ""
    component: str = ""


@dataclass(frozen=True)
class Merge:
    method: str
    inputs: tuple[Any, ...]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """a + t (b − a), with t for attention and for all else."""

    root: Merge

    def free(self) -> dict[str, Free]:
        return {f"root.t.{name}": one for name, one in self.root.params["t"].items() if isinstance(one, Free)}

    def fixed(self, numbers: Mapping[str, float]) -> "Recipe":
        t = {name: numbers.get(f"root.t.{name}", one) for name, one in self.root.params["t"].items()}
        return Recipe(replace(self.root, params={"t": t}))

    def to_data(self) -> dict[str, Any]:
        t = {name: {"free": [one.low, one.high]} if isinstance(one, Free) else one for name, one in self.root.params["t"].items()}
        return {"root": {"method": "lerp", "inputs": [{"model": Path(one.name).name} for one in self.root.inputs], "t": t}}


def t_of(recipe: Recipe, key: str) -> float:
    return recipe.root.params["t"]["attn" if ".to_" in key else "other"]


def lerp(recipe: Recipe, key: str, read: Callable[[Model, str], torch.Tensor]) -> torch.Tensor:
    a, b = (read(one, key).float() for one in recipe.root.inputs)
    return torch.lerp(a, b, t_of(recipe, key))


def numbers(recipe: Recipe, key: str) -> Hashable:
    return t_of(recipe, key)


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
    sources = Sources(parents(recipe.root), default="transformer", folder=folder)
    return toy(), Formulas(recipe, sources, evaluate=lerp, numbers=numbers)


def questions(*texts: str) -> list[Question]:
    return [Question(text, "", text, text, Facts()) for text in texts]


def plan(folder: Path, scorers: Sequence[str] = ("standin:like_the_toy",), **changed: Any) -> Plan:
    if not (folder / "a.safetensors").exists():
        write_parents(folder)
    recipe = Recipe(Merge("lerp", (Model("a.safetensors"), Model("b.safetensors")), {"t": {"attn": Free(), "other": Free()}}))
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
    if log := os.environ.get("STANDIN_LOG"):
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
