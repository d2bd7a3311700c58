"""Paired differences with their intervals, and distances between sets of features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """How much one arm is above another on the same prompts and seeds.

    `mean` of the differences, its 95 % interval `low`…`high` (bootstrap over prompts), `wins` the share (0…1) of pairs the first wins, ties half;
    `prompts` and `pairs` are how many there were.
    """

    mean: float
    low: float
    high: float
    wins: float
    prompts: int
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def bootstrap(differences: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean of `differences` [pairs], always with the same resamples; None for no pairs."""
    if not len(differences):
        return None
    rng = np.random.default_rng(0)
    means = np.concatenate([differences[rng.integers(len(differences), size=(100, len(differences)))].mean(axis=1) for _ in range(RESAMPLES // 100)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired(first: np.ndarray, second: np.ndarray, prompts: np.ndarray) -> Difference:
    """The difference of two arms' scores [pairs], paired by place; `prompts` [pairs] tells which pairs are of one prompt and so not independent.

    Pairs with a score that is not finite do not count. Raises ValueError if none is left.
    """
    known = np.isfinite(first) & np.isfinite(second)
    first, second, prompts = first[known], second[known], prompts[known]
    if not len(first):
        raise ValueError("no pair of scores to compare")
    difference = first - second
    _, place = np.unique(prompts, return_inverse=True)
    of_prompt = np.bincount(place, difference) / np.bincount(place)
    low, high = bootstrap(of_prompt) or (np.nan, np.nan)
    wins = (difference > 0).mean() + (difference == 0).mean() / 2
    return Difference(float(of_prompt.mean()), low, high, float(wins), len(of_prompt), len(difference))


def frechet_distance(one: np.ndarray, two: np.ndarray) -> float:
    """The Fréchet distance of two sets of features [pictures, width], taken as Gaussians (Heusel et al. 2017, arXiv 1706.08500); 0 for equal sets.

    Over a scorer's features it is not the published FID, which wants Inception's; few pictures make it larger (see `kernel_distance`).
    """
    _two_or_more(one, two)
    means, spreads = (one.mean(0), two.mean(0)), (_covariance(one), _covariance(two))
    root = _root(spreads[0])
    trace = np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * np.sqrt(np.linalg.eigvalsh(root @ spreads[1] @ root).clip(min=0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + trace)


def kernel_distance(one: np.ndarray, two: np.ndarray) -> float:
    """The unbiased squared MMD of two sets of features [pictures, width] under the cubic kernel (KID, Bińkowski et al. 2018, arXiv 1801.01401).

    Near 0 for sets of one kind however few the pictures; it may be a little below 0.
    """
    _two_or_more(one, two)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        cubed: np.ndarray = (a @ b.T / a.shape[1] + 1) ** 3
        return cubed

    n, m = len(one), len(two)
    inner = [(k.sum() - np.trace(k)) / (size * (size - 1)) for k, size in ((kernel(one, one), n), (kernel(two, two), m))]
    return float(inner[0] + inner[1] - 2 * kernel(one, two).mean())


def diversity(features: np.ndarray) -> float:
    """The mean of 1 − cosine over all pairs of unit features [pictures, width]: 0 for one picture many times."""
    _two_or_more(features, features)
    products = features @ features.T
    n = len(features)
    return float(1 - (products.sum() - np.trace(products)) / (n * (n - 1)))


def drift(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """1 − cosine of each picture with its twin of the other model, same prompt and seed: unit features [pictures, width] each, [pictures]."""
    if one.shape != two.shape:
        raise ValueError(f"wanted the same pictures of both models, got {one.shape} and {two.shape}")
    return np.asarray(1 - (one * two).sum(axis=1))


def _two_or_more(*sets: np.ndarray) -> None:
    if any(len(one) < 2 for one in sets):
        raise ValueError("a distance between sets wants two pictures or more in each")


def _covariance(features: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.cov(features, rowvar=False))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    rooted: np.ndarray = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    return rooted
