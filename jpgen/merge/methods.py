"""Merge methods: functions of tensors in fp32, one a method, and the groups of tensors that have weights of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
"""What is in the names of attention's tensors."""

GROUPS = ("attn", "conv")
"""The groups of Sakana AI's published script for Evo-Ukiyoe: attention, and all the rest."""


def group(name: str) -> str:
    """The group of the tensor of this name.

    >>> group("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"), group("conv_in.weight")
    ('attn', 'conv')
    """
    return "attn" if any(part in name for part in ATTENTION) else "conv"


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted average Σ wₖ·θₖ of tensors of one shape (Wortsman et al. 2022, arXiv 2203.05482), weights that sum to 1."""
    made = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        made.add_(tensor, alpha=weight)
    return made


def lora(tensor: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """θ + s·B·A (Hu et al. 2021, arXiv 2106.09685): `up` B [out, rank …], `down` A [rank, in …]; a kernel's sides are flattened for the product."""
    return tensor + scale * (up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
