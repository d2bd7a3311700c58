"""Two people at once: a queue in which nobody sees, stops or gets what is another's."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server, generate
from tests.browser.gated import colour, colours_of, open_gate

pytestmark = pytest.mark.browser
ROUNDS = 6
"""Rounds in the browser; tests/demo/test_engine.py goes through 200 interleavings of the same engine without one."""


def begin(page: Page, text: str) -> None:
    """Hand in a prompt, and wait until its job waits or runs."""
    generate(page, text)
    expect(page.get_by_role("button", name="取り消す")).to_be_visible()


def test_the_second_waits_and_is_told_how_many_are_before_it(gated: Server, visit: Callable[..., Page]) -> None:
    first, second = visit(gated), visit(gated)
    begin(first, "一番")
    begin(second, "二番")
    expect(second.get_by_text("順番を待っています（あと 1 件）")).to_be_visible()
    assert "一番" not in second.content()
    open_gate(gated, "一番")
    expect(first.get_by_role("img", name="一番").first).to_be_visible()
    open_gate(gated, "二番")
    expect(second.get_by_role("img", name="二番").first).to_be_visible()


def test_cancelling_what_waits_leaves_what_runs(gated: Server, visit: Callable[..., Page]) -> None:
    first, second = visit(gated), visit(gated)
    begin(first, "三番")
    begin(second, "四番")
    second.get_by_role("button", name="取り消す").click()
    expect(second.get_by_text("取り消しました。")).to_be_visible()
    open_gate(gated, "三番")
    expect(first.get_by_role("img", name="三番").first).to_be_visible()
    assert not second.get_by_role("img", name="四番").count()


def test_no_interleaving_shows_what_is_anothers(gated: Server, visit: Callable[..., Page]) -> None:
    rng = random.Random(8)
    pages = {"甲": visit(gated), "乙": visit(gated)}
    for number in range(ROUNDS):
        order = list(pages)
        rng.shuffle(order)
        texts = {name: f"{name}{number}" for name in order}
        for name in order:
            begin(pages[name], texts[name])
        cancelled = rng.choice([*order, ""])
        if cancelled:
            pages[cancelled].get_by_role("button", name="取り消す").click()
            expect(pages[cancelled].get_by_text("取り消しました。")).to_be_visible()
        rest = [name for name in order if name != cancelled]
        rng.shuffle(rest)
        for name in rest:
            open_gate(gated, texts[name])
        for name in rest:
            expect(pages[name].get_by_role("img", name=texts[name]).first).to_be_visible()
            others = {colour(text) for other, text in texts.items() if other != name}
            assert not colours_of(pages[name]) & others
            assert not any(text in pages[name].content() for other, text in texts.items() if other != name)
