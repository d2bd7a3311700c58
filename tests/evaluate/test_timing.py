"""The arithmetic of bench-speed: interleaving, medians, and failing where two arms differ."""

import numpy as np
import pytest

from jpgen.evaluate import timing
from jpgen.evaluate.timing import Compared, UnlikeError, compare, nearness, probe


def test_arms_take_turns_and_the_ratio_is_the_median() -> None:
    order: list[str] = []
    made = np.arange(12.0)
    found = compare("row", lambda: order.append("a") or made, lambda: order.append("b") or made, rounds=3, least=40.0)  # type: ignore[func-returns-value]
    assert order == ["a", "b"] * 4 and len(found.ours) == len(found.theirs) == 3
    assert Compared("x", (1.0, 2.0, 9.0), (2.0, 2.0, 2.0), None).ratio == 1.0
    assert "1.00 (0.50–4.50)" in str(Compared("x", (1.0, 2.0, 9.0), (2.0, 2.0, 2.0), None))


def test_unlike_arms_have_no_ratio() -> None:
    one = np.linspace(0, 255, 100)
    for other in (one + 40, one[:50], np.where(one > 200, np.nan, one)):
        with pytest.raises(UnlikeError):
            compare("row", lambda: one, lambda other=other: other, rounds=1, least=40.0)
    assert nearness(one, one) == float("inf")
    assert nearness(one, one + 1) == pytest.approx(20 * np.log10(255), abs=1e-6)


def test_the_probe_measures_something(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe(64)
    assert found.fp32 > 0 and found.bf16 > 0 and found.threads >= 1
    monkeypatch.setattr(timing, "cpu_seconds", iter([0.0, 2.0]).__next__)
    monkeypatch.setattr(timing.time, "perf_counter", iter([5.0, 8.0]).__next__)
    timed = timing._timed(lambda: "made")
    assert (timed.cpu, timed.clock, timed.made) == (2.0, 3.0, "made")


def test_the_first_turn_warms_up_unless_told_not_to_and_shows_what_is_unlike() -> None:
    order: list[str] = []
    found = compare("row", lambda: order.append("a"), lambda: order.append("b"), rounds=2, least=None, warm=0)
    assert order == ["a", "b"] * 2 and [len(arm) for arm in (found.ours, *found.clock)] == [2, 2, 2]
    order.clear()
    with pytest.raises(UnlikeError):
        compare("row", lambda: order.append("a") or np.zeros(3), lambda: np.arange(3.0), rounds=9, least=40.0)  # type: ignore[func-returns-value]
    assert order == ["a"]
