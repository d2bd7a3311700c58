"""Schedules: every vector observed from the web UI, and no text that breaks them."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpgen.prompt.schedule import has_schedule, schedule

SCHEDULES = json.loads((Path(__file__).parents[1] / "data" / "a1111_vectors.json").read_text("utf-8"))["schedules_steps10"]


@pytest.mark.parametrize(("text", "expected"), SCHEDULES)
def test_schedules_are_read_as_the_web_ui_does(text: str, expected: list[list[object]]) -> None:
    assert [list(part) for part in schedule(text, 10)] == expected
    assert has_schedule(text) == (text not in ("test", "a [unbalanced", "[猫：犬：0.5]"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[猫|[犬|鳥]]", [(1, "猫"), (2, "鳥"), (3, "猫"), (4, "鳥")]),
        ("[[春|秋]:2]の京都", [(1, "の京都"), (2, "の京都"), (3, "春の京都"), (4, "秋の京都")]),
        ("[春:秋:2]と[昼:夜:3]", [(2, "春と昼"), (3, "秋と昼"), (4, "秋と夜")]),
        ("[春:秋:0]", [(4, "秋")]),
        ("[春:秋:-1]", [(4, "秋")]),
        ("[春:秋:+0.5 ]", [(2, "春"), (4, "秋")]),
        ("[春:秋:" + "9" * 400 + "]", [(4, "春")]),
        (r"[a\|b|c]", [(1, r"a\|b"), (2, "c"), (3, r"a\|b"), (4, "c")]),
        (r"\[春:秋:2\]", [(4, r"\[春:秋:2\]")]),
        ("[(春:1.2):(秋|冬):2]", [(2, "(春:1.2)"), (4, "(秋|冬)")]),
        ("[春:夏:秋:2] [春] [春:秋] [春|秋:2]", [(4, "[春:夏:秋:2] [春] [春:秋] [春|秋:2]")]),
        ("[春:秋:2] [猫", [(2, "春 [猫"), (4, "秋 [猫")]),
        ("[春(:秋:2]", [(2, "春("), (4, "秋")]),
    ],
)
def test_schedules_beyond_the_vectors(text: str, expected: list[tuple[int, str]]) -> None:
    assert schedule(text, 4) == expected


@settings(deadline=None, max_examples=100, database=None)
@given(st.text("()[]|:\\\\ 0.5猫犬\n", max_size=30) | st.text(max_size=30), st.integers(1, 12))
def test_any_text_has_a_schedule(text: str, steps: int) -> None:
    found = schedule(text, steps)
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends))
    assert 1 <= ends[0] <= ends[-1] == steps
    assert has_schedule(text) or found == [(steps, text)]


def test_schedules_of_any_depth_are_read() -> None:
    assert schedule("[" * 10_000 + "猫", 3) == [(3, "[" * 10_000 + "猫")]
    assert schedule("[" * 10_000 + "猫" + ":2]" * 10_000, 3) == [(2, ""), (3, "猫")]
