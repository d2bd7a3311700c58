"""Bad inputs by the front door: `jpgen.generate(model=...)` refuses each in one line that says what to do. What is refused, and how, is tested
part by part in test_weights.py, test_layout.py, test_hub.py, test_models.py and backbones/test_sd.py.
"""

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants, errors
from safetensors.torch import save_file

import jpgen
from jpgen.api import open_pipeline
from jpgen.cli import main
from jpgen.metadata import read_settings
from tests.toys import stable_diffusion as toys

ROW = '[mine]\nfamily = "{family}"\nlicense = "MIT"\ncommercial = "yes"\ntitle = "mine"\n'


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").touch()
    open_pipeline.cache_clear()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(model: str | Path, kind: type[Exception], says: str) -> str:
    """The one line, of the library and of the command."""
    with pytest.raises(kind, match=says) as caught:
        jpgen.generate("猫", model=model)
    assert "\n" not in str(caught.value) and " / " in str(caught.value)
    done = CliRunner().invoke(main, ["generate", "猫", "--model", str(model)])
    assert (done.exit_code, done.stderr) == (2, f"jpgen: {caught.value}\n")
    return str(caught.value)


class Evil:
    """A pickle that leaves a trace if it is opened."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_pickle(home: Path) -> None:
    for name in ("model.ckpt", "disguised.safetensors"):
        (home / name).write_bytes(pickle.dumps({"state_dict": Evil()}))
        refused(home / name, jpgen.WeightsError, r"pickle.*not opened; use a \.safetensors version .*or convert it")
    assert not (home / "ran").exists()


def test_a_truncated_file(home: Path) -> None:
    path = toys.single_sd1(home / "m.safetensors").path
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, jpgen.WeightsError, r"cut off.*fetch it again")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "gap"),
        ({"dtype": "F32", "shape": [250_000, 1_000_000], "data_offsets": [0, 10**12]}, "the header wants 1000000000000"),
    ],
)
def test_a_header_that_lies_and_a_tensor_of_a_terabyte(home: Path, entry: dict[str, Any], says: str) -> None:
    text = json.dumps({"model.diffusion_model.x": entry}).encode()
    (home / "lie.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    refused(home / "lie.safetensors", jpgen.WeightsError, says)


def test_a_lora_of_another_family(home: Path) -> None:
    toys.single_sd1(home / "m.safetensors")
    key = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_3_attn1_to_q"
    save_file({f"{key}.lora_up.weight": torch.zeros(4, 2), f"{key}.lora_down.weight": torch.zeros(2, 4)}, home / "xl.safetensors")
    parts = f'path = "{home / "m.safetensors"}"\nparts = {{ adapter = "{home / "xl.safetensors"}" }}\n'
    (home / "mine.toml").write_text(ROW.format(family="sd") + parts)
    refused("mine", jpgen.WeightsError, "is for sdxl, the model mine is sd: .*; choose a LoRA for sd")
    refused(home / "xl.safetensors", jpgen.WeightsError, r"only a lora \(sdxl\): give the path of a whole model")


def test_unknown_keys(home: Path) -> None:
    save_file({"weird.a": torch.zeros(1), "weird.b": torch.zeros(1)}, home / "m.safetensors")
    refused(home / "m.safetensors", jpgen.WeightsError, r"unknown layout; its first keys are weird\.a, weird\.b")


def test_a_missing_shard(home: Path) -> None:
    toy = toys.rinna(home / "m")
    (home / "m" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    toy.unet.save_pretrained(home / "m" / "unet", max_shard_size="300KB")
    next((home / "m" / "unet").glob("*00002-of-*.safetensors")).unlink()
    refused(home / "m", jpgen.WeightsError, r"shards are missing: .*00002-of-.*fetch the model again")


def test_remote_code(home: Path) -> None:
    (home / "m").mkdir()
    (home / "m" / "model_index.json").write_text(json.dumps({"_class_name": ["pipeline", "Mine"]}))
    (home / "m" / "pipeline.py").write_text("import os; os.mkdir('ran')")
    refused(home / "m", jpgen.WeightsError, "code of the repository, which jpgen never runs")
    (home / "mine.toml").write_text(ROW.format(family="diffusers") + f'path = "{home / "m"}"\n')
    refused("mine", jpgen.WeightsError, "jpgen never does")
    assert not (home / "ran").exists()


class Hub:
    """Stands for huggingface_hub's snapshot_download."""

    def __init__(self, folder: Path, fail: Exception | None, size: int = 1) -> None:
        self.folder, self.fail, self.size = folder, fail, size

    def __call__(self, _repo: str, *, dry_run: bool = False, **_: object) -> Any:
        if dry_run:
            return [SimpleNamespace(file_size=self.size, will_download=True)]
        if self.fail:
            raise self.fail
        return str(self.folder)


def on_the_hub(home: Path, monkeypatch: pytest.MonkeyPatch, *, fail: Exception | None = None, size: int = 1, more: str = "") -> None:
    (home / "snapshot").mkdir()
    (home / "snapshot" / "m.safetensors").write_bytes(bytes(9))
    (home / "mine.toml").write_text(ROW.format(family="sd") + f'repo = "owner/model"\nfiles = ["m.safetensors"]\n{more}')
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(home / "snapshot", fail, size))


def test_a_wrong_hash(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_hub(home, monkeypatch, more=f'sha256 = {{ "m.safetensors" = "{"0" * 64}" }}\n')
    refused("mine", jpgen.WeightsError, "not used, wrong SHA-256 .* pin another revision, or do not use it")


def test_a_gated_repository_without_a_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = SimpleNamespace(status_code=401, headers={}, request=None)
    on_the_hub(home, monkeypatch, fail=errors.GatedRepoError("a\nstory", response=answer))
    line = refused("mine", jpgen.LicenseError, "a gated model: open .*owner/model")
    assert "hf auth login" in line and "HF_TOKEN" in line


@pytest.mark.parametrize("when", ["before", "while"])
def test_no_disk(home: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    fail = OSError(errno.ENOSPC, "No space left on device") if when == "while" else None
    on_the_hub(home, monkeypatch, fail=fail, size=10**18 if when == "before" else 1)
    refused("mine", jpgen.WeightsError, "no space for owner/model.*HF_HOME")


# ── licences ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_terms_are_shown_before_the_first_use_recorded_and_told_by_the_picture(home: Path) -> None:
    """A non-commercial model: refused with its terms, then accepted by --accept-license, once; its picture carries them."""
    path = toys.single_sd1(home / "m.safetensors").path
    row = ROW.format(family="sd").replace("MIT", "CC-BY-NC-SA-4.0").replace('"yes"', '"no"')
    (home / "mine.toml").write_text(f'{row}path = "{path}"\n')
    line = refused("mine", jpgen.LicenseError, r"terms not accepted yet: mine \(CC-BY-NC-SA-4\.0; commercial use: no\)")
    assert "商用不可" in line and "--accept-license" in line and not (home / "XDG_STATE_HOME").exists()
    run = ["generate", "猫", "--model", "mine", "--size", "64", "--steps", "1", "--seed", "1", "-o", "a.png", "--json"]
    done = CliRunner().invoke(main, [*run, "--accept-license"])
    told = json.loads(done.stdout)["model"]
    assert (told["license"], told["commercial"]) == ("CC-BY-NC-SA-4.0", "no")
    record = json.loads((home / "XDG_STATE_HOME" / "jpgen" / "licenses.json").read_text())["mine"]
    assert record["license"] == "CC-BY-NC-SA-4.0" and record["accepted"]
    assert CliRunner().invoke(main, run).exit_code == 0
    assert read_settings(Path("a.png")).license == "CC-BY-NC-SA-4.0"
    data = Path("a.png").read_bytes().decode("latin-1")
    assert '"commercial":"no"' in data and "<dc:rights>" in data
    made = jpgen.generate("猫", model="mine", seed=1, width=64, height=64, steps=1)
    assert (made.model.commercial, made.model.license) == ("no", "CC-BY-NC-SA-4.0")


def test_accept_license_with_a_local_file_has_nothing_to_accept(home: Path) -> None:
    path = toys.single_sd1(home / "m.safetensors").path
    run = ["generate", "猫", "--model", str(path), "--size", "64", "--steps", "1", "--seed", "1", "-o", "a.png", "--accept-license"]
    assert CliRunner().invoke(main, run).exit_code == 0
    assert not (home / "XDG_STATE_HOME").exists()
