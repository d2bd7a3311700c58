"""Paired differences and distances between sets of features, against formulas worked by hand."""

import numpy as np
import pytest

from jpgen.evaluate.statistics import bootstrap, diversity, drift, frechet_distance, kernel_distance, paired


def test_a_constant_difference_has_no_spread() -> None:
    found = paired(np.array([3.0, 5.0, 4.0]), np.array([1.0, 3.0, 2.0]), np.array([0, 1, 2]))
    assert (found.mean, found.low, found.high, found.wins, found.clear) == (2.0, 2.0, 2.0, 1.0, True)


def test_seeds_of_one_prompt_count_as_one() -> None:
    many_seeds = paired(np.array([1.0] * 100 + [0.0]), np.zeros(101), np.array([0] * 100 + [1]))
    assert many_seeds.prompts == 2 and many_seeds.pairs == 101
    assert many_seeds.mean == pytest.approx(0.5)  # one prompt of two, not 100 pictures of 101
    assert not many_seeds.clear


def test_ties_win_half_and_what_was_not_drawn_does_not_count() -> None:
    found = paired(np.array([1.0, 2.0, np.nan]), np.array([1.0, 1.0, 9.0]), np.array([0, 1, 2]))
    assert found.wins == 0.75 and found.pairs == 2
    with pytest.raises(ValueError, match="no pair"):
        paired(np.array([np.nan]), np.array([1.0]), np.array([0]))


def test_the_interval_is_that_of_the_normal_mean_and_always_the_same() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    low, high = bootstrap(values) or (0.0, 0.0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap(values) == (low, high)
    assert bootstrap(np.array([])) is None


def test_frechet_of_gaussians_on_an_axis() -> None:
    one, two = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])  # means 0 and 3, variances 2 and 8
    assert frechet_distance(one, two) == pytest.approx(9 + 2 + 8 - 2 * np.sqrt(16))
    features = np.random.default_rng(0).normal(size=(50, 6))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-8)


def test_kernel_distance_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(5, 3)), rng.normal(1.0, 1.0, size=(4, 3))

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    xx = np.mean([k(one[i], one[j]) for i in range(5) for j in range(5) if i != j])
    yy = np.mean([k(two[i], two[j]) for i in range(4) for j in range(4) if i != j])
    xy = np.mean([k(x, y) for x in one for y in two])
    assert kernel_distance(one, two) == pytest.approx(xx + yy - 2 * xy)


def test_diversity_and_drift() -> None:
    same, apart = np.array([[1.0, 0.0]] * 3), np.eye(3)
    assert diversity(same) == pytest.approx(0) and diversity(apart) == pytest.approx(1)
    assert drift(apart, apart).tolist() == [0, 0, 0]
    assert drift(apart, np.roll(apart, 1, axis=0)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="the same pictures"):
        drift(apart, same)
    with pytest.raises(ValueError, match="two pictures or more"):
        frechet_distance(apart, apart[:1])
