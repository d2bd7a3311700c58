"""ギャラリー: what was made is there after the server has been started anew, is found, marked, saved and thrown away."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jpgen import read_settings
from tests.browser.conftest import fill, generate, serve_gated, stop
from tests.browser.gated import open_gate

pytestmark = pytest.mark.browser


def test_the_gallery_keeps_finds_marks_and_throws_away(tmp_path: Path, visit: Callable[..., Page]) -> None:
    server = serve_gated(tmp_path)
    try:
        page = visit(server)
        for text in ("赤い船", "青い花"):
            open_gate(server, text)
            generate(page, text)
            expect(page.get_by_role("img", name=text, exact=True).first).to_be_visible()
    finally:
        stop(server)
    server = serve_gated(tmp_path)  # everything is still there
    try:
        page = visit(server, "gallery")
        expect(page.get_by_text("2 枚", exact=True)).to_be_visible()
        fill(page, "ことばで探す", "花")
        page.get_by_role("button", name="探す").click()
        expect(page.get_by_text("1 枚", exact=True)).to_be_visible()
        page.get_by_text("選ぶ 1", exact=True).click()
        page.get_by_role("button", name="お気に入り（付ける・外す）").click()
        expect(page.get_by_text("★ 青い花")).to_be_visible()
        page.get_by_text("選ぶ 1", exact=True).click()
        page.get_by_role("button", name="ZIP にまとめる").click()
        with page.expect_download() as downloading:
            page.get_by_role("button", name="1 枚の ZIP を保存").click()
        downloading.value.save_as(tmp_path / "out.zip")
        with zipfile.ZipFile(tmp_path / "out.zip") as archive:
            (name,) = archive.namelist()
            (tmp_path / "one.png").write_bytes(archive.read(name))
        assert read_settings(tmp_path / "one.png").source == "青い花"
        page.get_by_role("button", name="ごみ箱へ").click()
        expect(page.get_by_text("0 枚", exact=True)).to_be_visible()
        page.get_by_text("ごみ箱", exact=True).click()
        expect(page.get_by_text("1 枚", exact=True)).to_be_visible()
    finally:
        stop(server)
