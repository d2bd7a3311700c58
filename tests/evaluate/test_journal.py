"""The journal: what was written is there again, a line cut short is not."""

from pathlib import Path

import pytest

from jpgen.errors import OutputError
from jpgen.evaluate.journal import FILE, Journal, key_of


def test_rows_are_there_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "new" / "folder")
    first.write("a", score=1.5)
    first.write("b", problem="空の\nプロンプト")
    assert Journal(tmp_path / "new" / "folder").rows == {"a": {"key": "a", "score": 1.5}, "b": {"key": "b", "problem": "空の\nプロンプト"}}


def test_a_line_cut_short_is_dropped_and_the_next_stands_whole(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"key": "a", "score": 1.0}\n{"key": "b", "sc', "utf-8")
    journal = Journal(tmp_path)
    assert list(journal.rows) == ["a"]
    journal.write("c", score=2.0)
    assert list(Journal(tmp_path).rows) == ["a", "c"]


def test_damage_and_unwritable_places_are_told(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"key": "a"}\nnonsense\n{"key": "c"}\n', "utf-8")
    with pytest.raises(OutputError, match="line 2"):
        Journal(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot keep a journal"):
        Journal(tmp_path / "file" / "below")


def test_keys_tell_facts_apart() -> None:
    assert key_of(a=1, b="x") == key_of(b="x", a=1) != key_of(a=1, b="y")
