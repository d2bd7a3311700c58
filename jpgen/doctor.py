"""What jpgen found on this machine, what it chose and why, a line each: `jpgen doctor`."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata

import torch

from jpgen import compute
from jpgen.catalog import USER_FILE, user_file
from jpgen.models import hub_folder, license_file

LIBRARIES = ("torch", "diffusers", "transformers", "huggingface_hub", "safetensors", "accelerate", "peft")
GIB = 2**30
NONE = "なし / none"
SDXL_BF16 = 7 * GIB
"""Bytes of SDXL's weights in 16 bits."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: its key, its title, what was found or chosen, and why or what to do about it."""

    name: str
    title: str
    value: str
    why: str = ""


def examine() -> list[Finding]:
    """All findings, those about choices first."""
    device = compute.best_device()
    return [
        _device(device), _dtype(device), _cpu(), _memory(device), _offload(device), *_libraries(), *_places(), *_extras(),
    ]  # fmt: skip


def _device(device: torch.device) -> Finding:
    if device.type == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return Finding("device", "計算する場所 / device", f"cuda ({name}, {major}.{minor})", "GPU がある / a GPU is there")
    if device.type == "mps":
        return Finding("device", "計算する場所 / device", "mps", "Apple の GPU がある / Apple's GPU is there")
    blind = not torch.version.cuda and not torch.version.hip
    why = "この torch は GPU 用ではない / this torch is built without a GPU" if blind else "torch から GPU が見えない / torch sees no GPU"
    return Finding("device", "計算する場所 / device", "cpu", why)


def _dtype(device: torch.device) -> Finding:
    dtype = compute.best_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if device.type != "cpu":
        fast = dtype != torch.float32
        why = "この GPU で速い 16 ビット / the 16 bits that this GPU computes fast" if fast else "古い GPU / the GPU has no fast 16 bits"
    elif dtype == torch.bfloat16:
        why = "CPU に AMX か AVX-512 BF16 がある / the CPU multiplies bf16 natively"
    else:
        why = "CPU に AMX も AVX-512 BF16 もなく、bf16 はかえって何倍も遅い / without AMX or AVX-512 BF16, bf16 would be many times slower"
    return Finding("dtype", "数の形式 / number type", name, why)


def _cpu() -> Finding:
    has = [name for name, there in (("AMX", compute.has_amx()), ("AVX-512 BF16", compute.has_avx512_bf16())) if there]
    threads = torch.get_num_threads()
    few = threads < compute.cores()
    why = f"torch は {threads} スレッド（OMP_NUM_THREADS を増やすと速くなる） / torch uses {threads}: raise OMP_NUM_THREADS" if few else ""
    return Finding("cpu", "CPU", f"{compute.cores()} コア / cores, {', '.join(has) or 'AMX なし / no AMX'} ({platform.machine()})", why)


def _memory(device: torch.device) -> Finding:
    free = compute.memory_available()
    value = f"{free / GIB:.1f} GiB 空き / free" if free else "不明 / unknown"
    if device.type == "cuda":
        value += f", GPU {compute.memory_available(device) / GIB:.1f} GiB"
    why = "SDXL には足りない。mame か SD 1.5 を / too little for SDXL: use mame or SD 1.5" if 0 < free < SDXL_BF16 else ""
    return Finding("memory", "メモリ / memory", value, why)


def _offload(device: torch.device) -> Finding:
    free = compute.memory_available(device)
    advice = compute.offload(largest=5 * GIB, total=SDXL_BF16, free=free, device=device)
    room = "重みがそのまま載る / the weights fit" if device.type == "cuda" else "CPU と同じメモリなので不要 / the device shares the CPU's memory"
    why = {
        "none": room,
        "model": "GPU のメモリが足りず、部品を一つずつ載せる / too little GPU memory: a part at a time",
        "sequential": "GPU のメモリがとても少なく、層を一つずつ載せる（遅い） / very little GPU memory: a layer at a time, slow",
    }[advice]
    return Finding("offload", "退避（SDXL の場合） / offloading of SDXL", advice, why)


def _libraries() -> list[Finding]:
    found = [f"{name} {_version(name)}" for name in LIBRARIES]
    return [
        Finding("python", "Python", platform.python_version(), sys.executable),
        Finding("libraries", "ライブラリ / libraries", ", ".join(found)),
    ]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NONE


def _places() -> list[Finding]:
    own = user_file()
    return [
        Finding("models", "取得したモデルの置き場 / fetched models", str(hub_folder()), "HF_HOME で変えられる / change it with HF_HOME"),
        Finding("catalog", "自分のカタログ / your catalogue", str(own) if own else NONE, f"{USER_FILE} か ~/.config/jpgen/models.toml"),
        Finding("licenses", "承諾した利用条件 / accepted terms", str(license_file()) if license_file().is_file() else NONE),
    ]


def _extras() -> list[Finding]:
    """A line for each extra of jpgen: installed, or what is missing; none where jpgen runs without having been installed."""
    try:
        required = metadata.requires("jpgen") or []
    except metadata.PackageNotFoundError:
        return [Finding("extras", "追加機能 / extras", "不明 / unknown", "jpgen はインストールされていない / jpgen runs without being installed")]
    wanted: dict[str, list[str]] = {}
    for line in required:
        if found := re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line):
            wanted.setdefault(found.group(1), []).append(re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0])
    lines = []
    for extra, names in wanted.items():
        missing = [name for name in names if _version(name) == NONE]
        value = "あり / installed" if not missing else f"なし / missing: {', '.join(missing)}"
        lines.append(Finding(f"extra:{extra}", f"追加機能 / extra {extra}", value, f"pip install 'jpgen[{extra}]'" if missing else ""))
    return lines
