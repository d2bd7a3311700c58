"""Sets of pictures compared by a scorer's features: how far apart they are, how varied each is, how far two models drift on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jpgen.errors import SettingError
from jpgen.evaluate.scorer import DEFAULT_SCORER, ImageTextScorer, open_scorer
from jpgen.evaluate.scores import Picture, finite, read_pictures
from jpgen.evaluate.statistics import diversity, drift, frechet_distance, kernel_distance


@dataclass(frozen=True)
class SetDistance:
    """`frechet` and `kernel` (0: the same; see jpgen.evaluate.statistics), `diversity` of each set (0…2), `drift` of twins (None: other numbers).

    They are FID and KID in form, over this scorer's features, not over Inception's: compare them with their like alone.
    """

    frechet: float
    kernel: float
    diversity: tuple[float, float]
    drift: float | None


def set_distance(one: Sequence[Picture], two: Sequence[Picture], *, model: str | Path | ImageTextScorer = DEFAULT_SCORER) -> SetDistance:
    """How two sets of pictures differ; sets of one length are also compared picture by picture, as two models' on the same prompts and seeds.

    `model` is the scorer whose features stand for the pictures. Raises SettingError (fewer than two pictures in a set, one that cannot be read).

        >>> from jpgen.evaluate.sets import set_distance
        >>> set_distance(["a-1.png", "a-2.png"], ["b-1.png", "b-2.png"]).drift  # doctest: +SKIP
        0.31
    """
    if len(one) < 2 or len(two) < 2:
        raise SettingError(f"二枚以上ずつ渡してください / give two pictures or more in each set, got {len(one)} and {len(two)}")
    scorer = open_scorer(model)
    first, second = (np.asarray(finite(scorer.image_features(read_pictures(images)), scorer), np.float64) for images in (one, two))
    twins = float(drift(first, second).mean()) if len(first) == len(second) else None
    return SetDistance(frechet_distance(first, second), kernel_distance(first, second), (diversity(first), diversity(second)), twins)
