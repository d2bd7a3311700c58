"""Weight files: exact where they say so, near where they say 8 or 4 bits, whole or absent."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jpgen.errors import WeightsError
from jpgen.weights import BLOCK, load_weights, save_weights


def test_exact_and_bf16(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(4)}
    save_weights(tmp_path / "w.safetensors", {"a": tensors["a"]}, bits=lambda *_: 32)
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], tensors["a"])
    save_weights(tmp_path / "w.safetensors", {"a": tensors["a"]})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], tensors["a"].bfloat16().float())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), scale=st.sampled_from([1e-4, 1.0, 50.0]))
def test_eight_bits_err_by_half_a_step_at_most(tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, scale: float) -> None:
    value = torch.randn(rows, 3, 7, generator=torch.Generator().manual_seed(seed)) * scale
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_weights(path, {"a": value}, bits=lambda *_: 8)
    step = value.abs().amax(dim=(1, 2), keepdim=True) / 127
    assert bool(((load_weights(path)["a"] - value).abs() <= 0.56 * step + 1e-6).all())


def test_four_bits_give_back_what_was_four_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(64, 1, generator=generator).half().float() + 0.01
    scale = scale.half().float()
    nibbles = torch.randint(-8, 8, (64, BLOCK), generator=generator).float()
    nibbles[:, 0] = -8  # the peak that such quantisers always use
    value = (nibbles * scale).reshape(32, 64)
    save_weights(tmp_path / "w.safetensors", {"a": value}, bits=lambda *_: 4)
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], value)


def test_zeros_survive(tmp_path: Path) -> None:
    for bits in (4, 8):
        save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(4, 64)}, bits=lambda *_, bits=bits: bits)
        assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], torch.zeros(4, 64))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(WeightsError, match="No space"):
        save_weights(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_damage_is_explained(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(64)})
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[:-7])
        case "text":
            path.write_text("not weights")
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert "w.safetensors" in str(caught.value)


def test_a_scale_that_is_gone_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2, 64)}, bits=lambda *_: 8)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    del tensors["a.scale"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(WeightsError, match="scale"):
        load_weights(path)
