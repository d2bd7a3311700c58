"""Recipes opened: members found, merged once, assembled; pictures against averages and embeddings computed by hand."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import jpgen
from jpgen import backbones, hub, merged
from jpgen.api import load_generation, open_pipeline
from jpgen.catalog import find_model
from jpgen.cli import main
from jpgen.encoders import clip
from jpgen.errors import LicenseError, WeightsError
from jpgen.merge.groups import group
from jpgen.models import accept_license
from tests.backbones.test_sdxl import filled, plain, run
from tests.toys.evo import FP16, PLAIN, Evo, evo, unet, write_unet
from tests.toys.stable_diffusion import sdxl_unet

SETTINGS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 3.0, "scheduler": "dpm++2m"}

CONV = (0.15928833971605916, 0.1032449268871776, 0.6503217149752791, 0.08714501842148402)
ATTN = (0.1877279276437178, 0.20014114603909822, 0.3922685507065275, 0.2198623756106564)
"""As published, in the order SDXL, DPO, Juggernaut, JSDXL."""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No file of the user is read or written, and arithmetic is in fp32."""
    for module in (clip, backbones):
        monkeypatch.setattr(module, "best_dtype", lambda *_device: torch.float32)
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "mine.toml"))
    open_pipeline.cache_clear()
    return tmp_path


def written(home: Path, toy: Evo, more: str = "") -> Evo:
    (home / "mine.toml").write_text(toy.catalogue(more), "utf-8")
    return toy


def accept(name: str = "evo-ukiyoe") -> None:
    accept_license(*merged.members(find_model(name)))


def local(toy: Evo) -> str:
    """A row that asks the hub for no LoRA."""
    return f'[evo-ukiyoe]\nparts = {{ adapter = "{toy.root / "lora.safetensors"}" }}\n'


def averaged(toy: Evo, *, rounded: bool = True) -> dict[str, torch.Tensor]:
    """By hand: what the files hold, times the published weights, in fp32; rounded as the file is, to fp16."""
    states = [{name: tensor.half() for name, tensor in model.state_dict().items()} for model in toy.unets]
    states[1] = toy.unets[1].state_dict()  # DPO's file is fp32
    made = {}
    for name in states[0]:
        weights = ATTN if any(part in name for part in ("to_q", "to_k", "to_v", "to_out.0")) else CONV
        made[name] = sum(weight * state[name].float() for weight, state in zip(weights, states, strict=True))
    return {name: tensor.half().float() for name, tensor in made.items()} if rounded else made


def states(toy: Evo, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """JSDXL's encoder in slot 1, SDXL's second in slot 2, both fed the Japanese prompt; the pooled state is that of slot 2."""
    one = run(toy.japanese.texts[0], filled([*toy.japanese.pieces.encode(text), 2], 3)).hidden_states[-2]
    ids = [*toy.tokenizer.begin, *toy.tokenizer.encode(text), *toy.tokenizer.end]
    other = run(toy.english, filled(ids, toy.tokenizer.pad))
    return torch.cat([one, other.hidden_states[-2]], -1), other.text_embeds


def with_lora(home: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA file for the merged U-Net, and the weights it makes of these."""
    name = "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k"
    up, down = torch.ones(128, 2), torch.full((2, 32), 0.02)
    key = f"lora_unet_{name.replace('.', '_')}"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(2.0)}, home / "toys" / "lora.safetensors")
    return {**weights, f"{name}.weight": weights[f"{name}.weight"] + up @ down}


@pytest.mark.parametrize("lora", [False, True])
def test_evo_ukiyoe_draws_what_its_parts_say(home: Path, lora: bool) -> None:
    toy = evo(home / "toys")
    weights = averaged(toy)
    row = '[evo-ukiyoe]\nparts = { adapter_repo = "owner/none" }\n'
    if lora:
        weights, row = with_lora(home, weights), local(toy)
    written(home, toy, row)
    accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "_adapter", merged._adapter if lora else lambda *_: None)
        made = jpgen.generate("赤い猫", model="evo-ukiyoe", negative="青い船", seed=7, normalize=False, **SETTINGS)
        none = jpgen.generate("赤い猫", model="evo-ukiyoe", seed=7, normalize=False, **SETTINGS)
    wanted = sdxl_unet(12 + 20, 20)
    wanted.load_state_dict(weights)
    one, other = states(toy, "赤い猫"), states(toy, "青い船")
    np.testing.assert_allclose(np.asarray(made.image, int), plain(wanted, toy.vae, one, other), atol=1)
    np.testing.assert_allclose(np.asarray(none.image, int), plain(wanted, toy.vae, one, tuple(map(torch.zeros_like, one))), atol=1)
    (folder,) = merged.merged_folder().iterdir()
    saved = load_file(folder / "unet.safetensors")
    for name, tensor in averaged(toy).items():
        assert saved[name].dtype == torch.float16
        torch.testing.assert_close(saved[name].float(), tensor, rtol=1e-3, atol=1e-6)
    assert made.model.revision == folder.name[:12] and made.model.commercial == "no"
    assert made.route == "native" and made.encoder == "sdxl"


def test_four_equal_unets_give_themselves(home: Path) -> None:
    toy = written(home, evo(home / "toys", alike=True))
    accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "_adapter", lambda *_: None)
        opened = merged.open_model("evo-ukiyoe")
    saved, one = load_file(opened.parts["unet"]), toy.unets[0].state_dict()
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor.float(), one[name], rtol=1e-3, atol=1e-6)
    assert {group(name) for name in saved} == {"attn", "other"}


def test_it_is_merged_once_and_anew_when_a_member_changes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = evo(home / "toys")
    with_lora(home, averaged(toy))
    written(home, toy, local(toy))
    accept()
    first = jpgen.Pipeline("evo-ukiyoe").info
    with monkeypatch.context() as patch:
        patch.setattr("jpgen.merge.engine.merge", lambda *_, **__: pytest.fail("merged again"))
        assert jpgen.Pipeline("evo-ukiyoe").info == first
    write_unet(toy.root / "juggernaut" / "unet", unet(9))
    second = jpgen.Pipeline("evo-ukiyoe").info
    assert second.revision != first.revision and second.weights_hash != first.weights_hash
    assert len(os.listdir(merged.merged_folder())) == 2


def test_a_picture_is_repeated_and_other_weights_are_refused(home: Path) -> None:
    toy = evo(home / "toys")
    with_lora(home, averaged(toy))
    written(home, toy, local(toy))
    accept()
    made = jpgen.generate("赤い猫", model="evo-ukiyoe", seed=7, **SETTINGS)
    path = made.save(home / "made.png")
    assert load_generation(path).image.tobytes() == made.image.tobytes()
    write_unet(toy.root / "juggernaut" / "unet", unet(9))
    open_pipeline.cache_clear()
    with pytest.raises(jpgen.MetadataError, match="other weights"):
        load_generation(path)


def test_members_of_another_shape_are_told(home: Path) -> None:
    toy = written(home, evo(home / "toys"))
    accept()
    write_unet(toy.root / "juggernaut" / "unet", sdxl_unet(16, 20))
    with pytest.raises(WeightsError, match=r"juggernaut-xl-9 \(unet/\S+fp16\.safetensors\) \(diffusers, unet\): .*16\] for \[\d+, 32\]"):
        merged.open_model("evo-ukiyoe")


def test_a_member_may_be_one_file_or_lie_under_another_name(home: Path) -> None:
    toy = evo(home / "toys")
    (toy.root / "dpo" / "unet" / PLAIN).rename(toy.root / "dpo.safetensors")
    (toy.root / "juggernaut" / "unet" / FP16).rename(toy.root / "juggernaut" / "unet" / PLAIN)
    with_lora(home, averaged(toy))
    written(home, toy, local(toy))
    text = (home / "mine.toml").read_text().replace(f'"{toy.root / "dpo"}"', f'"{toy.root / "dpo.safetensors"}"')
    (home / "mine.toml").write_text(text)
    accept()
    saved = load_file(merged.open_model("evo-ukiyoe").parts["unet"])
    assert all(torch.allclose(saved[name].float(), tensor, rtol=1e-3, atol=1e-6) for name, tensor in averaged(toy).items())
    (home / "mine.toml").write_text(text.replace("dpo.safetensors", "gone.safetensors"))
    with pytest.raises(WeightsError, match="correct the path of sdxl-dpo"):
        merged.open_model("evo-ukiyoe")


# ── terms and the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_terms_of_every_member_are_asked_for_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.delenv("JPGEN_CATALOG")
    with pytest.raises(LicenseError, match=r"huggingface\.co/mhdang/dpo.*models accept evo-ukiyoe jsdxl sdxl-dpo juggernaut-xl-9"):
        jpgen.generate("猫", model="evo-ukiyoe")
    with pytest.raises(jpgen.IncompatibleError, match="is a translator"):
        jpgen.generate("猫", model="opus-mt-ja-en")


def test_accept_license_is_for_all_of_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = evo(home / "toys")
    with_lora(home, averaged(toy))
    written(home, toy, local(toy))
    monkeypatch.chdir(home)
    run = ["generate", "赤い猫", "--model", "evo-ukiyoe", "--size", "64", "--steps", "1", "--seed", "1", "--json"]
    done = CliRunner().invoke(main, run)
    assert done.exit_code == 2 and "terms not accepted yet" in done.stderr and len(done.stderr.splitlines()) == 1
    done = CliRunner().invoke(main, [*run, "--accept-license"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["model"]["name"], told["model"]["commercial"]) == ("evo-ukiyoe", "no")
    records = json.loads((home / "XDG_STATE_HOME" / "jpgen" / "licenses.json").read_text())
    assert records.keys() == {"evo-ukiyoe", "jsdxl", "sdxl-dpo", "juggernaut-xl-9"}
    assert json.loads(CliRunner().invoke(main, run).stdout)["seed"] == 1  # and is not asked again


class Hub:
    """Repositories as the toys' folders, and what was asked of them."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders, self.asked = folders, list[tuple[str, tuple[str, ...]]]()

    def fetch(self, repo: str, *, revision: str, files: Sequence[str], sha256: object = None, on_progress: object = None) -> Path:
        self.asked.append((repo, tuple(files)))
        return self.folders[repo]


def test_members_come_from_the_hub_by_the_files_that_are_needed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = evo(home / "toys")
    with_lora(home, averaged(toy))
    (home / "toys" / "lora").mkdir()
    (home / "toys" / "lora.safetensors").rename(home / "toys" / "lora" / "ukiyoe.safetensors")
    monkeypatch.delenv("JPGEN_CATALOG")
    names = {
        "stabilityai/stable-diffusion-xl-base-1.0": "sdxl", "mhdang/dpo-sdxl-text2image-v1": "dpo", "RunDiffusion/Juggernaut-XL-v9": "juggernaut",
        "stabilityai/japanese-stable-diffusion-xl": "jsdxl", "SakanaAI/Evo-Ukiyoe-v1": "lora",
    }  # fmt: skip
    library = Hub({repo: toy.root / folder for repo, folder in names.items()})
    monkeypatch.setattr(hub, "fetch", library.fetch)
    accept()
    opened = merged.open_model("evo-ukiyoe")
    assert library.asked[:4] == [
        ("stabilityai/stable-diffusion-xl-base-1.0", (f"unet/{FP16}",)), ("mhdang/dpo-sdxl-text2image-v1", (f"unet/{PLAIN}",)),
        ("RunDiffusion/Juggernaut-XL-v9", (f"unet/{FP16}",)), ("stabilityai/japanese-stable-diffusion-xl", (f"unet/{FP16}",)),
    ]  # fmt: skip
    assert [repo for repo, _ in library.asked[4:]] == [*names][:1] + [*names][3:]
    assert opened.parts["adapter"] == str(toy.root / "lora" / "ukiyoe.safetensors")
    saved = load_file(opened.parts["unet"])
    assert all(torch.allclose(saved[name].float(), tensor, rtol=1e-3, atol=1e-6) for name, tensor in averaged(toy).items())
    (toy.root / "lora" / "other.safetensors").touch()
    with pytest.raises(WeightsError, match=r"other\.safetensors, ukiyoe\.safetensors: say which"):
        merged.open_model("evo-ukiyoe")


def test_evosdxl_is_three_stages_and_warns_of_what_is_not_verified(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = evo(home / "toys")
    base = averaged(toy, rounded=False)
    fused = with_lora(home, base)
    (home / "toys" / "lightning").mkdir()
    (home / "toys" / "lora.safetensors").rename(home / "toys" / "lightning" / "sdxl_lightning_4step_lora.safetensors")
    fast, other = unet(11), unet(12)
    write_unet(home / "toys" / "fast", fast)
    (home / "toys" / "fast" / FP16).rename(home / "toys" / "lightning" / "sdxl_lightning_4step_unet.safetensors")
    write_unet(home / "toys" / "jl" / "unet", other, PLAIN)
    rows = f'[sdxl-lightning]\npath = "{home / "toys" / "lightning"}"\n[juggernaut-xl-lightning]\npath = "{home / "toys" / "jl"}"\n'
    written(home, toy, rows)
    accept("evosdxl-jp")
    made = jpgen.generate("赤い猫", model="evosdxl-jp", seed=7, width=64, height=64)
    assert (made.config.steps, made.config.guidance_scale, made.config.scheduler) == (4, 0.0, "euler_trailing")
    assert "not all verified" in caplog.text and "conv" in caplog.text
    (folder,) = merged.merged_folder().iterdir()
    saved, one, two = load_file(folder / "unet.safetensors"), fast.state_dict(), other.state_dict()
    for name, tensor in saved.items():
        weights = (0.0231193, 0.0492498, 0.9276309) if group(name) == "attn" else (0.4722200, 0.4841953, 0.0435847)
        last = base[name] + 3.224682864579401 * (fused[name] - base[name])
        wanted = weights[0] * one[name].half().float() + weights[1] * two[name] + weights[2] * last
        torch.testing.assert_close(tensor.float(), wanted, rtol=1e-3, atol=2e-6)


def test_a_recipe_of_ones_own_takes_its_place(home: Path) -> None:
    toy = evo(home / "toys")
    with_lora(home, averaged(toy))
    file = f"unet/{FP16}"
    (home / "mine-recipe.yaml").write_text(f"base: sdxl-base\ntext_encoder: jsdxl\nroot: {{model: jsdxl, file: {file}}}\n")
    lora = toy.root / "lora.safetensors"
    written(home, toy, f'[evo-ukiyoe]\nparts = {{ recipe = "{home / "mine-recipe.yaml"}", adapter = "{lora}" }}\n')
    accept()
    saved, wanted = load_file(merged.open_model("evo-ukiyoe").parts["unet"]), toy.unets[3].state_dict()
    assert all(torch.equal(tensor, wanted[name].half()) for name, tensor in saved.items())
