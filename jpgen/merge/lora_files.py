"""LoRA files with each other: their exact sum, or one of a smaller rank; what a file holds. By kohya's names or those of diffusers and peft."""

from __future__ import annotations

import json
import logging
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jpgen.errors import SettingError, WeightsError
from jpgen.lora import DENOISER, Adapter, Change, read_adapter, some
from jpgen.lora_modules import LDM, RESNET
from jpgen.merge.files import write_tensors
from jpgen.merge.keys import Moved, Slice
from jpgen.merge.low_rank import of_product, truncated
from jpgen.safety import Stored, check_safetensors, sha256_of

log = logging.getLogger("jpgen")

KEYS = ("kohya", "peft")

PROVENANCE = "jpgen.lora"
"""Metadata: what was done to which files (name, SHA-256, weight), as JSON."""

STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

PREFIXES = {
    "kohya": {DENOISER: "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"},
    "peft": {DENOISER: "unet.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2.", "text_encoder_3": "text_encoder_3."},
}  # fmt: skip

ARCHITECTURES = {
    "sd1": ("stable-diffusion-v1/lora", "sd_v1"), "sd2": ("stable-diffusion-v2-768-v/lora", "sd_v2"),
    "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"), "flux": ("flux-1-dev/lora", "flux1"), "pixart": ("pixart/lora", "pixart"),
}  # fmt: skip
"""Family -> modelspec.architecture, ss_base_model_version."""

TWO_LAYERS = ("sd", "sd1", "sd2", "sdxl")
"""Families whose U-Nets have two layers in a level: so LDM's numbers of blocks tell diffusers'."""


@dataclass(frozen=True)
class Factors:
    """What a file is to hold of one module: B [out, rank …] and A [rank, in …] whose product is the delta, or whole deltas."""

    part: str
    module: str
    up: Tensor | None = None
    down: Tensor | None = None
    diff: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """0 where there are no factors."""
        return 0 if self.down is None else self.down.shape[0]


@dataclass(frozen=True)
class Module:
    """A module of a file, as `show` tells of it; `norm` is that of the delta (Frobenius), None where it depends on the weights (DoRA)."""

    part: str
    name: str
    kind: str
    rank: int
    norm: float | None


def merge_loras(
    loras: Sequence[tuple[Path, float]],
    output: Path,
    *,
    rank: int | None = None,
    keys: str = "",
    dtype: torch.dtype = torch.float32,
    allow_unmatched: bool = False,
) -> int:
    """Write Σ wᵢ·ΔWᵢ of some files as one LoRA; returns how many modules it has, which are all of them.

    Without `rank` the sum is exact: the factors of each module stand side by side, ranks add up. With it, the best of that rank (truncated SVD).
    `keys` "kohya" or "peft" (""; as the first file). With `allow_unmatched`, keys of unknown kinds and modules that cannot be added up are left out,
    with a warning that names them. Raises WeightsError for files of different families or shapes, and for kinds that are no sum of factors: DoRA at
    any rank, LoHa, LoKr and whole deltas of matrices without a rank.

        >>> merge_loras([(Path("a.safetensors"), 0.6), (Path("b.safetensors"), 0.4)], Path("ab.safetensors"))  # doctest: +SKIP
        788
    """
    _require_settings(rank, keys)
    adapters = [(read_adapter(path, allow_unknown=allow_unmatched), weight) for path, weight in loras]
    families = {adapter.family for adapter, _ in adapters} - {"unknown"}
    if not adapters or len(families) > 1:
        told = ", ".join(f"{adapter.path} ({adapter.family})" for adapter, _ in adapters) or "none given"
        raise WeightsError(f"系統の違う LoRA は混ぜられません / LoRAs of one family are wanted, these are: {told}")
    if any(path.resolve() == output.resolve() for path, _ in loras):
        raise SettingError(f"{output}: 入力と出力が同じです / the output is one of the inputs: name another")
    first = adapters[0][0]
    groups: dict[tuple[str, str], list[tuple[Change, float]]] = {}
    for adapter, weight in adapters:
        for change in adapter.changes:
            groups.setdefault((change.part, common_name(change.part, change.module, adapter.layout.variant)), []).append((change, weight))
    faults: list[str] = []
    made = [factors for changes in groups.values() if (factors := _summed(changes, rank, faults))]
    if faults and allow_unmatched and made:
        log.warning("足せないので除いたモジュール / %d modules left out: %s", len(faults), some(faults, "; "))
    elif faults:
        raise WeightsError(f"足せないモジュールが {len(faults)} 個あります / {len(faults)} modules cannot be added up: {some(faults, '; ')}")
    inputs = [{"name": path.name, "sha256": sha256_of(path), "weight": weight} for path, weight in loras]
    done = {"operation": "merge" if len(loras) > 1 else "resize", "inputs": inputs, "rank": rank}
    spelling = keys or ("peft" if _is_dotted(first) else "kohya")
    write_lora(output, made, variant=first.layout.variant, keys=spelling, dtype=dtype, told=done)
    return len(made)


def resize_lora(path: Path, output: Path, *, rank: int, keys: str = "", dtype: torch.dtype = torch.float32) -> int:
    """Write a LoRA's best approximation of this rank (truncated SVD of each delta); returns how many modules it has. Raises WeightsError."""
    return merge_loras([(path, 1.0)], output, rank=rank, keys=keys, dtype=dtype)


def show(path: Path) -> tuple[Adapter, list[Module]]:
    """A LoRA file and its modules; raises WeightsError if it is none."""
    adapter = read_adapter(path)
    return adapter, [_shown(change) for change in adapter.changes]


def write_lora(
    path: Path, modules: Sequence[Factors], *, variant: str, keys: str, dtype: torch.dtype, told: Mapping[str, object]
) -> Path:
    """Write modules as a LoRA file with kohya's metadata, modelspec and what `told` says of its making; atomic, the same bytes for the same input.

    Raises WeightsError for kohya names (underscores) that are to be written as peft's, whose dots they do not tell.
    """
    if keys == "peft" and (flat := [one.module for one in modules if re.search(r"_\d+(_|$)", one.module)]):
        raise WeightsError(f"ドット区切りの名前が分かりません / names with dots cannot be told from kohya's: {some(flat)}; write keys of kohya")
    rank = max((one.rank for one in modules), default=0)
    tensors: dict[str, Tensor] = {}
    for one in modules:
        tensors |= _named(one, keys, rank, variant)
    stored = {name: tensor if name.endswith(".alpha") else tensor.to(dtype) for name, tensor in tensors.items()}
    if bad := [name for name, tensor in stored.items() if not bool(torch.isfinite(tensor).all())]:
        raise WeightsError(f"{len(bad)} 個が有限でなくなりました / {len(bad)} tensors are not finite as {dtype}: {some(bad)}; write fp32")
    architecture, version = ARCHITECTURES.get(variant, (f"{variant}/lora", variant))
    conv = max((one.rank for one in modules if one.down is not None and one.down.dim() == 4), default=0)
    metadata = {
        "format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(float(rank)),
        "ss_network_args": json.dumps({"conv_dim": str(conv), "conv_alpha": str(float(conv))} if conv else {}), "ss_base_model_version": version,
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": architecture, "modelspec.title": path.stem,
        "modelspec.implementation": "diffusers" if keys == "peft" else "https://github.com/Stability-AI/generative-models",
        PROVENANCE: json.dumps(told, ensure_ascii=False, sort_keys=True),
    }  # fmt: skip
    plan = {name: Moved(Stored(STORED[tensor.dtype], tuple(tensor.shape)), (Slice(name),)) for name, tensor in stored.items()}
    return write_tensors(path, plan, lambda one: stored[one.source], metadata=metadata)


def common_name(part: str, module: str, variant: str) -> str:
    """A module's name as all spellings have it: underscores, diffusers' names.

    >>> common_name("denoiser", "input_blocks_4_1_proj_in", "sdxl"), common_name("denoiser", "down_blocks.1.attentions.0.proj_in", "sdxl")
    ('down_blocks_1_attentions_0_proj_in', 'down_blocks_1_attentions_0_proj_in')
    """
    name = module.replace(".processor.", ".").replace("_processor_", "_").replace(".", "_").removeprefix("text_model_")
    name = re.sub(r"to_out$|to_out_lora$", "to_out_0", name) if part == DENOISER else name
    if part != DENOISER or variant not in TWO_LAYERS:
        return name
    flat = {theirs: ours.replace(".", "_") for ours, theirs in LDM.items()}
    found = re.fullmatch(r"(input|output|middle)_block(?:s_(\d+))?_(\d+)_(.+)", name)
    if name in flat or not found:
        return flat.get(name, name)
    side, block, within, inner = found[1], int(found[2] or 0), int(found[3]), found[4]
    parts = {theirs: ours for ours, theirs in RESNET.items()}
    if side == "middle":
        return f"mid_block_attentions_0_{inner}" if within == 1 else f"mid_block_resnets_{within // 2}_{parts.get(inner, inner)}"
    level, layer = divmod(block - (side == "input"), 3)
    if inner in ("op", "conv"):
        return f"down_blocks_{level}_downsamplers_0_conv" if side == "input" else f"up_blocks_{level}_upsamplers_0_conv"
    kind = f"attentions_{layer}_{inner}" if within == 1 else f"resnets_{layer}_{parts.get(inner, inner)}"
    return f"{'down' if side == 'input' else 'up'}_blocks_{level}_{kind}"


def seeded(name: str) -> torch.Generator:
    """A generator for this tensor: the same on every run."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def split(up: Tensor, down: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Factors [out, rank] and [rank, in·kernel] as those of a weight of this shape: of a kernel [out, rank, 1, 1] and [rank, in, kernel]."""
    ones = (1,) * (len(shape) - 2)
    return up.reshape(*up.shape, *ones).contiguous(), down.reshape(len(down), *shape[1:]).contiguous()


def _summed(changes: Sequence[tuple[Change, float]], rank: int | None, faults: list[str]) -> Factors | None:
    """The sum of changes of one module; a fault is noted if they have none."""
    change = changes[0][0]
    weighted = [(one, weight) for one, weight in changes if one.changes_weight]
    biases = [one.bias_delta() * weight for one, weight in changes if one.changes_bias]
    bias = torch.stack(biases).sum(0) if biases and len({tuple(one.shape) for one in biases}) == 1 else None
    shapes = {one.shape() for one, _ in weighted}
    if any(one.factors.keys() & {"dora_scale", "magnitude"} for one, _ in changes):
        faults.append(f"{change.module} is DoRA, whose delta depends on the weights: extract one from the fused model instead")
    elif (biases and bias is None) or len({(shape[0], *_sides(shape)) for shape in shapes}) > 1:
        faults.append(f"{change.module} has deltas of {' and '.join(str(list(shape)) for shape in sorted(shapes))}")
    elif not weighted:
        return Factors(change.part, change.module, bias=bias)
    else:
        shape = max(shapes, key=len)
        pairs = [pair for one, weight in weighted if (pair := _pair(one, weight)) is not None]
        if len(pairs) == len(weighted):
            up, down = torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs])
            if rank is not None and rank < len(down):
                up, down = of_product(up, down, rank)
            return Factors(change.part, change.module, *split(up, down, shape), bias=bias)
        whole = torch.stack([one.delta(torch.zeros(shape)) * weight for one, weight in weighted]).sum(0)
        if len(shape) == 1 or all("diff" in one.factors for one, _ in weighted):
            return Factors(change.part, change.module, diff=whole, bias=bias)
        if rank is not None:
            return Factors(change.part, change.module, *split(*truncated(whole.flatten(1), rank, generator=seeded(change.module)), shape), bias=bias)
        kinds = " and ".join(sorted({_kind(one) for one, _ in weighted}))
        faults.append(f"{change.module} is {kinds}, which no factors add up to exactly: give a rank")
    return None


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A kernel of one pixel is a matrix."""
    return shape[1:2] if all(side == 1 for side in shape[2:]) else shape[1:]


def _pair(change: Change, weight: float) -> tuple[Tensor, Tensor] | None:
    """B [out, rank], with all scales, and A [rank, in·kernel]; None for another kind. A Tucker core becomes part of A, which loses nothing."""
    f = {name: tensor.float() for name, tensor in change.factors.items()}
    if "lora_up" not in f:
        return None
    down = f["lora_down"].flatten(1)
    if "lora_mid" in f:
        down = torch.einsum("mn...,ni->mi...", f["lora_mid"], down).flatten(1)
    return f["lora_up"].flatten(1) * (change.scale * weight), down


def _named(one: Factors, keys: str, rank: int, variant: str) -> dict[str, Tensor]:
    prefix = PREFIXES[keys][one.part]
    if one.part == DENOISER and keys == "peft" and variant in ("flux", "pixart", "dit"):
        prefix = "transformer."
    if one.part == "text_encoder" and keys == "kohya" and variant in ("sd1", "sd2", "sd"):
        prefix = "lora_te_"
    module = prefix + (one.module.replace(".", "_") if keys == "kohya" else one.module)
    made: dict[str, Tensor] = {}
    if one.up is not None and one.down is not None:
        up, down = one.up, one.down
        if keys == "kohya":
            made |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down, f"{module}.alpha": torch.tensor(float(len(down)))}
        else:  # peft takes one rank and one α for all: shorter factors are filled with zeros
            short = rank - len(down)
            up = torch.cat([up, up.new_zeros(up.shape[0], short, *up.shape[2:])], 1) if short else up
            down = torch.cat([down, down.new_zeros(short, *down.shape[1:])]) if short else down
            made |= {f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down}
    made |= {f"{module}.diff": one.diff} if one.diff is not None else {}
    return made | ({f"{module}.diff_b": one.bias} if one.bias is not None else {})


def _shown(change: Change) -> Module:
    kind = _kind(change)
    ranked = [change.factors[name].shape[0] for name in ("lora_down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if name in change.factors]
    norm: float | None = None
    if (pair := _pair(change, 1.0)) is not None and kind != "DoRA":  # ‖BA‖² = ⟨BᵀB, AAᵀ⟩
        up, down = pair[0].double(), pair[1].double()
        norm = float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())
    elif kind not in ("DoRA", "bias"):
        norm = float(change.delta(torch.zeros(change.shape())).norm())
    elif kind == "bias":
        norm = float(change.bias_delta().norm())
    return Module(change.part, change.module, kind, ranked[0] if ranked else 0, norm)


def _kind(change: Change) -> str:
    f = change.factors
    if f.keys() & {"dora_scale", "magnitude"}:
        return "DoRA"
    if "lora_down" in f:
        return "LoCon" if "lora_mid" in f or math.prod(f["lora_down"].shape[2:]) > 1 else "LoRA"
    if "hada_w1_a" in f:
        return "LoHa"
    return "diff" if "diff" in f else "LoKr" if any(name.startswith("lokr") for name in f) else "bias"


def _is_dotted(adapter: Adapter) -> bool:
    return any(name.endswith(("lora_A.weight", "lora_A.default.weight")) for name in check_safetensors(adapter.path).tensors)


def _require_settings(rank: int | None, keys: str) -> None:
    if rank is not None and rank < 1:
        raise SettingError(f"rank = {rank} は 1 以上にしてください / rank {rank}: wanted 1 or more")
    if keys not in ("", *KEYS):
        raise SettingError(f"keys {keys!r} はありません / there are no keys {keys!r}: {' or '.join(KEYS)}")
