"""The trunk of mame-clip before its training: what is folded computes what was there; a wrong file is told."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jpgen.errors import TrainingDataError
from jpgen.evaluate.efficientnet import LOWER_BLOCKS, EfficientNetLite0
from jpgen.train.clip_trunk import EPSILON, read_trunk, source_path


def normed(source: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    mean, variance, weight, bias = (source[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, variance, weight, bias, eps=EPSILON)


def test_the_folded_trunk_computes_what_its_source_does() -> None:
    """Stem and first blocks, unfolded, by hand: depthwise and projection, then expansion with stride 2 padded as TensorFlow does."""
    path = source_path()
    source = torch.load(path, weights_only=True)
    trunk = read_trunk(path)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        x = F.relu6(normed(source, F.conv2d(F.pad(pixels, (0, 1, 0, 1)), source["_conv_stem.weight"], stride=2), "_bn0"))
        x = F.relu6(normed(source, F.conv2d(x, source["_blocks.0._depthwise_conv.weight"], padding=1, groups=32), "_blocks.0._bn1"))
        x = normed(source, F.conv2d(x, source["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
        x = F.relu6(normed(source, F.conv2d(x, source["_blocks.1._expand_conv.weight"]), "_blocks.1._bn0"))
        x = F.pad(x, (0, 1, 0, 1))
        x = F.relu6(normed(source, F.conv2d(x, source["_blocks.1._depthwise_conv.weight"], stride=2, groups=96), "_blocks.1._bn1"))
        x = normed(source, F.conv2d(x, source["_blocks.1._project_conv.weight"]), "_blocks.1._bn2")
        torch.testing.assert_close(trunk.lower[:2](F.relu6(trunk.stem(pixels))), x, atol=1e-4, rtol=1e-4)
        assert trunk.middle(pixels).shape == (2, 112, 4, 4) and trunk(pixels).shape == (2, 320, 2, 2)


def test_another_file_is_told(tmp_path: Path) -> None:
    torch.save({"some": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "no.pth").write_bytes(b"no weights")
    for name in ("other", "no", "missing"):
        with pytest.raises(TrainingDataError, match="EfficientNet-Lite0"):
            read_trunk(tmp_path / f"{name}.pth")


def test_every_block_is_in_one_half() -> None:
    trunk = EfficientNetLite0()
    assert (len(trunk.lower), len(trunk.upper)) == (LOWER_BLOCKS, 16 - LOWER_BLOCKS)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 2_939_120
