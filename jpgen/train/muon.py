"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

torch.optim.Muon is the same but multiplies in bf16 whatever the machine; where a CPU has no bf16 that takes longer than the model itself. Here the
matrices of one shape are stacked, and multiplied in the number type that suits the machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from jpgen.compute import best_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration pushes every singular value towards 1."""


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


class Muon(torch.optim.Optimizer):
    """For matrices alone; `lr` is that of AdamW, whose size of update (0.2 root mean square) it takes (Liu et al. 2025, arXiv 2502.16982)."""

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One Nesterov step of every matrix that has a gradient."""
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                moving = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                moving.lerp_(parameter.grad, 1 - group["momentum"])
                alike[parameter.shape].append((parameter, parameter.grad.lerp(moving, group["momentum"])))
            for shape, pairs in alike.items():
                size = 0.2 * max(shape) ** 0.5
                for (parameter, _), update in zip(pairs, orthogonal(torch.stack([wanted for _, wanted in pairs])), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)
