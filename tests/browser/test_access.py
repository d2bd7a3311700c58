"""Everybody can use it: axe finds nothing serious, a phone shows it whole, the keyboard reaches the picture, nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PROMPT, Server, generate, go, settled
from tests.browser.gated import open_gate

pytestmark = pytest.mark.browser
TABS = ["つくる", "くらべる", "なおす", "まぜる", "みわける", "ギャラリー"]
ADDRESSES = ["", "compare", "repair", "blend", "recognise", "gallery"]
PHONE = 390
AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")


def findings(page: Page) -> list[str]:
    """What axe says of the page, serious and critical, with the places."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{one['id']}: {node['target']} {node['html'][:200]}"
        for one in found["violations"] if one["impact"] in ("serious", "critical") for node in one["nodes"]
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(gated: Server, visit: Callable[..., Page], scheme: str) -> None:
    page = visit(gated, color_scheme=scheme)
    open_gate(gated, "三匹の猫")
    generate(page, "三匹の猫")
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()
    page.get_by_text("設定", exact=True).first.click()
    settled(page)
    found = {"つくる": findings(page)}
    for tab in TABS[1:]:
        go(page, tab)
        found[tab] = findings(page)
    assert {tab: wrong for tab, wrong in found.items() if wrong} == {}


def test_a_phone_shows_it_without_scrolling_sideways(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated, viewport={"width": PHONE, "height": 844}, has_touch=True, is_mobile=True)
    for tab in ADDRESSES:
        page.goto(f"{gated.url}/{tab}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        settled(page)
        page.wait_for_function(f"Math.max(...['html', '[data-testid=stMain]'].map((one) => document.querySelector(one).scrollWidth)) <= {PHONE}")


def test_the_keyboard_alone_makes_and_saves_a_picture(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    open_gate(gated, "月")
    page.get_by_role("textbox", name=PROMPT).focus()
    page.keyboard.type("月")
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText").strip().endswith("生成"):
            break
    page.keyboard.press("Enter")
    save = page.get_by_role("button", name="PNG を保存")
    expect(save).to_be_visible()
    save.focus()
    with page.expect_download() as downloading:
        page.keyboard.press("Enter")
    assert downloading.value.suggested_filename.startswith("月-")


def test_nothing_leaves_the_machine(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    for tab in ADDRESSES:
        page.goto(f"{gated.url}/{tab}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        settled(page)
    assert asked
    assert [url for url in asked if not url.startswith((gated.url, "data:", "blob:"))] == []
