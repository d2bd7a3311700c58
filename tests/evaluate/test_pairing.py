"""The noise gap and the recall: 0 and 1 for the teacher itself, 1 and chance for one who says nothing."""

import torch

from jpgen.backbones import pixart, sdxl
from jpgen.evaluate.pairing import noise_gaps, recall_at_1, stacked
from jpgen.types import Conditioning


def states(rows: int, width: int, pooled: int | None, seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, 7, width, generator=generator)
    return Conditioning(tokens, torch.ones(rows, 7, dtype=torch.int64), None if pooled is None else torch.randn(rows, pooled, generator=generator))


def test_the_gap_is_0_for_the_teacher_and_1_for_silence() -> None:
    for backbone, width, pooled, side in ((sdxl.toy(), 64, 24, 8), (pixart.toy(), 32, None, 4)):
        teacher, empty = states(20, width, pooled), states(1, width, pooled, seed=1)
        silent = Conditioning(*(None if value is None else value.expand(20, *value.shape[1:]) for value in (empty.tokens, empty.mask, empty.pooled)))
        assert noise_gaps(backbone, teacher, teacher, empty, latent_side=side).abs().max() < 1e-5
        torch.testing.assert_close(noise_gaps(backbone, silent, teacher, empty, latent_side=side), torch.ones(20), atol=1e-3, rtol=1e-3)
        half = Conditioning(teacher.tokens + 0.01 * states(20, width, None, seed=2).tokens, teacher.mask, teacher.pooled)
        gap = noise_gaps(backbone, half, teacher, empty, latent_side=side)
        assert bool((gap > 0).all()) and float(gap.mean()) < 0.5


def test_recall_finds_the_same_text_and_only_by_chance_another() -> None:
    teacher = states(200, 16, 8)
    near = Conditioning(teacher.tokens + 0.05 * states(200, 16, None, seed=3).tokens, teacher.mask, teacher.pooled)
    assert recall_at_1(teacher, teacher) == 1.0
    assert recall_at_1(near, teacher) > 0.95
    assert recall_at_1(states(200, 16, 8, seed=4), teacher) < 0.05


def test_rows_of_unlike_length_are_stacked_with_masked_zeros() -> None:
    long = states(2, 16, 8)
    short = Conditioning(long.tokens[:1, :3], long.mask[:1, :3], long.pooled[:1])
    made = stacked([short, long])
    assert made.tokens.shape == (3, 7, 16) and made.mask[0].tolist() == [1, 1, 1, 0, 0, 0, 0] and not made.tokens[0, 3:].any()
