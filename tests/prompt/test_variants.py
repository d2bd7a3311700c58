"""Variants and wildcards: what a seed chooses, the same everywhere; files and names that are wrong; our own lists."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpgen.errors import PromptError, SettingError
from jpgen.prompt.data import data_folder
from jpgen.prompt.syntax import ascii_syntax, parse_attention
from jpgen.prompt.variants import Wildcards, expand

NOWHERE = Wildcards((Path("/nowhere"),))
PROPERTY = settings(deadline=None, max_examples=100, database=None)
SEEDS = range(300)


def wildcards(folder: Path, **files: str) -> Wildcards:
    for name, text in files.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return Wildcards((folder,))


def outcomes(text: str, known: Wildcards = NOWHERE) -> Counter[str]:
    return Counter(expand(text, seed, known)[0] for seed in SEEDS)


# ── variants ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{猫|犬}が走る", {"猫が走る", "犬が走る"}),
        ("{赤い|}猫", {"赤い猫", "猫"}),
        ("{|}猫", {"猫"}),
        ("{猫|{犬|鳥}}", {"猫", "犬", "鳥"}),
        ("{黒い{猫|犬}|{鳥}}", {"黒い猫", "黒い犬", "{鳥}"}),
        ("{big |}cat", {"big cat", "cat"}),
        ("a{ big|n old} cat", {"a big cat", "an old cat"}),
        ("{\n  猫\n  |犬\n}の絵", {"猫の絵", "犬の絵"}),
        ("{2$$と$$猫|犬|鳥}", {"猫と犬", "猫と鳥", "犬と猫", "犬と鳥", "鳥と猫", "鳥と犬"}),
        ("{2$$猫|b}", {"猫、b", "b、猫"}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ | $$a|b}", {"a | b", "b | a"}),
        ("{2$$$$a|b}", {"ab", "ba"}),
        ("{1-2$$、$$A|B}", {"A", "B", "A、B", "B、A"}),
        ("{2-1$$、$$A|B}", {"A", "B", "A、B", "B、A"}),
        ("{-2$$+$$A|B}", {"A", "B", "A+B", "B+A"}),
        ("{2-$$+$$A|B}", {"A+B", "B+A"}),
        ("{9$$+$$A|B}", {"A+B", "B+A"}),
        ("{0-1$$A|B}", {"", "A", "B"}),
        ("{1::猫|0::犬}", {"猫"}),
        ("{0::猫|0::犬}", {"猫", "犬"}),
        ("{2$$+$$1::A|0::B|0::C}", {"A+B", "A+C"}),
        ("{[猫|犬]|(鳥:1.2)}", {"[猫|犬]", "(鳥:1.2)"}),
        ("{(猫|犬}", {"(猫", "犬"}),
        ("({猫|犬}:1.2)", {"(猫:1.2)", "(犬:1.2)"}),
        ("<lora:{x|y}:1>", {"<lora:x:1>", "<lora:y:1>"}),
        (r"{a\|b|c}", {r"a\|b", "c"}),
        (r"{\{a\}|b}", {"{a}", "b"}),
    ],
)
def test_variants(text: str, expected: set[str]) -> None:
    assert set(outcomes(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{猫}", "{猫}"),
        ("{猫|犬", "{猫|犬"),
        ("猫|犬}", "猫|犬}"),
        ("}{", "}{"),
        (r"\{猫|犬\}", "{猫|犬}"),
        (r"\(猫\){", r"\(猫\){"),
        (r"\\", r"\\"),
        ("", ""),
    ],
)
def test_what_is_no_variant_stays(text: str, expected: str) -> None:
    assert expand(text, 1, NOWHERE) == (expected, [])


@pytest.mark.parametrize("text", ["____と____", "__、__", "_季節_", "___季節___", "___季節__", r"\__季節__", "<lora:my__style__v2:1>"])
def test_what_is_no_wildcard_stays(text: str) -> None:
    assert expand(text, 1, NOWHERE) == (text, [])


def test_weights_are_frequencies() -> None:
    found = outcomes("{0.7::猫|0.3::犬}")
    assert 0.6 < found["猫"] / found.total() < 0.8
    assert all(80 < count < 120 for count in outcomes("{猫|犬|鳥}").values())
    assert all(35 < count < 65 for count in outcomes("{2$$と$$猫|犬|鳥}").values())


def test_a_seed_chooses_the_same_everywhere() -> None:
    text = "{猫|犬|鳥}と{0.2::赤|0.8::青}、{2$$と$$A|B|C|D}、{1-3$$x|y|z}"
    pinned = ["鳥と青、BとC、z, x", "猫と青、BとC、y, z", "鳥と青、AとD、z, x, y", "猫と青、DとA、x"]
    assert [expand(text, seed, NOWHERE)[0] for seed in (0, 1, 2, 2**62)] == pinned


def test_choices_are_told() -> None:
    text, made = expand("{猫|猫}と{2$$と$$A|A}", 0, NOWHERE)
    assert (text, made) == ("猫とAとA", ["{猫|猫} → 猫", "{2$$と$$A|A} → AとA"])
    _, made = expand("{{猫|猫}|{猫|猫}}", 0, NOWHERE)
    assert made == ["{{猫|猫}|{猫|猫}} → {猫|猫}", "{猫|猫} → 猫"]


def test_nesting_of_any_depth_is_read() -> None:
    assert expand("{|" * 5_000 + "猫" + "}" * 5_000, 0, NOWHERE)[0] in ("", "猫")
    assert expand("{" * 10_000, 0, NOWHERE) == ("{" * 10_000, [])
    with pytest.raises(PromptError, match="10000"):
        expand("{猫|猫}" * 10_001, 0, NOWHERE)


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_a_seed_is_a_number(seed: object) -> None:
    with pytest.raises(SettingError):
        expand("{猫|犬}", seed, NOWHERE)  # type: ignore[arg-type]


@PROPERTY
@given(st.text("{}|$\\()[]:.-_ 12猫犬\n", max_size=30), st.integers(0, 2**63 - 1))
def test_any_text_without_wildcards_is_read(text: str, seed: int) -> None:
    text = text.replace("__", "_")
    done, made = expand(text, seed, NOWHERE)
    assert (done, made) == expand(text, seed, NOWHERE)
    assert made or done == re.sub(r"\\(.)", lambda found: found[1] if found[1] in "{}" else found[0], text, flags=re.DOTALL)
    assert set(done) <= set(text) | set("、, ")


def test_full_width_variants_are_read_once_they_are_ascii() -> None:
    assert set(outcomes(ascii_syntax("｛猫｜犬｝、｛２＄＄と＄＄A｜B｝"))) == {"猫、AとB", "猫、BとA", "犬、AとB", "犬、BとA"}


# ── wildcards ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wildcard_is_a_line_of_its_file(tmp_path: Path) -> None:
    known = wildcards(tmp_path, 季節="\ufeff# 季節\n春\r\n\n  秋  \n#夏\n")
    assert known.lines("季節") == ["春", "秋"]
    assert set(outcomes("__季節__の京都", known)) == {"春の京都", "秋の京都"}
    text, made = expand("__季節__の京都", 0, known)
    assert made == [f"__季節__ → {text[0]}"]


def test_wildcards_of_subfolders_and_globs(tmp_path: Path) -> None:
    known = wildcards(tmp_path, 季節="春", **{"和風/色": "藍", "和風/古い季節": "長月", "洋風/色": "青"})
    assert known.names() == ["和風/古い季節", "和風/色", "季節", "洋風/色"]
    assert expand("__和風/色__", 0, known)[0] == "藍"
    assert set(outcomes("__*季節*__", known)) == {"春", "長月"}
    assert set(outcomes("__和風/*__", known)) == {"藍", "長月"}
    assert set(outcomes("__?風/色__", known)) == {"藍", "青"}
    assert set(outcomes("__*__", known)) == {"春", "長月", "藍", "青"}


def test_names_are_the_same_in_any_width_and_form(tmp_path: Path) -> None:
    known = wildcards(tmp_path, **{unicodedata.normalize("NFD", "ガラスの色"): "青", "Season": "春"})
    assert known.names() == ["Season", "ガラスの色"]
    assert known.lines("ｶﾞﾗｽの色") == ["青"]
    assert known.lines("ｓｅａｓｏｎ") == ["春"]
    assert expand(ascii_syntax("＿＿＊ガラス＊＿＿"), 0, known)[0] == "青"


def test_lines_hold_variants_wildcards_and_weights(tmp_path: Path) -> None:
    known = wildcards(tmp_path, 場面="__季節__の{海|山}", 季節="春\n秋", 色="1::赤\n0::青", 全角="｛猫｜犬｝")
    assert set(outcomes("__場面__", known)) == {"春の海", "春の山", "秋の海", "秋の山"}
    assert set(outcomes("__色__", known)) == {"赤"}
    assert set(outcomes("__全角__", known)) == {"猫", "犬"}
    assert len(expand("__場面__", 0, known)[1]) == 3


def test_several_lines_of_a_wildcard_are_different(tmp_path: Path) -> None:
    known = wildcards(tmp_path, 花="桜\n梅\n梅", flower="rose\nlily")
    assert set(outcomes("{2$$__花__}", known)) == {"桜、梅", "梅、桜"}
    assert set(outcomes("{2$$ and $$__flower__}", known)) == {"rose and lily", "lily and rose"}
    assert set(outcomes("{2$$__flower__}", known)) == {"rose, lily", "lily, rose"}
    assert "桜と桜" in outcomes("{2$$と$$__花__|__花__}", known)


def test_a_tag_may_take_its_name_from_a_wildcard(tmp_path: Path) -> None:
    assert expand("<lora:__絵柄__:1>", 0, wildcards(tmp_path, 絵柄="水彩"))[0] == "<lora:水彩:1>"


def test_the_first_folder_counts(tmp_path: Path) -> None:
    wildcards(tmp_path / "mine", 季節="梅雨")
    wildcards(tmp_path / "theirs", 季節="春", 色="青")
    known = Wildcards((tmp_path / "mine", tmp_path / "theirs"))
    assert (known.lines("季節"), known.lines("色")) == (["梅雨"], ["青"])


def test_a_text_without_choices_reads_no_file() -> None:
    assert expand("夕焼けの海", 0, NOWHERE) == ("夕焼けの海", [])
    with pytest.raises(PromptError, match="nowhere"):
        expand("__季節__", 0, NOWHERE)


def test_an_unknown_wildcard_offers_the_nearest(tmp_path: Path) -> None:
    known = wildcards(tmp_path, 季節="春", 時間帯="朝")
    with pytest.raises(PromptError, match="もしかして 季節 ですか"):
        expand("__季切__", 0, known)
    with pytest.raises(PromptError, match="季節, 時間帯"):
        expand("__zzz__", 0, known)
    with pytest.raises(PromptError, match=r"zzz\*"):
        expand("__zzz*__", 0, known)


@pytest.mark.parametrize(
    ("files", "cycle"),
    [
        ({"a": "__b__", "b": "__a__"}, "a → b → a"),
        ({"c": "__a__", "a": "{__b__|__b__}", "b": "猫と__a__"}, "a → b → a"),
        ({"a": "__A__"}, "a → a"),
        ({"季節": "__季*__"}, "季節 → 季節"),
    ],
)
def test_a_cycle_is_named(files: dict[str, str], cycle: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=f"{cycle}。"):
        expand(f"__{next(iter(files))}__", 0, wildcards(tmp_path, **files))


def test_wildcards_may_be_used_twice_and_skip_themselves_in_a_glob(tmp_path: Path) -> None:
    known = wildcards(tmp_path, 全部="__*__", 季節="春", 対="__季節__と__季節__")
    assert expand("__対__", 0, known)[0] == "春と春"
    assert set(outcomes("__全部__", known)) == {"春", "春と春"}


def test_wildcards_that_explode_are_stopped(tmp_path: Path) -> None:
    known = wildcards(tmp_path, **{f"x{level}": f"__x{level + 1}__ __x{level + 1}__" for level in range(30)}, x30="猫")
    with pytest.raises(PromptError, match="10000"):
        expand("__x0__", 0, known)


@pytest.mark.parametrize("name", ["../秘密", "..", "a/../../秘密", "/etc/passwd", "．．／秘密", "a\\秘密", "c:秘密", "../*", "和風/../*"])
def test_a_name_never_leaves_its_folder(name: str, tmp_path: Path) -> None:
    wildcards(tmp_path, 秘密="secret")
    known = wildcards(tmp_path / "inner", 季節="春")
    with pytest.raises(PromptError, match="フォルダーの外"):
        known.lines(name)


def test_a_link_never_leaves_its_folder(tmp_path: Path) -> None:
    wildcards(tmp_path, 秘密="secret")
    known = wildcards(tmp_path / "inner", 季節="春")
    (tmp_path / "inner" / "鍵.txt").symlink_to(tmp_path / "秘密.txt")
    (tmp_path / "inner" / "扉").symlink_to(tmp_path)
    assert known.names() == ["季節"]


def test_outside_names_in_prompts_are_errors(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="フォルダーの外"):
        expand("__../秘密__", 0, wildcards(tmp_path / "inner", 季節="春"))


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    known = wildcards(tmp_path, 空="# まだ\n\n")
    (tmp_path / "文字化け.txt").write_bytes("春".encode("cp932"))
    (tmp_path / "箱.txt").mkdir()
    with pytest.raises(PromptError, match="候補がありません"):
        known.lines("空")
    with pytest.raises(PromptError, match="UTF-8"):
        known.lines("文字化け")
    with pytest.raises(PromptError, match="箱"):
        known.lines("箱")


# ── our own lists ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

OURS = [
    "季節", "時間帯", "天気", "色", "動物", "花", "場所", "画風", "構図", "表情", "服装", "和の小物",
    "光", "食べ物", "妖怪", "行事", "乗り物", "職業", "建物", "素材", "雰囲気", "伝統色",
]  # fmt: skip


def test_our_wildcards_are_there() -> None:
    assert Wildcards.default().names() == sorted(OURS)
    assert Wildcards.default().folders == (data_folder() / "wildcards",)


@pytest.mark.parametrize("name", OURS)
def test_our_wildcards_are_natural_japanese(name: str) -> None:
    lines = Wildcards.default().lines(name)
    assert len(lines) >= 12
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert re.search("[ぁ-ヿ一-鿿]", line) or line == "3DCG"
        assert unicodedata.normalize("NFKC", line) == line
        assert parse_attention(line) == [(line, 1.0)]
        assert expand(line, 0, NOWHERE) == (line, [])
