"""What people may paste, drop and name: shown letter for letter, refused in a sentence, never run, fetched or followed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Page, expect

from tests.browser.conftest import PROMPT, Server, generate, go
from tests.browser.gated import open_gate

pytestmark = pytest.mark.browser
MARKUP = [
    "![絵](http://127.0.0.1:9/track.png) 赤い船",
    "<img src=http://127.0.0.1:9/track.png onerror=document.title='x'><script>document.title='x'</script> 船",
    "[船](javascript:document.title='x') :red[赤] $x^2$ :material/home: # 見出し",
    "</textarea><iframe src=http://127.0.0.1:9/></iframe>船",
]


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose head promises this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels or zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A small file of 225 million black pixels."""
    side = 15_000
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    return png(side, side, b"".join(packer.compress(row) for _ in range(side)) + packer.flush())


def forged() -> bytes:
    """A picture whose settings name files of the machine."""
    buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    pairs = "Steps: 4, Sampler: DDIM, CFG scale: 3, Seed: 5, Size: 64x64, Model: /etc/passwd"
    chunks.add_text("parameters", f"猫 <lora:../../../../etc/passwd:1>\nNegative prompt: x\n{pairs}")
    Image.new("RGB", (64, 64)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def test_markup_is_shown_as_it_is(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for text in MARKUP:
        open_gate(gated, text)
        generate(page, text)
        expect(page.get_by_role("img", name=text, exact=True).first).to_be_visible()
        page.get_by_text("この絵の設定").click()
        expect(page.locator(".jp-facts dd", has_text=text).last).to_be_visible()
        page.get_by_text("この絵の設定").click()
    go(page, "ギャラリー")
    for text in MARKUP:
        expect(page.get_by_text(text[:40]).first).to_be_visible()
    assert page.title() not in ("x", "")
    assert [url for url in asked if not url.startswith((gated.url, "data:", "blob:"))] == []
    assert page.locator("main iframe, main script, main a[href^='javascript']").count() == 0


def test_a_hundred_thousand_characters(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    generate(page, "あ" * 100_000)
    expect(page.get_by_text("長すぎます（100000 文字").first).to_be_visible()


FILES = [
    ("大きい.png", png(20_000, 20_000), "画素が多すぎます"),
    ("爆弾.png", bomb(), "画素が多すぎます"),
    ("文章.png", "これは絵ではありません".encode(), "画像ではありません"),
    ("途中.png", png(64, 64)[:60], "壊れているか"),
    ("<b>名前</b>.png", b"\x89PNG\r\n\x1a\n<script>", "壊れているか"),
]


def test_files_that_are_no_pictures_are_refused_in_a_sentence(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    page.get_by_text("絵から設定を戻す").click()
    for name, data, told in FILES:
        page.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})
        expect(page.get_by_role("alert").filter(has_text=told)).to_be_visible()
    assert not page.locator(".stException").count()


def test_settings_that_name_files_are_left_out(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    page.get_by_text("絵から設定を戻す").click()
    page.locator("input[type=file]").first.set_input_files({"name": "../../x.png", "mimeType": "image/png", "buffer": forged()})
    expect(page.get_by_text("設定を戻しました。")).to_be_visible()
    expect(page.get_by_text("手元にないので外しました")).to_be_visible()
    assert "etc" not in page.get_by_role("textbox", name=PROMPT).input_value()
    assert "/etc/" not in page.locator("main").inner_text()


def test_a_damaged_index_is_made_again_and_said(fresh: Server, visit: Callable[..., Page]) -> None:
    page = visit(fresh)
    open_gate(fresh, "赤い船")
    generate(page, "赤い船")
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()
    (index,) = fresh.folder.rglob("gallery.sqlite")
    for file in (index, *(Path(f"{index}{ending}") for ending in ("-wal", "-shm"))):
        if file.exists():
            file.write_bytes(b"not a database" * 1000)
    page.get_by_role("link", name="ギャラリー").click()
    expect(page.get_by_text("1 枚", exact=True)).to_be_visible()
    assert not page.locator(".stException").count()
