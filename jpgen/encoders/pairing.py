"""Adapters that pair a text encoder with a backbone which learnt from another one: three networks, and the file that holds one.

Each takes states [batch, seq, source width] and their mask [batch, seq], and gives a Conditioning of the backbone's width. A kind is a class here and
a row in KINDS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from jpgen.errors import IncompatibleError, SettingError, UnknownNameError, WeightsError
from jpgen.safety import check_safetensors
from jpgen.types import Conditioning, ConditioningSpec
from jpgen.weights import load_weights, save_weights

METADATA_KEY = "jpgen.pairing"
"""Under this key of the file's metadata stand the spec and the facts, as JSON."""

PROBE = "probe"
"""The tensor of the file that tells what the encoder said to PROBE_TEXT when the adapter was trained."""

MOST = 16384
"""No width, length or number of layers of an adapter is larger."""


@dataclass(frozen=True)
class PairingSpec:
    """What an adapter pairs, and its sizes.

    `encoder` and `backbone` are models (names of the catalogue); states of `source_width` become states of `width` and a pooled one of `pooled_width`
    (None: there is none). `hidden` and `layers` are the network's; `length` the tokens that a resampler or a mixer gives.
    """

    kind: str
    encoder: str
    backbone: str
    source_width: int
    width: int
    pooled_width: int | None = None
    hidden: int = 1024
    layers: int = 4
    length: int = 77

    @property
    def given(self) -> ConditioningSpec:
        """The shape of what the adapter gives."""
        return ConditioningSpec(self.width, None, self.pooled_width)

    def __str__(self) -> str:
        pooled = "" if self.pooled_width is None else f" + {self.pooled_width}"
        return f"{self.encoder} ({self.source_width}) → {self.backbone} ({self.width}{pooled}), {self.kind}"


class Mlp(nn.Module):
    """State by state through four linear layers, the pooled state the mean of the last but one: PEA-Diffusion (Ma et al. 2024, arXiv 2311.17086)."""

    def __init__(self, spec: PairingSpec) -> None:
        super().__init__()
        middle = spec.pooled_width or spec.hidden
        self.body = nn.Sequential(
            nn.LayerNorm(spec.source_width), nn.Linear(spec.source_width, spec.hidden), nn.GELU(),
            nn.Linear(spec.hidden, spec.hidden), nn.GELU(), nn.Linear(spec.hidden, middle),
        )  # fmt: skip
        self.out = nn.Sequential(nn.GELU(), nn.Linear(middle, spec.width))

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As many tokens as come in, the same ones masked; and the pooled state."""
        middle = self.body(tokens)
        seen = mask[..., None].to(middle.dtype)
        return self.out(middle) * seen, mask, (middle * seen).sum(1) / seen.sum(1).clamp_min(1)


class Resampler(nn.Module):
    """`length` learnt queries that look at the states: the query transformer of MuLan (arXiv 2412.01271) and ELLA (arXiv 2403.05135)."""

    def __init__(self, spec: PairingSpec) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.LayerNorm(spec.source_width), nn.Linear(spec.source_width, spec.hidden))
        self.queries = nn.Parameter(torch.randn(spec.length + 1, spec.hidden) * spec.hidden**-0.5)
        layer = nn.TransformerDecoderLayer(
            spec.hidden, max(1, spec.hidden // 64), 2 * spec.hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerDecoder(layer, spec.layers, nn.LayerNorm(spec.hidden))
        self.out = nn.Linear(spec.hidden, spec.width)
        self.pool = nn.Linear(spec.hidden, spec.pooled_width or spec.hidden)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`length` tokens, none masked; the pooled state is what one more query found."""
        queries = self.queries.expand(len(tokens), -1, -1)
        found = self.body(queries, self.into(tokens), memory_key_padding_mask=mask == 0)
        return self.out(found[:, 1:]), mask.new_ones(found[:, 1:].shape[:2]), self.pool(found[:, 0])


class MixerBlock(nn.Module):
    """Mixes along the sequence, then along the channels (Tolstikhin et al. 2021, arXiv 2105.01601)."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.along = nn.Sequential(nn.Linear(length, 2 * length), nn.GELU(), nn.Linear(2 * length, length))
        self.across = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, states: Tensor) -> Tensor:
        """States [batch, length, width]."""
        states = states + self.along(self.norms[0](states).transpose(1, 2)).transpose(1, 2)
        return states + self.across(self.norms[1](states))


class Mixer(nn.Module):
    """Windows of `length` states become as many of the backbone's: the MLP-mixer of GlueGen (Qin et al. 2023, arXiv 2303.10056)."""

    def __init__(self, spec: PairingSpec) -> None:
        super().__init__()
        self.length = spec.length
        self.into = nn.Sequential(nn.LayerNorm(spec.source_width), nn.Linear(spec.source_width, spec.hidden))
        self.body = nn.Sequential(*[MixerBlock(spec.length, spec.hidden) for _ in range(spec.layers)], nn.LayerNorm(spec.hidden))
        self.out = nn.Linear(spec.hidden, spec.width)
        self.pool = nn.Linear(spec.hidden, spec.pooled_width or spec.hidden)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A multiple of `length` tokens, none masked but those of windows where no text is; the pooled state is the mean of the first window."""
        short = -tokens.shape[1] % self.length
        states = pad(self.into(tokens) * mask[..., None], (0, 0, 0, short))
        windows, width = states.shape[1] // self.length, states.shape[2]
        made = self.body(states.reshape(-1, self.length, width)).reshape(len(tokens), -1, width)
        seen = pad(mask, (0, short)).reshape(len(mask), windows, self.length).any(dim=2).long().repeat_interleave(self.length, dim=1)
        return self.out(made) * seen[..., None], seen, self.pool(made[:, : self.length].mean(1))


KINDS: dict[str, type[Mlp | Resampler | Mixer]] = {"mlp": Mlp, "resampler": Resampler, "mixer": Mixer}


def new_network(spec: PairingSpec) -> nn.Module:
    """An untrained network of this spec; raises UnknownNameError (kind), SettingError (sizes)."""
    if spec.kind not in KINDS:
        raise UnknownNameError.of("アダプタの種類 / kind of adapter", spec.kind, KINDS)
    sizes = {name: getattr(spec, name) for name in ("source_width", "width", "hidden", "layers", "length")} | {"pooled_width": spec.pooled_width or 1}
    wrong = [f"{name}={size!r}" for name, size in sizes.items() if not isinstance(size, int) or not 1 <= size <= MOST]
    if wrong:
        raise SettingError(f"アダプタの大きさ {', '.join(wrong)} は 1〜{MOST} にしてください / sizes of an adapter must be 1–{MOST}")
    if spec.kind == "resampler" and spec.hidden > 64 and spec.hidden % 64:
        raise SettingError(f"hidden={spec.hidden} は 64 の倍数にしてください / hidden of a resampler must be a multiple of 64, its heads are 64 wide")
    return KINDS[spec.kind](spec)


def paired(network: nn.Module, spec: PairingSpec, states: Conditioning) -> Conditioning:
    """What the network makes of an encoder's states."""
    tokens, mask, pooled = network(states.tokens, states.mask)
    return Conditioning(tokens, mask, None if spec.pooled_width is None else pooled)


@dataclass(frozen=True)
class Pairing:
    """A trained adapter: its spec, its network, what the encoder said when it was trained, and `facts` (data, figures, licence …) about it."""

    spec: PairingSpec
    network: nn.Module = field(compare=False)
    probe: Tensor = field(compare=False)
    facts: Mapping[str, Any] = field(default_factory=dict)


def save_pairing(path: Path, pairing: Pairing) -> None:
    """Write a `.safetensors` file (bf16) whose metadata tells spec and facts; the old file or the new one is there, never half."""
    described = json.dumps({"spec": asdict(pairing.spec), "facts": dict(pairing.facts)}, ensure_ascii=False, sort_keys=True)
    save_weights(path, {**pairing.network.state_dict(), PROBE: pairing.probe}, metadata={METADATA_KEY: described})


def read_spec(path: Path) -> tuple[PairingSpec, dict[str, Any]]:
    """Spec and facts of an adapter file, from its header alone; raises WeightsError for any other file."""
    described = check_safetensors(path).metadata.get(METADATA_KEY)
    if described is None:
        raise WeightsError(
            f"{path} はエンコーダのアダプタではありません / {path} is no adapter of text encoders (its metadata has no {METADATA_KEY}): give a file "
            "that `jpgen train adapter` wrote; LoRA files go into loras="
        )
    try:
        told = json.loads(described)
        given, facts = told["spec"], dict(told["facts"])
        spec = PairingSpec(**{one.name: given[one.name] for one in fields(PairingSpec)})
        if not all(isinstance(name, str) for name in (spec.kind, spec.encoder, spec.backbone)):
            raise ValueError(f"spec {given!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} は壊れています / damaged adapter {path} ({error}); fetch it again") from error
    return spec, facts


def read_pairing(path: Path) -> Pairing:
    """The adapter in a file that `save_pairing` wrote; raises WeightsError, UnknownNameError, SettingError."""
    spec, facts = read_spec(path)
    with torch.device("meta"):
        network = new_network(spec)
    tensors = load_weights(path)
    probe = tensors.pop(PROBE, torch.empty(0))
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path}: 重みが仕様と合いません / the weights do not match the spec [{spec}]: {' '.join(str(error).split())}") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise WeightsError(f"{path} は壊れています / damaged adapter {path}: its values are not finite numbers; fetch it again")
    return Pairing(spec, network.eval().requires_grad_(False), probe, facts)


def require_backbone(spec: PairingSpec, wanted: ConditioningSpec, backbone: str) -> None:
    """Raise IncompatibleError, both specs in it, unless what the adapter gives suits the backbone."""
    if (spec.width, spec.pooled_width) != (wanted.width, wanted.pooled_width):
        raise IncompatibleError(
            f"アダプタ [{spec}] は {backbone} に合いません / the adapter [{spec}] gives width {spec.width}, pooled {spec.pooled_width}; {backbone} "
            f"wants width {wanted.width}, pooled {wanted.pooled_width}: use an adapter trained for it (jpgen train adapter --backbone {backbone})"
        )
