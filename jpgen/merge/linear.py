"""Merge methods that work value by value on whole weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from jpgen.merge.ranges import Fraction, Generators, Part, Range, Scale, Weights, spread

METHODS = ("lerp", "weighted_sum", "n_average", "add_difference", "train_difference", "add_lora", "swap", "dropout")
ROWS: frozenset[str] = frozenset()
WHOLE = frozenset(("add_lora",))

BOOST = 1.8
"""By what SuperMerger multiplies the difference that it trains."""


def lerp(a: Tensor, b: Tensor, *, t: Annotated[float, Range(-1.0, 2.0)]) -> Tensor:
    """The way from a to b: (1−t)·a + t·b (Wortsman et al. 2022, "WiSE-FT", arXiv 2109.01903)."""
    return a.lerp_(b, t)


def weighted_sum(*models: Tensor, weights: Weights, normalize: bool = False) -> Tensor:
    """Σ wₖ·θₖ, with weights that sum to 1 (Wortsman et al. 2022, "Model soups", arXiv 2203.05482); `normalize` divides them by their sum."""
    shares = spread(weights, len(models))
    return combined(models, normalized(shares) if normalize else shares, out=models[0])


def n_average(*models: Tensor) -> Tensor:
    """The plain average of the models (Wortsman et al. 2022, arXiv 2203.05482)."""
    total = models[0]
    for model in models[1:]:
        total.add_(model)
    return total.div_(len(models))


def add_difference(a: Tensor, b: Tensor, c: Tensor, *, alpha: Scale = 1.0) -> Tensor:
    """a + α·(b − c): what b has learned since c, put on a (Ilharco et al. 2023, section 5, arXiv 2212.04089)."""
    return a.add_(b.sub_(c), alpha=alpha)


def train_difference(a: Tensor, b: Tensor, c: Tensor, *, alpha: Scale = 1.0) -> Tensor:
    """a + 1.8·α·(b − c)·|b − a| / (|b − c| + |b − a|): as if a had been trained on what b was (SuperMerger's trainDifference; no paper)."""
    difference = torch.sub(b, c, out=c)
    away = b.sub_(a).abs_()
    total = difference.abs().add_(away)
    share = away.div_(total.masked_fill_(total == 0, 1))
    return a.add_(difference.mul_(share), alpha=BOOST * alpha)


def add_lora(a: Tensor, *changes: Tensor, scale: Weights = 1.0) -> Tensor:
    """W + Σ sₖ·ΔWₖ of LoRA, LoCon, LoHa, LoKr or DoRA (see `jpgen.lora`): the inputs after the first are adapter files."""
    total = a.clone()
    for change, one in zip(changes, spread(scale, len(changes)), strict=True):
        total.add_(change, alpha=one)
    return total


def swap(a: Tensor, b: Tensor, *, start: Fraction = 0.0, end: Fraction = 1.0, part: Part) -> Tensor:
    """a with the rows from `start` to `end` (shares of the first side) taken from b (SuperMerger's "tensor" mode; no paper)."""
    rows = part.shape[0] if part.shape else 1
    first, last = (max(round(share * rows) * part.columns - part.start, 0) for share in (start, end))
    a.view(-1)[first:last] = b.view(-1)[first:last]
    return a


def dropout(a: Tensor, b: Tensor, *, p: Fraction, generator: Generators) -> Tensor:
    """a, each value with probability p replaced by b's (Lee et al. 2020, "Mixout", arXiv 1909.11299, without its rescaling)."""
    return torch.where(kept(a, p, generator(0)), b, a, out=a)


# ── what other methods are made of ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def combined(tensors: Sequence[Tensor], weights: Sequence[float], *, out: Tensor | None = None) -> Tensor:
    """Σ wₖ·θₖ; of two whose weights sum to 1 as `lerp` has it. `out` may be the first of them."""
    if len(tensors) == 2 and abs(weights[0] + weights[1] - 1) < 1e-9:
        return torch.lerp(tensors[0], tensors[1], weights[1], out=out)
    total = torch.mul(tensors[0], weights[0], out=out)
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def normalized(weights: Sequence[float]) -> list[float]:
    """The weights over their sum; as they are if that is 0."""
    total = sum(weights)
    return [weight / total for weight in weights] if total else list(weights)


def kept(like: Tensor, probability: float, generator: Any) -> Tensor:
    """A mask of the shape of `like`, true with this probability (to 2⁻³²), independently for each value."""
    count = like.numel()
    lots = generator.bit_generator.random_raw((count + 1) // 2).view("int32")[:count]
    if probability >= 1:
        return torch.ones(like.shape, dtype=torch.bool)
    return torch.from_numpy(lots).reshape(like.shape) < round(probability * 2**32) - 2**31


def _one_hot(values: Mapping[str, Any], count: int) -> int | None:
    given = spread(values["weights"], count)
    weights = normalized(given) if values.get("normalize") else given
    ones = [index for index, weight in enumerate(weights) if weight == 1]
    return ones[0] if len(ones) == 1 and all(weight == 0 for weight in weights if weight != 1) else None


def _between(values: Mapping[str, Any], _count: int) -> int | None:
    return {0: 0, 1: 1}.get(values["t"])


def _none(name: str) -> Callable[[Mapping[str, Any], int], int | None]:
    """The first input, if the number of this name, or all of them, are 0."""

    def told(values: Mapping[str, Any], _count: int) -> int | None:
        found = values[name]
        return 0 if (not any(found) if isinstance(found, Sequence) else found == 0) else None

    return told


def _swapped(values: Mapping[str, Any], _count: int) -> int | None:
    return 1 if (values["start"], values["end"]) == (0, 1) else 0 if values["start"] >= values["end"] else None


COPIES: Mapping[str, Callable[[Mapping[str, Any], int], int | None]] = {
    "weighted_sum": _one_hot, "lerp": _between, "slerp": _between, "nuslerp": _between, "add_difference": _none("alpha"),
    "train_difference": _none("alpha"), "add_lora": _none("scale"), "swap": _swapped,
    "dropout": lambda values, _count: {0: 0, 1: 1}.get(values["p"]),
    **dict.fromkeys(("task_arithmetic", "ties", "dare", "dare_ties", "della", "breadcrumbs"), _none("weights")),
}  # fmt: skip
"""For which numbers a method gives one of its inputs as it is, and which."""
