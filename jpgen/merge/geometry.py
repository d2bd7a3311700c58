"""Merge methods that look at a tensor as one vector, or as a matrix: angles, means on spheres, rotations and ranks.

Lengths and angles come of inner products summed in fp64 (`jpgen.merge.looks`); the result is then a linear combination of the models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from jpgen.merge.linear import combined, normalized
from jpgen.merge.looks import Values, apart, by_column, gram
from jpgen.merge.ranges import Fraction, Part, Range, Weights, spread

METHODS = ("slerp", "nuslerp", "karcher_mean", "geometric_median", "model_stock", "cosine_a", "cosine_b", "rotate", "truncate_rank")
ROWS = frozenset(("nuslerp", "cosine_a", "cosine_b"))
WHOLE = frozenset(("rotate", "truncate_rank"))

PARALLEL = 1e-6
"""Below this sine two directions are one, and the way between them is straight."""

STEPS, CLOSE = 200, 1e-12
"""How often iterations are repeated at most, and the change below which they end."""

Factors = Sequence[float]
"""Of each model, of which the result is the sum: seen of the whole tensors, for all tiles alike."""


def arc(dots: Tensor, values: Values) -> Factors:
    """The factors of `slerp`."""
    size, t = float((dots[0, 0] * dots[1, 1]).sqrt()), values["t"]
    omega = math.acos(max(-1.0, min(1.0, float(dots[0, 1]) / size))) if size else 0.0
    sine = math.sin(omega)
    return (1 - t, t) if sine < PARALLEL else (math.sin((1 - t) * omega) / sine, math.sin(t * omega) / sine)


def karcher(dots: Tensor, values: Values) -> Factors:
    """The factors of `karcher_mean`."""
    shares = normalized(spread(values["weights"], len(dots)))
    sizes = dots.diagonal().sqrt()
    if float(sizes.min()) == 0 or sum(shares) == 0:
        return shares
    unit = dots / sizes.outer(sizes)
    share = torch.tensor(shares, dtype=torch.float64)
    middle = float(share @ unit @ share)
    if middle < PARALLEL**2:  # they point away from each other: no direction is their mean
        return shares
    at = share / math.sqrt(middle)  # x = Σ at·u
    for _ in range(STEPS):
        cosine = (unit @ at).clamp(-1, 1)
        angle = cosine.acos()
        ratio = torch.where(angle.sin() > PARALLEL, angle / angle.sin().clamp_min(1e-300), torch.ones_like(angle)) * share
        step = ratio - at * (ratio @ cosine)
        length = float((step @ unit @ step).clamp_min(0).sqrt())
        if length < CLOSE:
            break
        at = at * math.cos(length) + step * (math.sin(length) / length)
        at = at / (at @ unit @ at).sqrt()
    factors: list[float] = (at / sizes * (share @ sizes)).tolist()
    return factors


def weiszfeld(dots: Tensor, _values: Values) -> Factors:
    """The factors of `geometric_median`, of the inner products of the differences from the first model."""
    count = len(dots) + 1
    full = torch.zeros(count, count, dtype=torch.float64)
    full[1:, 1:] = dots
    square = full.diagonal()
    size = float(square.max())
    if size == 0:
        return [1.0] + [0.0] * len(dots)
    at = torch.full((count,), 1 / count, dtype=torch.float64)
    for _ in range(STEPS * 10):
        distance = (square - 2 * (full @ at) + at @ full @ at).clamp_min(size * 1e-18).sqrt()
        new = (1 / distance) / (1 / distance).sum()
        moved, at = float((new - at).abs().max()), new
        if moved < CLOSE:
            break
    factors: list[float] = at.tolist()
    return factors


def stock(dots: Tensor, _values: Values) -> Factors:
    """The factors of `model_stock`, of the inner products of the deltas."""
    count = len(dots)
    if count < 2:
        return (0.0, 1.0)
    sizes = dots.diagonal().sqrt()
    cosines = dots / sizes.outer(sizes).clamp_min(1e-300)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    under = 1 + (count - 1) * cosine
    t = count * cosine / under if abs(under) > 1e-12 else 0.0
    return [1 - t, *[t / count] * count]


def unlike(dots: Tensor, values: Values) -> Tensor:
    """How far `cosine_a` goes in each column."""
    return _far(_cosine(dots), values)


def unlike_whole(dots: Tensor, values: Values) -> Tensor:
    """How far `cosine_b` goes in each column."""
    return _far((_cosine(dots) + _cosine(dots.sum(1))) / 2, values)


def slerp(a: Tensor, b: Tensor, *, t: Fraction, seen: Annotated[Factors, gram(arc)]) -> Tensor:
    """sin((1−t)Ω)/sinΩ·a + sin(tΩ)/sinΩ·b, Ω the angle between the two tensors (Shoemake 1985, "Animating rotation with quaternion curves")."""
    return combined((a, b), seen, out=a)


def nuslerp(a: Tensor, b: Tensor, *, t: Fraction, part: Part) -> Tensor:
    """As `slerp`, for each row (what goes to one output) by its own angle (mergekit's nuslerp, nuslerp_row_wise; Shoemake 1985)."""
    one, other = (rows.view(-1, part.row) for rows in (a, b))
    x, y = one.double(), other.double()
    dot, size = (x * y).sum(1), (x * x).sum(1).sqrt() * (y * y).sum(1).sqrt()
    omega = (dot / size.clamp_min(1e-300)).clamp(-1, 1).acos()
    sine = omega.sin()
    straight = sine < PARALLEL
    safe = sine.masked_fill(straight, 1)
    first = torch.where(straight, 1 - t, ((1 - t) * omega).sin() / safe).float()[:, None]
    second = torch.where(straight, t, (t * omega).sin() / safe).float()[:, None]
    return one.mul_(first).addcmul_(other, second).view(a.shape)


def karcher_mean(*models: Tensor, weights: Annotated[Weights, Range(0.0, 10.0)] = 1.0, seen: Annotated[Factors, gram(karcher)]) -> Tensor:
    """The Riemannian (Karcher) mean of the directions, times the mean of the lengths (Karcher 1977; Afsari 2011, arXiv 0906.5083).

    The x of the unit sphere where Σ wₖ·log_x(uₖ) = 0, found by x ← exp_x(Σ wₖ·log_x(uₖ)). Of directions that cancel out it is the plain mean.
    """
    return combined(models, seen, out=models[0])


def geometric_median(*models: Tensor, seen: Annotated[Factors, apart(weiszfeld)]) -> Tensor:
    """The tensor whose distances to all models have the least sum, by Weiszfeld's iterations (Weiszfeld 1937; Vardi & Zhang 2000)."""
    return combined(models, seen, out=models[0])


def model_stock(base: Tensor, *models: Tensor, seen: Annotated[Factors, apart(stock)]) -> Tensor:
    """t·mean + (1−t)·θ₀ with t = N·cosθ/(1 + (N−1)·cosθ), θ the mean angle between the deltas (Jang et al. 2024, arXiv 2403.19522, eq. 2)."""
    return combined((base, *models), seen, out=base)


def cosine_a(a: Tensor, b: Tensor, *, t: Fraction = 0.0, part: Part, seen: Annotated[Tensor, by_column(unlike)]) -> Tensor:
    """From a to b by 1 − clamp(s − t, 0, 1), s the cosine of each column of a and b (SuperMerger's cosineA as sd-mecha has it; no paper)."""
    one, other = (rows.view(-1, part.columns) for rows in (a, b))
    return one.lerp_(other, seen.expand_as(one)).view(a.shape)


def cosine_b(a: Tensor, b: Tensor, *, t: Fraction = 0.0, part: Part, seen: Annotated[Tensor, by_column(unlike_whole)]) -> Tensor:
    """As `cosine_a`, s the mean of that and of the cosine of the whole tensors (SuperMerger's cosineB as sd-mecha has it; no paper)."""
    return cosine_a(a, b, t=t, part=part, seen=seen)


def rotate(a: Tensor, b: Tensor, *, alignment: Fraction = 1.0, t: Fraction = 0.0) -> Tensor:
    """R^alignment·((1−t)·a + t·Rᵀ·b), R the rotation of a's neurons nearest to b: the orthogonal Procrustes problem (Schönemann 1966).

    R acts on the shorter side of the matrix, is orthogonal (reflections are left out: det R = 1), and vectors are left to `lerp`.
    """
    if a.dim() < 2 or min(a.flatten(1).shape) < 2:
        return torch.lerp(a, b, t)
    one, other = a.flatten(1), b.flatten(1)
    wide = one.shape[0] <= one.shape[1]
    one, other = (one, other) if wide else (one.T, other.T)
    u, _, v = torch.linalg.svd((other @ one.T).double())
    if float(torch.linalg.det(u @ v)) < 0:
        u[:, -1].neg_()
    turn = u @ v
    aligned = one.double() if t == 0 else torch.lerp(one.double(), turn.T @ other.double(), t)
    made = (turn if alignment == 1 else _power(turn, alignment)) @ aligned
    turned: Tensor = (made if wide else made.T).float().reshape(a.shape)
    return turned


def truncate_rank(base: Tensor, model: Tensor, *, ratio: Fraction) -> Tensor:
    """θ₀ + the best approximation of δ whose rank is `ratio` of the full one, by the SVD (Eckart & Young 1936); vectors are kept whole."""
    if base.dim() < 2:
        return model.clone()
    delta = (model - base).flatten(1)
    rank = round(ratio * min(delta.shape))
    if rank == 0:
        return base.clone()
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    made: Tensor = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(base.shape).add_(base)
    return made


# ── what they are made of ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cosine(dots: Tensor) -> Tensor:
    """The cosine of a and b of their inner products a·a, a·b, b·b."""
    return dots[1] / (dots[0] * dots[2]).sqrt().clamp_min(1e-300)


def _far(likeness: Tensor, values: Values) -> Tensor:
    share: Tensor = 1 - (likeness - values["t"]).clamp(0, 1)
    return share.float()


def _power(turn: Tensor, exponent: float) -> Tensor:
    """A rotation's real power, by its eigenvalues e^{iφ}, φ in (−π, π]."""
    values, vectors = torch.linalg.eig(turn)
    powered = vectors @ torch.diag(torch.polar(torch.ones_like(values.real), values.angle() * exponent)) @ torch.linalg.inv(vectors)
    real: Tensor = powered.real
    return real
