"""Adapter files into deltas: what each module's weight gains, dense and in fp32, by the formula of the adapter's paper.

LoRA (Hu et al. 2021, arXiv 2106.09685); LoCon, its twin for convolutions, LoHa and LoKr (Yeh et al. 2023, arXiv 2309.14859); DoRA (Liu et al. 2024,
arXiv 2402.09353); whole deltas; the kinds of `jpgen.lora_relative`. Names of kohya's scripts, LyCORIS, diffusers and peft are read; which modules
they mean is for `jpgen.lora_modules`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jpgen.errors import WeightsError
from jpgen.layout import Layout, recognise
from jpgen.lora_relative import GLORA, IA3, OFT, RELATIVE, relative_delta, relative_shape, suits
from jpgen.safety import Header, check_safetensors
from jpgen.weights import load_weights

log = logging.getLogger("jpgen")

DENOISER = "denoiser"
"""The part that is a U-Net or a transformer; the others are `text_encoder`, `text_encoder_2` …"""

PREFIXES = (
    ("lora_unet_", DENOISER), ("lora_transformer_", DENOISER), ("lycoris_", DENOISER), ("oft_unet_", DENOISER), ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"), ("lora_te3_", "text_encoder_3"), ("lora_te_", "text_encoder"), ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", "text_encoder_3"), ("text_encoder.", "text_encoder"), ("unet.", DENOISER), ("transformer.", DENOISER),
    ("diffusion_model.", DENOISER), ("model.diffusion_model.", DENOISER), ("base_model.model.", ""),
)  # fmt: skip
"""What names begin with, and the part it means ("": says nothing); a name without is of the denoiser."""

FACTORS = (
    (r"\.(alpha|dora_scale|diff|diff_b|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)", r"\1"),
    (r"\.w_norm", "diff"), (r"\.b_norm", "diff_b"), (r"\.lora_(up|down|mid)\.weight", r"lora_\1"),
    (r"\.lora_A(?:\.default)?\.weight", "lora_down"), (r"\.lora_B(?:\.default)?\.weight", "lora_up"), (r"\.lora_B(?:\.default)?\.bias", "lora_bias"),
    (r"[._]lora\.(up|down)\.weight", r"lora_\1"), (r"\.lora_linear_layer\.(up|down)\.weight", r"lora_\1"),
    (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
    (r"\.(oft_blocks|rescale|ia3|on_input)", r"\1"), (r"\.([ab][12])\.weight", r"glora_\1"),
)  # fmt: skip
"""How names of tensors end, and the factor of which formula that is."""

KINDS = ("LoRA", "LoCon", "LoHa", "LoKr", "DoRA", "OFT", "BOFT", "IA3", "GLoRA", "diff")

LORA, LOHA = ({"lora_up", "lora_down"}, {"lora_mid"}), ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"})
SIDE = {"alpha", "dora_scale", "magnitude", "diff_b", "lora_bias"}
"""Factors that go with any kind."""

PEFT = "lora_adapter_metadata"
"""Where diffusers writes peft's configuration, in the file's metadata."""


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module: `module` as the file spells it, without what names the `part`; `scale` is α/rank."""

    part: str
    module: str
    factors: Mapping[str, Tensor] = field(compare=False)
    scale: float

    @property
    def changes_weight(self) -> bool:
        """Whether it has more than a bias."""
        return bool(self.factors.keys() - SIDE)

    @property
    def changes_bias(self) -> bool:
        """Whether the bias gains something."""
        return bool(self.factors.keys() & {"diff_b", "lora_bias"})

    def shape(self) -> tuple[int, ...]:
        """The shape of the delta, or what is known of it (OFT: [out]), without its values; raises WeightsError if factors do not fit each other."""
        made = _shape({name: tuple(tensor.shape) for name, tensor in self.factors.items()})
        if made is None:
            told = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(self.factors.items()))
            raise WeightsError(f"{self.module}: 因子の形が合いません / its factors do not fit each other: {told}")
        return made

    def fits(self, weight: Tensor) -> bool:
        """Whether it is for a weight of this shape."""
        if not self.changes_weight:
            return True
        if self.factors.keys() & RELATIVE:
            return suits(self.factors, tuple(weight.shape))
        made = self.shape()
        fits = bool(made) and made[0] == weight.shape[0] and math.prod(made) == weight.numel()
        magnitude = self.factors.get("magnitude", self.factors.get("dora_scale"))
        return fits and (magnitude is None or magnitude.numel() in weight.shape[:2])

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW, fp32, of the shape and on the device of `weight` (its own values count for DoRA and `lora_relative`)."""
        factors = {name: tensor.to(weight.device, torch.float32) for name, tensor in self.factors.items()}
        if factors.keys() & RELATIVE:
            return relative_delta(weight.float(), factors, self.scale)
        made = self._product(factors).reshape(weight.shape)
        if "magnitude" in factors or "dora_scale" in factors:
            return _decomposed(weight.float(), made, factors)
        return made

    def bias_delta(self) -> Tensor:
        """Δb, fp32 [out]: whole, or peft's bias of the upper factor."""
        whole, lora = self.factors.get("diff_b"), self.factors.get("lora_bias")
        parts = [*([] if whole is None else [whole.float()]), *([] if lora is None else [lora.float() * self.scale])]
        return torch.stack([part.flatten() for part in parts]).sum(0)

    def _product(self, f: Mapping[str, Tensor]) -> Tensor:
        if "diff" in f:
            return f["diff"]
        if "lora_up" in f:
            return low_rank(f["lora_up"], f["lora_down"], f.get("lora_mid")) * self.scale
        if "hada_w1_a" in f:
            return hadamard(f) * self.scale
        return kronecker(f) * self.scale


def low_rank(up: Tensor, down: Tensor, mid: Tensor | None = None) -> Tensor:
    """LoRA: B·A; of a convolution with its kernel in `mid` (Tucker, LyCORIS eq. 3.1): Σₘₙ up[o,m]·mid[m,n,…]·down[n,i]."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    made: Tensor = torch.einsum("mn...,om,ni->oi...", mid, up.flatten(1), down.flatten(1))
    return made


def hadamard(f: Mapping[str, Tensor]) -> Tensor:
    """LoHa: (B₁·A₁) ⊙ (B₂·A₂); with `hada_t1`, `hada_t2` each is a Tucker product whose outer factors lie [rank, out] and [rank, in]."""

    def half(n: int) -> Tensor:
        up, down, core = f[f"hada_w{n}_a"], f[f"hada_w{n}_b"], f.get(f"hada_t{n}")
        made: Tensor = up @ down if core is None else torch.einsum("ij...,ip,jr->pr...", core, up, down)
        return made

    return half(1) * half(2)


def kronecker(f: Mapping[str, Tensor]) -> Tensor:
    """LoKr: W₁ ⊗ W₂, either of them whole or B·A (W₂ of a convolution also a Tucker product with `lokr_t2`); [out, in·kernel]."""
    one = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
    if "lokr_w2" in f:
        other = f["lokr_w2"]
    elif "lokr_t2" in f:
        other = torch.einsum("ij...,ip,jr->pr...", f["lokr_t2"], f["lokr_w2_a"], f["lokr_w2_b"])
    else:
        other = f["lokr_w2_a"] @ f["lokr_w2_b"]
    return torch.kron(one.contiguous(), other.flatten(1).contiguous())


Shape = tuple[int, ...]


def _shape(f: Mapping[str, Shape]) -> Shape | None:
    """The shape of the product of factors of these shapes, None if they have none. (torch's meta device would tell, but takes seconds to start.)"""
    if "diff" in f:
        return f["diff"]
    if f.keys() & RELATIVE:
        return relative_shape(f)
    if "lora_up" in f:
        return _product_shape(_flat(f["lora_up"]), f["lora_down"], f.get("lora_mid"))
    if "hada_w1_a" in f:
        one, other = (_half_shape(f, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
        return one if one == other else None
    one = _flat(f["lokr_w1"] if "lokr_w1" in f else _half_shape(f, "lokr_w1", ""))
    other = _flat(f["lokr_w2"] if "lokr_w2" in f else _half_shape(f, "lokr_w2", "lokr_t2"))
    return (one[0] * other[0], one[1] * other[1]) if one and other else None


def _half_shape(f: Mapping[str, Shape], name: str, core: str) -> Shape | None:
    up, down = f[f"{name}_a"], f[f"{name}_b"]
    if len(up) != 2 or len(down) != 2:
        return None
    return _product_shape(up[::-1], down, f[core]) if core in f else _product_shape(up, down, None)


def _product_shape(up: Shape | None, down: Shape, core: Shape | None) -> Shape | None:
    """[out, rank] · [rank, in …], or with a core [rank, rank, kernel …] between them."""
    if up is None or len(down) < 2 or (core is not None and (len(core) < 2 or core[1] != down[0])):
        return None
    if up[1] != (down if core is None else core)[0]:
        return None
    return (up[0], *down[1:]) if core is None else (up[0], math.prod(down[1:]), *core[2:])


def _flat(shape: Shape | None) -> Shape | None:
    return (shape[0], math.prod(shape[1:])) if shape and len(shape) > 1 else None


def _decomposed(weight: Tensor, delta: Tensor, f: Mapping[str, Tensor]) -> Tensor:
    """DoRA (eq. 5): m·V/‖V‖ − W₀ where V = W₀+ΔW; the norm is that of an output's row (peft), or of an input's column (the paper, LyCORIS).

    peft's magnitude is always an output's; LyCORIS' says by its shape, [out, 1 …] or [1, in …].
    """
    scale = f.get("magnitude", f.get("dora_scale", delta))
    value = weight + delta
    rows = "magnitude" in f or scale.dim() == 1 or scale.shape[0] == weight.shape[0]
    kept = 0 if rows and scale.numel() == weight.shape[0] else 1
    norm = torch.linalg.vector_norm(value, dim=[d for d in range(value.dim()) if d != kept], keepdim=True)
    made: Tensor = value * (scale.reshape(norm.shape) / norm.clamp_min(torch.finfo(torch.float32).tiny)) - weight
    return made


@dataclass(frozen=True)
class Adapter:
    """An adapter file that has been read: its changes, what `jpgen.layout` takes it for, and `hash`, as AUTOMATIC1111 shows it (see `data_hash`)."""

    path: Path
    layout: Layout
    hash: str
    changes: tuple[Change, ...]

    @property
    def family(self) -> str:
        """The family it seems to be for: "sd", "sdxl", "flux", "pixart", "dit" (another transformer) or "unknown"."""
        return "sd" if self.layout.variant in ("sd1", "sd2") else self.layout.variant


def read_adapter(path: Path, *, allow_unknown: bool = False) -> Adapter:
    """The adapter in a `.safetensors` file, whole or not at all; its tensors are mapped and take no memory. Unknown names may be passed over.

    Raises WeightsError for a pickle, a damaged file, what is no adapter, names of unknown endings, factors that are missing, do not fit each other or
    are not finite: all of them named in one message.
    """
    layout = recognise(path)
    if layout.kind != "lora":
        raise WeightsError(f"{path} は LoRA ではありません / {path} is no LoRA but {layout.kind} of {layout.variant}")
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown, doubled = [], []
    tensors = load_weights(path, None)
    gains = {name.removesuffix("on_input") + "weight" for name in tensors if name.endswith(".on_input")}  # IA³ calls them so
    for name, tensor in tensors.items():
        split = _split(name.removesuffix("weight") + "ia3" if name in gains else name)
        if split is None:
            unknown.append(name)
        else:
            part, module, factor = split
            factors = grouped.setdefault((part, module), {})
            if factor in factors:
                doubled.append(f"{name} (there twice, by two names)")
            factors[factor] = tensor
    if unknown and allow_unknown:
        log.warning("%s: 読み飛ばしたキー / %d keys passed over: %s", path, len(unknown), some(unknown))
        unknown = []
    unknown += doubled
    if unknown:
        raise WeightsError(
            f"{path}: 読み方の分からないキーが {len(unknown)} 個あります / {len(unknown)} keys of an unknown kind of adapter: {some(unknown)}; "
            f"known kinds are {', '.join(KINDS)}"
        )
    config = _peft_config(check_safetensors(path))
    faults = [fault for (_, module), factors in grouped.items() if (fault := _fault(module, factors))]
    if faults:
        raise WeightsError(f"{path} は壊れています / damaged adapter {path}: {some(faults, '; ')}; fetch it again")
    changes = tuple(Change(part, module, factors, _scale(part, module, factors, config)) for (part, module), factors in grouped.items())
    for change in changes:
        if change.changes_weight:
            try:
                change.shape()
            except WeightsError as error:
                raise WeightsError(f"{path}: {error}; fetch it again") from error
    return Adapter(path, layout, data_hash(path), changes)


def data_hash(path: Path) -> str:
    """The first 12 hex digits of the SHA-256 over the tensor data, without the header: "AutoV3", by which AUTOMATIC1111 and Civitai know a LoRA."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def some(names: Iterable[str], between: str = ", ", most: int = 5) -> str:
    """The first names of many, and how many more there are."""
    listed = list(names)
    return between.join(listed[:most]) + (f" … (+{len(listed) - most})" if len(listed) > most else "")


def _split(name: str) -> tuple[str, str, str] | None:
    """Part, module and factor of a tensor's name; None for an ending that no formula knows."""
    for ending, meaning in FACTORS:
        if found := re.search(ending + "$", name):
            module, factor = name[: found.start()], found.expand(meaning)
            break
    else:
        return None
    part, stripped = DENOISER, True
    while stripped:
        stripped = False
        for prefix, means in PREFIXES:
            if module.startswith(prefix):
                part, module, stripped = means or part, module[len(prefix) :], True
                break
    return part, module, factor


def _fault(module: str, f: Mapping[str, Tensor]) -> str:
    """What is wrong with the factors of a module, "" if nothing is."""
    have = set(f) - SIDE
    lacks: set[str] = set()
    known = next((rule for rule in (LORA, LOHA, OFT, IA3, GLORA) if have & rule[0]), None)
    if known is not None:
        needs, may = known
        lacks = needs - have
        if {"hada_t1", "hada_t2"} & have:
            lacks |= {"hada_t1", "hada_t2"} - have
        have -= needs | may
    elif any(name.startswith("lokr_") for name in have):
        for n in "12":
            if f"lokr_w{n}" not in have:
                lacks |= {f"lokr_w{n}_{side}" for side in "ab"} - have
        have = {name for name in have if not name.startswith("lokr_")}
    else:
        have -= {"diff"}
    if not lacks and not have and not f.keys() - {"alpha", "dora_scale", "magnitude"}:
        return f"{module} has {', '.join(sorted(f))} and no factors"
    if lacks or have:
        return f"{module} lacks {', '.join(sorted(lacks))}" if lacks else f"{module} has {', '.join(sorted(have))} besides"
    bad = [name for name, tensor in f.items() if not tensor.is_floating_point() and name not in ("alpha", "on_input")]
    bad += [name for name, tensor in f.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())]
    bad += [name for name in ("alpha", "on_input") if name in f and f[name].numel() != 1]
    return f"{module}: {', '.join(bad)} not finite numbers" if bad else ""


def _scale(part: str, module: str, f: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """α/rank; 1 where the file tells no α, and for LoKr of two whole factors. α/√rank where peft's configuration says so (rsLoRA)."""
    ranked = [f[name].shape[0] for name in ("lora_down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "glora_a2") if name in f]
    if not ranked or not ranked[0]:
        return 1.0
    rank = float(ranked[0])
    if "alpha" in f:
        return float(f["alpha"].float().item()) / rank
    alpha, root = _peft_alpha(part, module, config)
    return 1.0 if alpha is None else alpha / (math.sqrt(rank) if root else rank)


def _peft_config(header: Header) -> dict[str, Any]:
    try:
        config = json.loads(header.metadata.get(PEFT, "{}"))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _peft_alpha(part: str, module: str, config: Mapping[str, Any]) -> tuple[float | None, bool]:
    """α of a module by peft's configuration, where that is in the file, and whether it is over the root of the rank."""
    for prefix in ("unet.", "transformer.", "") if part == DENOISER else (f"{part}.",):
        alpha = config.get(f"{prefix}lora_alpha")
        if isinstance(alpha, int | float):
            patterns = config.get(f"{prefix}alpha_pattern")
            for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
                if (module == pattern or module.endswith(f".{pattern}")) and isinstance(value, int | float):
                    alpha = value
                    break
            return float(alpha), config.get(f"{prefix}use_rslora") is True
    return None, False
