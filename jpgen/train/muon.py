"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), block by block.

torch.optim.Muon makes whole matrices orthogonal, in bf16 whatever the machine; on a small batch that takes longer than the model itself. Here a
matrix is made orthogonal in blocks of one attention head's width (as Khaled et al. 2025, arXiv 2510.16981, do between their full steps), which
is a sixth of the work at width 384, all blocks of one shape at once, in the number type that suits the machine.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from jpgen.compute import best_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration pushes every singular value towards 1."""

BLOCK = 64
"""Width of a block, where it divides the matrix."""


@torch.no_grad()
def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly (singular values 0.7…1.2), of `matrices` [n, rows, columns], by Newton–Schulz iteration."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).to(best_dtype())
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def orthogonal_blocks(matrix: Tensor) -> Tensor:
    """`matrix` [rows, columns] with each `BLOCK` rows (columns, where they are more) made orthogonal, at root mean square 1."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    blocks = tall.unflatten(0, (-1, BLOCK)) if tall.shape[0] % BLOCK == 0 else tall[None]
    made = orthogonal(blocks).flatten(0, 1) * max(blocks.shape[1:]) ** 0.5
    return made if matrix.shape[0] >= matrix.shape[1] else made.mT


class Muon(torch.optim.Optimizer):
    """For matrices alone; `lr` is that of AdamW, whose size of update (0.2 root mean square) it takes (Liu et al. 2025, arXiv 2502.16982)."""

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One Nesterov step of every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                moving = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                moving.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal_blocks(parameter.grad.lerp(moving, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-0.2 * group["lr"])
