"""A LoRA out of two checkpoints: the best factors of what training changed, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from jpgen.errors import SettingError, WeightsError
from jpgen.lora import DENOISER, some
from jpgen.merge.files import Tensors
from jpgen.merge.keys import Moved, canonical, family_of
from jpgen.merge.lora_files import KEYS, Factors, seeded, split, write_lora
from jpgen.merge.low_rank import truncated
from jpgen.safety import sha256_of

PARTS = {"unet": DENOISER, "transformer": DENOISER, "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}
"""Components that a LoRA is for, and what it calls them."""

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Layer:
    """What was extracted of a tensor: the norm of its change, and how much of that the factors miss (0: nothing, 1: all)."""

    name: str
    rank: int
    norm: float
    error: float


@dataclass(frozen=True)
class Extraction:
    """`layers` that changed and are in the file, `unchanged` ones, tensors that changed and are `left_out`, and keys that only one model has."""

    path: Path
    layers: tuple[Layer, ...]
    unchanged: int
    left_out: tuple[str, ...]
    unmatched: tuple[str, ...]

    @property
    def error(self) -> float:
        """What the factors miss of the whole change of their layers, as a share of its norm."""
        total = sum(layer.norm**2 for layer in self.layers)
        return (sum((layer.norm * layer.error) ** 2 for layer in self.layers) / total) ** 0.5 if total else 0.0


def extract_lora(
    tuned: Path,
    base: Path,
    output: Path,
    *,
    rank: int,
    keys: str = "kohya",
    dtype: torch.dtype = torch.float16,
    full: bool = False,
    allow_unmatched: bool = False,
    on_layer: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Write the LoRA that makes `tuned` of `base`: of each matrix and kernel (LoCon) of their U-Nets, transformers and text encoders that differ.

    Models are single files or diffusers folders, also one of each. Nothing is clamped; factors bear √σ each. With `full`, changes of vectors (norms,
    biases) are kept whole (`diff`, `diff_b`); without, they are told in `left_out`, as are those of embeddings and tables. Raises WeightsError for
    different shapes, for keys that only one of them has (unless allowed), for values that are not finite, and where nothing differs.
    """
    if rank < 1 or keys not in KEYS:
        raise SettingError(f"rank {rank}, keys {keys!r}: 正しくありません / wanted a rank of 1 or more and keys {' or '.join(KEYS)}")
    with ExitStack() as stack:
        one, other = (_Model(stack.enter_context(_opened(path))) for path in (tuned, base))
        unmatched = tuple(sorted(one.plan.keys() ^ other.plan.keys()))
        common = sorted(one.plan.keys() & other.plan.keys())
        misshapen = [f"{name} {list(one.shape(name))} for {list(other.shape(name))}" for name in common if one.shape(name) != other.shape(name)]
        if misshapen or (unmatched and not allow_unmatched):
            what = f"{len(misshapen)} tensors differ in shape: {some(misshapen)}" if misshapen else f"only one has {some(unmatched)}"
            raise WeightsError(
                f"二つのモデルの形が合いません / {tuned} and {base} do not match ({len(unmatched)} keys are in one alone): {what}; "
                "name two models of one family, or allow unmatched keys"
            )
        made: dict[tuple[str, str], Factors] = {}
        layers: list[Layer] = []
        left_out: list[str] = []
        unchanged = 0
        for n, name in enumerate(common):
            if on_layer:
                on_layer(n + 1, len(common))
            delta = one.read(name).float() - other.read(name).float()
            if not bool(torch.isfinite(delta).all()):
                raise WeightsError(f"{name} に有限でない値があります / {name} of {tuned} or {base} has values that are not finite; fetch them again")
            if not bool(delta.any()):
                unchanged += 1
                continue
            factors, layer = _factored(name, delta, rank, dtype, full=full)
            if factors is None:
                left_out.append(name)
                continue
            before = made.get((factors.part, factors.module))
            made[factors.part, factors.module] = factors if before is None else _both(before, factors)
            layers += [layer] if layer else []
        if not made:
            raise WeightsError(f"{tuned} と {base} に違いがありません / {tuned} and {base} do not differ in any layer: nothing to extract")
        variant = family_of({name: moved.stored for name, moved in one.plan.items()}).removesuffix("-refiner")
    variant = variant if variant != "unet" else "sdxl" if any("add_embedding" in name for name in common) else "sd1"
    told = {
        "operation": "extract", "rank": rank, "full": full,
        "tuned": [{"name": path.name, "sha256": sha256_of(path)} for path in one.paths],
        "base": [{"name": path.name, "sha256": sha256_of(path)} for path in other.paths],
    }  # fmt: skip
    write_lora(output, list(made.values()), variant=variant, keys=keys, dtype=dtype, told=told)
    return Extraction(output, tuple(layers), unchanged, tuple(left_out), unmatched)


class _Model:
    """The floating-point tensors of the components that a LoRA is for, by canonical names."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        every = canonical(tensors.headers)
        self.plan: dict[str, Moved] = {
            name: moved for name, moved in every.items() if name.split(".", 1)[0] in PARTS and moved.stored.dtype in FLOATS
        }
        self.paths = list(tensors.metadata)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.plan[name].stored.shape

    def read(self, name: str) -> Tensor:
        return self.plan[name].made(self._tensors.read)


def _opened(path: Path) -> Tensors:
    return Tensors.of_folder(path) if path.is_dir() else Tensors.of_file(path)


def _factored(name: str, delta: Tensor, rank: int, dtype: torch.dtype, *, full: bool) -> tuple[Factors | None, Layer | None]:
    """Factors of a change, as they will be stored; None for what a LoRA of this kind does not hold."""
    component, _, inner = name.partition(".")
    module, _, leaf = inner.rpartition(".")
    part = PARTS[component]
    if leaf == "weight" and delta.dim() in (2, 4) and ".embeddings." not in inner:
        up, down = (factor.to(dtype) for factor in truncated(delta.flatten(1), rank, generator=seeded(name)))
        norm = float(delta.norm())
        missed = float((delta.flatten(1) - up.float() @ down.float()).norm())
        return Factors(part, module, *split(up, down, delta.shape)), Layer(name, len(down), norm, missed / norm)
    if full and leaf in ("weight", "bias") and delta.dim() == 1:
        return (Factors(part, module, diff=delta) if leaf == "weight" else Factors(part, module, bias=delta)), None
    return None, None


def _both(one: Factors, other: Factors) -> Factors:
    """A module's weight and bias together."""
    diff, bias = (one.diff if one.diff is not None else other.diff), (one.bias if one.bias is not None else other.bias)
    return replace(one if one.up is not None else other, diff=diff, bias=bias)
