"""What this machine computes well: the one place that chooses device, number type and offloading, by capability."""

from __future__ import annotations

import os
from pathlib import Path

import torch

HALF_CAPABILITY = (5, 3)
"""The first CUDA capability that computes in fp16."""

BF16_CAPABILITY = (8, 0)
"""The first CUDA capability that computes in bf16 natively."""

ACTIVATIONS = 2 * 2**30
"""Bytes that sampling a picture of 1,024 pixels wants besides the weights."""


DECODING = 3 * 256
"""Numbers a pixel that AutoencoderKL holds at once where it holds most: three maps of 256 channels at full size."""


def best_device() -> torch.device:
    """CUDA (or ROCm) where it is, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bf16 where the device multiplies it natively (a CPU with AMX or AVX-512 BF16, CUDA from 8.0 on), else fp16 (CUDA, MPS) or fp32 (CPU).

    On a CPU without native support bf16 is many times slower than fp32.
    """
    match torch.device(device).type:
        case "cuda":
            capability = torch.cuda.get_device_capability(device)
            if torch.version.hip or capability >= BF16_CAPABILITY:
                return torch.bfloat16
            return torch.float16 if capability >= HALF_CAPABILITY else torch.float32
        case "mps":
            return torch.float16
        case "cpu":
            return torch.bfloat16 if has_amx() or has_avx512_bf16() else torch.float32
    return torch.float32


def has_amx() -> bool:
    """Whether this CPU has AMX tiles."""
    return bool(torch.cpu._is_amx_tile_supported())


def has_avx512_bf16() -> bool:
    """Whether this CPU has AVX-512 BF16."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_available(device: torch.device | str = "cpu") -> int:
    """Bytes that are free on the device; of the CPU what can be had without swapping, within the limit of a container. 0 if nobody can tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [found for found in (_system_memory(), _container_memory()) if found is not None]
    return min(free, default=0)


def offload(largest: int, total: int, free: int, device: torch.device | str) -> str:
    """How weights of `total` bytes, the largest part `largest`, go onto a device with `free` bytes, as diffusers calls it.

    "none": all of it stays there. "model": a part at a time (`enable_model_cpu_offload`). "sequential": a layer at a time
    (`enable_sequential_cpu_offload`), several times slower. A device that shares the CPU's memory never offloads.

        >>> offload(largest=5 * 2**30, total=7 * 2**30, free=8 * 2**30, device="cuda")
        'model'
    """
    if torch.device(device).type != "cuda" or total + ACTIVATIONS <= free:
        return "none"
    return "model" if largest + ACTIVATIONS <= free else "sequential"


def wants_tiles(pixels: int, itemsize: int, free: int) -> bool:
    """Whether decoding so many pixels, `itemsize` bytes a number, wants more than the `free` bytes (0: nobody can tell, so no).

        >>> wants_tiles(pixels=1024 * 1024, itemsize=4, free=2 * 2**30)
        True
    """
    return 0 < free < DECODING * itemsize * pixels


def _system_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:  # macOS and the BSDs tell only how much there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _container_memory(place: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the cgroup (version 2) of a container leaves; file pages it could drop count as free."""
    try:
        limit = (place / "memory.max").read_text("ascii").strip()
        if limit == "max":
            return None
        used = int((place / "memory.current").read_text("ascii"))
        rows = dict(line.split() for line in (place / "memory.stat").read_text("ascii").splitlines())
        return max(0, int(limit) - used + int(rows.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
