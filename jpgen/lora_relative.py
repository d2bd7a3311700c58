"""Adapters that change a weight by what it is: rotations of its outputs (OFT, BOFT), gains (IA³), a product from its right (GLoRA).

OFT (Qiu et al. 2023, arXiv 2306.07280), BOFT (Liu et al. 2023, arXiv 2311.06243), IA³ (Liu et al. 2022, arXiv 2205.05638), GLoRA (Chavan et al. 2023,
arXiv 2306.07967), as LyCORIS computes them at full strength.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Shape = tuple[int, ...]

OFT, IA3 = ({"oft_blocks"}, {"rescale"}), ({"ia3", "on_input"}, set[str]())
GLORA = ({"glora_a1", "glora_a2", "glora_b1", "glora_b2"}, set[str]())
"""Factors that each needs, and may have. OFT's α is its constraint; blocks of four dimensions are BOFT's."""

RELATIVE = frozenset({"oft_blocks", "ia3", "glora_a1"})
"""A factor by which each kind is known."""


def relative_shape(f: Mapping[str, Shape]) -> Shape | None:
    """What these shapes tell of the weight's: [out], or of GLoRA all; None if they do not fit each other. Of IA³ [n], which is out or in."""
    if "oft_blocks" in f:
        blocks, size = f["oft_blocks"], math.prod(f["oft_blocks"][-3:-1])
        square = len(blocks) in (3, 4) and blocks[-1] == blocks[-2] and size > 0
        paired = len(blocks) == 3 or (blocks[-1] % 2 == 0 and size % (2 ** (blocks[0] - 1) * blocks[-1]) == 0)
        return (size,) if square and paired and math.prod(f.get("rescale", (size,))) == size else None
    if "ia3" in f:
        return (math.prod(f["ia3"]),) if math.prod(f["ia3"]) == max(f["ia3"], default=0) and math.prod(f["on_input"]) == 1 else None
    a1, a2, b1, b2 = (f[name] for name in sorted(GLORA[0]))
    if min(map(len, (a1, a2, b1, b2))) < 2 or a1[1] != a2[0] or b1[1] != b2[0] or not a1[0] == a2[1] == b2[1]:
        return None
    return (b1[0], *b2[1:])


def suits(f: Mapping[str, Tensor], weight: Shape) -> bool:
    """Whether such factors are for a weight of this shape."""
    made = relative_shape({name: tuple(tensor.shape) for name, tensor in f.items()})
    if made is None or len(weight) < 2:
        return False
    if "ia3" in f:
        return made[0] == weight[1 if bool(f["on_input"]) else 0]
    return made[0] == weight[0] and ("glora_a1" not in f or (made[1] == weight[1] and math.prod(made) == math.prod(weight)))


def relative_delta(weight: Tensor, f: Mapping[str, Tensor], scale: float) -> Tensor:
    """ΔW of a `weight` fp32; `scale`: α/rank, for GLoRA."""
    if "oft_blocks" in f:
        blocks = rotations(f["oft_blocks"], f["alpha"].item() * len(weight) if "alpha" in f else 0.0)
        turned = turn(weight, blocks) if blocks.dim() == 3 else butterfly(weight, blocks)
        rescale = f.get("rescale")
        return (turned if rescale is None else turned * rescale.reshape(-1, *[1] * (weight.dim() - 1))) - weight
    if "ia3" in f:
        along = [1] * weight.dim()
        along[1 if bool(f["on_input"]) else 0] = -1
        return weight * f["ia3"].reshape(along)
    left = torch.einsum("oi...,ij->oj...", weight, f["glora_a1"].flatten(1) @ f["glora_a2"].flatten(1))
    return scale * (left + (f["glora_b1"].flatten(1) @ f["glora_b2"].flatten(1)).reshape(weight.shape))


def rotations(blocks: Tensor, most: float) -> Tensor:
    """Cayley's (I + Q)(I − Q)⁻¹ of the skew part Q = B − Bᵀ of every block, Q no larger than `most` (0: as large as it is)."""
    skew = blocks - blocks.mT
    size = torch.linalg.vector_norm(skew) + 1e-8
    if 0 < most < size:
        skew = skew * (most / size)
    one = torch.eye(skew.shape[-1], device=skew.device)
    made: Tensor = (one + skew) @ torch.linalg.inv(one - skew)
    return made


def turn(weight: Tensor, blocks: Tensor) -> Tensor:
    """OFT: outputs by each block [k, b, b], transposed, k lots of b outputs that follow one another."""
    made: Tensor = torch.einsum("knm,kn...->km...", blocks, weight.unflatten(0, blocks.shape[:2]))
    return made.flatten(0, 1)


def butterfly(weight: Tensor, blocks: Tensor) -> Tensor:
    """BOFT: stage after stage [m, k, b, b]; before each, outputs that lie 2ⁱ·b/2 apart are brought together, and put back after it."""
    half = blocks.shape[-1] // 2
    for stage, block in enumerate(blocks):
        apart = 2**stage * half
        near = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, 2 * half))
        near = torch.einsum("kij,kj...->ki...", block, near)
        weight = near.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight
