"""Sliders become recipes, and recipes pictures and files; with toy models, and with the built-in one once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import jpgen
from demo.engine import Engine
from demo.merging import Part, draw, list_models, recipe_of, recipe_text, save_recipe, save_weights
from demo.worker import Desk, Worker
from jpgen import Generation, Pipeline
from jpgen.merge import Lora, Merge, Model, load_recipe
from jpgen.weights import load_weights

WAIT = 120


def denoiser(pipeline: Pipeline) -> torch.nn.Module:
    return next(iter(pipeline.backbone.modules.values()))  # type: ignore[union-attr]


@pytest.fixture
def folder(tmp_path: Path, toy: Pipeline) -> Path:
    """Two models beside each other: the toy's own weights ("own") and others."""
    weights = {name: one.detach().clone().contiguous() for name, one in denoiser(toy).state_dict().items() if one.is_floating_point()}
    chance = torch.Generator().manual_seed(5)
    made = tmp_path / "merges"
    made.mkdir()
    save_file(weights, made / "own.safetensors")
    save_file({name: one + 0.2 * torch.randn(one.shape, generator=chance) for name, one in weights.items()}, made / "other.safetensors")
    return made


@pytest.fixture
def engine(toy: Pipeline) -> Iterator[Engine]:
    made = Engine(worker=Worker(lambda model, vae=None: toy))
    yield made
    made.close()


def drawn(engine: Engine, *recipes: jpgen.merge.Recipe) -> list[Generation]:
    def work(desk: Desk) -> list[Generation]:
        return [draw(desk, recipe, "柴犬", base="toy", seed=3, steps=2) for recipe in recipes]

    shot = engine.wait(engine.submit("a", work), session="a", timeout=WAIT)
    assert shot.state == "done", shot.error
    made: list[Generation] = shot.result
    return made


def pixels(generation: Generation) -> np.ndarray:
    return np.asarray(generation.image, dtype=float)


def test_sliders_as_a_recipe(folder: Path) -> None:
    parts = [Part("own", 3, {"attn": 1}), Part("other", 1, {"block.1": 0})]
    recipe = recipe_of(parts, folder, name="試し")
    assert isinstance(recipe.root, Merge)
    assert recipe.root.inputs == (Model(str(folder / "own.safetensors")), Model(str(folder / "other.safetensors")))
    assert recipe.root.params == {"weights": {"global": (3.0, 1.0), "attn": (1.0, 1.0), "block.1": (3.0, 0.0)}, "normalize": 1.0}
    assert recipe_of([Part("mame")], folder).root == Model("mame", component="transformer")


def test_what_cannot_be_mixed_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JPGEN_LORAS", str(tmp_path))
    for parts, told in (
        ([], "1〜3 個"),
        ([Part("own")] * 4, "1〜3 個"),
        ([Part("own"), Part("own")], "同じモデルが二度"),
        ([Part("own", 0), Part("other", 0)], "全体 の割合がすべて 0"),
        ([Part("own", 1, {"attn": 0}), Part("other", 1, {"attn": 0})], "attn の割合がすべて 0"),
        ([Part("own", -1), Part("other", 2)], "負です"),
        ([Part("../../etc/passwd")], "はありません"),
        ([Part(str(folder / "own.safetensors"))], "はありません"),
        ([Part("own"), Part("../x", lora=True)], "はありません"),
    ):
        with pytest.raises(jpgen.JpgenError, match=told):
            recipe_of(parts, folder)


def test_loras_are_added_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPGEN_LORAS", str(folder))
    recipe = recipe_of([Part("own"), Part("other", 0.5, lora=True), Part("other", 0, lora=True)], folder)
    assert isinstance(recipe.root, Merge)
    assert (recipe.root.method, recipe.root.inputs[1:]) == ("add_lora", (Lora(str(folder / "other.safetensors")),))
    assert recipe.root.params == {"scale": {"global": (0.5,)}}


def test_pictures_by_a_recipe_say_so_and_leave_the_model_as_it_was(folder: Path, engine: Engine, toy: Pipeline) -> None:
    before = {name: one.clone() for name, one in denoiser(toy).state_dict().items()}
    plain = toy.generate("柴犬", seed=3, config=toy.config(steps=2))
    own, other, half = (recipe_of(parts, folder, name=name) for name, parts in (
        ("自分", [Part("own")]), ("別", [Part("other")]), ("半分", [Part("own"), Part("other")]),
    ))  # fmt: skip
    first, second, third, again = drawn(engine, own, other, half, own)
    assert np.abs(pixels(first) - pixels(plain)).max() <= 1
    assert np.array_equal(pixels(again), pixels(first))
    assert all(np.abs(pixels(one) - pixels(plain)).max() > 1 for one in (second, third))
    assert [one.model.name for one in (first, second, third)] == ["自分", "別", "半分"]
    assert third.model.revision == half.digest[:12] and third.model.weights_hash == half.digest[:10]
    assert all(torch.equal(before[name], one) for name, one in denoiser(toy).state_dict().items())
    assert toy.info.name == "toy"


def saved(engine: Engine, recipe: jpgen.merge.Recipe, folder: Path, name: str, base: str) -> Path:
    shot = engine.wait(engine.submit("a", lambda desk: save_weights(desk, recipe, folder, name, base=base)), session="a", timeout=WAIT)
    assert shot.state == "done", shot.error
    path: Path = shot.result
    return path


@pytest.mark.parametrize("base", ["mame", "toy"])  # in memory, from file to file
def test_what_is_saved_is_what_was_drawn(folder: Path, engine: Engine, base: str) -> None:
    recipe = recipe_of([Part("own", 1), Part("other", 3, {"attn": 1})], folder)
    path = saved(engine, recipe, folder, "混ぜた 1", base)
    assert set(list_models(folder)) == {"own", "other", "混ぜた 1"}
    live, read = drawn(engine, recipe, recipe_of([Part("混ぜた 1")], folder))
    assert np.abs(pixels(live) - pixels(read)).max() <= 1
    own, other, mixed = (load_file(folder / f"{name}.safetensors") for name in ("own", "other", "混ぜた 1"))
    share = {name: 0.5 if any(part in name for part in ("to_k", "to_q", "to_v", "to_out.0")) else 0.75 for name in own}
    for name, one in mixed.items():
        torch.testing.assert_close(one, own[name] + (other[name] - own[name]) * share[name])
    written = save_recipe(recipe, folder, "混ぜた 1")
    assert written.read_text(encoding="utf-8") == recipe_text(recipe)
    assert str(folder) not in recipe_text(recipe)
    assert load_recipe(written).root == Merge("weighted_sum", (Model("own.safetensors"), Model("other.safetensors")), recipe.root.params)
    assert path.is_file() and not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", " a", "a ", ".a", "a.", "x" * 80, "a\n", "C:\\x", "a\0"])
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: str) -> None:
    recipe, desk = recipe_of([Part("own")], folder), cast(Desk, None)  # it is not come to
    for save in (save_recipe, partial(save_weights, desk)):
        with pytest.raises(jpgen.OutputError, match="という名前では"):
            save(recipe, folder, name)
    assert {path.name for path in folder.iterdir()} == {"own.safetensors", "other.safetensors"}
    assert {path.name for path in folder.parent.iterdir()} == {"merges"}


def test_links_that_lead_out_are_not_listed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.safetensors"
    outside.write_bytes(b"")
    (folder / "link.safetensors").symlink_to(outside)
    assert set(list_models(folder)) == {"own", "other"}
    assert list_models(tmp_path / "none") == {}


def test_a_live_merge_goes_with_its_pipeline(folder: Path, engine: Engine) -> None:
    made: list[int] = []

    def work(desk: Desk) -> int:
        desk.pipeline("toy")
        return desk.beside("counted", lambda: made.append(1) or len(made))

    for model in ("first", "again"):
        assert engine.wait(engine.submit("a", work), session="a", timeout=WAIT).result == 1, model
    engine.wait(engine.submit("a", lambda desk: desk.pipeline("another")), session="a", timeout=WAIT)
    assert engine.wait(engine.submit("a", work), session="a", timeout=WAIT).result == 2


def test_models_of_another_shape_are_refused(folder: Path, engine: Engine) -> None:
    weights = load_file(folder / "other.safetensors")
    first = sorted(weights)[0]
    save_file({**weights, first: torch.zeros(3)}, folder / "odd.safetensors")
    recipe = recipe_of([Part("own"), Part("odd")], folder)
    shot = engine.wait(engine.submit("a", lambda desk: draw(desk, recipe, "柴犬", base="toy")), session="a", timeout=WAIT)
    assert shot.state == "failed"
    assert shot.error.startswith("odd.safetensors は own.safetensors と形が違うので混ぜられません") and first in shot.error


def test_the_built_in_model_is_mixed_with_another_of_its_kind(tmp_path: Path) -> None:
    folder = tmp_path / "merges"
    folder.mkdir()
    engine = Engine(worker=Worker())

    def work(desk: Desk) -> Generation:
        weights = denoiser(desk.pipeline("mame")).state_dict()
        save_file({name: (one.float() * 0.9).contiguous() for name, one in weights.items()}, folder / "weak.safetensors")
        recipe = recipe_of([Part("mame", 1), Part("weak", 1, {"block.2": 0})], folder)
        save_weights(desk, recipe, folder, "豆と弱い豆")
        return draw(desk, recipe, "柴犬", seed=1, steps=1)

    try:
        shot = engine.wait(engine.submit("a", work), session="a", timeout=WAIT)
    finally:
        engine.close()
    assert (shot.state, shot.error) == ("done", "")
    assert shot.result.model.name == "まぜたもの"
    assert shot.result.model.license == jpgen.load_catalog()["mame"].license
    weak, mixed = (load_file(folder / f"{name}.safetensors") for name in ("weak", "豆と弱い豆"))
    own = load_weights(jpgen.load_catalog()["mame"].folder / "transformer" / "diffusion_pytorch_model.safetensors")
    share = {name: 1.0 if "blocks.2." in name else 0.5 for name in own}
    assert mixed.keys() == own.keys()
    for name, one in mixed.items():
        torch.testing.assert_close(one, weak[name] + (own[name] - weak[name]) * share[name], msg=name)
