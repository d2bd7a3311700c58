"""つくる with an engine that waits for gates: input methods, progress, cancelling, undoing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import CDPSession, Page, expect

from demo.settings import hash_password
from jpgen import read_settings
from tests.browser.conftest import PROMPT, Server, fill, generate, serve_gated, settled, stop
from tests.browser.gated import open_gate

pytestmark = pytest.mark.browser



def test_the_page_is_in_japanese_and_says_so(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    page.wait_for_function("document.documentElement.lang === 'ja'")
    expect(page.get_by_role("heading", level=1)).to_have_text("つくる")
    page.get_by_role("radio", name="English").or_(page.get_by_role("button", name="English")).first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Create")
    page.wait_for_function("document.documentElement.lang === 'en'")
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_be_visible()


def test_enter_that_confirms_a_conversion_submits_nothing(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    box = page.get_by_role("textbox", name=PROMPT)
    box.click()
    keyboard: CDPSession = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "あかいふね", "selectionStart": 5, "selectionEnd": 5})
    page.evaluate(
        """() => { for (const composing of [true, false]) document.activeElement.dispatchEvent(new KeyboardEvent('keydown',
           { key: 'Enter', code: 'Enter', keyCode: 229, which: 229, isComposing: composing, bubbles: true, cancelable: true })) }"""
    )  # Chromium's way, and Safari's: the Enter after the composition has ended, still with key code 229
    keyboard.send("Input.insertText", {"text": "赤い船"})
    page.keyboard.press("Enter")
    page.keyboard.type("と海")
    settled(page)
    assert box.input_value() == "赤い船\nと海"
    assert not page.get_by_role("button", name="取り消す").is_visible()
    page.get_by_role("button", name="生成", exact=True).click()
    expect(page.get_by_role("button", name="取り消す")).to_be_visible()
    page.get_by_role("button", name="取り消す").click()
    expect(page.get_by_text("取り消しました。")).to_be_visible()


def test_ctrl_enter_draws_what_is_typed_and_an_enter_of_an_input_method_with_it_does_not(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    box, generating = page.get_by_role("textbox", name=PROMPT), page.get_by_role("button", name="取り消す")
    box.click()
    page.keyboard.type("青い鳥")
    page.evaluate(
        """() => document.activeElement.dispatchEvent(new KeyboardEvent('keydown',
           { key: 'Enter', code: 'Enter', keyCode: 229, which: 229, ctrlKey: true, isComposing: true, bubbles: true, cancelable: true }))"""
    )
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("と月")
    settled(page)
    assert not generating.is_visible()
    page.keyboard.press("Control+Enter")
    expect(generating).to_be_visible()
    assert box.input_value() == "青い鳥\n\nと月"  # it adds no line
    open_gate(gated, "青い鳥\n\nと月")
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()
    assert read_settings(max(gated.folder.rglob("pictures/*/*/*.png"), key=lambda file: file.stat().st_mtime_ns)).source == "青い鳥\n\nと月"


def test_what_streamlit_says_by_itself_is_japanese_too_and_english_in_english(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    page.get_by_text("絵から設定を戻す").click()
    dropzone = page.locator("[data-testid=stFileUploaderDropzone]")
    expect(dropzone.locator("button")).to_have_text(re.compile("ファイルを選ぶ$"))
    expect(dropzone).to_contain_text("まで • PNG")
    page.get_by_text("設定", exact=True).first.click()
    expect(page.get_by_role("button", name="増やす").first).to_be_attached()
    page.get_by_role("textbox", name=PROMPT).fill("Upload")  # what a person writes stays
    page.get_by_role("textbox", name=PROMPT).blur()
    page.get_by_role("radio", name="English").or_(page.get_by_role("button", name="English")).first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Create")
    expect(dropzone.locator("button")).to_have_text(re.compile("Upload$"))
    expect(dropzone).to_contain_text("per file • PNG")
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("Upload")
    page.get_by_role("radio", name="日本語").or_(page.get_by_role("button", name="日本語")).first.click()
    expect(dropzone.locator("button")).to_have_text(re.compile("ファイルを選ぶ$"))


def test_a_comparison_has_a_size(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated, "compare")
    page.get_by_text("設定", exact=True).click()
    page.get_by_text("縦長 192×256", exact=True).click()
    settled(page)
    fill(page, "日本語のプロンプト", "竹の林")
    for text in ("竹の林", "a bamboo grove"):
        open_gate(gated, text)
    page.get_by_role("textbox", name="日本語のプロンプト").press("Control+Enter")
    expect(page.get_by_role("heading", name="読み解きなし", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="取り消す")).not_to_be_visible()
    made = [read_settings(file) for file in gated.folder.rglob("pictures/*/*/*.png")]
    configs = [one.config for one in made if one.source == "竹の林"]
    assert configs
    assert {(config.width, config.height) for config in configs} == {(192, 256)}


def test_progress_preview_and_the_picture(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    generate(page, "夜の赤い船")
    open_gate(gated, "夜の赤い船", 1)
    expect(page.get_by_role("img", name="描いている途中の絵")).to_be_visible()
    expect(page.get_by_text("ステップ 2 / 3")).to_be_visible()
    open_gate(gated, "夜の赤い船")
    expect(page.get_by_role("img", name="夜の赤い船").first).to_be_visible()
    expect(page.get_by_role("button", name="取り消す")).not_to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_cancel_and_then_another_picture(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    generate(page, "青い船")
    page.get_by_role("button", name="取り消す").click()
    expect(page.get_by_text("取り消しました。")).to_be_visible()
    open_gate(gated, "白い船")
    generate(page, "白い船")
    expect(page.get_by_role("img", name="白い船").first).to_be_visible()


def test_thirty_clicks_are_a_few_jobs(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    fill(page, PROMPT, "大鳥居")
    button = page.get_by_role("button", name="生成", exact=True)
    for _ in range(30):
        button.click()
    expect(page.get_by_text("順番待ちは一人")).to_be_visible()
    open_gate(gated, "大鳥居")
    expect(page.get_by_role("img", name="大鳥居").first).to_be_visible()


def test_an_edit_is_undone_and_used_again(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    fill(page, PROMPT, "三匹の猫の絵を描いてください")
    page.get_by_role("button", name="読み取りを見る").click()
    facts = page.locator(".jp-facts").filter(has_text="描くもの")
    expect(facts).to_contain_text("3匹の猫")
    expect(page.locator(".jp-chip", has_text="数")).to_contain_text("三")
    page.get_by_role("button", name="戻す", exact=True).last.click()
    expect(page.locator(".jp-off")).to_contain_text("数")
    expect(facts).to_contain_text("三匹の猫")
    page.get_by_role("button", name="また使う").click()
    expect(facts).to_contain_text("3匹の猫")


def test_a_part_that_changes_is_sent_alone_and_what_depends_on_it_follows(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    sent: list[None] = []
    cdp = page.context.new_cdp_session(page)
    cdp.send("Network.enable")
    cdp.on("Network.webSocketFrameReceived", lambda _: sent.append(None))
    fill(page, PROMPT, "三匹の猫")
    page.get_by_role("button", name="読み取りを見る").click()
    expect(page.locator(".jp-chip")).to_be_visible()
    settled(page)
    whole = len(sent)
    sent.clear()
    page.get_by_role("button", name="別の例").click()
    expect(page.get_by_role("button", name="夕焼けの海に浮かぶ赤い船")).not_to_be_visible()
    settled(page)
    assert len(sent) < whole / 3

    page.locator(".st-key-example-0 button").click()
    expect(page.get_by_role("textbox", name=PROMPT)).to_have_value(page.locator(".st-key-example-0").inner_text())
    page.get_by_text("スタイルの見本").click()
    page.get_by_role("button", name="水彩画", exact=True).click()
    expect(page.get_by_role("combobox", name="スタイル (Style)")).to_have_value("水彩画 · watercolor")
    page.get_by_text("設定", exact=True).click()
    page.get_by_text("書いたまま渡す", exact=True).click()
    expect(page.get_by_text("書いたまま渡します。")).to_be_visible()


def test_the_route_is_chosen_while_a_picture_is_drawn(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    generate(page, "黒い船")
    expect(page.get_by_role("button", name="取り消す")).to_be_visible()
    page.get_by_text("設定", exact=True).click()
    page.get_by_text("書いたまま渡す", exact=True).click()
    expect(page.get_by_text("書いたまま渡します。")).to_be_visible()
    expect(page.get_by_role("button", name="取り消す")).to_be_visible()
    open_gate(gated, "黒い船")
    expect(page.get_by_role("img", name="黒い船").first).to_be_visible()


def test_what_was_handed_in_survives_a_visit_to_another_page(gated: Server, visit: Callable[..., Page]) -> None:
    page = visit(gated)
    fill(page, PROMPT, "桜並木")
    page.get_by_role("button", name="読み取りを見る").click()
    expect(page.get_by_role("heading", name="こう読み取りました")).to_be_visible()
    page.get_by_role("link", name="くらべる").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("くらべる")
    page.get_by_role("link", name="つくる").click()
    expect(page.get_by_role("textbox", name=PROMPT)).to_have_value("桜並木")


def test_a_password_keeps_others_out(tmp_path: Path, visit: Callable[..., Page]) -> None:
    server = serve_gated(tmp_path, f'password_hash = "{hash_password("合言葉は山と川")}"\n')
    try:
        page = visit(server)
        box = page.get_by_label("合言葉")
        box.fill("川と山")
        page.get_by_role("button", name="入る").click()
        expect(page.get_by_role("alert")).to_contain_text("合言葉が違います")
        assert not page.get_by_role("textbox", name=PROMPT).count()
        box.fill("合言葉は山と川")
        page.get_by_role("button", name="入る").click()
        expect(page.get_by_role("textbox", name=PROMPT)).to_be_visible()
    finally:
        stop(server)
