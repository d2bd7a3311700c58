"""What an adapter learns from: the English teacher's text states, and what the frozen backbone makes of them.

The student reads Japanese, the teacher the same in English. Losses: the states position by position, each divided by the teacher's usual size
there (GlueGen, arXiv 2303.10056); the pooled states; the predicted noise of one latent at one time (PEA-Diffusion, arXiv 2311.17086); and the
outputs of the backbone's blocks on the way. In the place of noisy latents stands pure noise: no picture is needed (X2I, arXiv 2503.06134).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from jpgen.backbones.denoising import denoised, watched
from jpgen.errors import IncompatibleError
from jpgen.types import Conditioning


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts; 0: it is not computed (without `noise` and `features` the backbone never runs)."""

    hidden: float = 0.0
    pooled: float = 0.1
    noise: float = 1.0
    features: float = 0.1


def position_norms(states: Sequence[Conditioning]) -> Tensor:
    """The root mean square [seq] of a teacher's states at each position, over many texts of one length."""
    return torch.cat([one.tokens for one in states]).square().mean(dim=(0, 2)).sqrt().clamp_min(1e-3)


def state_loss(student: Conditioning, teacher: Conditioning, norms: Tensor) -> Tensor:
    """Mean squared difference of the states, each position in units of `norms`; raises IncompatibleError if their lengths differ."""
    if student.tokens.shape[1] != teacher.tokens.shape[1]:
        raise IncompatibleError(
            f"状態の長さが違います / the student gives {student.tokens.shape[1]} states, the teacher {teacher.tokens.shape[1]}: a loss of hidden "
            f"states wants kind 'resampler' or 'mixer' with length = {teacher.tokens.shape[1]}"
        )
    scale = norms[None, : teacher.tokens.shape[1], None]
    return mse_loss(student.tokens / scale, teacher.tokens / scale)


def pooled_loss(student: Conditioning, teacher: Conditioning) -> Tensor:
    """How far the pooled states are apart: in direction, and in size relative to the teacher's; 0 where there are none."""
    if student.pooled is None or teacher.pooled is None:
        return student.tokens.new_zeros(())
    apart = (student.pooled - teacher.pooled).square().sum(1) / teacher.pooled.square().sum(1).clamp_min(1e-6)
    turned = 1 - (normalize(student.pooled, dim=1) * normalize(teacher.pooled, dim=1)).sum(1)
    return (apart + turned).mean()


def distilled(
    backbone: Any, student: Conditioning, teacher: Conditioning, weights: LossWeights, norms: Tensor, noisy: Tensor, times: Tensor
) -> dict[str, Tensor]:
    """Each loss that has a weight, by its name, unweighted. `noisy` and `times` are as for `denoised`; no gradient reaches the teacher."""
    losses: dict[str, Tensor] = {}
    if weights.hidden:
        losses["hidden"] = state_loss(student, teacher, norms)
    if weights.pooled and teacher.pooled is not None:
        losses["pooled"] = pooled_loss(student, teacher)
    if weights.noise or weights.features:
        with torch.no_grad(), watched(backbone) as wanted:
            target = denoised(backbone, noisy, times, teacher)
        with watched(backbone) as got:
            losses["noise"] = mse_loss(denoised(backbone, noisy, times, student), target)
        if weights.features:
            apart = [mse_loss(one, other) / other.square().mean().clamp_min(1e-6) for one, other in zip(got, wanted, strict=True)]
            losses["features"] = torch.stack(apart).mean()
    return losses
