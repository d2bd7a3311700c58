"""Merge methods on deltas, δₖ = θₖ − θ₀: what each model has learned since the base (the first input)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from jpgen.merge.linear import kept
from jpgen.merge.looks import Look, differences, largest
from jpgen.merge.ranges import Fraction, Generators, Part, Range, Scale, Weights, spread

METHODS = ("task_arithmetic", "ties", "dare", "dare_ties", "della", "breadcrumbs", "sce")
ROWS = frozenset(("della",))
WHOLE: frozenset[str] = frozenset()


def sizes(inputs: Sequence[Tensor]) -> list[Tensor]:
    """|δₖ| of each model."""
    return [delta.abs_() for delta in differences(inputs)]


def variance(deltas: Sequence[Tensor]) -> Tensor:
    """How the δₖ vary at each place."""
    mean, total = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta in deltas:
        mean.add_(delta)
    mean.div_(len(deltas))
    for delta in deltas:
        away = delta - mean
        total.addcmul_(away, away)
    return total.div_(len(deltas))


def edges(values: Mapping[str, Any], count: int) -> tuple[int, int]:
    """Up to which of the largest `breadcrumbs` keep, and how many of them not."""
    outliers = int(values["gamma"] * count)
    last = min(outliers + int(values["density"] * count), count)
    return last if last > outliers else 0, outliers


def energies(inputs: Sequence[Tensor], _values: Mapping[str, Any], seen: Sequence[Sequence[float]], _part: Part) -> Tensor:
    """Σδₖ² over the values that `sce` selects, fp64 [models]."""
    deltas = differences(inputs)
    keep = variance(deltas) >= seen[0][0]
    return torch.stack([torch.linalg.vector_norm(delta.mul_(keep), dtype=torch.float64).square() for delta in deltas])


def shares(total: Tensor, _values: Mapping[str, Any], seen: Sequence[Sequence[float]], _count: int) -> tuple[float, list[float]]:
    """From which variance on `sce` selects, and the weights of the models."""
    whole = float(total.sum())
    return seen[0][0], [float(one) / whole if whole else 1 / len(total) for one in total]


TRIMMED = largest(sizes, lambda values, count: [int(values["density"] * count)])
EDGES = largest(sizes, edges)
SELECTED = (*largest(lambda inputs: [variance(differences(inputs))], lambda values, count: [int(values["density"] * count)]), Look(energies, shares))


def task_arithmetic(base: Tensor, *models: Tensor, weights: Weights = 1.0) -> Tensor:
    """θ₀ + Σ wₖ·δₖ (Ilharco et al. 2023, arXiv 2212.04089)."""
    for delta, weight in zip(differences((base, *models)), spread(weights, len(models)), strict=True):
        base.add_(delta, alpha=weight)
    return base


def ties(
    base: Tensor,
    *models: Tensor,
    weights: Weights = 1.0,
    density: Fraction = 0.2,
    scale: Scale = 1.0,
    seen: Annotated[Sequence[Sequence[float]], TRIMMED],
) -> Tensor:
    """θ₀ + λ·(of each value the mean of the deltas that agree with the sign elected), each δₖ trimmed to its `density` of largest magnitude.

    Yadav et al. 2023, arXiv 2306.01708; with weights the sum that elects and the mean are weighted ones.
    """
    trimmed = [at_least(delta, least) for delta, (least,) in zip(differences((base, *models)), seen, strict=True)]
    return elected(base, trimmed, spread(weights, len(models)), scale)


def dare(base: Tensor, *models: Tensor, weights: Weights = 1.0, density: Annotated[float, Range(0.001, 1.0)] = 0.5, generator: Generators) -> Tensor:
    """θ₀ + Σ wₖ·(mₖ ⊙ δₖ)/p, where a value is kept (mₖ = 1) with probability p = `density` (Yu et al. 2024, "DARE", arXiv 2311.03099)."""
    deltas = [delta.mul_(kept(base, density, generator(index))) for index, delta in enumerate(differences((base, *models)))]
    for delta, weight in zip(deltas, spread(weights, len(models)), strict=True):
        base.add_(delta, alpha=weight / density)
    return base


def dare_ties(
    base: Tensor, *models: Tensor, weights: Weights = 1.0, density: Annotated[float, Range(0.001, 1.0)] = 0.5, generator: Generators
) -> Tensor:
    """As `dare`, and of the deltas that are kept those count that agree with the sign elected (arXiv 2311.03099, section 3.3; `ties`)."""
    deltas = [delta.mul_(kept(base, density, generator(index))).div_(density) for index, delta in enumerate(differences((base, *models)))]
    return elected(base, deltas, spread(weights, len(models)), 1.0)


def della(
    base: Tensor,
    *models: Tensor,
    weights: Weights = 1.0,
    density: Annotated[float, Range(0.001, 1.0)] = 0.5,
    epsilon: Fraction = 0.1,
    generator: Generators,
    part: Part,
) -> Tensor:
    """As `dare_ties`, and in each row large deltas are dropped less often: p = (1−density) − ε/2 + ε·r/n for the r-th largest of n.

    Deep et al. 2024, "DELLA" (MagPrune), arXiv 2406.11617: what is kept is divided by its 1−p; probabilities are cut to [0, 0.999].
    """
    pruned = []
    for index, delta in enumerate(rows.view(-1, part.row) for rows in differences((base, *models))):
        order = delta.abs().argsort(dim=1, descending=True, stable=True)
        ranks = torch.arange(part.row, dtype=torch.float32).expand_as(delta)
        rank = torch.empty_like(delta).scatter_(1, order, ranks)
        keep = rank.mul_(-epsilon / part.row).add_(density + epsilon / 2).clamp_(1e-3, 1)
        lots = torch.from_numpy(generator(index).random(delta.numel(), dtype="float32")).view(delta.shape)
        pruned.append(delta.mul_(lots < keep).div_(keep).view(base.shape))
    return elected(base, pruned, spread(weights, len(models)), 1.0)


def breadcrumbs(
    base: Tensor,
    *models: Tensor,
    weights: Weights = 1.0,
    density: Fraction = 0.9,
    gamma: Fraction = 0.01,
    seen: Annotated[Sequence[Sequence[float]], EDGES],
) -> Tensor:
    """θ₀ + Σ wₖ·δₖ, of each δₖ left out the `gamma` largest (outliers) and of the rest all but the `density` largest.

    Davari & Belilovsky 2024, "Model Breadcrumbs", arXiv 2312.06795: γ = 1−`gamma`, β = 1−`density`−`gamma` of the values.
    """
    deltas = differences((base, *models))
    for delta, weight, (least, outlier) in zip(deltas, spread(weights, len(models)), seen, strict=True):
        size = delta.abs()
        base.add_(delta.mul_((size >= least) & (size < outlier)), alpha=weight)
    return base


def sce(base: Tensor, *models: Tensor, density: Fraction = 0.1, seen: Annotated[tuple[float, Sequence[float]], SELECTED]) -> Tensor:
    """θ₀ + Σ wₖ·δₖ over signs elected: Select values of most variance, Calculate weights by energy, Erase the minority.

    Wan et al. 2024, "FuseChat", arXiv 2408.07990: wₖ is δₖ's share of Σδ² over the selected values of the tensor, anew normalised over what is not
    erased.
    """
    least, weights = seen
    deltas = differences((base, *models))
    keep = variance(deltas) >= least
    return elected(base, [delta.mul_(keep) for delta in deltas], weights, 1.0, by_weight=False)


# ── what they are made of ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def at_least(delta: Tensor, least: float) -> Tensor:
    """The values whose size is `least` (≥ 0) or more, and 0 for the others."""
    return torch.nn.functional.hardshrink(delta, float(np.nextafter(np.float32(least), np.float32(-np.inf))))


def elected(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], scale: float, *, by_weight: bool = True) -> Tensor:
    """θ₀ + λ·Σ wₖ·δₖ / Σ wₖ over the k whose δₖ has the sign of Σ wₖ·δₖ, 0 where there is none (TIES, algorithm 1); `by_weight`: or of Σ δₖ."""
    votes = torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        votes.add_(delta, alpha=weight if by_weight else 1.0)
    total, shares = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        product = delta.mul(votes)
        agrees = product.gt_(0) if weight >= 0 or not by_weight else product.lt_(0)  # 1 and 0: truth values take torch far longer
        total.addcmul_(delta, agrees, value=weight)
        shares.add_(agrees, alpha=weight)
    return total.div_(shares.add_(shares.clone().eq_(0))).mul_(scale).add_(base)
