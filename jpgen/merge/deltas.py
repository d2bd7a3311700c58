"""Merge methods on deltas, δₖ = θₖ − θ₀: what each model has learned since the base (the first input). Those of ELEMENTWISE write on their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from jpgen.merge.linear import kept
from jpgen.merge.ranges import Fraction, Generators, Range, Scale, Weights, spread

METHODS = ("task_arithmetic", "ties", "dare", "dare_ties", "della", "breadcrumbs", "sce")
ELEMENTWISE = frozenset(("task_arithmetic", "dare", "dare_ties"))

SAMPLE = 1 << 14
"""Values looked at to guess where the k-th largest is."""


def task_arithmetic(base: Tensor, *models: Tensor, weights: Weights = 1.0) -> Tensor:
    """θ₀ + Σ wₖ·δₖ (Ilharco et al. 2023, arXiv 2212.04089)."""
    deltas = [model.sub_(base) for model in models]
    for delta, weight in zip(deltas, spread(weights, len(models)), strict=True):
        base.add_(delta, alpha=weight)
    return base


def ties(base: Tensor, *models: Tensor, weights: Weights = 1.0, density: Fraction = 0.2, scale: Scale = 1.0) -> Tensor:
    """θ₀ + λ·(of each value the mean of the deltas that agree with the sign elected), each δₖ trimmed to its `density` of largest magnitude.

    Yadav et al. 2023, arXiv 2306.01708; with weights the sum that elects and the mean are weighted ones.
    """
    return elected(base, [trimmed(model - base, density) for model in models], spread(weights, len(models)), scale)


def dare(base: Tensor, *models: Tensor, weights: Weights = 1.0, density: Annotated[float, Range(0.001, 1.0)] = 0.5, generator: Generators) -> Tensor:
    """θ₀ + Σ wₖ·(mₖ ⊙ δₖ)/p, where a value is kept (mₖ = 1) with probability p = `density` (Yu et al. 2024, "DARE", arXiv 2311.03099)."""
    deltas = [model.sub_(base).mul_(kept(base, density, generator(index))) for index, model in enumerate(models)]
    for delta, weight in zip(deltas, spread(weights, len(models)), strict=True):
        base.add_(delta, alpha=weight / density)
    return base


def dare_ties(
    base: Tensor, *models: Tensor, weights: Weights = 1.0, density: Annotated[float, Range(0.001, 1.0)] = 0.5, generator: Generators
) -> Tensor:
    """As `dare`, and of the deltas that are kept those count that agree with the sign elected (arXiv 2311.03099, section 3.3; `ties`)."""
    masks = [kept(base, density, generator(index)) for index in range(len(models))]
    return elected(
        base, [model.sub_(base).mul_(mask).div_(density) for model, mask in zip(models, masks, strict=True)], spread(weights, len(models)), 1.0
    )


def della(
    base: Tensor,
    *models: Tensor,
    weights: Weights = 1.0,
    density: Annotated[float, Range(0.001, 1.0)] = 0.5,
    epsilon: Fraction = 0.1,
    generator: Generators,
) -> Tensor:
    """As `dare_ties`, and in each row large deltas are dropped less often: p = (1−density) − ε/2 + ε·r/n for the r-th largest of n.

    Deep et al. 2024, "DELLA" (MagPrune), arXiv 2406.11617: what is kept is divided by its 1−p; probabilities are cut to [0, 0.999].
    """
    pruned = []
    for index, model in enumerate(models):
        delta = (model - base).reshape(base.shape[0] if base.dim() > 1 else 1, -1)
        order = delta.abs().argsort(dim=1, descending=True, stable=True)
        ranks = torch.arange(delta.shape[1], dtype=torch.float32).expand_as(delta)
        rank = torch.empty_like(delta).scatter_(1, order, ranks)
        keep = rank.mul_(-epsilon / delta.shape[1]).add_(density + epsilon / 2).clamp_(1e-3, 1)
        lots = torch.from_numpy(generator(index).random(delta.numel(), dtype="float32")).reshape(delta.shape)
        pruned.append(delta.mul_(lots < keep).div_(keep).reshape(base.shape))
    return elected(base, pruned, spread(weights, len(models)), 1.0)


def breadcrumbs(base: Tensor, *models: Tensor, weights: Weights = 1.0, density: Fraction = 0.9, gamma: Fraction = 0.01) -> Tensor:
    """θ₀ + Σ wₖ·δₖ, of each δₖ left out the `gamma` largest (outliers) and of the rest all but the `density` largest.

    Davari & Belilovsky 2024, "Model Breadcrumbs", arXiv 2312.06795: γ = 1−`gamma`, β = 1−`density`−`gamma` of the values.
    """
    total = base.clone()
    for model, weight in zip(models, spread(weights, len(models)), strict=True):
        delta = model - base
        size = delta.abs()
        outliers = int(gamma * delta.numel())
        last = min(outliers + int(density * delta.numel()), delta.numel())
        keep = torch.zeros_like(delta, dtype=torch.bool) if last <= outliers else size >= kth_largest(size, last)
        if outliers:
            keep &= size < kth_largest(size, outliers)
        total.add_(delta.mul_(keep), alpha=weight)
    return total


def sce(base: Tensor, *models: Tensor, density: Fraction = 0.1) -> Tensor:
    """θ₀ + Σ wₖ·δₖ over signs elected: Select values of most variance, Calculate weights by energy, Erase the minority.

    Wan et al. 2024, "FuseChat", arXiv 2408.07990: wₖ is δₖ's share of Σδ² over the selected values of the tensor, anew normalised over what is not
    erased.
    """
    deltas = [model - base for model in models]
    if density < 1 and len(deltas) > 1:
        spread = torch.stack(deltas).var(0, unbiased=False)
        count = int(density * spread.numel())
        keep = spread >= kth_largest(spread, count) if count else torch.zeros_like(spread, dtype=torch.bool)
        deltas = [delta.mul_(keep) for delta in deltas]
    energy = [float(delta.double().square().mean()) for delta in deltas]
    total = sum(energy)
    return elected(base, deltas, [one / total if total else 1 / len(deltas) for one in energy], 1.0, by_weight=False)


# ── what they are made of ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def elected(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], scale: float, *, by_weight: bool = True) -> Tensor:
    """θ₀ + λ·Σ wₖ·δₖ / Σ wₖ over the k whose δₖ has the sign of Σ wₖ·δₖ, 0 where there is none (TIES, algorithm 1); `by_weight`: or of Σ δₖ."""
    votes = torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        votes.add_(delta, alpha=weight if by_weight else 1.0)
    total, shares = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = (delta * votes > 0) if weight >= 0 or not by_weight else (delta * votes < 0)
        total.add_(delta.mul(agrees), alpha=weight)
        shares.add_(agrees, alpha=weight)
    return total.div_(shares.masked_fill_(shares == 0, 1)).mul_(scale).add_(base)


def trimmed(delta: Tensor, density: float) -> Tensor:
    """δ with all but the `density` of largest magnitude set to 0 (in place)."""
    count = int(density * delta.numel())
    if count >= delta.numel():
        return delta
    size = delta.abs()
    return delta.mul_(size >= kth_largest(size, count)) if count else delta.zero_()


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest (from 1) of values, exactly; a sample tells between which two it is, so that few have to be sorted."""
    flat = values.flatten()
    count = flat.numel()
    step = count // SAMPLE
    if step >= 8:
        sample = flat[::step].sort(descending=True).values
        at, slack = k / count * len(sample), 4 * len(sample) ** 0.5
        high, low = sample[max(int(at - slack), 0)], sample[min(int(at + slack), len(sample) - 1)]
        above = int((flat > high).sum())
        middle = flat[(flat <= high) & (flat >= low)]
        if above < k <= above + len(middle):
            return middle.kthvalue(len(middle) - (k - above) + 1).values
    return flat.kthvalue(count - k + 1).values
