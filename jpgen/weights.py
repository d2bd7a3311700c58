"""Weight files: safetensors in and out, written atomically, optionally in 8 or 4 bits.

Quantised tensors keep their name and gain a sibling `<name>.scale`: 8 bits are int8 rows with one fp32 scale a row; 4 bits are two
nibbles a byte (zero point 8) with one fp16 scale for every 32 values, the first half of a block in the low nibbles. The file's metadata
(`jpgen.quantized`) gives bits and shape of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jpgen.errors import WeightsError

BLOCK = 32
"""Values that share a scale in 4 bits."""

METADATA_KEY = "jpgen.quantized"
SCALE = ".scale"


WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file name of diffusers' weights."""


def eight_bit_matrices(_name: str, tensor: Tensor) -> int:
    """8 bits for matrices and kernels of 4,096 values or more, 32 for the rest: the choice that costs nothing visible."""
    return 8 if tensor.dim() >= 2 and tensor.numel() >= 4096 else 32


def save_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    bits: Callable[[str, Tensor], int] = lambda _name, _tensor: 16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to `path` by way of a temporary file in the same folder; `bits(name, tensor)` chooses 4, 8, 16 (bf16) or 32 for each."""
    stored: dict[str, Tensor] = {}
    quantized: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        width = bits(name, tensor)
        if width in (4, 8):
            packed, scale = (_pack8 if width == 8 else _pack4)(tensor.float())
            stored[name], stored[name + SCALE] = packed, scale
            quantized[name] = {"bits": width, "shape": list(tensor.shape)}
        else:
            stored[name] = tensor.to(torch.float32 if width == 32 else torch.bfloat16).contiguous()
    header = {"format": "pt", **(metadata or {})}
    if quantized:
        header[METADATA_KEY] = json.dumps(quantized)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(stored, partial, metadata=header)
        partial.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(partial, path)
    except OSError as error:
        raise WeightsError(f"{path} に書き込めません / cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load_weights(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The tensors of `path` as `dtype`, quantised ones unpacked; raises WeightsError if the file is missing, damaged or inconsistent."""
    try:
        with safe_open(path, framework="pt") as file:
            quantized = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            names = set(file.keys())
            missing = [name for name in quantized if name not in names or name + SCALE not in names]
            if missing:
                raise WeightsError(f"{path}: quantised tensors without values or scale: {', '.join(missing[:5])}; fetch the file again")
            scales = {name + SCALE for name in quantized}
            loaded = {}
            for name in sorted(names - scales):
                tensor = file.get_tensor(name)
                if entry := quantized.get(name):
                    unpack = _unpack8 if entry["bits"] == 8 else _unpack4
                    tensor = unpack(tensor, file.get_tensor(name + SCALE)).reshape(entry["shape"])
                loaded[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
            return loaded
    except FileNotFoundError as error:
        raise WeightsError(f"{path} がありません / no weight file {path}; install jpgen again or fetch the model again") from error
    except (SafetensorError, OSError, json.JSONDecodeError, RuntimeError) as error:
        raise WeightsError(f"{path} は壊れています / damaged weight file {path} ({error}); fetch it again") from error


def _pack8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    rows = tensor.reshape(tensor.shape[0], -1)
    scale = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-30)
    return (rows / scale).round().clamp(-127, 127).to(torch.int8), scale


def _unpack8(packed: Tensor, scale: Tensor) -> Tensor:
    return packed.float() * scale.float()


def _pack4(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Nibbles 0–15 for −8…7 times the scale; exact for tensors that were quantised so before (their largest magnitude is −8 or 7 times it)."""
    blocks = tensor.reshape(-1, BLOCK)
    scale = _scale4(blocks)
    values = ((blocks / scale.float()).round().clamp(-8, 7) + 8).to(torch.uint8)
    low, high = values.split(BLOCK // 2, dim=1)
    return low | (high << 4), scale


def _scale4(blocks: Tensor) -> Tensor:
    """For each block the fp16 scale, of max/−8, max/7 and max/8 by magnitude, that loses least."""
    peak = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    best = torch.zeros_like(peak)
    least = torch.full_like(peak, torch.inf)
    for divisor in (-8.0, 7.0, -7.0, 8.0):
        scale = (peak / divisor).half().float()
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        error = ((blocks / scale).round().clamp(-8, 7) * scale - blocks).square().sum(dim=1, keepdim=True)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best.half()


def _unpack4(packed: Tensor, scale: Tensor) -> Tensor:
    values = torch.cat([packed & 15, packed >> 4], dim=1).float() - 8
    return values * scale.float()
