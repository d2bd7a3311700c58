"""Styles: files of the web UI, of Fooocus and our own; saved and read back exactly; put on and taken off; our own list."""

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpgen.errors import OutputError, PromptError, UnknownNameError
from jpgen.prompt.styles import Style, apply_style, extract_style, find_style, load_styles, save_styles
from jpgen.prompt.syntax import ascii_syntax, parse_attention

PROPERTY = settings(deadline=None, max_examples=100, database=None)
ODD = st.sampled_from(['"', ",", "\r", "\n", "\r\n", '",\n#', "{prompt}"])
CELL = ODD | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAME = CELL.filter(lambda name: name.strip() and not name.startswith("#"))
STYLES = st.lists(st.builds(Style, NAME, CELL, CELL, CELL | st.just("")), max_size=5).map(lambda styles: {style.name: style for style in styles})


def written(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_styles_of_the_web_ui(encoding: str, end: str, tmp_path: Path) -> None:
    rows = [
        "name,prompt,negative_prompt",
        '水彩,"{prompt}, watercolor, ""wet""",写真',
        "#見出し,,",
        '夜,"夜景、',
        '星",',
        "",
        "短い,月",
        ",,",
    ]
    assert load_styles(written(tmp_path, "styles.csv", end.join(rows), encoding)) == {
        "水彩": Style("水彩", '{prompt}, watercolor, "wet"', "写真"),
        "夜": Style("夜", f"夜景、{end}星", ""),
        "短い": Style("短い", "月", ""),
    }


def test_old_styles_of_the_web_ui(tmp_path: Path) -> None:
    assert load_styles(written(tmp_path, "old.CSV", "name,text\n水彩,watercolor\n")) == {"水彩": Style("水彩", "watercolor", "")}


def test_styles_of_fooocus(tmp_path: Path) -> None:
    records = [{"name": "a"}, {"name": "b", "prompt": "{prompt} b"}, {"name": "c", "negative_prompt": "写真", "x": 1}, {"name": "a", "prompt": None}]
    assert load_styles(written(tmp_path, "sdxl.json", json.dumps(records))) == {
        "a": Style("a"),
        "b": Style("b", "{prompt} b"),
        "c": Style("c", "", "写真"),
    }


def test_of_two_styles_with_a_name_the_later_counts(tmp_path: Path) -> None:
    assert load_styles(written(tmp_path, "s.csv", "name,prompt\n夜,月\n夜,星\n"))["夜"].prompt == "星"


def test_our_own_format(tmp_path: Path) -> None:
    path = written(tmp_path, "s.tsv", "name\tenglish\tprompt\tnegative\n# 見出し\n夜\tnight\t{prompt}、夜景\t昼間\n\n月\t\t\t\n")
    assert load_styles(path) == {"夜": Style("夜", "{prompt}、夜景", "昼間", "night"), "月": Style("月")}


@PROPERTY
@given(STYLES, st.sampled_from([".csv", ".json"]))
def test_saved_styles_are_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, styles: dict[str, Style], suffix: str) -> None:
    path = tmp_path_factory.mktemp("styles") / f"styles{suffix}"
    save_styles(styles, path)
    assert load_styles(path) == styles
    assert list(load_styles(path)) == list(styles)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_saved_files_are_those_of_the_programs(tmp_path: Path) -> None:
    styles = {"夜": Style("夜", "{prompt}、夜景", "昼間")}
    save_styles(styles, tmp_path / "new" / "styles.csv")
    save_styles(styles, tmp_path / "styles.json")
    assert (tmp_path / "new" / "styles.csv").read_bytes().decode("utf-8") == "\ufeffname,prompt,negative_prompt\r\n夜,{prompt}、夜景,昼間\r\n"
    assert json.loads((tmp_path / "styles.json").read_text("utf-8")) == [{"name": "夜", "prompt": "{prompt}、夜景", "negative_prompt": "昼間"}]


def test_our_styles_are_read_back_exactly(tmp_path: Path) -> None:
    for name in ("styles.csv", "styles.json"):
        save_styles(load_styles(), tmp_path / name)
        assert load_styles(tmp_path / name) == load_styles()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("s.csv", "", "wanted columns name,prompt,negative_prompt, got ''"),
        ("s.csv", "title,prompt\n夜,月\n", "got 'title,prompt'"),
        ("s.csv", "name,prompt\n夜,月\n,星\n ,雲\n", "3 行目 / line 3: name がありません.*line 4"),
        ("s.csv", "name,prompt\n夜," + "月" * 200_000, "field larger"),
        ("s.json", "{}", "配列が要ります.*got dict"),
        ("s.json", "[", "を読めません"),
        ("s.json", "[" * 100_000, "を読めません"),
        ("s.json", '[{"name": "夜"}, {"prompt": "月"}]', "item 2: name がありません"),
        ("s.json", '["夜"]', "item 1: 文字列ではありません"),
        ("s.json", '[{"name": "夜", "prompt": ["月"], "negative_prompt": 3}]', r"prompt=\['月'\], negative=3"),
        ("s.tsv", "name\tprompt\n", "wanted tab-separated columns name english prompt negative"),
        ("s.tsv", "name\tenglish\tprompt\tnegative\n夜\t月\n", "line 2: 文字列ではありません"),
        ("s.tsv", "name\tenglish\tprompt\tnegative\n" + "\ta\tb\tc\n" * 9, r"line 2.*line 6.*\(\+4\)"),
        ("s.txt", "夜", r"choose|give .csv, .json or .tsv"),
    ],
)
def test_bad_files_are_told(name: str, text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=told) as raised:
        load_styles(written(tmp_path, name, text))
    assert name in str(raised.value)


def test_files_that_are_not_there_or_not_utf8_are_told(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="がありません"):
        load_styles(tmp_path / "s.csv")
    with pytest.raises(PromptError, match="UTF-8"):
        load_styles(written(tmp_path, "s.csv", "name,prompt\n夜,月\n", "cp932"))
    (tmp_path / "box.csv").mkdir()
    with pytest.raises(PromptError, match=r"box\.csv"):
        load_styles(tmp_path / "box.csv")


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("s.tsv", Style("夜")),
        ("s", Style("夜")),
        ("s.csv", Style("#夜")),
        ("s.csv", Style("夜", "\0")),
        ("s.json", Style(" ")),
        ("s.json", Style("\ud800")),
    ],
)
def test_what_cannot_be_saved_is_told_and_nothing_is_written(name: str, style: Style, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        save_styles({style.name: style}, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_old_file_stays_whole_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "styles.csv"
    save_styles({"夜": Style("夜", "月")}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OutputError, match="No space"):
                save_styles({"昼": Style("昼")}, path)
    assert load_styles(path) == {"夜": Style("夜", "月")}
    assert [found.name for found in tmp_path.iterdir()] == ["styles.csv"]


# ── putting on and taking off ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("style", "typed", "styled"),
    [
        (Style("s", "浮世絵、{prompt}、木版画", "写真"), ("富士山", ""), ("浮世絵、富士山、木版画", "写真")),
        (Style("s", "ukiyo-e", "photo"), ("a mountain", "text"), ("a mountain, ukiyo-e", "text, photo")),
        (Style("s", "浮世絵風", "写真"), ("富士山", "文字"), ("富士山、浮世絵風", "文字、写真")),
        (Style("s", "ukiyo-e"), ("富士山", "文字"), ("富士山、ukiyo-e", "文字")),
        (Style("s", "{prompt} vs {prompt}", "no {prompt}"), ("猫", "犬"), ("猫 vs 猫", "no 犬")),
        (Style("s", "{prompt}、夜景"), ("猫が走る。", ""), ("猫が走る、夜景", "")),
        (Style("s", "「{prompt}」、{prompt}"), ("猫！", ""), ("「猫！」、猫！", "")),
        (Style("s", "夜景"), ("猫が走る。", ""), ("猫が走る、夜景", "")),
        (Style("s", "night"), ("a cat, ", ""), ("a cat, night", "")),
        (Style("s", "{prompt} at night"), ("Mr. Cat", ""), ("Mr. Cat at night", "")),
        (Style("s", "{prompt}、夜景", "{prompt}、昼間"), ("", ""), ("夜景", "昼間")),
        (Style("s", "夜景", "昼間"), (" ", ""), ("夜景", "昼間")),
        (Style("s", "「{prompt}」"), ("{prompt}", ""), ("「{prompt}」", "")),
        (Style("s"), (" 猫 ", " "), (" 猫 ", " ")),
    ],
)
def test_a_style_is_put_on(style: Style, typed: tuple[str, str], styled: tuple[str, str]) -> None:
    assert apply_style(style, *typed) == styled
    stripped = tuple(text.strip("。、, ") if words else text for text, words in zip(typed, (style.prompt, style.negative), strict=True))
    assert extract_style(style, *styled) == stripped


@pytest.mark.parametrize(
    ("style", "prompt", "negative"),
    [
        (Style("s", "浮世絵風", "写真"), "富士山、浮世絵風", "文字"),  # the negative one lacks it
        (Style("s", "浮世絵風", "写真"), "富士山", "写真"),
        (Style("s", "絵"), "富士山の浮世絵", ""),  # the end of a word
        (Style("s", "aa{prompt}aa"), "aaa", ""),  # the two halves overlap
        (Style("s", "{prompt}と{prompt}"), "猫と犬", ""),
        (Style("s"), "猫", ""),
    ],
)
def test_what_a_style_did_not_make_stays(style: Style, prompt: str, negative: str) -> None:
    assert extract_style(style, prompt, negative) == (prompt, negative)


WORDS = st.text("猫犬ab 、,。{}prompt", max_size=12)


@PROPERTY
@given(st.builds(Style, st.just("s"), WORDS | st.tuples(WORDS, WORDS).map("{prompt}".join), WORDS), WORDS, WORDS)
def test_a_style_comes_off_again(style: Style, prompt: str, negative: str) -> None:
    styled = apply_style(style, prompt, negative)
    assert apply_style(style, *extract_style(style, *styled)) == styled


# ── our own list ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_our_styles_are_many_and_differ() -> None:
    styles = load_styles()
    assert len(styles) >= 66
    assert {"浮世絵風", "水彩画", "水墨画", "アニメ塗り", "厚塗り", "ドット絵", "フィルム写真", "昭和レトロ", "絵本風"} <= set(styles)
    for field in ("english", "prompt", "negative"):
        values = [getattr(style, field).lower() for style in styles.values()]
        assert all(values)
        assert len(set(values)) == len(values) or field == "negative"


@pytest.mark.parametrize("style", load_styles().values(), ids=lambda style: style.english)
def test_our_styles_are_written_well(style: Style) -> None:
    assert style.prompt.startswith("{prompt}、")
    assert re.search("[ぁ-ヿ一-鿿]", style.name) or style.name == "3DCG"
    words, avoided = style.prompt.split("、")[1:], style.negative.split("、")
    assert 3 <= len(words) <= 8
    assert len(set(words)) == len(words)
    assert not set(words) & set(avoided)
    for text in (style.prompt, style.negative):
        assert unicodedata.normalize("NFKC", text) == ascii_syntax(text) == text
        assert parse_attention(text) == [(text, 1.0)]
        assert not re.search("なし|無し|せず|(?<![少え])ない", text)  # what must not appear is for the negative prompt
    assert apply_style(style, "猫", "文字") == (style.prompt.replace("{prompt}", "猫"), f"文字、{style.negative}")
    assert extract_style(style, *apply_style(style, "猫", "文字")) == ("猫", "文字")


def test_only_punctuation_that_would_be_doubled_goes() -> None:
    assert apply_style(Style("s", "「{prompt}」"), "猫が走る。") == ("「猫が走る。」", "")
    assert apply_style(Style("s", "{prompt}"), "猫、") == ("猫、", "")


def test_a_style_is_found_by_either_name() -> None:
    styles = load_styles()
    assert find_style(styles, "水彩画") is find_style(styles, "WaterColor")
    with pytest.raises(UnknownNameError, match="もしかして 水彩画 ですか"):
        find_style(styles, "水彩")
