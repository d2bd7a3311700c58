"""Pictures of the pages with the built-in model's own; JPGEN_SCREENSHOTS=1 puts them into demo/screenshots/, from where README shows them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import PROMPT, ROOT, Server, fill, generate, go, mix_twin, paint, settled

pytestmark = pytest.mark.browser
MOST_BYTES = 150_000


def take(page: Page, folder: Path, name: str) -> None:
    """A screenshot of at most 150 kB, in few colours."""
    settled(page)
    page.evaluate("() => Promise.all([...document.images].map((image) => image.decode().catch(() => {})))")
    taken = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    file = folder / f"{name}.png"
    taken.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    assert 5_000 < file.stat().st_size <= MOST_BYTES


@pytest.mark.usefixtures("merges")
def test_every_page_is_photographed(real: Server, visit: Callable[..., Page], tmp_path: Path) -> None:
    folder = ROOT / "demo" / "screenshots" if os.environ.get("JPGEN_SCREENSHOTS") else tmp_path
    folder.mkdir(exist_ok=True)
    page = visit(real, viewport={"width": 1280, "height": 980})
    generate(page, "人のいない、夕焼けの鳥居と桜並木を描いてください。水彩画風で")
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()
    take(page, folder, "create")
    page.get_by_role("button", name="なおす").click()
    expect(page.get_by_role("heading", level=1, name="なおす")).to_be_visible()
    paint(page, (0.25, 0.3), (0.7, 0.35))
    take(page, folder, "repair")
    go(page, "くらべる")
    fill(page, "日本語のプロンプト", "雪の中の赤い鳥居を描いてください")
    fill(page, "自分の英訳", "a red torii gate in the snow")
    page.get_by_role("button", name="くらべる", exact=True).click()
    expect(page.get_by_role("heading", name="読み解きなし", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="取り消す")).not_to_be_visible()
    take(page, folder, "compare")
    go(page, "まぜる")
    mix_twin(page)
    take(page, folder, "blend")
    go(page, "みわける")
    page.get_by_role("button", name="使う", exact=True).last.click()
    page.get_by_role("button", name="みわける", exact=True).click()
    expect(page.locator(".jp-bars")).to_be_visible()
    take(page, folder, "recognise")
    go(page, "ギャラリー")
    take(page, folder, "gallery")
    phone = visit(real, viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True, has_touch=True)
    fill(phone, PROMPT, "夜空の花火")
    take(phone, folder, "phone")
