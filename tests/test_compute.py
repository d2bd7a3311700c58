"""Device, number type and offloading by capability, on machines that are only pretended."""

from pathlib import Path

import pytest
import torch

from jpgen import compute, doctor
from jpgen.compute import best_device, best_dtype, memory_available, needs_tiles, offload

GIB = 2**30


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: tuple[int, int] | None = None, mps: bool = False, native: str = "", free: int = 8 * GIB
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device=None: "GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device=None: (free, 24 * GIB))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native == "amx")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native == "avx512")


@pytest.mark.parametrize(("native", "dtype"), [("", torch.float32), ("amx", torch.bfloat16), ("avx512", torch.bfloat16)])
def test_a_cpu(monkeypatch: pytest.MonkeyPatch, native: str, dtype: torch.dtype) -> None:
    machine(monkeypatch, native=native)
    assert (best_device().type, best_dtype()) == ("cpu", dtype)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((5, 2), torch.float32), ((5, 3), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype) -> None:
    machine(monkeypatch, cuda=capability)
    assert (best_device().type, best_dtype(best_device())) == ("cuda", dtype)
    assert memory_available("cuda") == 8 * GIB


def test_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=(7, 0))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert best_dtype("cuda") is torch.bfloat16


def test_apple(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    assert (best_device().type, best_dtype("mps")) == ("mps", torch.float16)


def test_memory_is_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory_available() < 2**50
    assert compute.cores() >= 1
    for name, text in (("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 400\ninactive_file 200\n")):
        (tmp_path / name).write_text(text)
    assert compute._container_memory(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert compute._container_memory(tmp_path) is None
    assert compute._container_memory(tmp_path / "none") is None
    monkeypatch.setattr(compute, "_system_memory", lambda: None)
    monkeypatch.setattr(compute, "_container_memory", lambda: None)
    assert memory_available() == 0


@pytest.mark.parametrize(
    ("free", "device", "advice"), [(24, "cuda", "none"), (8, "cuda", "model"), (4, "cuda", "sequential"), (4, "cpu", "none"), (4, "mps", "none")]
)
def test_offload(free: int, device: str, advice: str) -> None:
    assert offload(largest=5 * GIB, total=7 * GIB, free=free * GIB, device=device) == advice


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ({"cuda": (8, 9), "free": 8 * GIB}, {"device": "cuda (GPU, 8.9)", "dtype": "bfloat16", "offload": "model"}),
        ({"cuda": (5, 0), "free": 3 * GIB}, {"dtype": "float32", "offload": "sequential"}),
        ({"mps": True}, {"device": "mps", "dtype": "float16", "offload": "none"}),
        ({"native": "amx"}, {"device": "cpu", "dtype": "bfloat16"}),
        ({}, {"device": "cpu", "dtype": "float32"}),
    ],
)
def test_the_doctor_says_what_was_chosen_and_why(monkeypatch: pytest.MonkeyPatch, kind: dict[str, object], wanted: dict[str, str]) -> None:
    machine(monkeypatch, **kind)  # type: ignore[arg-type]
    found = {finding.name: finding for finding in doctor.examine()}
    assert {name: found[name].value for name in wanted} == wanted
    assert all(found[name].why for name in wanted)
    assert torch.__version__.split("+")[0] in found["libraries"].value


def test_the_doctor_names_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2.6", "torch>=2.6; extra == 'demo'", "nosuchthing[x]>=1; extra == 'batch'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _name: wanted)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["extra:demo"].value == "あり / installed"
    assert found["extra:batch"].value == "なし / missing: nosuchthing"
    assert "jpgen[batch]" in found["extra:batch"].why


def test_the_doctor_warns_of_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    monkeypatch.setattr(compute, "_system_memory", lambda: 2 * GIB)
    assert "too little for SDXL" in {finding.name: finding for finding in doctor.examine()}["memory"].why


def test_a_large_picture_is_decoded_in_pieces_where_memory_is_short() -> None:
    assert not needs_tiles(1024 * 1024, 128, 2, free=8 * GIB)
    assert needs_tiles(1024 * 1024, 128, 2, free=2 * GIB)
    assert needs_tiles(4096 * 4096, 128, 2, free=8 * GIB)
    assert not needs_tiles(4096 * 4096, 128, 2, free=0)  # nobody can tell
