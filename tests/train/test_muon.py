"""Muon by blocks: what is orthogonal, how large a step is, and that it learns."""

import pytest
import torch

from jpgen.train.muon import BLOCK, Muon, orthogonal, orthogonal_blocks


def test_singular_values_come_near_one() -> None:
    made = orthogonal(torch.randn(3, 32, 80, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(128, 128), (256, 128), (128, 256)])
def test_every_block_is_orthogonal_by_itself(shape: tuple[int, int]) -> None:
    made = orthogonal_blocks(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert made.shape == shape
    assert made.square().mean().sqrt().item() == pytest.approx(1, abs=0.2)
    for block in (made if shape[0] >= shape[1] else made.mT).split(BLOCK):
        values = torch.linalg.svdvals(block / 128**0.5)
        assert values.min() > 0.6 and values.max() < 1.3


def test_a_matrix_that_blocks_do_not_divide_is_one_block() -> None:
    matrix = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal_blocks(matrix), orthogonal(matrix[None])[0] * 96**0.5)


def test_it_learns_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 64, generator=generator)
    guess = torch.zeros(64, 64, requires_grad=True)
    optimizer = Muon([guess], lr=0.2)
    for step in range(120):
        seen = torch.randn(32, 64, generator=generator)
        loss = (seen @ (guess - target)).square().mean()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 120)
        optimizer.step()
        optimizer.zero_grad()
    assert (guess - target).square().mean() < 0.1 * target.square().mean()
