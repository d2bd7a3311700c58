"""Translations on disk: kept between processes, bounded, whole after anything."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jpgen.translate import open_translator
from jpgen.translate.cache import Remembering, cache_folder
from tests.toys.marian import marian


class Counting:
    name = "counting"
    knows_markers = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def translate(self, texts: Sequence[str]) -> list[str]:
        self.asked += texts
        return [text.upper() for text in texts]


def test_asked_once_even_by_another_process(tmp_path: Path) -> None:
    one, other = Counting(), Counting()
    first = Remembering(one, "key", folder=tmp_path)
    assert first.translate(["a", "b", "a"]) == ["A", "B", "A"] and first.translate(["b"]) == ["B"]
    again = Remembering(other, "key", folder=tmp_path)
    assert again.translate(["a", "c"]) == ["A", "C"] and first.translate(["d"]) == ["D"]
    assert (one.asked, other.asked) == (["a", "b", "d"], ["c"])
    assert json.loads((tmp_path / "key.json").read_text()) == {"a": "A", "b": "B", "c": "C", "d": "D"}  # neither lost what the other wrote
    assert (first.name, first.knows_markers) == ("counting", True)


def test_other_weights_other_translations(tmp_path: Path) -> None:
    one, other = Counting(), Counting()
    Remembering(one, "key", folder=tmp_path).translate(["a"])
    Remembering(other, "yek", folder=tmp_path).translate(["a"])
    assert one.asked == other.asked == ["a"]


def test_bounded_the_oldest_go(tmp_path: Path) -> None:
    kept = Remembering(Counting(), "key", folder=tmp_path, most=3)
    assert kept.translate([*"abcde"]) == [*"ABCDE"]
    assert [*json.loads((tmp_path / "key.json").read_text())] == [*"cde"]
    assert kept.translate(["f"]) == ["F"] and [*json.loads((tmp_path / "key.json").read_text())] == [*"def"]
    assert [file.name for file in tmp_path.iterdir()] == ["key.json"]  # nothing half written stays


@pytest.mark.parametrize("damaged", [b"{", b"[1]", b'{"a": 1}', b"\xff\xfe"])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "key.json").write_bytes(damaged)
    assert Remembering(Counting(), "key", folder=tmp_path).translate(["a"]) == ["A"]
    assert json.loads((tmp_path / "key.json").read_text()) == {"a": "A"}


def test_where_nothing_can_be_written_it_translates(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Remembering(Counting(), "key", folder=tmp_path / "file")
    assert kept.translate(["a"]) == ["A"] == kept.translate(["a"])


def test_a_translator_opened_by_its_folder_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    translator = open_translator(marian(tmp_path / "words"))
    assert translator is not None and translator.translate(["雨"]) == ["rain"]
    (file,) = cache_folder().iterdir()
    file.write_text(json.dumps({"雨": "kept"}))
    again = open_translator(tmp_path / "words")
    assert again is not None and again.translate(["雨"]) == ["kept"] and again.name == "words"
    settings = json.loads((tmp_path / "words" / "config.json").read_text())
    (tmp_path / "words" / "config.json").write_text(json.dumps({**settings, "num_beams": 2}))
    changed = open_translator(tmp_path / "words")
    assert changed is not None and changed.translate(["雨"]) == ["rain"]  # whatever changes in the folder changes the key
