"""まぜる: a few models and LoRAs with sliders become a recipe, which is drawn at once and can be saved as a recipe or as weights.

    recipe = recipe_of([Part("mame", 0.7, {"attn": 0.2}), Part("mine.safetensors", 0.3)], folder)
    generation = draw(desk, recipe, "柴犬", seed=1)      # in the open pipeline; nothing is written
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

import jpgen
from demo.worker import Desk
from jpgen.merge import Lora, Merge, Model, Recipe

MOST = 3
"""How many models, and how many LoRAs, are mixed."""

BLOCKS = ("attn", "other", *(f"block.{number}" for number in range(12)))
"""Groups that a slider of its own may be given: of all models the attention and the rest, and the blocks of the built-in model."""

NAME = re.compile(r"[\w][\w .()+-]{0,60}")
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Part:
    """A model or LoRA and its sliders: `share` of the whole, `groups` for what differs from it.

    `name` is a row of the catalogue, or what `list_models` or `jpgen.list_loras` tells. Shares of models are parts of their sum, those of LoRAs
    the scales with which they are added (−2…2).
    """

    name: str
    share: float = 1.0
    groups: Mapping[str, float] = field(default_factory=dict)
    lora: bool = False


def list_models(folder: Path) -> dict[str, Path]:
    """The models that can be mixed beside those of the catalogue: files and folders of weights in a folder, by name."""
    if not folder.is_dir():
        return {}
    root = folder.resolve()
    found = [path for path in sorted(folder.iterdir()) if path.suffix == SUFFIX or (path.is_dir() and any(path.rglob(f"*{SUFFIX}")))]
    return {path.stem if path.is_file() else path.name: path for path in found if root in path.resolve().parents}


def recipe_of(parts: Sequence[Part], folder: Path, *, name: str = "まぜたもの", component: str = "transformer") -> Recipe:
    """The recipe of some parts; of models of the catalogue only the `component` takes part. Raises RecipeError, telling what is wrong."""
    models, loras = ([part for part in parts if part.lora == wanted and (not wanted or part.share or part.groups)] for wanted in (False, True))
    if not models or len(models) > MOST or len(loras) > MOST:
        raise jpgen.RecipeError(
            f"モデルは 1〜{MOST} 個、LoRA は {MOST} 個までです（いま {len(models)} 個と {len(loras)} 個） / "
            f"mix 1–{MOST} models and up to {MOST} LoRAs, got {len(models)} and {len(loras)}"
        )
    if twice := sorted({part.name for part in models if [one.name for one in models].count(part.name) > 1}):
        raise jpgen.RecipeError(f"同じモデルが二度あります: {', '.join(twice)}。別のモデルを選んでください / the same model twice: choose another")
    root = _model(models[0], folder, component)
    if len(models) > 1:
        _require_shares(models)
        weights: dict[str, Any] = {"weights": _by_group(models), "normalize": 1.0}
        root = Merge("weighted_sum", tuple(_model(part, folder, component) for part in models), weights)
    if loras:
        root = Merge("add_lora", (root, *(_lora(part) for part in loras)), {"scale": _by_group(loras)})
    return Recipe(root, name=name)


def draw(
    desk: Desk, recipe: Recipe, prompt: str, *, base: str = "mame", seed: int = 1, steps: int | None = None, negative: str = ""
) -> jpgen.Generation:  # fmt: skip
    """A picture by the recipe in the open pipeline of `base`, whose own weights are back afterwards.

    The picture says that it was made by the recipe (its name and digest), not by `base`. Raises what `jpgen.LiveMerge.applied` and generate raise.
    """
    with _live(desk, base).applied(recipe) as merged:
        return merged.generate(prompt, negative=negative, seed=seed, config=merged.config(steps=steps), on_step=desk.on_step)


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML for `jpgen merge`, without the folders of this computer: models beside the file are meant."""
    told: str = yaml.safe_dump(recipe.to_data(), allow_unicode=True, sort_keys=False)
    return told


def save_recipe(recipe: Recipe, folder: Path, name: str) -> Path:
    """Write `name`.yaml; raises OutputError for a name that is no plain one, or a disk that is full."""
    path = _place(folder, name, ".yaml")
    temporary = path.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(recipe_text(recipe), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise jpgen.OutputError(
            f"レシピを保存できません（{error.strerror}）。空きを作ってください / the recipe cannot be saved ({error.strerror}): free some space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def save_weights(desk: Desk, recipe: Recipe, folder: Path, name: str, *, base: str = "mame") -> Path:
    """Write `name`.safetensors, for which `list_models` then has a row; raises OutputError, RecipeError, WeightsError, LicenseError.

    The built-in model is small and its file is packed: it is merged in memory. Others are merged tensor by tensor from file to file.
    """
    path, named = _place(folder, name, SUFFIX), replace(recipe, name=name)
    if base != "mame":
        folder.mkdir(parents=True, exist_ok=True)
        return jpgen.write_merge(named, path)
    return _live(desk, base).write(named, path)


def _live(desk: Desk, base: str) -> jpgen.LiveMerge:
    pipeline = desk.pipeline(base)
    return desk.beside("live merge", lambda: jpgen.LiveMerge(pipeline))


def _model(part: Part, folder: Path, component: str) -> Model | Merge:
    place = list_models(folder).get(part.name)
    if place is None and part.name not in jpgen.load_catalog():
        raise jpgen.UnknownNameError.of("モデル / model", part.name, [*jpgen.load_catalog(), *list_models(folder)])
    return Model(part.name, component=component) if place is None else Model(str(place))


def _lora(part: Part) -> Lora:
    known = jpgen.list_loras()
    if part.name not in known:
        raise jpgen.UnknownNameError.of("LoRA", part.name, known)
    return Lora(str(known[part.name]))


def _by_group(parts: Sequence[Part]) -> dict[str, tuple[float, ...]]:
    """The shares of all parts, and of the groups in which at least one differs."""
    groups = [group for group in BLOCKS if any(group in part.groups for part in parts)]
    return {
        "global": tuple(float(part.share) for part in parts),
        **{group: tuple(float(part.groups.get(group, part.share)) for part in parts) for group in groups},
    }


def _require_shares(models: Sequence[Part]) -> None:
    """Raise RecipeError where shares are negative or nothing would be left."""
    for group, shares in _by_group(models).items():
        if min(shares) < 0 or sum(shares) <= 0:
            what = "全体" if group == "global" else group
            raise jpgen.RecipeError(
                f"{what} の割合がすべて 0 か、負です。どれかを上げてください / the shares of {group} are all 0, or negative: raise one"
            )


def _place(folder: Path, name: str, suffix: str) -> Path:
    if not NAME.fullmatch(name) or name != name.strip() or name.endswith("."):
        raise jpgen.OutputError(
            f"{name[:60]!r} という名前では保存できません。文字・数字・空白・-_()+ で 60 文字までにしてください / "
            "letters, digits, spaces and -_()+ only, at most 60"
        )
    return folder / (name + suffix)
