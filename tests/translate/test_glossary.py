"""The glossary: markers there and back, nothing lost whatever a translator does, and the lexicon's words found as whole words."""

from collections.abc import Sequence

import pytest

from jpgen.prompt.lexicon import load_lexicon
from jpgen.prompt.terms import terms
from jpgen.translate.glossary import Gloss, Glossed, mark, unmark
from jpgen.translate.markers import LOOKS, MARKERS, NOUNS, PLACES, STYLES


class Copy:
    """Gives back what it gets, after a change."""

    name = "copy"
    knows_markers = True

    def __init__(self, *changes: tuple[str, str]) -> None:
        self.changes = changes
        self.asked: list[str] = []

    def translate(self, texts: Sequence[str]) -> list[str]:
        self.asked += texts
        made = [*texts]
        for old, new in self.changes:
            made = [text.replace(old, new) for text in made]
        return made


class Foreign(Copy):
    knows_markers = False


def found(text: str) -> list[str]:
    return [text[term.start : term.end] for term in terms(text)]


def test_whole_words_alone() -> None:
    assert found("江ノ島の木漏れ日と赤い風車、油絵風") == ["江ノ島", "木漏れ日", "赤い", "油絵風"]
    assert "風" not in found("ゲーム風の町")
    assert found("はしとくも") == [] and found("a cat") == []
    assert [term.kind for term in terms("鳥居と江ノ島")] == ["culture", "place"]


def test_markers_say_what_a_word_is() -> None:
    text, words = mark("江ノ島の鳥居、赤い船、浮世絵風", terms("江ノ島の鳥居、赤い船、浮世絵風"), own=True)
    assert text == f"{PLACES[0]}の{NOUNS[0]}、{LOOKS[0]}船、{STYLES[0]}"
    assert words[PLACES[0]].startswith("Enoshima, ") and words[LOOKS[0]] == "red"


def test_translators_that_never_saw_them_get_letters_for_names_alone() -> None:
    translator = Foreign(("の", " of "))
    made = Glossed(translator, terms).translate(["江ノ島の赤い夕焼け"])
    assert translator.asked == ["ZX1Qの赤い夕焼け"]
    assert made[0].startswith("Enoshima of 赤い夕焼け, small wooded island")


@pytest.mark.parametrize("own", [Copy, Foreign])
def test_what_a_translator_drops_repeats_or_capitalises_is_there_once(own: type[Copy]) -> None:
    text = "江ノ島の鳥居"
    first = "ZX1Q" if own is Foreign else PLACES[0]
    for changes in ([(first, "")], [(first, f"{first} {first.lower()}")], [(first, first.lower())]):
        made = Glossed(own(*changes, ("の", " of ")), terms).translate([text])[0]
        assert made.count("Enoshima") == 1 and made.count("torii") == 1
        assert not any(sign in made for sign in (*MARKERS, "ZX", "zx"))


def test_more_words_than_markers_are_still_there() -> None:
    text = "、".join(["鳥居", "提灯", "風鈴", "こたつ", "障子", "屏風", "囲炉裏", "行灯"])
    assert len(terms(text)) > len(NOUNS)
    made = Glossed(Copy(), terms).translate([text])[0]
    assert all(term.english.split(", ")[0] in made for term in terms(text))


def test_every_word_of_the_lexicon_survives_a_translator_that_says_nothing() -> None:
    class Silent(Copy):
        def translate(self, texts: Sequence[str]) -> list[str]:
            return ["" for _ in texts]

    known = {f"{entry.surface}と猫": terms(f"{entry.surface}と猫") for entry in load_lexicon()}
    made = Glossed(Silent(), known.__getitem__).translate([*known])
    lost = [text for text, english in zip(known, made, strict=True) for term in known[text] if term.english.split(", ")[0] not in english]
    assert lost == [] and sum(map(bool, known.values())) > 4000


@pytest.mark.parametrize(
    ("english", "words", "wanted"),
    [
        ("a \ue010 cat", {"\ue010": "orange"}, "an orange cat"),
        ("an \ue010 cat.", {"\ue010": "red, as fire"}, "a red cat, as fire."),
        ("A \ue000", {"\ue000": "a bond"}, "a bond"),
        ("", {"\ue000": "rain"}, "rain"),
        ("a cat in \ue020, \ue030", {"\ue020": "snow"}, "a cat in snow"),
        ("\ue000 and \ue001", {"\ue000": "torii gate, red", "\ue001": "rain"}, "torii gate and rain, red"),
    ],
)
def test_english_reads_as_english(english: str, words: dict[str, str], wanted: str) -> None:
    assert unmark(english, words) == wanted


def test_a_word_alone_needs_no_translator() -> None:
    translator = Copy()
    made = Glossed(translator, terms).translate(["木漏れ日", "猫", "木漏れ日"])
    assert translator.asked == ["猫"] and made[0] == made[2] == "sunlight filtering through leaves, dappled light"


def test_the_last_resort_says_what_it_knows() -> None:
    assert Gloss(terms).translate(["8k の鳥居と猫", "猫", ""]) == ["8k, " + terms("鳥居")[0].english, "", ""]
