"""Models whose tensors are packed in 8 or 4 bits are merged as the values they stand for: those that `load_weights` gives, mixed by torch."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from jpgen.catalog import find_model
from jpgen.cli import main
from jpgen.errors import WeightsError
from jpgen.merge import Merge, Node, Recipe, merge, model
from jpgen.merge.plan import COPY, PIECE, STEPS, plan
from jpgen.merge.provenance import verify
from jpgen.weights import WEIGHTS, load_weights, save_weights
from tests.toys import stable_diffusion as sd

T = 0.3


def pack(path: Path, tensors: Mapping[str, Tensor], bits: int = 8) -> dict[str, Tensor]:
    """Write matrices and kernels in so many bits, and all else as it is; returns the values."""
    save_weights(path, tensors, bits=lambda _, tensor: bits if tensor.dim() > 1 else 32)
    return load_weights(path)


def packed(path: Path, bits: int, seed: int) -> dict[str, Tensor]:
    """A file of a matrix longer than a piece, whose rows end elsewhere than pieces, a kernel, and a bias that is not packed; its values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (1100, 1000), "k": (8, 4, 3, 3), "bias": (5,)}
    return pack(path, {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_values_are_unpacked_piece_by_piece(bits: int, tmp_path: Path) -> None:
    a, b = packed(tmp_path / "a.safetensors", bits, 1), packed(tmp_path / "b.safetensors", 8, 2)
    save_file({name: value.bfloat16() for name, value in b.items()}, tmp_path / "plain.safetensors")
    for second, values in (("b", b), ("plain", load_weights(tmp_path / "plain.safetensors"))):
        recipe = Recipe(Merge("lerp", (model(tmp_path / "a.safetensors"), model(tmp_path / f"{second}.safetensors")), {"t": T}), dtype="fp16")
        assert max(job.count for job in plan(recipe).jobs) == PIECE < a["w"].numel()
        made = load_file(merge(recipe, tmp_path / "m.safetensors"))
        assert made.keys() == a.keys()
        assert all(torch.equal(made[name], torch.lerp(a[name], values[name], T).half()) for name in a)
        assert verify(tmp_path / "m.safetensors").differing == ()


@pytest.mark.parametrize("bits", [8, 4])
def test_every_way_to_make_a_tensor_reads_them(bits: int, tmp_path: Path) -> None:
    """Copied, and looked at before it is made: as of files that were not packed; in fp32 if nothing else is asked for."""
    for seed, name in enumerate("ab"):
        save_file(packed(tmp_path / f"{name}.safetensors", bits, seed), tmp_path / f"{name}_plain.safetensors")

    def made(suffix: str, kind: str) -> dict[str, Tensor]:
        a, b = (model(tmp_path / f"{name}{suffix}.safetensors") for name in "ab")
        root: Node = a if kind == COPY else Merge("slerp", (a, b), {"t": T})
        assert kind in {job.kind for job in plan(Recipe(root)).jobs}
        return load_file(merge(root, tmp_path / "m.safetensors"))

    for kind in (COPY, STEPS):
        found, wanted = made("", kind), made("_plain", kind)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) and value.dtype == torch.float32 for name, value in found.items())


def test_parts_of_packed_tensors_are_found_in_other_layouts(tmp_path: Path) -> None:
    """The rows of query, key and value of OpenCLIP's one tensor, and its projection, which lies the other way round."""
    texts = [sd.text_model(64, 16, projection=16, seed=seed, layers=2) for seed in range(2)]
    one, two = (sd.open_clip(text, "conditioner.embedders.1.") for text in texts)
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    values = pack(a, one)
    save_file({f"text_encoder_2.{name}": value.contiguous() for name, value in texts[1].state_dict().items()}, b)
    made = load_file(merge(Merge("lerp", (model(a), model(b)), {"t": T}), tmp_path / "m.safetensors"))
    assert made.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(made[name], value if name.endswith("logit_scale") else torch.lerp(value, two[name], T)), name


def test_mame_and_a_fine_tune_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command: the built-in model by its name, the other a folder as training writes it; the result is plain, and verified."""
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    mame = load_weights(find_model("mame").folder / "transformer" / WEIGHTS)
    Path("tuned/transformer").mkdir(parents=True)
    tuned = pack(Path("tuned/transformer") / WEIGHTS, {name: value * 1.01 for name, value in mame.items()})
    inputs = [{"model": name, "component": "transformer"} for name in ("mame", "tuned")]
    Path("mine.yaml").write_text(yaml.safe_dump({"root": {"method": "lerp", "inputs": inputs, "t": T}, "dtype": "fp16"}))
    done = CliRunner().invoke(main, ["merge", "mine.yaml", "-o", "out"])
    assert done.exit_code == 0, done.output
    made = load_file(Path("out/transformer") / WEIGHTS)
    assert made.keys() == mame.keys() and Path("out/transformer/config.json").is_file()
    assert all(torch.equal(value, torch.lerp(mame[name], tuned[name], T).half()) for name, value in made.items())
    done = CliRunner().invoke(main, ["merge", "verify", "out"])
    assert done.exit_code == 0 and "2 inputs, every byte" in done.stdout, done.output


def test_a_packed_tensor_whose_scale_is_gone_is_told(tmp_path: Path) -> None:
    packed(tmp_path / "a.safetensors", 8, 1)
    raw = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(raw.replace(b'"w.scale"', b'"w.scare"'))
    with pytest.raises(WeightsError, match="without values or scale: w"):
        merge(model(tmp_path / "a.safetensors"), tmp_path / "m.safetensors")
