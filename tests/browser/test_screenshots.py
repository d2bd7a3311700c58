"""Pictures of the pages with the built-in model's own; JPGEN_SCREENSHOTS=1 puts them into demo/screenshots/, from where README shows them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import ROOT, Server, fill, go, settled

pytestmark = pytest.mark.browser
PROMPT = "プロンプト (Prompt)"
MOST_BYTES = 150_000


def take(page: Page, folder: Path, name: str) -> None:
    """A screenshot of at most 150 kB, in few colours."""
    settled(page)
    page.evaluate("() => Promise.all([...document.images].map((image) => image.decode().catch(() => {})))")
    taken = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    file = folder / f"{name}.png"
    taken.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    assert 5_000 < file.stat().st_size <= MOST_BYTES


def test_every_page_is_photographed(real: Server, visit: Callable[..., Page], tmp_path: Path) -> None:
    folder = ROOT / "demo" / "screenshots" if os.environ.get("JPGEN_SCREENSHOTS") else tmp_path
    folder.mkdir(exist_ok=True)
    page = visit(real, viewport={"width": 1280, "height": 980})
    fill(page, PROMPT, "人のいない、夕焼けの鳥居と桜並木を描いてください。水彩画風で")
    page.get_by_role("button", name="生成", exact=True).click()
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()
    take(page, folder, "create")
    page.get_by_role("button", name="なおす").click()
    expect(page.get_by_role("heading", level=1, name="なおす")).to_be_visible()
    page.get_by_text("一部を").click()
    canvas = page.locator("canvas[role=application]")
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.35, steps=8)
    page.mouse.up()
    expect(page.get_by_role("button", name="塗った所を描きなおす")).to_be_enabled()
    take(page, folder, "repair")
    go(page, "くらべる")
    fill(page, "日本語のプロンプト", "雪の中の赤い鳥居を描いてください")
    fill(page, "自分の英訳", "a red torii gate in the snow")
    page.get_by_role("button", name="くらべる", exact=True).click()
    expect(page.get_by_role("heading", name="読み解きなし", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="取り消す")).not_to_be_visible()
    take(page, folder, "compare")
    for tab, name in (("まぜる", "blend"), ("みわける", "recognise"), ("ギャラリー", "gallery")):
        go(page, tab)
        take(page, folder, name)
    phone = visit(real, viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True, has_touch=True)
    fill(phone, PROMPT, "夜空の花火")
    take(phone, folder, "phone")
