"""Models of unlike layouts merged: the same bytes as single files merged and then converted, whichever layout goes in and comes out."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path

import jaxtyping
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from jpgen import generate
from jpgen.cli import main
from jpgen.convert import convert
from jpgen.errors import OutputError, SettingError, WeightsError
from jpgen.merge import Lora, Merge, Model, Recipe, folders, merge, model
from jpgen.merge.plan import PIECE, plan
from jpgen.merge.provenance import verify
from jpgen.merge.recipe import Node
from jpgen.merge.sources import ONLY_SINGLE
from jpgen.safety import check_safetensors
from tests.toys import diffusion_transformers as dit
from tests.toys import stable_diffusion as sd

WRITERS = {"sd1": sd.single_sd1, "sd2": sd.single_sd2, "sdxl": sd.single_sdxl}

T = 0.3

UNET = "model.diffusion_model."


def other(source: Path, path: Path, seed: int = 7) -> Path:
    """The model again with other numbers."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in load_file(source).items():
        noise = torch.randn(tensor.shape, generator=generator)
        made[name] = (tensor + 0.05 * noise.to(tensor.dtype)) if tensor.is_floating_point() and "logit_scale" not in name else tensor
    save_file(made, path, metadata={"format": "pt"})
    return path


def two_models(folder: Path, family: str) -> tuple[Path, Path]:
    """Two single files `a` and `b` in fp16, and the folders `fa` and `fb` of them; the U-Net of `fb` is in shards."""
    once = folder.parent / f"models-{family}"  # for all tests of a run
    if not once.is_dir():
        building = folder / "building"
        building.mkdir()
        a = building / "a.safetensors"
        WRITERS[family](a)
        save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(a).items()}, a, {"format": "pt"})
        convert(a, building / "fa")
        convert(other(a, building / "b.safetensors"), building / "fb")
        dit.in_shards(building / "fb" / "unet")
        building.rename(once)
    shutil.copytree(once, folder, dirs_exist_ok=True)
    return folder / "a.safetensors", folder / "b.safetensors"


def data(path: Path) -> dict[str, str]:
    """The hash of the values of each weight file, with the tensors before it."""
    made = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        table = {name: one for name, one in json.loads(raw[8 : 8 + length]).items() if name != "__metadata__"}
        made["" if path.is_file() else str(file.relative_to(path))] = json.dumps(table) + hashlib.sha256(raw[8 + length :]).hexdigest()
    return made


def both_ways(a: Node, b: Node) -> Node:
    """A method of whole tensors and one of chance, and numbers by groups."""
    groups = {"global": 0.2, "attn": 0.6, "vae": 0.1, "IN04": 0.9, "M00": 0.5, "/norm/": 0.35}
    return Merge("weighted_sum", (Merge("slerp", (a, b), {"t": groups}), Merge("dare", (a, b), {"density": 0.5})), {"weights": (0.4, 0.6)})


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks of types, that tests of the same functions make: of a thousand small tensors they take four times what merging does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", WRITERS)
def test_any_layouts_give_the_bytes_of_single_files_merged_and_converted(family: str, tmp_path: Path) -> None:
    a, b = two_models(tmp_path, family)
    fa, fb = tmp_path / "fa", tmp_path / "fb"
    file = merge(both_ways(model(a), model(b)), tmp_path / "s.safetensors", seed=3)
    assert data(merge(both_ways(model(a), model(fb)), tmp_path / "mixed.safetensors", seed=3, threads=4)) == data(file)
    folder = convert(file, tmp_path / "s")
    assert data(merge(both_ways(model(fa), model(b)), tmp_path / "mixed", seed=3, threads=1)) == data(folder)


@pytest.mark.parametrize("family", WRITERS)
def test_values_are_those_computed_by_hand_and_all_but_turned_tensors_go_in_pieces(family: str, tmp_path: Path) -> None:
    a, b = two_models(tmp_path, family)
    recipe = Recipe(Merge("lerp", (model(a), model(tmp_path / "fb")), {"t": T}))
    made = load_file(merge(recipe, tmp_path / "m.safetensors", threads=4))
    one, two = load_file(a), load_file(b)
    assert made.keys() == one.keys()
    beyond = [name for name in one if family == "sd2" and (".resblocks.2." in name or "text_projection" in name)]  # the layer that is not used
    for name, tensor in one.items():
        if not tensor.is_floating_point() or name in beyond:
            assert torch.equal(made[name], tensor)
        else:
            assert torch.equal(made[name], torch.lerp(tensor.float(), two[name].float(), T).half()), name
    if family != "sd1":
        assert any("in_proj_weight" in name for name in made) and bool(beyond) == (family == "sd2")
    folders_alone = Merge("lerp", (model(tmp_path / "fa"), model(tmp_path / "fb")), {"t": T})
    assert data(merge(folders_alone, tmp_path / "n.safetensors", threads=1)) == data(tmp_path / "m.safetensors")
    jobs = plan(recipe, output=tmp_path / "m.safetensors").jobs
    whole = {job.target.name for job in jobs if job.kind == "whole"}
    assert whole == ({"text_encoder_2.text_projection.weight"} if family == "sdxl" else set())
    assert all(job.count <= PIECE for job in jobs)
    assert len(plan(Recipe(Merge("lerp", (model(a), model(b)), {"t": T}))).jobs) < len(made) / 2  # neighbours of both are still read as one


GROUPS = (
    {"IN00": r"input_blocks\.0\.", "IN03": r"input_blocks\.3\.", "IN04": r"input_blocks\.4\.", "M00": r"\.middle_block\.",
     "OUT05": r"output_blocks\.5\.", "OUT11": r"output_blocks\.11\.", "vae": r"first_stage_model\.", "/skip_connection/": r"skip_connection"},
    {"attn": r"attn\d\.to_(q|k|v|out\.0)\.|attn_1\.(q|k|v|proj_out)\.", "text_encoder": r"cond_stage_model\."},
)  # fmt: skip
"""Groups, and LDM's names of what is in them."""


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_are_the_same_in_every_layout(groups: Mapping[str, str], tmp_path: Path) -> None:
    """Tensors of the groups are those of the second model, all others of the first."""
    a, b = two_models(tmp_path, "sd1")
    one, two = load_file(a), load_file(b)
    t = {"global": 0.0, **dict.fromkeys(groups, 1.0)}
    for first, second in [("a.safetensors", "b.safetensors"), ("fa", "b.safetensors")]:
        made = load_file(merge(Merge("lerp", (model(tmp_path / first), model(tmp_path / second)), {"t": t}), tmp_path / "m.safetensors"))
        for name, tensor in made.items():
            inside = any(re.search(pattern, name) for pattern in groups.values())
            assert torch.equal(tensor, (two if inside else one)[name]), name


def test_expressions_may_speak_of_any_of_the_names(tmp_path: Path) -> None:
    a, b = two_models(tmp_path, "sd1")
    for expression in ("/first_stage_model.encoder.mid.attn_1.q.weight/", "/^vae.encoder.mid_block.attentions.0.to_q.weight$/"):
        nodes = Merge("lerp", (model(tmp_path / "fa"), model(b)), {"t": {"global": 0.0, expression: 1.0}})
        made, one = load_file(merge(nodes, tmp_path / "m.safetensors")), load_file(a)
        assert [name for name in made if not torch.equal(made[name], one[name])] == ["first_stage_model.encoder.mid.attn_1.q.weight"]


@pytest.mark.parametrize("prefix", ["", UNET])
@pytest.mark.parametrize("kind", ["flux", "pixart"])
def test_transformers_alone(kind: str, prefix: str, tmp_path: Path) -> None:
    """Black Forest Labs' or PixArt's own names with a folder of diffusers (in shards), both ways."""
    root = dit.flux(tmp_path / "whole") if kind == "flux" else dit.pixart_sigma(tmp_path / "whole")
    file = convert(root / "transformer", tmp_path / "plain.safetensors")
    extra = {} if kind == "flux" else {"pos_embed": torch.zeros(1, 32 * 32, 32), "y_embedder.y_embedding": torch.zeros(300, 32)}
    a = tmp_path / "a.safetensors"
    save_file({prefix + name: tensor for name, tensor in {**load_file(file), **extra}.items()}, a, {"format": "pt"})
    b = other(a, tmp_path / "b.safetensors")
    convert(b, tmp_path / "fb")
    dit.in_shards(tmp_path / "fb" / "transformer")
    made = merge(Merge("lerp", (model(a), model(tmp_path / "fb")), {"t": T}), tmp_path / "m.safetensors")
    one, two, got = load_file(a), load_file(b), load_file(made)
    assert got.keys() == one.keys() and "single" not in {path.name for path in tmp_path.iterdir()}
    for name, tensor in one.items():
        assert torch.equal(got[name], tensor if name.removeprefix(prefix) in extra else torch.lerp(tensor, two[name], T)), name
    back = merge(Merge("lerp", (model(tmp_path / "fb"), model(a, component="transformer")), {"t": 1 - T}), tmp_path / "m")
    again, wanted = load_file(back / "transformer" / dit.WEIGHTS), load_file(convert(made, tmp_path / "c") / "transformer" / dit.WEIGHTS)
    assert again.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(again[name], wanted[name], rtol=1e-5, atol=1e-6)
    attn = Merge("lerp", (model(a), model(tmp_path / "fb")), {"t": {"global": 0.0, "attn": 1.0, "block.1": 0.5, "double.1": 0.5, "single.0": 0.25}})
    mixed = load_file(merge(attn, tmp_path / "x.safetensors"))
    attn = Merge("lerp", (model(a), model(b)), attn.params)
    assert all(torch.equal(mixed[name], tensor) for name, tensor in load_file(merge(attn, tmp_path / "y.safetensors")).items())


def test_a_part_of_a_whole_file_merges_with_a_file_of_it(tmp_path: Path) -> None:
    a, _ = two_models(tmp_path, "sdxl")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "fa" / "unet" / dit.WEIGHTS), bare, {"format": "pt"})
    wanted = load_file(convert(tmp_path / "b.safetensors", tmp_path / "c") / "unet" / dit.WEIGHTS)
    for name in ("b.safetensors", "fb"):
        second = model(tmp_path / name, component="unet")
        made = load_file(merge(Merge("lerp", (model(bare), second), {"t": 1.0}), tmp_path / "m.safetensors"))
        assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    out = merge(Merge("lerp", (model(a, component="unet"), model(bare)), {"t": T}), tmp_path / "u")
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {f"unet/{dit.WEIGHTS}", "unet/config.json"}


def test_chance_is_the_same_for_a_bare_file_and_a_folder(tmp_path: Path) -> None:
    name = "down_blocks.0.resnets.0.conv1.weight"
    for seed, model_name in enumerate("ab"):
        tensors = {name: torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(seed))}
        save_file(tensors, tmp_path / f"{model_name}.safetensors")
        (tmp_path / model_name / "unet").mkdir(parents=True)
        save_file(tensors, tmp_path / model_name / "unet" / dit.WEIGHTS)
    made = []
    for ending, out in ((".safetensors", "m.safetensors"), ("", "m")):
        nodes = Merge("dare", (model(tmp_path / f"a{ending}"), model(tmp_path / f"b{ending}")), {"density": 0.5})
        merge(nodes, tmp_path / out, seed=9)
        made.append(load_file(tmp_path / out if ending else tmp_path / out / "unet" / dit.WEIGHTS))
    assert made[0].keys() == made[1].keys() == {name} and torch.equal(made[0][name], made[1][name])


# ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_the_folder_draws_what_the_file_draws(family: str, tmp_path: Path) -> None:
    """Of single files alone, with configs told by their shapes; and with those of a folder that went in."""
    a, b = two_models(tmp_path, family)
    made = []
    for n, second in enumerate((b, b, tmp_path / "fb")):
        nodes = Merge("lerp", (model(a), model(second)), {"t": T})
        out = merge(nodes, tmp_path / ("o.safetensors" if n == 0 else f"o{n}"))
        made.append(generate("a cat", model=str(out), seed=1, steps=2, width=64, height=64).image.tobytes())
    assert made[0] == made[1] == made[2]
    assert json.loads((tmp_path / "o2" / "model_index.json").read_text()) == json.loads((tmp_path / "fb" / "model_index.json").read_text())
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*.*")} for folder in (tmp_path / "o1", tmp_path / "o2")]
    assert names[0] == names[1]


def test_what_a_folder_predicts_is_told_in_the_file(tmp_path: Path) -> None:
    two_models(tmp_path, "sd2")
    out = merge(Merge("lerp", (model(tmp_path / "fa"), model(tmp_path / "fb")), {"t": T}), tmp_path / "m.safetensors")
    assert check_safetensors(out).metadata["modelspec.prediction_type"] == "v"


@pytest.mark.usefixtures("unchecked")
def test_a_folder_tells_how_it_was_made_and_is_verified(tmp_path: Path) -> None:
    two_models(tmp_path, "sd1")
    out = merge(Merge("lerp", (model(tmp_path / "a.safetensors"), model(tmp_path / "fb")), {"t": T}), tmp_path / "m")
    told = [check_safetensors(path).metadata for path in out.rglob("*.safetensors")]
    assert len(told) == 4 and all(one == told[0] for one in told) and str(tmp_path) not in json.dumps(told)
    assert json.loads(told[0]["jpgen.recipe"])["layout"] == "diffusers"
    assert {name: len(hashes) for name, hashes in json.loads(told[0]["jpgen.inputs"]).items()} == {"a.safetensors": 1, "fb": 5}
    found = verify(out)
    assert (found.differing, found.inputs) == ((), 2)
    assert found.tensors == sum(len(check_safetensors(path).tensors) for path in out.rglob("*.safetensors"))
    file = out / "vae" / dit.WEIGHTS
    raw = bytearray(file.read_bytes())
    raw[check_safetensors(file).tensors["quant_conv.bias"].begin] ^= 1
    file.write_bytes(bytes(raw))
    assert f"vae/{dit.WEIGHTS}:quant_conv.bias" in verify(out).differing
    file.unlink()
    assert verify(out).differing[0] == f"vae/{dit.WEIGHTS}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no weights in"):
        verify(tmp_path / "empty")
    mixed = merge(Merge("lerp", (model(tmp_path / "fa"), model(tmp_path / "b.safetensors")), {"t": T}), tmp_path / "m.safetensors")
    assert verify(mixed).differing == ()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_old_folder_is_replaced_only_if_it_was_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Merge("lerp", small_models(tmp_path), {"t": T})
    first = data(merge(nodes, tmp_path / "m"))
    again = Merge("lerp", nodes.inputs, {"t": 0.4})
    assert data(merge(again, tmp_path / "m")) != first
    monkeypatch.setattr(folders, "SWAPS", {})  # a system that cannot swap names
    assert data(merge(nodes, tmp_path / "m")) == first
    (tmp_path / "m" / "diary.txt").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "taken")
    for name in ("m", "taken", "link"):
        with pytest.raises(OutputError, match=r"neither empty nor a merged folder|is the input"):
            merge(nodes, tmp_path / name)
    with pytest.raises(OutputError, match="is the input"):
        merge(nodes, tmp_path / "fb")
    with pytest.raises(OutputError, match="is the input"):
        merge(nodes, tmp_path)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage(9, 9, 100))
        with pytest.raises(OutputError, match="GB wanted"):
            merge(nodes, tmp_path / "full")
    names = {"a.safetensors", "b.safetensors", "fb", "m", "taken", "link"}
    assert {path.name for path in tmp_path.iterdir()} == names and (tmp_path / "taken" / "note.txt").read_text() == "mine"


def small_models(folder: Path) -> tuple[Model, Model]:
    """A single file, and a folder of its only component."""
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        save_file({"first_stage_model.encoder.conv_in.weight": torch.randn(8, 3, 3, 3, generator=generator)}, folder / f"{name}.safetensors")
    (folder / "fb" / "vae").mkdir(parents=True)
    save_file({"encoder.conv_in.weight": load_file(folder / "b.safetensors").popitem()[1]}, folder / "fb" / "vae" / dit.WEIGHTS)
    (folder / "fb" / "vae" / "config.json").write_text("{}")
    return model(folder / "a.safetensors"), model(folder / "fb")


def test_weights_and_code_of_a_folder_are_not_copied(tmp_path: Path) -> None:
    a, b = small_models(tmp_path)
    folder = tmp_path / "fb"
    for name in ("scheduler/scheduler_config.json", "scheduler/run.py", "safety_checker/config.json", "vae/old.bin", "notes/mine.txt", "run.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    index = {"_class_name": ["own", "Own"], "_name_or_path": "/home/me", "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIM"],
             "safety_checker": ["stable_diffusion", "Checker"], "requires_safety_checker": True}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    out = merge(Merge("lerp", (a, b), {"t": T}), tmp_path / "m")
    wanted = {"model_index.json", f"vae/{dit.WEIGHTS}", "vae/config.json", "scheduler/scheduler_config.json"}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == wanted
    del index["_name_or_path"]
    assert json.loads((out / "model_index.json").read_text()) == {**index, "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet2DConditionModel"]}))
    out = merge(Merge("lerp", (a, b), {"t": T}), tmp_path / "part")  # no whole model
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {f"vae/{dit.WEIGHTS}", "vae/config.json"}


KILLED = """
import sys, time
import jpgen.merge.engine as engine
from jpgen.merge import lerp, merge, model
before, place = getattr(engine, sys.argv[1]), sys.argv[2] == "after"
def slow(*arguments):
    if place:
        before(*arguments)
    open("reached", "w").close()
    time.sleep(60)
setattr(engine, sys.argv[1], slow)
merge(lerp(model("a.safetensors"), model("fb"), t=0.6), "m")
"""


@pytest.mark.parametrize(
    ("step", "when", "is_new"), [("put", "after", False), ("write_companions", "before", False), ("put_in_place", "before", False),
                                 ("put_in_place", "after", True)],
)  # fmt: skip
def test_kill_leaves_the_old_folder_or_the_new_one(step: str, when: str, is_new: bool, tmp_path: Path) -> None:
    a, b = small_models(tmp_path)
    old = data(merge(Merge("lerp", (a, b), {"t": T}), tmp_path / "m"))
    new = data(merge(Merge("lerp", (a, b), {"t": 0.6}), tmp_path / "new"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", KILLED, step, when], cwd=tmp_path, env=environment) as process:
        while not (tmp_path / "reached").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert data(tmp_path / "m") == (new if is_new else old) and old != new
    assert (tmp_path / "m" / "vae" / "config.json").read_text() == "{}"


# ── adapters, errors, the command ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def adapter(path: Path, style: str, rank: int = 2) -> dict[str, Tensor]:
    """An adapter for a linear of the U-Net, a kernel, and the text encoder; returns the whole changes by LDM's names."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"): (32, 32), ("unet", "conv_in"): (32, 4, 3, 3),
        ("text_encoder", "text_model.encoder.layers.0.self_attn.k_proj"): (24, 24), ("text_encoder", "text_model.encoder.layers.1.mlp.fc1"): (48, 24),
    }  # fmt: skip
    made, changes = {}, {}
    for (part, module), shape in shapes.items():
        up, down = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator), torch.randn(rank, *shape[1:], generator=generator)
        flat = f"lora_{'unet' if part == 'unet' else 'te'}_{module.replace('.', '_')}"
        kohya = {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down, f"{flat}.alpha": torch.tensor(float(rank))}
        peft = {f"{part}.{module}.lora_B.weight": up, f"{part}.{module}.lora_A.weight": down}
        made |= kohya if style == "kohya" else peft
        changes[module] = (up.flatten(1) @ down.flatten(1)).reshape(shape)
    save_file(made, path)
    unet, text = f"{UNET}input_blocks.", "cond_stage_model.model.transformer.resblocks."
    names = (f"{unet}4.1.transformer_blocks.0.attn1.to_q.weight", f"{unet}0.0.weight", f"{text}0.attn.in_proj_weight", f"{text}1.mlp.c_fc.weight")
    by_name = dict(zip(names, changes.values(), strict=True))
    inside = by_name[names[2]]
    return {**by_name, names[2]: torch.cat([torch.zeros_like(inside), inside, torch.zeros_like(inside)])}


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_adapters_fit_every_layout(style: str, tmp_path: Path) -> None:
    """Of Stable Diffusion 2, whose single files have the keys of all attention in one tensor."""
    a, b = two_models(tmp_path, "sd2")
    changes = adapter(tmp_path / "l.safetensors", style)
    one, two = load_file(a), load_file(b)
    wanted = {name: torch.lerp(one[name].float(), two[name].float(), T) + 0.5 * change for name, change in changes.items()}
    layouts = ((a, b), (a, tmp_path / "fb"), (tmp_path / "fa", b))
    for first, second in layouts if style == "kohya" else layouts[1:2]:  # the style is gone when the file has been read
        nodes = Merge("add_lora", (Merge("lerp", (model(first), model(second)), {"t": T}), Lora(str(tmp_path / "l.safetensors"))), {"scale": 0.5})
        recipe = Recipe(nodes, dtype="fp32")
        made = load_file(merge(recipe, tmp_path / "m.safetensors"))
        for name in changes:
            torch.testing.assert_close(made[name], wanted[name], rtol=1e-5, atol=1e-6)
        assert sum(map(len, plan(recipe).shares.values())) == len(changes) == 4
        assert torch.equal(made[f"{UNET}out.2.weight"], torch.lerp(one[f"{UNET}out.2.weight"].float(), two[f"{UNET}out.2.weight"].float(), T))


def test_models_that_do_not_go_together_are_told_with_their_layouts(tmp_path: Path) -> None:
    a, b = two_models(tmp_path, "sd1")
    sd.single_sdxl(tmp_path / "xl.safetensors")
    unet = tmp_path / "unet.safetensors"
    save_file(load_file(tmp_path / "fa" / "unet" / dit.WEIGHTS), unet)
    spoiled = tmp_path / "spoiled.safetensors"
    save_file({**load_file(b), "surprise": torch.zeros(1)}, spoiled)
    cases: list[tuple[Model, Model, str]] = [
        (model(tmp_path / "xl.safetensors"), model(tmp_path / "fa"),
         r"xl\.safetensors \(single file, sdxl\): .*fa \(diffusers, sd1\): \d+ tensors: no text_encoder_2"),
        (model(a), model(unet), r"unet\.safetensors \(diffusers, unet\): \d+ tensors: no (text_encoder|vae), no (text_encoder|vae); .*by component"),
        (model(tmp_path / "fa"), model(spoiled), r"spoiled\.safetensors: .*1 keys of this file .*surprise"),
        (model(unet), model(a, component="vae"), r"no unet"),
        (model(a), model(tmp_path / "fb", component="text_encoder_2"), "no text_encoder_2|no weight|holds no"),
    ]  # fmt: skip
    for first, second, told in cases:
        with pytest.raises(WeightsError, match=told):
            merge(Merge("lerp", (first, second), {"t": T}), tmp_path / "m.safetensors")
    with pytest.raises(SettingError, match="no configs for a folder"):
        merge(Merge("lerp", (model(unet), model(unet)), {"t": T}), tmp_path / "m")
    both = Merge("lerp", (model(a), model(b)), {"t": T})
    for layout, name, told in (("single", "m", "is a .safetensors file"), ("diffusers", "m.safetensors", "is a folder")):
        with pytest.raises(SettingError, match=told):
            merge(Recipe(both, layout=layout), tmp_path / name)
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.safetensors").exists()


def test_single_files_with_unknown_keys_in_both_keep_their_names(tmp_path: Path) -> None:
    a, b = two_models(tmp_path, "sd1")
    for path in (a, b):
        save_file({**load_file(path), "surprise": torch.full((2,), float(path.name == b.name))}, path)
    assert load_file(merge(Merge("lerp", (model(a), model(b)), {"t": T}), tmp_path / "m.safetensors"))["surprise"].tolist() == pytest.approx([T, T])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    two_models(tmp_path, "sd1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("root: {method: lerp, inputs: [a.safetensors, fb], t: 0.5}\nlayout: diffusers\n")
    run = CliRunner().invoke
    done = run(main, ["merge", "mine.yaml", "-o", "out"])
    assert (done.exit_code, done.stdout) == (0, "out\n"), done.output
    assert (tmp_path / "out" / "model_index.json").is_file() and (tmp_path / "out" / ONLY_SINGLE).is_file()
    done = run(main, ["merge", "verify", "out"])
    assert done.exit_code == 0 and "2 inputs, every byte" in done.stdout, done.output
    done = run(main, ["merge", "mine.yaml", "-o", "out.safetensors"])
    assert done.exit_code == 2 and "the layout diffusers is a folder" in done.stderr
    done = run(main, ["merge", "mine.yaml", "-o", "out.safetensors", "--layout", "single"])
    assert done.exit_code == 0 and data(convert(Path("out.safetensors"), Path("c"))) == data(Path("out"))
    (tmp_path / "bad.yaml").write_text("root: a\nlayout: comfy\n")
    done = run(main, ["merge", "bad.yaml", "--dry-run"])
    assert done.exit_code == 2 and "layout: 'comfy', known: single, diffusers" in done.stderr
