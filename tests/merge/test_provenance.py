"""What a merged file tells of where it comes from, and the proof of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from jpgen.cli import main
from jpgen.errors import WeightsError
from jpgen.merge import Merge, Model, Recipe
from jpgen.merge.engine import merge
from jpgen.merge.provenance import Terms, merge_key, strictest, verify
from jpgen.safety import check_safetensors, sha256_of
from tests.merge.test_engine import files, tensors, two


def test_the_file_tells_how_it_was_made(tmp_path: Path) -> None:
    inputs = files(tmp_path, a=tensors(1), b=tensors(2))
    recipe = two(inputs)
    terms = {inputs["a"].name: Terms("apache-2.0", "yes"), inputs["b"].name: Terms("research only", "no")}
    out = merge(recipe, tmp_path / "m.safetensors", terms=terms)
    told = check_safetensors(out).metadata
    assert json.loads(told["jpgen.inputs"]) == {f"{name}.safetensors": [sha256_of(tmp_path / f"{name}.safetensors")] for name in "ab"}
    assert json.loads(told["jpgen.recipe"])["root"]["weights"] == {"attn": [0.75, 0.25], "other": [0.4, 0.6]}
    assert json.loads(told["jpgen.licenses"])["commercial"] == "no" and told["modelspec.license"] == "apache-2.0; research only (commercial: no)"
    assert json.loads(told["sd_merge_recipe"])["type"] == "jpgen"
    assert [one["name"] for one in json.loads(told["sd_merge_models"]).values()] == ["a.safetensors", "b.safetensors"]
    assert told["modelspec.sai_model_spec"] == "1.0.1" and all(str(tmp_path) not in value for value in told.values())
    assert merge(recipe, tmp_path / "again.safetensors", terms=terms).read_bytes() == out.read_bytes()
    # a merge of the merge carries what it was made of, and its terms
    second = Merge("n_average", (Model(str(out)), inputs["a"]))
    told = check_safetensors(merge(Recipe(second), tmp_path / "n.safetensors")).metadata
    assert json.loads(told["jpgen.ancestors"])[sha256_of(out)]["recipe"]["root"]["method"] == "weighted_sum"
    assert json.loads(told["jpgen.licenses"])["commercial"] == "no" and sha256_of(tmp_path / "b.safetensors") in json.loads(told["sd_merge_models"])


def test_the_strictest_terms_count() -> None:
    yes, ask, no = Terms("a", "yes"), Terms("b", "ask"), Terms("c", "no")
    assert [strictest(one) for one in ([yes, yes], [yes, ask], [ask, no, yes], [])] == ["yes", "ask", "no", "ask"]


def test_the_key_is_of_weights_and_files_not_of_remarks(tmp_path: Path) -> None:
    inputs = files(tmp_path, a=tensors(1), b=tensors(2))
    key = merge_key(two(inputs))
    assert merge_key(replace(two(inputs), sources=("me",), unverified=("all",), name="other")) == key
    assert merge_key(two(inputs, {"attn": (0.7, 0.3), "other": (0.4, 0.6)})) != key
    files(tmp_path, a=tensors(1), b=tensors(3))
    assert merge_key(two(inputs)) != key


def test_a_file_is_verified_by_making_it_again(tmp_path: Path) -> None:
    inputs = files(tmp_path, a=tensors(1), b=tensors(2))
    out = merge(two(inputs), tmp_path / "m.safetensors")
    found = verify(out)
    assert found.differing == () and (found.inputs, found.tensors) == (2, 5)
    raw = bytearray(out.read_bytes())
    at = check_safetensors(out).tensors["bias"].begin
    raw[at] ^= 1
    out.write_bytes(bytes(raw))
    assert "bias" in verify(out).differing
    files(tmp_path, b=tensors(3))
    with pytest.raises(WeightsError, match=r"not those it was made of: b\.safetensors"):
        verify(out)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no input b\.safetensors here"):
        verify(out)
    with pytest.raises(WeightsError, match="tells no recipe"):
        verify(tmp_path / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "m.safetensors"]


def test_the_command_merges_tells_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    files(tmp_path, a=tensors(1), b=tensors(2))
    up, down = torch.ones(8, 2), torch.ones(2, 4)
    save_file({"lora_unet_mid_attn1_to_q.lora_up.weight": up, "lora_unet_mid_attn1_to_q.lora_down.weight": down}, tmp_path / "l.safetensors")
    recipe = "root:\n  method: add_lora\n  inputs: [{method: lerp, inputs: [a.safetensors, b.safetensors], t: 0.25}, {lora: l.safetensors}]\n"
    (tmp_path / "mine.yaml").write_text(recipe + "  scale: 0.5\n")
    run = CliRunner().invoke
    done = run(main, ["merge", "mine.yaml", "--dry-run"])
    assert done.exit_code == 0 and not (tmp_path / "out.safetensors").exists()
    assert "1 / 1 modules -> 1 tensors" in done.stderr and "5 tensors" in done.stderr
    done = run(main, ["merge", "mine.yaml", "-o", "out.safetensors", "--dtype", "fp32"])
    assert (done.exit_code, done.stdout) == (0, "out.safetensors\n"), done.stderr
    a, b, made = tensors(1), tensors(2), load_file(tmp_path / "out.safetensors")
    name = "mid.attn1.to_q.weight"
    torch.testing.assert_close(made[name], torch.lerp(a[name].float(), b[name].float(), 0.25) + 0.5 * up @ down)
    done = run(main, ["merge", "verify", "out.safetensors"])
    assert done.exit_code == 0 and "5 tensors of 3 inputs" in done.stdout
    save_file(
        {**made, name: torch.lerp(a[name].float(), b[name].float(), 0.25)},
        "forged.safetensors",
        metadata=check_safetensors(Path("out.safetensors")).metadata,
    )
    done = run(main, ["merge", "verify", "forged.safetensors"])  # the LoRA is not in it
    assert done.exit_code == 2 and name in done.stderr
    done = run(main, ["merge", "mine.yaml"])
    assert done.exit_code == 2 and "no output" in done.stderr
    done = run(main, ["merge", "mine.yaml", "-o", "a.safetensors"])
    assert done.exit_code == 2 and "is the input a.safetensors" in done.stderr
    done = run(main, ["merge", "methods"])
    assert done.exit_code == 0 and "slerp (2): t: 0…1" in done.stdout and "arXiv 2306.01708" in done.stdout
    assert len(run(main, ["merge", "methods", "--json"]).stdout.splitlines()) == 24
