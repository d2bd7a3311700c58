"""The data room prompts/: how its files are written, what a search finds, and that an installed jpgen has it too."""

import hashlib
import re
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import emoji
import pytest

import jpgen.prompt.data
from jpgen import normalize, prompts
from jpgen.errors import PromptError, UnknownNameError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOM = Path("prompts")
KANJI = re.compile("[一-鿿々]")
JAPANESE = re.compile("[ぁ-ヿ一-鿿]")
WIDE = re.compile("[Ａ-Ｚａ-ｚ０-９＜＞［］｜ｦ-ﾟ，\u3000]|（（")
SOURCE = (  # prompts that must be there as they are
    "江ノ島と富士山が見える風景を描いてください。",
    "子猫を抱いた、帽子をかぶった女性、髪の毛はブラウンで、長く、カーリーです。",
    "コートダジュールのニース海岸の風景画",
    "樅木の下でフルートを吹く女性",
    "大きな緑色の蛙が小さな池で跳ねている",
    "深淵から登ってくる怪物",
    "幸せそうな家",
)


def wrong(rows: list[str], good: str) -> list[str]:
    """Those that do not match."""
    return [row for row in rows if not re.fullmatch(good, row)]


# ── how the files are written ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["pairs", "messy", "culture", "negatives"])
def test_cells_are_clean(name: str) -> None:
    text = (ROOM / f"{name}.tsv").read_bytes().decode()
    assert text.endswith("\n")
    assert "\r" not in text
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    assert {len(row) for row in rows} == {len(rows[0])}
    for cell in (cell for row in rows for cell in row):
        assert unicodedata.normalize("NFC", cell) == cell
        assert cell.strip() == cell
        assert "  " not in cell


def test_pairs_are_many_and_differ() -> None:
    pairs = prompts.pairs()
    assert len(pairs) >= 1000
    assert [ja for ja, number in Counter(pair.ja for pair in pairs).items() if number > 1] == []
    assert [en for en, number in Counter(pair.en.lower() for pair in pairs).items() if number > 1] == []
    assert set(SOURCE) <= {pair.ja for pair in pairs}


def test_pairs_are_in_their_languages() -> None:
    assert [pair.ja for pair in prompts.pairs() if not JAPANESE.search(pair.ja)] == []
    assert wrong([pair.en for pair in prompts.pairs()], r"""[A-Za-z0-9éèôäöūō ,.;:'"!?()-]+""") == []


def test_every_tag_is_known_in_order_and_frequent() -> None:
    order = list(prompts.TAGS)
    for pair in prompts.pairs():
        assert list(pair.tags) == sorted(set(pair.tags), key=order.index), pair
    assert min(len(prompts.pairs(tag=tag)) for tag in prompts.TAGS) >= 50


def test_tags_that_a_text_shows() -> None:
    for pair in prompts.pairs():
        assert ("kana" in pair.tags) == (not KANJI.search(pair.ja)), pair
        assert ("long" in pair.tags) == (len(pair.ja) >= 60), pair


def test_halves_are_by_the_hash_of_the_japanese() -> None:
    for pair in prompts.pairs():
        even = hashlib.sha256(pair.ja.encode()).digest()[0] % 2 == 0
        assert pair.split == ("dev" if even else "held-out"), pair
    for tag in prompts.TAGS:
        assert 0.3 < len(prompts.pairs(tag=tag, split="dev")) / len(prompts.pairs(tag=tag)) < 0.7, tag


def test_messy_prompts() -> None:
    rows, order = prompts.messy(), list(prompts.MESSY_TAGS)
    assert len(rows) >= 120
    assert len({row.ja for row in rows}) == len(rows)
    assert {tag for row in rows for tag in row.tags} == set(order)
    for row in rows:
        assert list(row.tags) == sorted(set(row.tags), key=order.index), row
        assert row.clean not in ("", row.ja)
        assert not re.search("ください|お願い|なし", row.clean), row
        assert ("negation" in row.tags) == bool(row.negative), row
        assert ("emoji" in row.tags) == (emoji.emoji_count(row.ja) > 0), row
        assert ("width" in row.tags) == (WIDE.search(row.ja) is not None), row
        assert emoji.emoji_count(row.clean + row.negative) == 0
        assert WIDE.sub("", row.clean) == row.clean
        assert not JAPANESE.search(row.en)
        assert all(row.negative.split("、")) or not row.negative


def test_culture_classes() -> None:
    rows = prompts.culture()
    assert len(rows) >= 300
    assert len({row.ja for row in rows}) == len({row.en.lower() for row in rows}) == len(rows)
    assert {row.category for row in rows} == set(prompts.CATEGORIES)
    assert min(len(prompts.culture(category=category)) for category in prompts.CATEGORIES) >= 20
    assert [row.ja for row in rows if not JAPANESE.search(row.ja)] == []
    assert wrong([row.en for row in rows], "[A-Za-z ,'-]+") == []
    assert max(len(row.en.split()) for row in rows) <= 12  # with a template around it, well inside 77 tokens


def test_negative_presets() -> None:
    presets = prompts.negatives()
    assert {"photo", "illustration", "anime", "without people", "without text"} <= {preset.english for preset in presets.values()}
    assert len({preset.english for preset in presets.values()}) == len(presets)
    for preset in presets.values():
        items = preset.negative.split("、")
        assert len(set(items)) == len(items) >= 4
        assert not re.search("なし$|しない|せず", preset.negative)  # names what must not appear, does not negate it
        assert normalize("猫", negative=preset.negative).negative == preset.negative


def test_the_card_counts_right() -> None:
    card = (ROOM / "README.md").read_text(encoding="utf-8")
    for name in ("pairs", "messy", "culture", "negatives", "styles", "mame_eval"):
        rows = len((ROOM / f"{name}.tsv").read_text(encoding="utf-8").splitlines()) - 1
        assert re.findall(rf"^\| `{name}\.tsv` \| (\d+) \|", card, re.MULTILINE) == [str(rows)] * 2
    files = len(list((ROOM / "wildcards").glob("*.txt")))
    assert re.findall(r"^\| `wildcards/` \| (\d+) ", card, re.MULTILINE) == [str(files)] * 2


# ── what is given and found ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pairs_by_tag_and_half() -> None:
    chosen = prompts.pairs(tag="dialect", split="dev")
    assert chosen
    assert all("dialect" in pair.tags and pair.split == "dev" for pair in chosen)
    assert len(prompts.pairs(split="dev")) + len(prompts.pairs(split="held-out")) == len(prompts.pairs())


def test_examples_show_every_tag() -> None:
    shown = prompts.examples()
    assert len(set(shown)) == len(shown)
    assert {tag for pair in shown for tag in pair.tags} == set(prompts.TAGS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("桜", "さくらのきのしたでおひるね"),
        ("桜", "夜桜とぼんぼり"),
        ("さくら", "満開の桜と姫路城"),
        ("サクラ", "夜桜とぼんぼり"),
        ("ｻｸﾗ", "満開の桜と姫路城"),
        ("富士山", "ふじさんとしんかんせん"),
        ("ふじさん", "ローポリゴンの富士山"),
        ("MOUNT FUJI", "ローポリゴンの富士山"),
        ("Ｆｕｊｉ", "ローポリゴンの富士山"),
        ("ふうりん", "風鈴の音が聞こえてきそうな夏の縁側"),
        ("カブトムシ", "図鑑の挿絵風、カブトムシの標本"),
        ("かぶとむし", "カブトムシとクワガタのけんか"),
        (" 深淵 ", "深淵から登ってくる怪物"),
    ],
)
def test_search_finds(text: str, found: str) -> None:
    assert found in [pair.ja for pair in prompts.search(text)]


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("柿", "牡蠣を焼きよるおばさんじゃ、広島の港町"),  # read the same
        ("鬼", "おにぎりがふたつとたまごやき"),
        ("桜", "つやつやのさくらんぼ"),
    ],
)
def test_search_does_not_take_one_word_for_another(text: str, missed: str) -> None:
    assert missed in [pair.ja for pair in prompts.pairs()]
    assert missed not in [pair.ja for pair in prompts.search(text)]


def test_search_by_tag_and_half() -> None:
    everywhere, kana = prompts.search("猫"), prompts.search("猫", tag="kana")
    assert {pair for pair in everywhere if "kana" in pair.tags} == set(kana) != set()
    assert set(prompts.search("猫", split="dev")) == {pair for pair in everywhere if pair.split == "dev"}
    assert prompts.search("そんなことばはどこにもない") == ()


@pytest.mark.parametrize("text", ["-", "🐈‍⬛", "\ud800", "\x00", "、、", "x" * 10_000])
def test_odd_searches_do_not_find_everything(text: str) -> None:
    assert len(prompts.search(text)) < len(prompts.pairs()) / 5


def test_unknown_names_are_told() -> None:
    with pytest.raises(UnknownNameError, match="もしかして season ですか"):
        prompts.pairs(tag="seasons")
    with pytest.raises(UnknownNameError, match="held-out"):
        prompts.pairs(split="heldout")
    with pytest.raises(UnknownNameError, match="もしかして emoji ですか"):
        prompts.messy(tag="emojis")
    with pytest.raises(UnknownNameError, match="もしかして yokai ですか"):
        prompts.culture(category="youkai")
    with pytest.raises(PromptError, match="探すことばが空です"):
        prompts.search("  ")


# ── the normaliser reads every row ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_prompt_can_be_read() -> None:
    for pair in prompts.pairs():
        read = normalize(pair.ja)
        assert read.text.strip(), pair
        plain = not {"negation", "request"} & set(pair.tags)
        if plain:  # nothing is taken away where nothing is asked or negated
            assert not read.negative and {edit.rule for edit in read.edits} <= {"width", "counts"}, pair
    for row in prompts.messy():
        assert normalize(row.ja).text.strip(), row


# ── as it is installed ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_installed_jpgen_has_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in build["force-include"].items():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, tmp_path / target)
    here = prompts.pairs(), prompts.messy(), prompts.culture(), prompts.negatives()
    monkeypatch.setattr(jpgen.prompt.data, "__file__", str(tmp_path / "jpgen" / "prompt" / "data.py"))
    prompts._read.cache_clear()
    try:
        assert jpgen.prompt.data.data_folder() == tmp_path / "jpgen" / "prompt" / "data"
        assert (prompts.pairs(), prompts.messy(), prompts.culture(), prompts.negatives()) == here
    finally:
        prompts._read.cache_clear()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ja\ten\n", "the first line must name these columns, got"),
        ("ja\ten\tcategory\n鳥居\ttorii\n", "culture.tsv:2: .*wanted 3 columns"),
        ("", "cannot read .*culture.tsv"),
        (None, "cannot read .*culture.tsv"),
    ],
)
def test_a_damaged_file_is_told(text: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        (tmp_path / "culture.tsv").write_text(text, encoding="utf-8")
    monkeypatch.setattr(prompts, "data_folder", lambda: tmp_path)
    prompts._read.cache_clear()
    try:
        with pytest.raises(PromptError, match=told):
            prompts.culture()
    finally:
        prompts._read.cache_clear()
