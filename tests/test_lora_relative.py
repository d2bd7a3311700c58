"""Adapters that change a weight by what it is, against formulas spelled out: rotations output by output, gains, a product from the right."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jpgen.errors import WeightsError
from jpgen.lora import DENOISER, Adapter, read_adapter
from jpgen.lora_modules import AdaptedModules

Tensors = dict[str, Tensor]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) * 100 + seed))


def read(tensors: Tensors, folder: Path) -> Adapter:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "x.safetensors", metadata={"format": "pt"})
    return read_adapter(folder / "x.safetensors")


def delta(factors: Tensors, weight: Tensor, folder: Path) -> Tensor:
    (change,) = read({f"lora_unet_m.{name}": tensor for name, tensor in factors.items()}, folder).changes
    assert change.fits(weight) and not change.fits(weight.repeat(2, 2, *[1] * (weight.dim() - 2))) and change.shape()[0] in weight.shape[:2]
    return change.delta(weight)


def cayley(block: Tensor) -> Tensor:
    skew, one = block - block.T, torch.eye(len(block))
    return torch.linalg.solve(one - skew, one + skew)  # both sides commute


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_oft_turns_each_lot_of_outputs(kernel: tuple[int, ...], tmp_path: Path) -> None:
    weight, blocks = rand(6, 5, *kernel), rand(2, 3, 3)
    wanted = torch.cat([torch.einsum("nm,n...->m...", cayley(block), weight[3 * k : 3 * k + 3]) for k, block in enumerate(blocks)])
    torch.testing.assert_close(weight + delta({"oft_blocks": blocks}, weight, tmp_path), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wanted.flatten(1).T @ wanted.flatten(1), weight.flatten(1).T @ weight.flatten(1), atol=1e-4, rtol=1e-4)
    rescale = rand(6, 1, *[1] * len(kernel))
    made = weight + delta({"oft_blocks": blocks, "rescale": rescale, "alpha": torch.tensor(0.0)}, weight, tmp_path)
    torch.testing.assert_close(made, rescale * wanted, atol=1e-5, rtol=1e-5)


def test_the_constraint_of_oft_bounds_the_skew_parts_of_all_blocks_together(tmp_path: Path) -> None:
    weight, blocks = rand(6, 5), rand(2, 3, 3)
    size = (blocks - blocks.mT).norm().item()
    for alpha, share in ((size / 12, 0.5), (size, 1.0)):  # times six outputs: half of what it is, or six times as much
        made = delta({"oft_blocks": blocks, "alpha": torch.tensor(alpha)}, weight, tmp_path)
        torch.testing.assert_close(made, delta({"oft_blocks": blocks * share}, weight, tmp_path), atol=1e-5, rtol=1e-5)


def test_boft_mixes_outputs_farther_apart_at_every_stage(tmp_path: Path) -> None:
    weight, blocks = rand(8, 5), rand(3, 4, 2, 2)  # three stages of four blocks: outputs 1, 2 and 4 apart
    wanted = weight.clone()
    for stage, apart in enumerate((1, 2, 4)):
        firsts = [i for i in range(8) if not i // apart % 2]
        for block, first in zip(blocks[stage], firsts, strict=True):
            pair = [first, first + apart]
            wanted[pair] = cayley(block) @ wanted[pair]
    torch.testing.assert_close(weight + delta({"oft_blocks": blocks}, weight, tmp_path), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_ia3_is_a_gain_of_inputs_or_of_outputs(kernel: tuple[int, ...], tmp_path: Path) -> None:
    weight, ones = rand(4, 3, *kernel), [1] * len(kernel)
    for count, on_input in ((4, 0), (3, 1)):
        gain = rand(1, count, *ones) if kernel else rand(count)  # LyCORIS keeps those of convolutions so, along either side
        made = delta({"weight": gain, "on_input": torch.tensor(on_input)}, weight, tmp_path)
        along = gain.flatten().reshape(1, -1, *ones) if on_input else gain.flatten().reshape(-1, 1, *ones)
        torch.testing.assert_close(made, weight * along)


def test_glora_is_a_product_from_the_right_and_one_beside(tmp_path: Path) -> None:
    a1, a2, b1, b2 = rand(5, 2), rand(2, 5), rand(6, 2), rand(2, 5, seed=1)
    factors = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "alpha": torch.tensor(1.0)}
    weight = rand(6, 5)
    torch.testing.assert_close(delta(factors, weight, tmp_path), 0.5 * (weight @ a1 @ a2 + b1 @ b2))
    picture, weight = rand(1, 5, 7, 7), rand(6, 5, 3, 3)
    factors |= {"a1.weight": a1[..., None, None], "a2.weight": a2[..., None, None], "b1.weight": b1[..., None, None], "b2.weight": rand(2, 5, 3, 3)}
    made = nn.functional.conv2d(picture, delta(factors, weight, tmp_path))
    before = nn.functional.conv2d(nn.functional.conv2d(picture, a2[..., None, None]), a1[..., None, None])
    beside = nn.functional.conv2d(nn.functional.conv2d(picture, rand(2, 5, 3, 3)), b1[..., None, None])
    torch.testing.assert_close(made, 0.5 * (nn.functional.conv2d(before, weight) + beside), atol=1e-4, rtol=1e-4)


def test_they_go_on_modules_and_come_off(tmp_path: Path) -> None:
    net = nn.ModuleDict({"linear": nn.Linear(5, 6), "conv": nn.Conv2d(4, 6, 3)})
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    blocks, gain = rand(2, 3, 3), rand(1, 6, 1, 1)
    adapter = read({"oft_unet_linear.oft_blocks": blocks, "lycoris_conv.weight": gain, "lycoris_conv.on_input": torch.tensor(0)}, tmp_path)
    with AdaptedModules("net", "", {DENOISER: net}).applied([(adapter, 0.5)]):
        torch.testing.assert_close(net["conv"].weight, before["conv.weight"] * (1 + 0.5 * gain.reshape(6, 1, 1, 1)))
        assert (net["linear"].weight - before["linear.weight"]).abs().max() > 0.05
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


@pytest.mark.parametrize(
    "factors",
    [
        {"oft_blocks": rand(2, 3, 2)},
        {"oft_blocks": rand(2, 2, 3, 3)},  # an odd block has no halves
        {"oft_blocks": rand(3, 3, 2, 2)},  # six outputs have no third stage
        {"oft_blocks": rand(2, 3, 3), "rescale": rand(5, 1)},
        {"oft_blocks": torch.full((2, 3, 3), torch.nan)},
        {"weight": rand(2, 3), "on_input": torch.tensor(1)},
        {"weight": rand(3), "on_input": torch.tensor([1, 0])},
        {"on_input": torch.tensor(1)},
        {"a1.weight": rand(5, 2), "a2.weight": rand(2, 5), "b1.weight": rand(6, 2), "alpha": torch.tensor(1.0)},
        {"a1.weight": rand(4, 2), "a2.weight": rand(2, 5), "b1.weight": rand(6, 2), "b2.weight": rand(2, 5), "alpha": torch.tensor(1.0)},
    ],
)
def test_factors_that_do_not_fit_each_other(factors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"lora_unet_m|: m|m lacks|m has"):
        read({f"lora_unet_m.{name}": tensor for name, tensor in factors.items()}, tmp_path)
