"""Distances between sets of pictures, over features a test can see through."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jpgen.errors import SettingError
from jpgen.evaluate.sets import set_distance


@dataclass(frozen=True)
class MeanColor:
    name: str = "mean colour"
    scale: float = 1.0

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        return F.normalize(torch.stack([torch.from_numpy(np.asarray(image, np.float32).mean((0, 1)) + 1) for image in images]), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError


def plain(*colors: str) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), color) for color in colors]


def test_a_set_is_no_distance_from_itself() -> None:
    images = plain("red", "orange", "brown")
    found = set_distance(images, images, model=MeanColor())
    assert found.frechet == pytest.approx(0, abs=1e-9) and found.drift == pytest.approx(0, abs=1e-6)
    assert found.diversity[0] == found.diversity[1] > 0


def test_far_sets_are_farther_than_near_ones() -> None:
    reds, oranges, blues = plain("red", "darkred", "crimson"), plain("orange", "tomato", "coral"), plain("blue", "navy", "royalblue")
    near, far = (set_distance(reds, other, model=MeanColor()) for other in (oranges, blues))
    assert near.frechet < far.frechet and near.kernel < far.kernel and near.drift < far.drift  # type: ignore[operator]
    assert set_distance(reds, blues[:2], model=MeanColor()).drift is None


def test_sets_of_one_are_refused() -> None:
    with pytest.raises(SettingError, match="got 1 and 2"):
        set_distance(plain("red"), plain("red", "blue"), model=MeanColor())
