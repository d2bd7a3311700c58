"""Every page's main job from end to end with the built-in model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from jpgen import read_settings
from jpgen.merge import load_recipe
from tests.browser.conftest import PROMPT, Server, fill, generate, mix_twin, paint, settled

pytestmark = pytest.mark.browser


def pictures(server: Server) -> list[Path]:
    """The files of the gallery, the oldest first."""
    return sorted(server.folder.rglob("pictures/*/*/*.png"))


def draw(page: Page, text: str) -> Locator:
    """The picture of a text, drawn on つくる."""
    generate(page, text)
    image = page.get_by_role("img", name=text, exact=True).first
    expect(image).to_be_visible()
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()
    settled(page)
    return image


def renewed(page: Page, text: str, before: str) -> str:
    """Wait until another picture of the text is shown than that with the address `before`; returns the address of the new one."""
    other = "([text, before]) => [...document.images].find((image) => image.alt === text && image.src !== before)?.src"
    found = str(page.wait_for_function(other, arg=[text, before]).json_value())
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()
    settled(page)
    return found


def sent(page: Page, image: Locator) -> bytes:
    """The bytes that the browser got for a picture."""
    return page.request.get(str(image.evaluate("image => image.src"))).body()


def test_words_in_a_picture_out_and_back(real: Server, visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit(real)
    image = draw(page, "帽子なしの少年と赤い鳥居を描いてください")
    saved = pictures(real)[-1]
    assert sent(page, image) == saved.read_bytes()  # the very file: nothing turned into JPEG, no metadata lost
    with page.expect_download() as downloading:
        page.get_by_role("button", name="PNG を保存").click()
    file = tmp_path / downloading.value.suggested_filename
    downloading.value.save_as(file)
    assert file.read_bytes() == saved.read_bytes()
    settings = read_settings(file)
    assert (settings.source, settings.negative) == ("帽子なしの少年と赤い鳥居を描いてください", "帽子")

    again = visit(real)
    again.get_by_text("絵から設定を戻す").click()
    again.locator("input[type=file]").first.set_input_files(file)
    expect(again.get_by_text("設定を戻しました。")).to_be_visible()
    expect(again.get_by_role("textbox", name=PROMPT)).to_have_value(settings.source)
    expect(again.get_by_role("textbox", name="描きたくないもの")).to_have_value("")
    again.get_by_role("button", name="生成", exact=True).click()
    expect(again.get_by_role("button", name="PNG を保存")).to_be_visible()
    twin = Image.open(io.BytesIO(sent(again, again.get_by_role("img", name=settings.source).first)))
    assert twin.tobytes() == Image.open(file).tobytes()  # the very same picture


def test_again_and_a_variation(real: Server, visit: Callable[..., Page]) -> None:
    page = visit(real)
    address = str(draw(page, "富士山").evaluate("image => image.src"))
    before = len(pictures(real))
    for button in ("同じ設定でもう一度", "ちょっと変える"):
        page.get_by_role("button", name=button).click()
        address = renewed(page, "富士山", address)
    made = [read_settings(file) for file in pictures(real)[before:]]
    assert [one.source for one in made] == ["富士山"] * 2
    assert len({one.seed for one in made}) == 2
    assert [bool(one.inputs.picture) for one in made] == [False, True]


def test_the_same_seed_read_in_several_ways(real: Server, visit: Callable[..., Page]) -> None:
    page = visit(real, "compare")
    fill(page, "日本語のプロンプト", "三匹の猫の絵を描いてください")
    fill(page, "自分の英訳", "three cats")
    page.get_by_role("button", name="くらべる", exact=True).click()
    for heading in ("日本語", "英語", "機械翻訳", "読み解きなし"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="取り消す")).not_to_be_visible()
    expect(page.locator("[data-testid=stMetric]")).to_have_count(4)  # how near each picture is to the Japanese
    made = [read_settings(file) for file in pictures(real)[-4:]]
    assert len({one.seed for one in made}) == 1
    texts = [one.prompt.text for one in made]
    assert [*texts[:2], texts[3]] == ["3匹の猫", "three cats", "三匹の猫の絵を描いてください"]
    assert "cat" in texts[2]
    assert texts[2].isascii()


def test_a_grid(real: Server, visit: Callable[..., Page]) -> None:
    page = visit(real, "compare")
    page.get_by_text("設定をくらべる（X/Y）").click()
    settled(page)
    fill(page, "値", "1, 2") if page.get_by_role("textbox", name="値").count() == 1 else page.get_by_role("textbox", name="値").first.fill("1, 2")
    page.get_by_role("textbox", name="値").first.blur()
    settled(page)
    page.get_by_role("textbox", name="値").last.fill("1.5")
    page.get_by_role("textbox", name="値").last.blur()
    settled(page)
    fill(page, PROMPT, "りんご")
    page.get_by_role("button", name="表を描く").click()
    expect(page.get_by_text("ステップ数 (Steps): 2")).to_be_visible()
    assert [(one.config.steps, one.config.guidance_scale) for one in map(read_settings, pictures(real)[-2:])] == [(1, 1.5), (2, 1.5)]


def test_a_part_is_drawn_anew_and_nothing_else(real: Server, visit: Callable[..., Page]) -> None:
    page = visit(real)
    draw(page, "りんご")
    before = Image.open(pictures(real)[-1]).convert("RGB")
    page.get_by_role("button", name="なおす").click()
    expect(page.get_by_role("heading", level=1, name="なおす")).to_be_visible()
    paint(page, (0.3, 0.3), (0.5, 0.4))
    fill(page, PROMPT, "星")
    page.get_by_role("button", name="塗った所を描きなおす").click()
    expect(page.get_by_role("img", name="星").first).to_be_visible()
    after = Image.open(pictures(real)[-1]).convert("RGB")
    rows, columns = np.nonzero((np.asarray(before) != np.asarray(after)).any(axis=2))
    assert len(rows)
    assert (rows.min() > 50, rows.max() < 130, columns.min() > 50, columns.max() < 160) == (True,) * 4


def test_an_edit_by_words_keeps_the_seed_and_shows_the_difference(real: Server, visit: Callable[..., Page]) -> None:
    page = visit(real)
    draw(page, "窓辺の猫")
    page.get_by_role("button", name="なおす").click()
    fill(page, "どう変えますか", "猫を犬に")
    page.get_by_role("button", name="なおす", exact=True).click()
    expect(page.get_by_role("heading", name="変わったところ")).to_be_visible()
    expect(page.locator(".jp-wipe del")).to_have_text("猫")
    expect(page.locator(".jp-wipe ins")).to_have_text("犬")
    old, new = map(read_settings, pictures(real)[-2:])
    assert (old.source, new.source, new.seed, new.config) == ("窓辺の猫", "窓辺の犬", old.seed, old.config)


def test_larger(real: Server, visit: Callable[..., Page]) -> None:
    page = visit(real)
    draw(page, "船")
    page.get_by_role("button", name="なおす").click()
    page.get_by_text("大きく", exact=True).click()
    page.get_by_text("1.5×").click()
    settled(page)
    page.get_by_role("button", name="大きくする").click()
    expect(page.get_by_role("button", name="さらになおす")).to_be_visible()
    config = read_settings(pictures(real)[-1]).config
    assert (config.width, config.height) == (384, 384)


def test_two_models_are_mixed_drawn_and_saved(real: Server, merges: Path, visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit(real, "blend")
    mix_twin(page)
    assert read_settings(pictures(real)[-1]).model != "mame"  # the picture says what made it
    with page.expect_download() as downloading:
        page.get_by_role("button", name="レシピを保存（YAML）").click()
    downloading.value.save_as(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").root.method == "weighted_sum"  # type: ignore[union-attr]
    fill(page, "重みの名前", "まぜた豆")
    page.get_by_role("button", name="重みを書き出す").click()
    expect(page.get_by_text("書き出しました。")).to_be_visible()
    assert (merges / "まぜた豆.safetensors").is_file()
