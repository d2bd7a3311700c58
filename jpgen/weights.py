"""Weight files: safetensors in and out, checked and mapped when read, written atomically, optionally in 8 or 4 bits.

Quantised tensors keep their name and gain a sibling `<name>.scale`: 8 bits are int8 rows with one fp32 scale a row; 4 bits are two
nibbles a byte (zero point 8) with one fp16 scale for every 32 values, the first half of a block in the low nibbles. The file's metadata
(`jpgen.quantized`) gives bits and shape of each.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jpgen.errors import WeightsError
from jpgen.safety import Header, check_safetensors, read_json, refuse_pickle, refuse_pickles

BLOCK = 32
"""Values that share a scale in 4 bits."""

METADATA_KEY = "jpgen.quantized"
SCALE = ".scale"
SCALES = ("F32", "F16", "BF16")
"""Types a scale may have."""

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


def load_weights(path: Path, dtype: torch.dtype | None = torch.float32) -> dict[str, Tensor]:
    """The tensors of `path` as `dtype` (None: each as it is stored), quantised ones unpacked.

    Tensors that are stored in this type are mapped: their values stay in the file until they are read, and take no memory of their own.
    Raises WeightsError if the file is missing, damaged, inconsistent or no safetensors (see `jpgen.safety`).
    """
    return _read(path, check_safetensors(path), dtype)


def load_sharded(folder: Path, stem: str = "diffusion_pytorch_model", dtype: torch.dtype | None = torch.float32) -> dict[str, Tensor]:
    """The tensors of a model's folder as `load_weights` gives them: of `stem`.safetensors, of shards with an index, or of an fp16 or bf16 variant.

    A variant is taken where there is nothing else, or where its type is the wanted one. Raises WeightsError if there are no weights or only pickles,
    or if index and shards disagree; nothing is loaded before every header has been checked.
    """
    headers = {path: check_safetensors(path) for path in find_weights(folder, stem, dtype)}
    return {name: tensor for path, header in headers.items() for name, tensor in _read(path, header, dtype).items()}


def find_weights(folder: Path, stem: str = "diffusion_pytorch_model", dtype: torch.dtype | None = torch.float32) -> list[Path]:
    """The files that `load_sharded` reads, one or the shards; raises WeightsError as it does."""
    if not folder.is_dir():
        raise WeightsError(f"{folder} がありません / no folder {folder}; fetch the model again")
    wanted = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "") if dtype else ""
    for variant in dict.fromkeys((wanted, "", "fp16", "bf16")):
        dotted = f".{variant}" if variant else ""
        single = folder / f"{stem}{dotted}.safetensors"
        if os.path.lexists(single):
            return [single]
        for name in (f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json"):  # today's name, and the old one
            if os.path.lexists(folder / name):
                return _shards(folder / name)
    refuse_pickles(folder)
    there = sorted(path.name for path in folder.glob("*.safetensors*"))
    raise WeightsError(
        f"{folder} に {stem}.safetensors がありません / no {stem}.safetensors, no index of shards and no fp16 variant in {folder} "
        f"(there is: {', '.join(there[:3]) or 'nothing of the kind'}); fetch the model again"
    )


def _shards(index: Path) -> list[Path]:
    """The shards an index names, every one there and holding exactly the tensors it should; raises WeightsError naming all that is wrong."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise WeightsError(f"{index} は壊れています / damaged index {index}: its weight_map does not give a file for each tensor; fetch it again")
    names = sorted(set(places.values()))
    for name in names:
        refuse_pickle(PurePath(name))
        if "\0" in name or PurePosixPath(name).name != name or PureWindowsPath(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError(f"{index} の {name!r} は開きません / {index} names {name!r}: only .safetensors files beside the index are opened")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{index.parent} に {', '.join(missing[:5])} がありません / {len(missing)} of {len(names)} shards are missing: "
            f"{', '.join(missing[:5])}; fetch the model again"
        )
    there = {name: check_safetensors(index.parent / name).tensors for name in names}
    absent = [f"{tensor} (not in {name})" for tensor, name in sorted(places.items()) if tensor not in there[name]]
    stray = [f"{tensor} (in {name}, not in the index)" for name in names for tensor in there[name] if places.get(tensor) != name]
    if absent or stray:
        raise WeightsError(
            f"{index} と分割ファイルが合いません / index {index} and its shards disagree on {len(absent) + len(stray)} tensors: "
            f"{', '.join((absent + stray)[:5])}; fetch the model again"
        )
    return [index.parent / name for name in names]


def _read(path: Path, header: Header, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a file whose header has been checked."""
    quantized = packed_tensors(path, header)
    scales = {name + SCALE for name in quantized}
    loaded = {}
    try:
        with safe_open(path, framework="pt") as file:  # maps the file; a tensor is a view of the map
            for name in sorted(header.tensors.keys() - scales):
                tensor = file.get_tensor(name)
                if name in quantized:
                    bits, shape = quantized[name]
                    tensor = unpack(tensor, file.get_tensor(name + SCALE), bits).reshape(shape)
                loaded[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{path} は壊れています / damaged weight file {path} ({error}); fetch it again") from error
    return loaded


def packed_tensors(path: Path, header: Header) -> dict[str, tuple[int, list[int]]]:
    """Bits and shape of each quantised tensor of a file; raises WeightsError unless packed values, scale and shape fit together."""
    try:
        table = json.loads(header.metadata.get(METADATA_KEY, "{}"))
        quantized = {name: (entry["bits"], entry["shape"]) for name, entry in table.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} は壊れています / damaged weight file {path}: its {METADATA_KEY} cannot be read; fetch it again") from error
    missing = [name for name in quantized if name not in header.tensors or name + SCALE not in header.tensors]
    if missing:
        raise WeightsError(
            f"{path} は壊れています / damaged weight file {path}: quantised tensors without values or scale: {', '.join(missing[:5])}; fetch it again"
        )
    for name, (bits, shape) in quantized.items():
        packed, scale = header.tensors[name], header.tensors[name + SCALE]
        sides = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
        fits = bits in (4, 8) and sides and len(packed.shape) == 2 and scale.shape == (packed.shape[0], 1) and scale.dtype in SCALES
        fits = fits and (packed.dtype == "I8" if bits == 8 else packed.dtype == "U8" and packed.shape[1] == BLOCK // 2)
        if not fits or math.prod(shape) != math.prod(packed.shape) * 8 // bits:
            raise WeightsError(
                f"{path} は壊れています / damaged weight file {path}: quantised tensor {name} does not fit its bits, scale or shape; fetch it again"
            )
    return quantized


def unpack(packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """fp32 [rows, values] of rows packed in 8 or 4 bits and their scales [rows, 1]."""
    return (_unpack8 if bits == 8 else _unpack4)(packed, scale)


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
