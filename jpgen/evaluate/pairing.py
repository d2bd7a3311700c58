"""How near a Japanese encoder behind an adapter comes to the English teacher: in the noise a backbone predicts, and in the states themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jpgen.backbones.denoising import denoised, random_noise
from jpgen.types import Conditioning

CHUNK = 16
"""Texts the backbone sees at once."""


@torch.inference_mode()
def noise_gaps(
    backbone: Any, student: Conditioning, teacher: Conditioning, empty: Conditioning, *, latent_side: int, seed: int = 0
) -> Tensor:
    """|ε_student − ε_teacher|² / |ε_empty − ε_teacher|² of each text, fp32 [texts]: 0 is as good as English, 1 no better than saying nothing.

    `empty` is one row, the teacher's states of the empty text. Each text has a noise and a time of its own, the same for all three.
    """
    channels = backbone.modules["denoiser"].config.in_channels
    gaps = []
    for start in range(0, len(teacher.tokens), CHUNK):
        one, other = student.rows(start, start + CHUNK), teacher.rows(start, start + CHUNK)
        rows = len(other.tokens)
        noisy, times = random_noise((rows, channels, latent_side, latent_side), torch.Generator().manual_seed(seed + start))
        noisy = noisy.to(backbone.modules["denoiser"].dtype)
        wanted, got, nothing = (denoised(backbone, noisy, times, states).float() for states in (other, one, _repeated(empty, rows)))
        gaps.append((got - wanted).square().flatten(1).sum(1) / (nothing - wanted).square().flatten(1).sum(1).clamp_min(1e-12))
    return torch.cat(gaps)


def _repeated(row: Conditioning, rows: int) -> Conditioning:
    pooled = None if row.pooled is None else row.pooled.expand(rows, -1)
    return Conditioning(row.tokens.expand(rows, -1, -1), row.mask.expand(rows, -1), pooled)


def recall_at_1(student: Conditioning, teacher: Conditioning) -> float:
    """Share of the student's texts whose nearest teacher's text (cosine, the mean of all taken away) is their own; both have the same rows."""
    one, other = _summary(student), _summary(teacher)
    one, other = (torch.nn.functional.normalize(states - states.mean(0), dim=1) for states in (one, other))
    nearest = (one @ other.T).argmax(dim=1)
    return float((nearest == torch.arange(len(nearest))).float().mean())


def _summary(states: Conditioning) -> Tensor:
    """One vector a text: the mean of its tokens, and the pooled state beside it, each of the same usual size."""
    seen = states.mask[..., None].to(states.tokens.dtype)
    parts = [(states.tokens * seen).sum(1) / seen.sum(1).clamp_min(1)]
    if states.pooled is not None:
        parts.append(states.pooled)
    return torch.cat([part / part.norm(dim=1).mean().clamp_min(1e-6) for part in parts], dim=1)


def stacked(rows: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of single chunks under each other, filled with masked zeros to the longest."""
    longest = max(row.tokens.shape[1] for row in rows)
    tokens = torch.cat([torch.nn.functional.pad(row.tokens, (0, 0, 0, longest - row.tokens.shape[1])) for row in rows])
    mask = torch.cat([torch.nn.functional.pad(row.mask, (0, longest - row.mask.shape[1])) for row in rows])
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return Conditioning(tokens, mask, torch.cat(pooled) if pooled else None)
