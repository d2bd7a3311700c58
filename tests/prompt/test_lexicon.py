"""The lexicon: every row is a row, every surface stands once."""

import re
from collections import Counter

import pytest

from jpgen.prompt.lexicon import FOLDER, Entry, Lexicon, load_lexicon, read_entries

KINDS = {
    "colour", "light", "weather", "season", "onomatopoeia", "style", "medium", "culture", "clothing", "building", "craft", "festival", "game",
    "place", "food", "yokai", "creature", "plant", "idiom", "homograph",
}


def everything() -> list[Entry]:
    return [entry for path in sorted(FOLDER.glob("*.tsv")) for entry in read_entries(path)]


def test_there_are_enough_and_each_stands_once() -> None:
    counted = Counter(entry.surface for entry in everything())
    assert len(counted) >= 1500
    assert [surface for surface, times in counted.items() if times > 1] == []


def test_rows_are_complete() -> None:
    for entry in everything():
        assert entry.kind in KINDS, entry
        assert re.fullmatch("[ぁ-ゖー・゛ ]+", entry.reading), entry
        assert entry.english.isascii() and entry.english.strip() == entry.english != "", entry
        assert entry.canonical, entry
        assert entry.kind != "colour" or re.fullmatch("(#[0-9A-F]{6})?", entry.note), entry


def test_the_jis_colours_have_their_hex() -> None:
    lexicon = load_lexicon()
    for name in ("藍色", "朱色", "山吹色", "萌黄", "瑠璃色", "鶯色", "茜色", "浅葱色", "ラベンダー", "エメラルドグリーン"):
        entry = lexicon.get(name)
        assert entry is not None and entry.note.startswith("#"), name


@pytest.mark.parametrize(
    ("text", "surfaces"),
    [("江ノ島の夕焼け", ["江ノ島", "夕焼け"]), ("ふわふわの雲", ["ふわふわ"]), ("xyz", [])],
)
def test_finding(text: str, surfaces: list[str]) -> None:
    assert [entry.surface for _, entry in load_lexicon().find(text) if entry.surface in surfaces] == surfaces


def test_the_longest_wins_and_none_lies_inside_another() -> None:
    lexicon = Lexicon(Entry(surface, "", "culture", surface, "x") for surface in ("花", "花火", "花火大会", "会"))
    assert [(at, entry.surface) for at, entry in lexicon.find("花火大会と花火と花")] == [(0, "花火大会"), (5, "花火"), (8, "花")]
