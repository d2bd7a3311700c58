"""LoRAs out of two checkpoints: applied again they give the tuned model; the error is that of the truncated SVD; bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jpgen.cli import main
from jpgen.convert import convert
from jpgen.errors import SettingError, WeightsError
from jpgen.lora import read_adapter
from jpgen.lora_modules import AdaptedModules
from jpgen.merge.extraction import extract_lora
from tests.toys import stable_diffusion as sd

TEXT = "encoder.layers.1.mlp.fc1.weight"
"""As transformers names it where there is no projection."""


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) * 100 + seed))


def tune(module: Any, rank: int | None, *, vectors: bool = False) -> int:
    """Change every matrix and kernel of each second layer, by a change of this rank (None: of any); tells how many."""
    changed = 0
    with torch.no_grad():
        for name, weight in list(module.named_parameters())[::2]:
            if weight.dim() == 1 and vectors:
                weight += 0.1 * rand(len(weight), seed=3)
            if weight.dim() in (2, 4) and name.endswith("weight") and "embedding." not in name:
                flat = weight.flatten(1)
                side = min(rank, *flat.shape) if rank else min(flat.shape)
                weight += (rand(flat.shape[0], side) @ rand(side, flat.shape[1], seed=1)).reshape(weight.shape) * 0.01
                changed += 1
    return changed


def pair(folder: Path, rank: int | None, *, vectors: bool = False) -> tuple[Path, Path, dict[str, Any], int]:
    """A toy of Stable Diffusion 1, the same tuned, the modules of the latter, and how many layers it changes."""
    base = sd.single_sd1(folder / "base.safetensors")
    parts = {"denoiser": base.unet, "text_encoder": base.texts[0]}
    changed = sum(tune(module, rank, vectors=vectors) for module in parts.values())
    tensors = {**sd.ldm_unet(base.unet), **sd.ldm_vae(base.vae), **sd.ldm_clip(base.texts[0], "cond_stage_model.")}
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, folder / "tuned.safetensors", metadata={"format": "pt"})
    return folder / "tuned.safetensors", folder / "base.safetensors", parts, changed


def fresh() -> dict[str, Any]:
    return {"denoiser": sd.sd_unet(24), "text_encoder": sd.text_model(sd.VOCABULARY, 24)}


@pytest.mark.parametrize("keys", ["kohya", "peft"])
@pytest.mark.parametrize("folders", [False, True])
def test_an_exactly_low_rank_difference_comes_back(keys: str, folders: bool, tmp_path: Path) -> None:
    """Extracted and applied it gives the tuned model, also where one of the models is a folder."""
    tuned, base, parts, changed = pair(tmp_path, 3)
    base = convert(base, tmp_path / "base") if folders else base
    made = extract_lora(tuned, base, tmp_path / "lora.safetensors", rank=3, keys=keys, dtype=torch.float32)
    assert len(made.layers) == changed > 100
    assert not made.left_out and not made.unmatched
    assert made.error < 1e-5 and max(layer.error for layer in made.layers) < 1e-4
    wanted = {name: dict(module.state_dict()) for name, module in parts.items()}
    plain = fresh()
    AdaptedModules("toy", "sd", plain).fuse([(read_adapter(tmp_path / "lora.safetensors"), 1.0)])
    for part, module in plain.items():
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, wanted[part][name], atol=2e-5, rtol=1e-4)


def test_of_any_difference_the_error_is_that_of_the_truncated_svd(tmp_path: Path) -> None:
    tuned, base, _, _ = pair(tmp_path, None)
    made = extract_lora(tuned, base, tmp_path / "lora.safetensors", rank=4, dtype=torch.float32)
    new, old = load_file(tuned), load_file(base)
    checked = 0
    for layer in made.layers:
        if layer.name.startswith("text_encoder."):
            name = layer.name.replace("text_encoder.", "cond_stage_model.transformer.", 1)
            sigma = torch.linalg.svdvals((new[name] - old[name]).double())
            best = float(sigma[4:].norm() / sigma.norm())
            assert best * (1 - 1e-4) <= layer.error <= best * 1.01 + 1e-6
            assert layer.norm == pytest.approx(float(sigma.norm()), rel=1e-5)
            checked += 1
    assert checked > 5
    assert 0.2 < made.error < 1


def test_norms_and_biases_are_left_out_unless_wanted_and_then_all_comes_back(tmp_path: Path) -> None:
    tuned, base, parts, _ = pair(tmp_path, 2, vectors=True)
    made = extract_lora(tuned, base, tmp_path / "lora.safetensors", rank=2, dtype=torch.float32)
    assert len(made.left_out) > 20
    assert "unet.conv_in.bias" in made.left_out or any(name.endswith(".bias") for name in made.left_out)
    made = extract_lora(tuned, base, tmp_path / "full.safetensors", rank=2, dtype=torch.float32, full=True)
    assert not made.left_out
    plain = fresh()
    AdaptedModules("toy", "sd", plain).fuse([(read_adapter(tmp_path / "full.safetensors"), 1.0)])
    for part, module in plain.items():
        wanted = parts[part].state_dict()
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, wanted[name], atol=2e-5, rtol=1e-4)


def test_the_file_tells_what_it_is_and_is_the_same_again(tmp_path: Path) -> None:
    tuned, base, _, _ = pair(tmp_path, 3)
    for name in ("a", "b"):
        extract_lora(tuned, base, tmp_path / f"{name}.safetensors", rank=4)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        told = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys() if "lora_" in name.split(".", 1)[1]} == {torch.float16}  # noqa: SIM118
        names = set(file.keys())
    assert "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight" in names
    assert told["ss_network_dim"] == "4" and told["modelspec.architecture"] == "stable-diffusion-v1/lora"
    made = json.loads(told["jpgen.lora"])
    assert (made["operation"], made["rank"], made["tuned"][0]["name"]) == ("extract", 4, "tuned.safetensors")
    tensors = [load_file(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_sdxl_has_both_encoders(tmp_path: Path) -> None:
    base = sd.single_sdxl(tmp_path / "base.safetensors")
    changed = tune(base.unet, 2) + sum(tune(text, 2) for text in base.texts)
    tensors = {
        **sd.ldm_unet(base.unet), **sd.ldm_vae(base.vae), **sd.ldm_clip(base.texts[0], "conditioner.embedders.0."),
        **sd.open_clip(base.texts[1], "conditioner.embedders.1."),
    }  # fmt: skip
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, tmp_path / "tuned.safetensors", metadata={"format": "pt"})
    made = extract_lora(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", tmp_path / "lora.safetensors", rank=2, dtype=torch.float32)
    assert len(made.layers) == changed
    names = load_file(tmp_path / "lora.safetensors")
    assert {name.split("_")[1] for name in names} == {"unet", "te1", "te2"}
    adapter = read_adapter(tmp_path / "lora.safetensors")
    assert adapter.family == "sdxl"
    plain = {
        "denoiser": sd.sdxl_unet(32, 16), "text_encoder": sd.text_model(sd.VOCABULARY, 12),
        "text_encoder_2": sd.text_model(sd.VOCABULARY, 20, projection=16, seed=5, act="gelu"),
    }  # fmt: skip
    AdaptedModules("toy", "sdxl", plain).fuse([(adapter, 1.0)])
    for module, wanted in zip(plain.values(), (base.unet, *base.texts), strict=True):
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, wanted.state_dict()[name], atol=2e-5, rtol=1e-4)


def test_bad_pairs_are_refused(tmp_path: Path) -> None:
    tuned, base, _, _ = pair(tmp_path, 2)
    sd.single_sdxl(tmp_path / "sdxl.safetensors")
    tensors = load_file(tuned)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**tensors, name: tensors[name] * torch.nan}, tmp_path / "nan.safetensors")
    save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / "less.safetensors")
    out = tmp_path / "lora.safetensors"
    faults = {"base": "nothing to extract", "sdxl": "do not match", "nan": "not finite", "less": r"only one has unet\.conv_in\.weight"}
    for other, told in faults.items():
        with pytest.raises(WeightsError, match=told):
            extract_lora(tmp_path / f"{other}.safetensors", base, out, rank=2)
    with pytest.raises(SettingError, match="rank of 1 or more"):
        extract_lora(tuned, base, out, rank=0)
    assert not out.exists()
    assert extract_lora(tmp_path / "less.safetensors", base, out, rank=2, allow_unmatched=True).unmatched == ("unet.conv_in.weight",)


def test_the_command(tmp_path: Path) -> None:
    tuned, base, _, changed = pair(tmp_path, 3, vectors=True)
    arguments = ["lora", "extract", str(tuned), str(base), "-o", str(tmp_path / "x.safetensors"), "--rank", "4"]
    made = CliRunner().invoke(main, arguments)
    assert made.exit_code == 0, made.output
    assert f"{changed} of {changed} 層" in made.output and "changed but left out" in made.output
    rows = [json.loads(line) for line in CliRunner().invoke(main, [*arguments, "--json"]).output.splitlines()]
    assert len(rows) == changed and all(row["error"] < 0.01 for row in rows)
    failed = CliRunner().invoke(main, ["lora", "extract", str(base), str(base), "-o", str(tmp_path / "y.safetensors")])
    assert failed.exit_code == 2 and "nothing to extract" in failed.stderr
