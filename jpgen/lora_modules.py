"""Adapters on real modules: W = W₀ + Σ wᵢ·ΔWᵢ for as long as wanted, then the very parameters that were there before.

Modules are looked up by their actual names. A file may spell them with dots or underscores, by diffusers' names or by those of the original programs
(LDM for U-Nets, Black Forest Labs for FLUX), which are made from the modules that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jpgen.errors import WeightsError
from jpgen.lora import DENOISER, Adapter, Change, some

Targets = tuple[str, ...]
"""Modules whose weights, one below the other, are the one that a file speaks of."""

RESNET = {
    "norm1": "in_layers_0", "conv1": "in_layers_2", "norm2": "out_layers_0", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
"""Parts of a residual block: diffusers' names -> LDM's."""

LDM = {
    "conv_in": "input_blocks_0_0", "time_embedding.linear_1": "time_embed_0", "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2", "conv_norm_out": "out_0", "conv_out": "out_2",
}  # fmt: skip

BFL = (
    (r"double_blocks_(\d+)_img_attn_qkv", "transformer_blocks.{}.attn", ("to_q", "to_k", "to_v")),
    (r"double_blocks_(\d+)_txt_attn_qkv", "transformer_blocks.{}.attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
    (r"double_blocks_(\d+)_img_attn_proj", "transformer_blocks.{}.attn", ("to_out.0",)),
    (r"double_blocks_(\d+)_txt_attn_proj", "transformer_blocks.{}.attn", ("to_add_out",)),
    (r"double_blocks_(\d+)_img_mlp_0", "transformer_blocks.{}", ("ff.net.0.proj",)),
    (r"double_blocks_(\d+)_img_mlp_2", "transformer_blocks.{}", ("ff.net.2",)),
    (r"double_blocks_(\d+)_txt_mlp_0", "transformer_blocks.{}", ("ff_context.net.0.proj",)),
    (r"double_blocks_(\d+)_txt_mlp_2", "transformer_blocks.{}", ("ff_context.net.2",)),
    (r"double_blocks_(\d+)_img_mod_lin", "transformer_blocks.{}", ("norm1.linear",)),
    (r"double_blocks_(\d+)_txt_mod_lin", "transformer_blocks.{}", ("norm1_context.linear",)),
    (r"single_blocks_(\d+)_linear1", "single_transformer_blocks.{}", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    (r"single_blocks_(\d+)_linear2", "single_transformer_blocks.{}", ("proj_out",)),
    (r"single_blocks_(\d+)_modulation_lin", "single_transformer_blocks.{}", ("norm.linear",)),
)  # fmt: skip
"""FLUX by the names of its authors (underscores for dots) -> diffusers' modules, whose rows are in this order."""

OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Attention of a text encoder: names of diffusers before 0.20 -> transformers'."""


@dataclass(frozen=True)
class _Share:
    """A change of one parameter: rows `start` to `end` of what `change` gives for its `targets`, times `weight`."""

    change: Change
    targets: Targets
    weight: float
    start: int
    end: int


Slot = tuple[str, str, str]
"""A parameter: part, module, "weight" or "bias"."""


class AdaptedModules:
    """The modules of a model (`parts`: "denoiser", "text_encoder" …) and what adapters make of them.

    The weights made last are kept for the next time they are wanted, until others or none are.
    """

    def __init__(self, name: str, family: str, parts: Mapping[str, nn.Module]) -> None:
        self.name, self.family = name, family
        self._modules = {part: dict(module.named_modules()) for part, module in parts.items()}
        self._spellings = {part: _spellings(part, modules) for part, modules in self._modules.items()}
        self._made: tuple[object, dict[Slot, nn.Parameter]] = ((), {})

    def require_fit(self, adapter: Adapter) -> None:
        """Raise WeightsError, telling how many and which, unless all of the adapter is for modules that are here and of their shapes."""
        absent, misshapen = [], []
        taken: set[tuple[str, Targets]] = set()
        for change in adapter.changes:
            targets = self._find(change)
            if targets is None:
                absent.append(f"{change.part}.{change.module}" if change.part != DENOISER else change.module)
            elif not change.fits(weight := self._whole(change.part, targets)):
                misshapen.append(f"{change.module} {list(change.shape())} for a weight {list(weight.shape)}")
            elif change.changes_bias and not self._bias_fits(change, targets):
                misshapen.append(f"{change.module} has a bias of {change.bias_delta().numel()} for a module that has none of that size")
            elif (change.part, targets) in taken:
                misshapen.append(f"{change.module} is there twice, by two names")
            taken.add((change.part, targets or ()))
        if not absent and not misshapen and adapter.changes:
            return
        what = [f"{len(absent)} of its {len(adapter.changes)} modules are not there: {some(absent)}"] if absent else []
        what += [f"{len(misshapen)} do not suit theirs: {some(misshapen, '; ')}"] if misshapen else []
        what += ["it holds nothing"] if not adapter.changes else []
        may_be = ("pixart", "flux") if adapter.family == "dit" else (adapter.family,)
        if adapter.family != "unknown" and self.family not in may_be:
            raise WeightsError(
                f"{adapter.path} は {adapter.family} 用の LoRA です / the LoRA {adapter.path} is for {adapter.family}, the model {self.name} is "
                f"{self.family}: {'; '.join(what)}; choose a LoRA for {self.family}"
            )
        raise WeightsError(
            f"{adapter.path} は {self.name} に合いません / {adapter.path} does not fit {self.name}: {'; '.join(what)}; choose one made for it"
        )

    @contextmanager
    def applied(self, wanted: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
        """For the time of the block every weight is W₀ + Σ wᵢ·ΔWᵢ, summed in fp32 and rounded once; afterwards each is the object it was.

        Raises WeightsError before anything is changed if one of the adapters does not fit.
        """
        key = tuple((adapter.path, adapter.hash, weight) for adapter, weight in wanted)
        if self._made[0] != key:
            self._made = ((), {})
            self._made = (key, self._adapted(wanted))
        before = {slot: self._parameter(slot) for slot in self._made[1]}
        try:
            for slot, parameter in self._made[1].items():
                self._put(slot, parameter)
            yield
        finally:
            for slot, parameter in before.items():
                self._put(slot, parameter)

    def fuse(self, wanted: Sequence[tuple[Adapter, float]]) -> None:
        """As `applied`, for good."""
        for slot, parameter in self._adapted(wanted).items():
            self._put(slot, parameter)

    def _adapted(self, wanted: Sequence[tuple[Adapter, float]]) -> dict[Slot, nn.Parameter]:
        shares: dict[Slot, list[_Share]] = {}
        for adapter, weight in wanted:
            self.require_fit(adapter)
            for change in adapter.changes:
                targets = self._find(change) or ()
                start = 0
                for target in targets:
                    end = start + len(self._parameter((change.part, target, "weight")))
                    share = _Share(change, targets, weight, start, end)
                    if change.changes_weight:
                        shares.setdefault((change.part, target, "weight"), []).append(share)
                    if change.changes_bias:
                        shares.setdefault((change.part, target, "bias"), []).append(share)
                    start = end
        return {slot: self._changed(slot, parts) for slot, parts in shares.items()}

    @torch.inference_mode(False)
    @torch.no_grad()
    def _changed(self, slot: Slot, shares: Sequence[_Share]) -> nn.Parameter:
        old = self._parameter(slot)
        total = old.float()
        for share in shares:
            bias = slot[2] == "bias"
            whole = share.change.bias_delta().to(old.device) if bias else share.change.delta(self._whole(slot[0], share.targets))
            total = total + share.weight * whole[share.start : share.end]
        return nn.Parameter(torch.empty_like(old).copy_(total), requires_grad=old.requires_grad)

    def _find(self, change: Change) -> Targets | None:
        spelling = plain_spelling(change.part, change.module)
        known = self._spellings.get(change.part, {})
        return known.get(f"{spelling}_0") if spelling.endswith("to_out") and spelling not in known else known.get(spelling)  # old names lack the 0

    def _whole(self, part: str, targets: Targets) -> Tensor:
        weights = [self._parameter((part, target, "weight")) for target in targets]
        return weights[0] if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])

    def _bias_fits(self, change: Change, targets: Targets) -> bool:
        biases = [self._modules[change.part][target]._parameters.get("bias") for target in targets]
        return all(bias is not None for bias in biases) and change.bias_delta().numel() == sum(b.numel() for b in biases if b is not None)

    def _parameter(self, slot: Slot) -> nn.Parameter:
        part, module, leaf = slot
        parameter: nn.Parameter = getattr(self._modules[part][module], leaf)
        return parameter

    def _put(self, slot: Slot, parameter: nn.Parameter) -> None:
        part, module, leaf = slot
        self._modules[part][module]._parameters[leaf] = parameter


def plain_spelling(part: str, module: str) -> str:
    """A module's name as all spellings have it: underscores for dots, without what some programs put between."""
    name = module.replace(".processor.", ".").replace("_processor_", "_")
    if part != DENOISER:
        name = re.sub(r"(?<=self_attn[._])to_(q|k|v|out)$", lambda found: OLD_TEXT[found[0]], name)
    return re.sub(r"^text_model_", "", name.replace(".", "_"))


def _spellings(part: str, modules: Mapping[str, nn.Module]) -> dict[str, Targets]:
    """Every way to spell the modules that have a weight."""
    names = [name for name, module in modules.items() if isinstance(module._parameters.get("weight"), nn.Parameter)]
    made: dict[str, Targets] = {plain_spelling(part, name): (name,) for name in names}
    if part == DENOISER:
        made |= {spelling: targets for spelling, targets in {**ldm_spellings(names), **bfl_spellings(names)}.items() if spelling not in made}
    return made


def ldm_spellings(names: Sequence[str]) -> dict[str, Targets]:
    """LDM's names, with underscores, of the modules of a diffusers U-Net; none for any other model."""
    layers = len({name.split(".")[3] for name in names if name.startswith("down_blocks.0.resnets.")}) + 1
    up_attention = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    made: dict[str, Targets] = {}
    for name in names:
        if name in LDM:
            made[LDM[name]] = (name,)
        if not (found := re.match(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)):
            continue
        side, block, kind, layer, inner = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
        if side == "mid_block":
            place = f"middle_block_{1 if kind == 'attentions' else 2 * layer}"
        else:
            first = block * layers + (1 if side == "down_blocks" else 0)
            at = {"downsamplers": (layers - 1, "0"), "upsamplers": (layers - 1, "2" if str(block) in up_attention else "1")}
            index, within = at.get(kind, (layer, "1" if kind == "attentions" else "0"))
            place = f"{'input' if side == 'down_blocks' else 'output'}_blocks_{first + index}_{within}"
        if kind == "resnets":
            inner = RESNET.get(inner, inner)
        elif kind == "downsamplers":
            inner = "op"
        made[f"{place}_{inner.replace('.', '_')}"] = (name,)
    return made


def bfl_spellings(names: Sequence[str]) -> dict[str, Targets]:
    """The names that FLUX's authors gave its modules, with underscores, of those of a diffusers FLUX; none for any other model."""
    there = set(names)
    kinds = ("transformer_blocks", "single_transformer_blocks")
    blocks = {kind: {name.split(".")[1] for name in names if name.startswith(f"{kind}.")} for kind in kinds}
    made: dict[str, Targets] = {}
    for spelling, place, inner in BFL:
        for block in blocks[place.split(".")[0]]:
            targets = tuple(f"{place.format(block)}.{one}" for one in inner)
            if there.issuperset(targets):
                made[spelling.replace(r"(\d+)", block)] = targets
    return made
