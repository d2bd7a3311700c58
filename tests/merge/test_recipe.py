"""Recipes: what they say, and how wrong ones are explained."""

import json
from pathlib import Path

import pytest

from jpgen.errors import RecipeError, UnknownNameError
from jpgen.merge import Free, Merge, Model, Recipe, add_lora, lora, model, slerp, weighted_sum  # type: ignore[attr-defined]
from jpgen.merge.groups import ATTN, OTHER, block_namer, chosen, group
from jpgen.merge.reading import load_recipe, parse_recipe

SEARCHED = """
root:
  method: slerp
  inputs: [a.safetensors, {part: four}]
  t: {global: 0.4, attn: {free: [0, 1], initial: 0.5}}
parts:
  four: {method: ties, inputs: [a.safetensors, b, {model: c, component: unet}], weights: [1, {free: [0, 2]}], density: 1e-1}
seed: 3
"""


def test_evo_ukiyoes_weights_are_the_published_ones() -> None:
    recipe = load_recipe("evo-ukiyoe")
    assert isinstance(recipe.root, Merge)
    told = list(zip((one.name for one in recipe.leaves), recipe.root.params["weights"]["other"], recipe.root.params["weights"]["attn"], strict=True))  # type: ignore[index, call-overload]
    assert told == [
        ("sdxl-base", 0.15928833971605916, 0.1877279276437178), ("sdxl-dpo", 0.1032449268871776, 0.20014114603909822),
        ("juggernaut-xl-9", 0.6503217149752791, 0.3922685507065275), ("jsdxl", 0.08714501842148402, 0.2198623756106564),
    ]  # fmt: skip
    assert recipe.unverified == () and (recipe.base, recipe.text_encoder) == ("sdxl-base", "jsdxl")
    text = (Path(__file__).parents[2] / "jpgen/merge/recipes/evo-ukiyoe.yaml").read_text("utf-8")
    assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 15


def test_what_of_evosdxl_is_not_verified_is_marked() -> None:
    recipe = load_recipe("evosdxl-jp")
    assert [fact.split(":")[0] for fact in recipe.unverified] == ["four", "lightning", "root"]
    assert isinstance(recipe.root, Merge)
    assert recipe.root.params["weights"]["attn"] == (0.023119324530758375, 0.04924981616469831, 0.9276308593045434)  # type: ignore[index, call-overload]
    assert recipe.root.inputs[1] == Model("juggernaut-xl-lightning", "unet/diffusion_pytorch_model.safetensors")


def test_groups_are_those_of_the_published_script() -> None:
    attn = [f"down_blocks.1.attentions.0.transformer_blocks.0.attn{n}.{leaf}.weight" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    rest = ["conv_in.weight", "down_blocks.1.attentions.0.proj_in.weight", "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"]
    assert {*map(group, attn)} == {ATTN} and {*map(group, rest)} == {OTHER}


def test_blocks_are_those_of_mbw() -> None:
    sdxl = [f"down_blocks.{n}.resnets.{m}.conv1.weight" for n in range(3) for m in range(2)]
    sdxl += [f"up_blocks.{n}.resnets.{m}.conv1.weight" for n in range(3) for m in range(3)]
    more = {"down_blocks.0.downsamplers.0.conv.weight": "IN03", "down_blocks.2.attentions.1.proj_in.weight": "IN08",
            "mid_block.resnets.0.conv1.weight": "M00",
            "up_blocks.0.upsamplers.0.conv.weight": "OUT02", "up_blocks.2.resnets.2.conv1.weight": "OUT08",
            "conv_in.weight": "IN00", "conv_out.weight": "",
            "down_blocks.0.resnets.0.conv1.weight": "IN01", "up_blocks.0.resnets.0.conv1.weight": "OUT00"}  # fmt: skip
    block = block_namer([*sdxl, *more])
    assert {name: block(name) for name in more} == more
    original = block_namer([])
    assert original("model.diffusion_model.input_blocks.4.1.proj_in.weight") == "IN04" and original("model.diffusion_model.middle_block.1.x") == "M00"
    assert original("double_blocks.3.img_mod.lin.weight") == "double.3" and original("blocks.11.attn.qkv.weight") == "block.11"
    assert block_namer(["transformer_blocks.2.x"])("transformer_blocks.2.x") == "block.2"
    assert block_namer(["transformer_blocks.2.x", "single_transformer_blocks.0.x"])("transformer_blocks.2.x") == "double.2"


def test_the_most_specific_group_counts() -> None:
    groups = {"/proj/": 5, "IN01": 4, "attn": 3, "unet": 2, "global": 1}
    assert chosen(groups, "x.to_q.proj", "unet", "IN01") == 5
    assert chosen(groups, "x.to_q", "unet", "IN01") == 4
    assert chosen(groups, "x.to_q", "unet", "IN02") == 3
    assert chosen(groups, "x", "unet", "IN02") == 2
    assert chosen(groups, "x", "vae", "") == 1
    assert chosen({"attn": 3}, "x", "vae", "") is None


def test_free_numbers_are_told_and_fixed() -> None:
    recipe = parse_recipe(SEARCHED)
    assert recipe.free() == {"root.t.attn": Free(0.0, 1.0, 0.5), "root.1.weights.1": Free(0.0, 2.0)}
    fixed = recipe.fixed({"root.t.attn": 0.25, "root.1.weights.1": 1.5})
    assert fixed.free() == {} and fixed.to_data()["root"]["t"] == {"global": 0.4, "attn": 0.25}
    assert fixed.digest != recipe.digest and recipe.seed == 3
    with pytest.raises(RecipeError, match=r"no free number at root\.x"):
        recipe.fixed({"root.x": 1.0})


def test_a_written_recipe_is_the_same_recipe() -> None:
    for recipe in (load_recipe("evo-ukiyoe"), load_recipe("evosdxl-jp"), parse_recipe(SEARCHED)):
        again = parse_recipe(json.dumps(recipe.to_data()))
        assert again == recipe and again.digest == recipe.digest


def test_python_says_the_same() -> None:
    node = slerp(model("a.safetensors"), add_lora(model("b"), lora("l.safetensors"), scale=0.5), t={"global": 0.4, "attn": Free(0.0, 1.0)})
    told = "{root: {method: slerp, inputs: [a.safetensors, {method: add_lora, inputs: [b, {lora: l.safetensors}], scale: 0.5}], "
    assert Recipe(node) == parse_recipe(told + "t: {global: 0.4, attn: {free: [0, 1]}}}}\n")
    with pytest.raises(RecipeError, match=r"root\.t: 3 is not in \[0, 1\]"):
        slerp(model("a"), model("b"), t=3)
    with pytest.raises(RecipeError, match=r"2 numbers for 3 models"):
        weighted_sum(model("a"), model("b"), model("c"), weights=[0.5, 0.5])


def test_no_folder_of_this_machine_is_written_down() -> None:
    data = json.dumps(Recipe(slerp(model("/home/me/a.safetensors"), model("/home/you/a.safetensors"), t=0.5)).to_data())
    assert "home" not in data and '"a.safetensors"' in data and '"you/a.safetensors"' in data


GOOD = """
root:
  method: weighted_sum
  inputs: [{model: a, file: u.safetensors}, {model: b, file: u.safetensors}]
  weights: {other: [0.5, 0.5], attn: [1.0, 0.0]}
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[1.0, 0.0]", "[0.9, 0.0]", "root.weights.attn: the weights sum to 0.900000, wanted 1"),
        ("[1.0, 0.0]", "[1.0]", "root.weights.attn: 1 numbers for 2 models"),
        (", attn: [1.0, 0.0]", "", "root.weights: not for all tensors"),
        ("attn:", "atn:", "unknown group 'atn'"),
        ("attn:", "/(/:", "unknown group '/(/'"),
        ("[1.0, 0.0]", "[.nan, 1]", "finite"),
        ("[1.0, 0.0]", "[x, 1]", "'x' is no number"),
        ("[1.0, 0.0]", "[{free: [2, 1]}, 1]", "low < high"),
        ("[1.0, 0.0]", "[11, -10]", "root.weights.attn.0: 11 is not in [-10, 10]"),
        ("weighted_sum", "weighted_sun", "did you mean 'weighted_sum'"),
        ("weights:", "wieghts:", "weighted_sum has no 'wieghts': weights, normalize; root: no weights"),
        ("{model: a, file: u.safetensors}, ", "", "weighted_sum takes 2 or more inputs, got 1"),
        ("u.safetensors}, ", "u.ckpt}, ", "wanted a .safetensors file of a"),
        ("{model: a, file: u.safetensors}", "{lora: a}", "root.0: an adapter is an input of add_lora alone"),
        ("{model: a, file: u.safetensors}", "{part: none}", "root.0: no part 'none'"),
        ("{model: a, file: u.safetensors}", "{file: u.safetensors}", "wanted one of method, model, lora and part"),
        ("root:", "rot:", "unknown 'rot'; no root"),
        ("root:", "dtype: fp17\nroot:", "dtype: 'fp17'"),
        ("root:", "seed: yes\nroot:", "seed = True is of another kind"),
        ("root:", "version: 2\nroot:", "version: 2, known: 1"),
        ("inputs: [", "inputs: 3\n  more: [", "a method wants a name and a list of inputs"),
        ("root:", "root:\nroot:", "there twice"),
        ("root:", "root", "cannot read the recipe"),
        ("root:", "when: 2020-01-01\nroot:", "not JSON serializable"),
        ("root:", "x: !!python/object/apply:os.system [ls]\nroot:", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_explained(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert load_recipe(str(tmp_path / "mine.yaml")).models == ("a", "b")
    (tmp_path / "mine.yaml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    bad = "root: {method: slrp, inputs: [{method: slerp, inputs: [a], t: 2}, {method: lerp, inputs: [a, b], u: 1}]}\n"
    with pytest.raises(
        RecipeError, match=r"root: .*'slerp'.*root\.0: slerp takes 2 inputs, got 1; root\.0\.t: 2 is not.*root\.1: lerp has no 'u': t"
    ):
        parse_recipe(bad)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("root: {part: x}\nparts: {x: {part: y}, y: {part: x}}\n", "a cycle: x → y → x"),
        ("root: &a [*a]\n", "aliases"),
        ("root: " + "[" * 5000 + "\n", "nested more than"),
        ("root: {part: p0}\nparts:\n"
         + "".join(f"  p{n}: {{method: n_average, inputs: [{{part: p{n + 1}}}, {{part: p{n + 1}}}]}}\n" for n in range(20))
         + "  p20: a\n", "the tree is too large"),
        ("name: " + "x" * (1 << 20) + "\n", "longer than"),
        ("[1, 2]\n", "wanted a table"),
        ("\n", "wanted a table"),
    ],
)  # fmt: skip
def test_bombs_and_cycles_are_refused(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_recipe(text)


def test_an_unknown_recipe_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'evo-ukiyoe'"):
        load_recipe("evo-ukiyo")
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        load_recipe(str(tmp_path / "none.yaml"))
