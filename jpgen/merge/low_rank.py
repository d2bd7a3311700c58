"""Low-rank factors of a change of weights: truncated SVD, exact where it is cheap, randomised where it is not."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLING = 16
"""Columns looked for beyond the rank (the p of Halko et al.)."""

ROUNDS = 24
"""Power iterations at most; they end when another gains nothing to speak of."""

GAIN = 2e-3
"""Share of the squared error that an iteration must take away for another to be made; the error then is within 1 % of the best."""

EXACT = 4
"""A matrix whose smaller side is not so many times the rank is decomposed as a whole: that is as fast."""


def truncated(matrix: Tensor, rank: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors B [out, rank] and A [rank, in] of the best approximation B·A of a matrix [out, in], fp32; both bear √σ.

    Randomised SVD with oversampling and power iterations (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4), repeated until the
    captured energy stands still; the whole SVD where that costs no more. The rank is at most that of the matrix' smaller side.
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= EXACT * (rank + OVERSAMPLING):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    elif matrix.shape[0] > matrix.shape[1]:
        v, s, u = _randomised(matrix.T, rank, generator)
        u, v = u.T, v.T
    else:
        u, s, v = _randomised(matrix, rank, generator)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def of_product(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """As `truncated`, exactly, of the product of B [out, r] and A [r, in], by QR of both and the SVD of an r×r matrix."""
    rank = min(rank, up.shape[1])
    left, one = torch.linalg.qr(up.double())
    right, other = torch.linalg.qr(down.double().T)
    u, s, v = torch.linalg.svd(one @ other.T, full_matrices=False)
    root = s[:rank].sqrt()
    return ((left @ u[:, :rank]) * root).float(), (root[:, None] * (v[:rank] @ right.T)).float()


def _randomised(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ and Vᵀ of a wide matrix, `rank` + OVERSAMPLING of each."""
    whole = float(matrix.square().sum())
    basis, _ = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=generator))
    captured = 0.0
    for _ in range(ROUNDS):
        projected, _ = torch.linalg.qr(matrix.T @ basis)
        basis, triangle = torch.linalg.qr(matrix @ projected)
        before, captured = captured, float(torch.linalg.svdvals(triangle)[:rank].square().sum())
        if captured - before <= GAIN * max(whole - captured, 1e-10 * whole):
            break
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, v
