"""EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946; Lite: no squeeze-and-excitation, ReLU6), its normalisation folded into the convolutions.

The trunk of mame-clip's image tower. Nothing of transformers or diffusers has the Lite variants.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

STEM, WIDTH = 32, 1280
"""Channels of the first and of the last convolution."""


class Stage(NamedTuple):
    """Blocks of one width: how many, side of the depthwise kernel, stride of the first, how much wider they are inside, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80), Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does, so that it gives ⌈side ÷ stride⌉: an odd pixel of padding goes below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, side, side] to [batch, channels, ⌈side ÷ stride⌉, …]."""
        stride, kernel, side = self.stride[0], self.kernel_size[0], x.shape[-1]
        padding = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        before, after = padding // 2, padding - padding // 2
        return F.conv2d(F.pad(x, (before, after, before, after)), self.weight, self.bias, self.stride, groups=self.groups)


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018, arXiv 1801.04381): wider, depthwise, narrow again; added to its input where the shapes agree."""

    def __init__(self, inner: int, outer: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = inner * stage.expansion
        self.expand = nn.Conv2d(inner, wide, 1) if stage.expansion > 1 else None
        self.depthwise = SameConv(wide, wide, stage.kernel, stride, groups=wide)
        self.project = nn.Conv2d(wide, outer, 1)
        self.added = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inner, side, side] to [batch, outer, ⌈side ÷ stride⌉, …]."""
        wide = F.relu6(self.expand(x)) if self.expand is not None else x
        out: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + out if self.added else out


class EfficientNetLite0(nn.Module):
    """All its layers but the pooling and the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM, 3, 2)
        blocks, inner = [], STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                blocks.append(Block(inner, stage.width, stage, stage.stride if number == 0 else 1))
                inner = stage.width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(inner, WIDTH, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, 1280, side ÷ 32, side ÷ 32] of pixels −1…1 [batch, 3, side, side]."""
        return F.relu6(self.last(self.blocks(F.relu6(self.stem(pixels)))))
