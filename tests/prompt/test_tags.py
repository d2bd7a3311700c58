"""LoRA tags and comments: what leaves the text, and what only looks like them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpgen.prompt.tags import extract_loras, strip_comments


@pytest.mark.parametrize(
    ("text", "left", "loras"),
    [
        ("a, <lora:x:1>, b", "a, b", [("x", 1.0)]),
        ("猫、<lora:x:1>", "猫", [("x", 1.0)]),
        ("<lora:x:1>、猫", "猫", [("x", 1.0)]),
        ("猫、<lora:x:0.5>、<lora:y>、犬", "猫、犬", [("x", 0.5), ("y", 1.0)]),
        ("a, <lora:x:1> <lora:y:1> b", "a, b", [("x", 1.0), ("y", 1.0)]),
        ("a <lora:x:1> b", "a b", [("x", 1.0)]),
        ("a <lora:x:1>, b", "a, b", [("x", 1.0)]),
        ("猫<lora:x:1>犬", "猫犬", [("x", 1.0)]),
        ("猫\n<lora:x:1>\n犬", "猫\n犬", [("x", 1.0)]),
        ("猫、犬 <lora:x:1>\n鳥", "猫、犬\n鳥", [("x", 1.0)]),
        ("(猫, <lora:x:1>)", "(猫)", [("x", 1.0)]),
        ("<lora:x:1><lora:y:1>", "", [("x", 1.0), ("y", 1.0)]),
        ("猫<lora:可愛い 絵柄 v2.1:-0.8:0.5>", "猫", [("可愛い 絵柄 v2.1", -0.8)]),
        ("猫<lyco:絵柄:.5:te>", "猫", [("絵柄", 0.5)]),
        ("猫＜lora：絵柄：０．８：０．５＞", "猫", [("絵柄", 0.8)]),
        ("猫<LoRA：絵柄：0.8>", "猫", [("絵柄", 0.8)]),
        ("猫<lora:絵柄：０．８>", "猫", [("絵柄", 0.8)]),
        ("猫<lora:昼：夜:0.8>", "猫", [("昼：夜", 0.8)]),  # the colon of a file's name
        ("猫<lora: 絵柄 :1>", "猫", [(" 絵柄 ", 1.0)]),
    ],
)
def test_lora_tags_leave_the_text(text: str, left: str, loras: list[tuple[str, float]]) -> None:
    assert extract_loras(text) == (left, loras)


@pytest.mark.parametrize(
    "text",
    [
        *["<lora>", "<lora:>", "<lora: :1>", "<lora:x:>", "<lora:x:強>", "<lora:x:1.2.3>", "<lora:x", "lora:x:1>", "<lora:x\ny:1>"],
        *["＜lora：昼：夜＞", "<hyper:x:1>", "<lora:x:" + "9" * 400 + ">"],
    ],
)
def test_malformed_tags_stay(text: str) -> None:
    assert extract_loras(f" {text}, 猫 ") == (f" {text}, 猫 ", [])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("猫 # 色は後で", "猫"),
        ("猫\t#\t色", "猫"),
        ("猫　# 色", "猫"),
        ("猫 #", "猫"),
        ("# 覚え書き\n猫\n#構図\n犬", "猫\n犬"),
        ("猫\n\n  #夜\n犬", "猫\n\n犬"),
        ("猫 # 夜\r\n犬", "猫\n犬"),
        ("# 猫", ""),
        ("#猫 #夕焼け", "#猫 #夕焼け"),  # hashtags
        ("#猫\n#夕焼け", "#猫\n#夕焼け"),
        ("# 夏\n#猫 #夕焼け", "#猫 #夕焼け"),
        ("猫 #夕焼け", "猫 #夕焼け"),
        ("C# の本、色は#ff0000", "C# の本、色は#ff0000"),
        ("猫#  犬", "猫#  犬"),
        ("猫  \n\n犬 ", "猫  \n\n犬 "),
    ],
)
def test_comments_go(text: str, left: str) -> None:
    assert strip_comments(text) == left


TAGS = ["<lora:", "<lyco：", "＜lora：", "＞", ">", ":", "：", "0.8", "１．５"]
PIECES = st.sampled_from([*TAGS, "猫", "、", ", ", " ", "\n", "#", "(", ")", "\ud800"])


@settings(deadline=None, max_examples=100, database=None)
@given(st.lists(PIECES | st.characters(), max_size=40).map("".join))
def test_any_text_is_read(text: str) -> None:
    left, loras = extract_loras(text)
    assert loras or left == text
    assert all(name.strip() and name in text and math.isfinite(weight) for name, weight in loras)
    assert len(left) <= len(text) - len("<lora:x>") * len(loras)
    assert len(strip_comments(text)) <= len(text)
