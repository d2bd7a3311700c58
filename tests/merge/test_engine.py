"""The merge engine against averages computed by hand, and what it refuses."""

import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jpgen.errors import OutputError, RecipeError, UnknownNameError, WeightsError
from jpgen.merge import engine
from jpgen.merge.engine import INPUTS_KEY, RECIPE_KEY, merge, merge_key
from jpgen.merge.methods import group
from jpgen.merge.recipe import Input, Recipe, Stage, load_recipe
from jpgen.safety import check_safetensors, sha256_of

Q, C = "mid.attn1.to_q.weight", "conv_in.weight"
ATTN, CONV = {"attn": 0.75, "conv": 0.4}, {"attn": 0.25, "conv": 0.6}
RECIPE = Recipe("toy", "a", "a", (Stage("two", "linear", (Input("a", "a.safetensors", weights=ATTN), Input("b", "b.safetensors", weights=CONV))),))


def tensors(seed: int, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {Q: (8, 4), C: (8, 4, 3, 3), "bias": (5,), "scalar": ()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()} | {"steps": torch.tensor([3, 4])}


def files(folder: Path, **given: dict[str, torch.Tensor]) -> dict[tuple[str, str], list[Path]]:
    made = {}
    for name, one in given.items():
        save_file(one, folder / f"{name}.safetensors", metadata={"format": "pt"})
        made[name, f"{name}.safetensors"] = [folder / f"{name}.safetensors"]
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_two_groups_are_averaged_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = tensors(1, dtype), tensors(2, torch.float32)
    made = load_file(merge(RECIPE, files(tmp_path, a=a, b=b), tmp_path / "out" / "m.safetensors"))
    assert made.keys() == a.keys() and torch.equal(made.pop("steps"), a["steps"])
    for name, tensor in made.items():
        one, other = (0.75, 0.25) if name == Q else (0.4, 0.6)
        wanted = (a[name].double() * one + b[name].double() * other).to(dtype)
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor, wanted, rtol=torch.finfo(dtype).eps * 2, atol=1e-6)
    assert os.listdir(tmp_path / "out") == ["m.safetensors"]


def test_groups_are_those_of_the_published_script() -> None:
    attn = [f"down_blocks.1.attentions.0.transformer_blocks.0.attn{n}.{leaf}.weight" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    rest = ["conv_in.weight", "down_blocks.1.attentions.0.proj_in.weight", "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"]
    assert {*map(group, attn)} == {"attn"} and {*map(group, rest)} == {"conv"}


def test_the_file_tells_how_it_was_made(tmp_path: Path) -> None:
    given = files(tmp_path, a=tensors(1), b=tensors(2))
    header = check_safetensors(merge(RECIPE, given, tmp_path / "m.safetensors"))
    assert json.loads(header.metadata[INPUTS_KEY]) == {f"{name}/{name}.safetensors": [sha256_of(tmp_path / f"{name}.safetensors")] for name in "ab"}
    told = json.loads(header.metadata[RECIPE_KEY])
    assert told["stages"][0]["inputs"][1]["weights"] == {"attn": 0.25, "conv": 0.6}
    once = (tmp_path / "m.safetensors").read_bytes()
    assert merge(RECIPE, given, tmp_path / "again.safetensors").read_bytes() == once


def test_the_key_is_of_weights_and_files_not_of_remarks(tmp_path: Path) -> None:
    given = files(tmp_path, a=tensors(1), b=tensors(2))
    key, stage = merge_key(RECIPE, given), RECIPE.stages[0]
    assert merge_key(replace(RECIPE, sources=("me",), stages=(replace(stage, unverified=("all",)),)), given) == key
    heavier = replace(stage, inputs=(replace(stage.inputs[0], weights={"attn": 0.7, "conv": 0.4}), stage.inputs[1]))
    assert merge_key(replace(RECIPE, stages=(heavier,)), given) != key
    assert merge_key(RECIPE, files(tmp_path, a=tensors(1), b=tensors(3))) != key


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    a, b = tensors(1), tensors(2)
    whole = load_file(merge(RECIPE, files(tmp_path, a=a, b=b), tmp_path / "m.safetensors"))
    given = files(tmp_path, a=a, b1={Q: b[Q]}, b2={name: tensor for name, tensor in b.items() if name != Q})
    given = {("a", "a.safetensors"): given["a", "a.safetensors"], ("b", "b.safetensors"): [p for (n, _), ps in given.items() if n != "a" for p in ps]}
    made = load_file(merge(RECIPE, given, tmp_path / "s.safetensors"))
    assert all(torch.equal(made[name], whole[name]) for name in whole)


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_stages_build_on_each_other_and_a_lora_is_added(tmp_path: Path, style: str) -> None:
    a, b, c = tensors(1, torch.float32), tensors(2, torch.float32), tensors(3, torch.float32)
    up, down = torch.randn(8, 2), torch.randn(2, 4)
    kernel_up, kernel_down = torch.randn(8, 2, 1, 1), torch.randn(2, 4, 3, 3)
    if style == "kohya":
        flat = {"mid_attn1_to_q": (up, down), "conv_in": (kernel_up, kernel_down)}
        lora = {f"lora_unet_{n}.lora_up.weight": u for n, (u, _) in flat.items()}
        lora |= {f"lora_unet_{n}.lora_down.weight": d for n, (_, d) in flat.items()}
        lora |= {f"lora_unet_{n}.alpha": torch.tensor(1.0) for n in flat}
    else:
        lora = {"unet.mid.attn1.to_q.lora_B.weight": up / 2, "unet.mid.attn1.to_q.lora_A.weight": down}
        lora |= {"unet.conv_in.lora_B.weight": kernel_up / 2, "unet.conv_in.lora_A.weight": kernel_down}
    fused = Stage("fused", "lora", (Input(stage="two"), Input("l", "l.safetensors", scale=3.0)))
    shares = {"attn": 0.1, "conv": 0.2}, {"attn": 0.9, "conv": 0.8}
    last = Stage("last", "linear", (Input("c", "c.safetensors", weights=shares[0]), Input(stage="fused", weights=shares[1])))
    made = load_file(merge(replace(RECIPE, stages=(*RECIPE.stages, fused, last)), files(tmp_path, a=a, b=b, c=c, l=lora), tmp_path / "m.safetensors"))
    added = {Q: 1.5 * up @ down, C: 1.5 * torch.einsum("or,rikl->oikl", kernel_up[..., 0, 0], kernel_down)}
    for name in (Q, C, "bias"):
        one, other, mine, theirs = (0.75, 0.25, 0.1, 0.9) if name == Q else (0.4, 0.6, 0.2, 0.8)
        wanted = mine * c[name] + theirs * (one * a[name] + other * b[name] + added.get(name, 0))
        torch.testing.assert_close(made[name], wanted, rtol=1e-5, atol=1e-5)


def test_models_that_differ_are_listed(tmp_path: Path) -> None:
    a, b = tensors(1), tensors(2)
    b = {name: tensor for name, tensor in b.items() if name != "bias"} | {Q: torch.zeros(8, 5, dtype=torch.float16), "more": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"b \(b\.safetensors\): 3 tensors: no bias, extra more, mid\.attn1\.to_q\.weight \[8, 5\] for \[8, 4\]"):
        merge(RECIPE, files(tmp_path, a=a, b=b), tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="steps holds whole numbers that differ"):
        merge(RECIPE, files(tmp_path, a=a, b=tensors(2) | {"steps": torch.tensor([3, 5])}), tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"lora_unet_nowhere.lora_up.weight": torch.zeros(8, 2)}, "fit nothing: lora_unet_nowhere"),
        ({"lora_unet_conv_in.lora_up.weight": torch.zeros(8, 2)}, r"conv_in\.weight \(half a pair\)"),
        ({"unet.mid.attn1.to_q.lora_B.weight": torch.zeros(9, 2), "unet.mid.attn1.to_q.lora_A.weight": torch.zeros(2, 4)}, r"\[8, 4\] by \[9, 2\]"),
        ({"lora_te_text_model.alpha": torch.tensor(1.0)}, "fit nothing: lora_te"),
    ],
)
def test_a_lora_that_does_not_fit_is_told(tmp_path: Path, lora: dict[str, torch.Tensor], says: str) -> None:
    stages = (*RECIPE.stages, Stage("fused", "lora", (Input(stage="two"), Input("l", "l.safetensors"))))
    with pytest.raises(WeightsError, match=says):
        merge(replace(RECIPE, stages=stages), files(tmp_path, a=tensors(1), b=tensors(2), l=lora), tmp_path / "m.safetensors")


def test_values_that_are_not_finite_name_their_tensor_and_whose_it_is(tmp_path: Path) -> None:
    b = tensors(2)
    b["bias"][3] = float("nan")
    with pytest.raises(WeightsError, match=r"bias comes out .* not finite, so has b \(b\.safetensors\)"):
        merge(RECIPE, files(tmp_path, a=tensors(1), b=b), tmp_path / "m.safetensors")
    weights = ({"attn": 9e4, "conv": 0.4}, {"attn": 1 - 9e4, "conv": 0.6})
    inputs = tuple(replace(one, weights=given) for one, given in zip(RECIPE.stages[0].inputs, weights, strict=True))
    with pytest.raises(WeightsError, match=r"to_q\.weight comes out .* though no input has: the weights are too large for F16"):
        merge(replace(RECIPE, stages=(Stage("two", "linear", inputs),)), files(tmp_path, a=tensors(1), b=tensors(2)), tmp_path / "m.safetensors")
    assert [name for name in os.listdir(tmp_path) if name.startswith(("m.", ".m"))] == []


def test_damage_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    given = files(tmp_path, a=tensors(1), b=tensors(2))
    file = tmp_path / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cut off"):
        merge(RECIPE, given, tmp_path / "m.safetensors")
    file.rename(tmp_path / "b.ckpt")
    with pytest.raises(WeightsError, match="is a pickle"):
        merge(RECIPE, {**given, ("b", "b.safetensors"): [tmp_path / "b.ckpt"]}, tmp_path / "m.safetensors")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, output = files(tmp_path, a=tensors(1), b=tensors(2)), tmp_path / "m.safetensors"
    output.write_bytes(b"old")
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 100))
        with pytest.raises(OutputError, match=r"cannot write .*GB wanted.*XDG_CACHE_HOME"):
            merge(RECIPE, given, output)

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        merge(RECIPE, given, output)
    assert output.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors", "m.safetensors"]


# ── recipes ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_evo_ukiyoes_weights_are_the_published_ones() -> None:
    recipe = load_recipe("evo-ukiyoe")
    (stage,) = recipe.stages
    told = [(one.model, one.weights["conv"], one.weights["attn"]) for one in stage.inputs]
    assert told == [
        ("sdxl-base", 0.15928833971605916, 0.1877279276437178), ("sdxl-dpo", 0.1032449268871776, 0.20014114603909822),
        ("juggernaut-xl-9", 0.6503217149752791, 0.3922685507065275), ("jsdxl", 0.08714501842148402, 0.2198623756106564),
    ]  # fmt: skip
    assert recipe.unverified == () and (recipe.base, recipe.text_encoder) == ("sdxl-base", "jsdxl")


def test_what_of_evosdxl_is_not_verified_is_marked() -> None:
    recipe = load_recipe("evosdxl-jp")
    assert [bool(stage.unverified) for stage in recipe.stages] == [True] * 3
    assert [one.weights["attn"] for one in recipe.stages[2].inputs] == [0.023119324530758375, 0.04924981616469831, 0.9276308593045434]
    assert any("juggernaut-xl-lightning" in one.model for one in recipe.stages[2].inputs)


GOOD = """
base = "a"
text_encoder = "a"
[[stages]]
name = "two"
method = "linear"
inputs = [
    { model = "a", file = "u.safetensors", weights = { conv = 0.5, attn = 1.0 } },
    { model = "b", file = "u.safetensors", weights = { conv = 0.5, attn = 0.0 } },
]
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("conv = 0.5, attn = 1.0", "conv = 0.5, attn = 0.9", "weights of attn sum to 0.900000, wanted 1"),
        ("conv = 0.5, attn = 1.0", "conv = 0.5", "weights for conv, wanted attn, conv"),
        ("attn = 1.0", "attn = nan", "finite"),
        ("attn = 1.0", "attn = true", "finite"),
        ('method = "linear"', 'method = "liner"', "unknown method 'liner', known: linear, lora"),
        ('method = "linear"', 'method = "lora"\nscale = 2', "unknown scale"),
        ('model = "a", file = "u.safetensors"', 'model = "a", file = "u.ckpt"', "wanted a .safetensors file of a"),
        ('model = "a", file = "u.safetensors"', 'stage = "none"', "no earlier stage 'none'"),
        ('model = "a", file = "u.safetensors"', 'file = "u.safetensors"', "either a model or a stage"),
        ('base = "a"\n', "", "no base"),
        ("[[stages]]", "[[steps]]", "unknown steps"),
        ('inputs = [', 'inputs = 3\nother = [', "unknown other"),
        ("base", "base = ", "cannot read the recipe"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_explained(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    assert load_recipe(str(tmp_path / "mine.toml")).models == ("a", "b")
    (tmp_path / "mine.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "mine.toml"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_recipe_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'evo-ukiyoe'"):
        load_recipe("evo-ukiyo")
    with pytest.raises(RecipeError, match=r"none\.toml"):
        load_recipe(str(tmp_path / "none.toml"))
