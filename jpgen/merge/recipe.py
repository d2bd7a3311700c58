"""A merge recipe: which models, in what stages, with what weights; read from TOML, checked before any weights are opened."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jpgen.errors import RecipeError, UnknownNameError
from jpgen.merge.methods import GROUPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOLERANCE = 1e-6
"""How far from 1 the weights of a group may sum up."""

METHODS = ("linear", "lora")


@dataclass(frozen=True)
class Input:
    """What goes into a stage: a file of a model (a row of the catalogue), or what an earlier stage gave.

    `weights` are its shares by group (linear), `scale` is the strength of a LoRA.
    """

    model: str = ""
    file: str = ""
    stage: str = ""
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    scale: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One step: the weighted average of its inputs, or a LoRA (the second input) added to the first."""

    name: str
    method: str
    inputs: tuple[Input, ...]
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Stages, of which the last gives the U-Net; `base` and `text_encoder` are the models that bring all else, and the first text encoder."""

    name: str
    base: str
    text_encoder: str
    stages: tuple[Stage, ...]
    sources: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is needed, each once."""
        inputs = (one.model for stage in self.stages for one in stage.inputs if one.model)
        return tuple(dict.fromkeys(name for name in (self.base, self.text_encoder, *inputs) if name))

    @property
    def unverified(self) -> tuple[str, ...]:
        """What of it no source was read for."""
        return tuple(fact for stage in self.stages for fact in stage.unverified)


def load_recipe(name: str) -> Recipe:
    """The recipe of this name that came with jpgen, or in a TOML file at this path; raises UnknownNameError, RecipeError naming all that is wrong.

    >>> load_recipe("evo-ukiyoe").models
    ('sdxl-base', 'jsdxl', 'sdxl-dpo', 'juggernaut-xl-9')
    """
    known = resources.files("jpgen.merge") / "recipes"
    if name.endswith(".toml"):
        place: Any = Path(name).expanduser()
    elif (known / f"{name}.toml").is_file():
        place = known / f"{name}.toml"
    else:
        raise UnknownNameError.of("レシピ / recipe", name, [entry.name.removesuffix(".toml") for entry in known.iterdir()])
    try:
        table = tomllib.loads(place.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"レシピ {place} を読めません / cannot read the recipe {place}: {error}") from error
    return _recipe(Path(name).stem if name.endswith(".toml") else name, table)


def _recipe(name: str, table: Mapping[str, Any]) -> Recipe:
    wrong: list[str] = []
    _known("", table, {"base": str, "text_encoder": str, "sources": list, "stages": list}, wrong)
    stages: list[Stage] = []
    for number, told in enumerate(table.get("stages") or [] if not wrong else [], start=1):
        stages.append(_stage(f"stage {number}", told if isinstance(told, dict) else {}, [stage.name for stage in stages], wrong))
    wrong += [] if wrong or stages else ["no stages"]
    wrong += [f"no {key}" for key in ("base", "text_encoder") if not table.get(key)]
    if wrong:
        raise RecipeError(f"レシピ {name} が正しくありません / recipe {name}: {'; '.join(wrong)}; correct it")
    return Recipe(name, table["base"], table["text_encoder"], tuple(stages), tuple(map(str, table.get("sources", ()))))


def _stage(place: str, table: Mapping[str, Any], earlier: list[str], wrong: list[str]) -> Stage:
    faults: list[str] = []
    _known(f"{place}: ", table, {"name": str, "method": str, "inputs": list, "unverified": list}, faults)
    if faults:
        wrong += faults
        return Stage(place, "", ())
    name, method = table.get("name", place), table.get("method", "linear")
    inputs = tuple(_input(f"{name}, input {i}", one, method, earlier, wrong) for i, one in enumerate(table.get("inputs", ()), start=1))
    if method not in METHODS:
        wrong.append(f"{name}: unknown method {method!r}, known: {', '.join(METHODS)}")
    elif method == "lora" and len(inputs) != 2:
        wrong.append(f"{name}: a lora stage wants two inputs, what it is added to and the LoRA, got {len(inputs)}")
    elif method == "linear":
        wrong += [] if inputs else [f"{name}: no inputs"]
        for one in GROUPS:
            total = sum(float(given.weights.get(one, 0)) for given in inputs)
            if inputs and not abs(total - 1) <= TOLERANCE:
                wrong.append(f"{name}: the weights of {one} sum to {total:.6f}, wanted 1")
    if name in earlier:
        wrong.append(f"{name}: there are two stages of this name")
    return Stage(name, method, inputs, tuple(map(str, table.get("unverified", ()))))


def _input(place: str, table: Any, method: str, earlier: list[str], wrong: list[str]) -> Input:
    faults: list[str] = []
    if not isinstance(table, dict):
        wrong.append(f"{place}: wanted a table")
        return Input()
    _known(f"{place}: ", table, {"model": str, "file": str, "stage": str, "weights": dict, "scale": (int, float)}, faults)
    if not faults and bool(table.get("model")) == bool(table.get("stage")):
        faults.append(f"{place}: wanted either a model or a stage")
    if not faults and table.get("model") and not table.get("file", "").endswith(".safetensors"):
        faults.append(f"{place}: file = {table.get('file', '')!r}, wanted a .safetensors file of {table['model']}")
    if not faults and table.get("stage") and table["stage"] not in earlier:
        faults.append(f"{place}: no earlier stage {table['stage']!r}")
    weights = table.get("weights", {})
    if not faults and method == "linear" and weights.keys() != set(GROUPS):
        faults.append(f"{place}: weights for {', '.join(weights) or 'nothing'}, wanted {', '.join(GROUPS)}")
    numbers = [*weights.values(), table.get("scale", 1.0)] if isinstance(weights, dict) else []
    if not faults and not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers):
        faults.append(f"{place}: weights and scale must be finite numbers")
    wrong += faults
    if faults:
        return Input()
    shares = {key: float(value) for key, value in weights.items()}
    return Input(table.get("model", ""), table.get("file", ""), table.get("stage", ""), shares, float(table.get("scale", 1.0)))


def _known(place: str, table: Mapping[str, Any], kinds: Mapping[str, Any], wrong: list[str]) -> None:
    """Note what keys are unknown and what values are of another kind."""
    wrong += [f"{place}unknown {key}" for key in sorted(table.keys() - kinds.keys())]
    other = [(key, value) for key, value in table.items() if key in kinds and not isinstance(value, kinds[key])]
    wrong += [f"{place}{key} = {value!r:.60} is of another kind" for key, value in other]
