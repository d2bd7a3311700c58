"""The interface in two languages: every text that is asked for is there, none that is not."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo import words
from demo.reading import rule_name
from jpgen.prompt import RULES

DEMO = Path(words.__file__).parent
CALLS = [call for file in DEMO.rglob("*.py") for call in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(call, ast.Call)]
SOURCE = "\n".join(file.read_text("utf-8") for file in DEMO.rglob("*.py"))


def test_the_pages_are_shown_before_torch_is_imported() -> None:
    code = "import sys, demo.frame; print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=DEMO.parent)
    assert done.stdout.strip() == "[]"


def asked() -> tuple[set[str], set[str]]:
    """Whole keys, and patterns of keys that are put together, of every say(…)."""
    whole, patterns = set(), set()
    for call in CALLS:
        if isinstance(call.func, ast.Name) and call.func.id == "say" and call.args:
            for node in ast.walk(call.args[0]):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and not isinstance(call.args[0], ast.JoinedStr):
                    whole.add(node.value)
            if isinstance(call.args[0], ast.JoinedStr):
                patterns.add("".join(part.value if isinstance(part, ast.Constant) else "*" for part in call.args[0].values))
    return whole, patterns


def test_every_text_that_is_asked_for_is_there() -> None:
    whole, patterns = asked()
    missing = [key for key in whole if key not in words.table()]
    assert missing == []
    for pattern in patterns:
        assert any(re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), key) for key in words.table()), pattern


def test_no_text_is_left_over() -> None:
    patterns = [re.escape(pattern).replace(r"\*", ".+") for pattern in asked()[1]]
    unused = [key for key in words.table() if f'"{key}"' not in SOURCE and not any(re.fullmatch(one, key) for one in patterns)]
    assert unused == []


@pytest.mark.parametrize("key", list(words.table()))
def test_both_languages_are_there_and_take_the_same_values(key: str) -> None:
    row = words.table()[key]
    assert all(text.strip() for text in row.values())
    assert set(re.findall(r"{(\w+)}", row["ja"])) == set(re.findall(r"{(\w+)}", row["en"]))


def test_japanese_texts_are_japanese() -> None:
    foreign = [key for key, row in words.table().items() if not re.search(r"[ぁ-んァ-ヶ一-龯]", row["ja"])]
    assert foreign == ["rule.lora"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_name(rule: str) -> None:
    assert f"rule.{rule}" in words.table()
    assert rule_name(rule)


@pytest.mark.parametrize(("text", "japanese"), [("あ / a", "あ"), ("あ", "あ"), ("あ / a; い / i", "あ / a; い / i")])
def test_the_half_of_a_message(text: str, japanese: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "language", lambda: "ja")
    assert words.one_language(text) == japanese
