"""Weights, BREAK and AND: every vector observed from the web UI, full-width twins, words beside Japanese, and no text that breaks it."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpgen.errors import PromptError, UnknownNameError
from jpgen.prompt.syntax import Dialect, ascii_syntax, escape, parse_attention, render, split_and

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "a1111_vectors.json").read_text("utf-8"))
ATTENTION, AND = VECTORS["parse_prompt_attention"], VECTORS["AND"]
OURS = {  # where we mean to differ from the web UI, in both dialects
    "(猫:1.2.3)": [["猫:1.2.3", 1.1]],  # there it raises
    "(a BREAK b:1.2)": [["a", 1.2], ["BREAK", -1.0], ["b", 1.2]],  # there the marker becomes -1.2
}
JPGEN = {  # and in the dialect "jpgen"
    "猫BREAK犬": [["猫", 1.0], ["BREAK", -1.0], ["犬", 1.0]],
    "猫AND犬": [["猫", 1.0], ["犬", 1.0]],
}
PROPERTY = settings(deadline=None, max_examples=100, database=None)

SYNTAX = "()[]{}（）［］｛｝:：|｜\\＼.．-＋０5_＿$＄<>＜＞#,、 　\n"
PIECES = st.sampled_from([*SYNTAX, "猫", "a", "BREAK", "AND", "lora:", "：１．２）", "＿＿季節＿＿", "\ud800", "\u0301"])
TEXT = st.lists(PIECES | st.characters(), max_size=40).map("".join)
BRACKETS = st.text("()[]（）［］{}｛｝a猫:：|｜１.５2$", max_size=24)


def lists(pairs: list[tuple[object, object]]) -> list[list[object]]:
    return [list(pair) for pair in pairs]


def test_all_vectors_are_there() -> None:
    assert [len(VECTORS[group]) for group in ("parse_prompt_attention", "AND", "schedules_steps10")] == [58, 8, 17]
    assert set(OURS) <= {text for text, _ in ATTENTION}


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("text", "expected"), ATTENTION)
def test_attention_is_read_as_the_web_ui_does(text: str, expected: list[list[object]]) -> None:
    assert lists(parse_attention(text, dialect="a1111")) == OURS.get(text, expected)


@pytest.mark.parametrize(("text", "expected"), ATTENTION)
def test_jpgen_reads_the_same_but_beside_japanese(text: str, expected: list[list[object]]) -> None:
    assert lists(parse_attention(text)) == {**OURS, **JPGEN}.get(text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("夕焼け。BREAK　赤い船", [("夕焼け。", 1.0), ("BREAK", -1.0), ("赤い船", 1.0)]),
        ("(猫BREAK犬:1.2)", [("猫", 1.2), ("BREAK", -1.0), ("犬", 1.2)]),
        ("(猫:-1)BREAK犬", [("猫", -1.0), ("", 1.0), ("BREAK", -1.0), ("犬", 1.0)]),
        ("BREAK_1 1BREAK BREAKS", [("BREAK_1 1BREAK BREAKS", 1.0)]),
        ("BREAK BREAK", [("", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("", 1.0)]),
        ("([BREAK]:1)", [("", 1 / 1.1), ("BREAK", -1.0), ("", 1 / 1.1)]),
        ("猫\\BREAK犬", [("猫", 1.0), ("BREAK", -1.0), ("犬", 1.0)]),
        ("BRE\\AK", [("BREAK", 1.0)]),
        ("(猫[犬)鳥]", [("猫", 1.1), ("犬", 1.0), ("鳥", 1 / 1.1)]),  # round and square brackets do not know each other
        ("猫:1.2)", [("猫:1.2)", 1.0)]),
        ("(猫:1.2\\)", [("猫:1.2)", 1.1)]),
        ("(猫:.)", [("猫:.", 1.1)]),
        ("(猫:" + "9" * 400 + ")", [("猫:" + "9" * 400, 1.1)]),  # no float
        ("（猫：1.2）", [("（猫：1.2）", 1.0)]),
    ],
)
def test_attention_beyond_the_vectors(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == expected


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> tuple[str, list[tuple[str, list[float]]]]:
    """A well-formed prompt, and its leaves with the factors around them from inside out."""
    text, leaves = "", []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from("()[:")) if depth else ")"
        if kind == ")":
            leaf = draw(st.sampled_from(["猫", "a b", "夕焼け、", " x"]))
            text, leaves = text + leaf, [*leaves, (leaf, [])]
            continue
        inner, below = draw(trees(depth - 1))
        weight = draw(st.floats(-9, 9).map(lambda number: round(number, 3)))
        opening, closing, factor = {"(": ("(", ")", 1.1), "[": ("[", "]", 1 / 1.1), ":": ("(", f":{weight})", weight)}[kind]
        text += opening + inner + closing
        leaves += [(leaf, [*factors, factor]) for leaf, factors in below]
    return text, leaves


@PROPERTY
@given(trees())
def test_nesting_multiplies(tree: tuple[str, list[tuple[str, list[float]]]]) -> None:
    text, leaves = tree
    read = [(char, weight) for run, weight in parse_attention(text) for char in run]
    meant = [(char, math.prod(factors)) for leaf, factors in leaves for char in leaf]
    assert [char for char, _ in read] == [char for char, _ in meant]
    assert [weight for _, weight in read] == pytest.approx([weight for _, weight in meant], rel=1e-12)


@PROPERTY
@given(TEXT)
def test_any_text_has_finite_weights(text: str) -> None:
    for dialect in ("jpgen", "a1111"):
        spans = parse_attention(text, dialect=dialect)
        assert spans
        assert all(math.isfinite(weight) for _, weight in spans)
        neighbours = [(one, other) for one, other in pairwise(spans) if ("BREAK", -1.0) not in (one, other)]
        assert all(one[1] != other[1] for one, other in neighbours)


def test_nesting_of_any_depth_is_read() -> None:
    assert parse_attention("(" * 10_000 + "猫")[0][1] == parse_attention("(" * 20_000 + "猫")[0][1] < math.inf
    assert parse_attention("(" * 9_000 + "[" * 9_000 + "猫")[0][0] == "猫"
    assert parse_attention("((" * 5_000 + "猫:0)" + ")" * 9_999) == [("猫", 0.0)]


def test_unknown_dialect_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="a1111"):
        parse_attention("猫", dialect="a111")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError):
        split_and("猫", dialect="")  # type: ignore[arg-type]


# ── escape and render ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

WEIGHTS = st.sampled_from([1.0, 1.1, 0.5, 0.0, -1.0, 1e-9, 1e22, 1 / 3]) | st.floats(allow_nan=False, allow_infinity=False)


@PROPERTY
@given(TEXT.filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_read_as_it_stands(text: str) -> None:
    assert parse_attention(escape(text)) == [(text, 1.0)]
    assert parse_attention(f"({escape(text)}:1.3)", dialect="a1111") == ([(text, 1.3)] if text else [("", 1.0)])


@PROPERTY
@given(st.lists(st.tuples(TEXT, WEIGHTS).filter(lambda span: span != ("BREAK", -1.0)), min_size=1, max_size=6))
def test_rendered_spans_read_back(spans: list[tuple[str, float]]) -> None:
    merged = [spans[0]]
    for text, weight in spans[1:]:
        if weight == merged[-1][1]:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    for dialect in ("jpgen", "a1111"):
        assert parse_attention(render(spans), dialect=dialect) == merged


@PROPERTY
@given(TEXT)
def test_what_was_read_is_rendered_and_read_again(text: str) -> None:
    spans = parse_attention(text)
    assert parse_attention(render(spans)) == parse_attention(render(spans), dialect="a1111") == spans


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([("赤い", 1.0), ("猫", 1.3), ("が走る", 1.0)], "赤い(猫:1.3)が走る"),
        ([("猫", 1.1), ("犬", 1.1)], "(猫犬:1.1)"),
        ([("猫", 2.0), ("犬", 1e-7)], "(猫:2)(犬:0.0000001)"),
        ([("猫(子)", 1.0), ("a:1.2", 1.5)], "猫\\(子\\)(a:1.2:1.5)"),
        ([("猫", 1.0), ("BREAK", -1.0), ("犬", 1.0)], "猫 BREAK 犬"),
        ([("猫", 1.2), ("BREAK", -1.0), ("犬", 1.2)], "(猫 BREAK 犬:1.2)"),
        ([("猫", 1.2), ("BREAK", -1.0), ("犬", 1.0)], "(猫:1.2) BREAK 犬"),
        ([("猫 ", 1.0), ("BREAK", -1.0)], "猫 \\ BREAK "),
        ([("猫", 1.0), ("BREAK", -1.0), (" 犬", 1.0)], "猫 BREAK \\ 犬"),
        ([("BREAK", 1.0)], "BRE\\AK"),
        ([], ""),
    ],
)
def test_rendered_spans(spans: list[tuple[str, float]], text: str) -> None:
    assert render(spans) == text


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_not_rendered(weight: float) -> None:
    with pytest.raises(PromptError, match="有限"):
        render([("猫", weight)])


# ── full width ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

WIDE = str.maketrans("()[]:|.0123456789+-", "（）［］：｜．０１２３４５６７８９＋－")
UNIT = r"[^()\[\]\\]*"  # words without brackets
WEIGHTED = re.compile(rf"\((?P<words>{UNIT}):(?P<number>\s*[+-]?[.\d０-９]+\s*)\)")


def twin(text: str) -> str | None:
    """The full-width twin of a vector whose brackets all are doubled, weighted or a schedule; None for the others."""
    done = text.replace("((a:1.2):1.5)", "（（a：１．２）：１．５）")
    done = WEIGHTED.sub(lambda found: f"（{found['words']}：{found['number'].translate(WIDE)}）", done)
    done = re.sub(rf"\({{2,}}{UNIT}\){{2,}}|\[{{2,}}{UNIT}\]{{2,}}|\[[a-z][:|]{UNIT}\]", lambda found: found[0].translate(WIDE), done)
    well_formed = not re.search(r"[()\[\]\\]|[.０-９]+．[０-９]+．", done) and done.count("（") == done.count("）")
    return done if well_formed and done != text and "（(" not in done else None


TWINS = [(wide, text) for text, _ in ATTENTION if (wide := twin(text))]


def test_there_are_twins() -> None:
    assert len(TWINS) >= 20
    assert ("（（（（猫））））", "((((猫))))") in TWINS
    assert ("［a：b：０．５］", "[a:b:0.5]") in TWINS
    assert ("（a：－１）", "(a:-1)") in TWINS


@pytest.mark.parametrize(("wide", "text"), TWINS)
def test_the_full_width_twin_of_a_vector_is_read_the_same(wide: str, text: str) -> None:
    expected = dict(ATTENTION) | OURS | JPGEN
    assert lists(parse_attention(ascii_syntax(wide))) == expected[text]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("（猫：１．２）", "(猫:1.2)"),
        ("（猫: 1.2 ）", "(猫: 1.2 )"),
        ("（猫：　．５）", "(猫:　.5)"),
        ("（猫:－１)", "(猫:-1)"),  # of mixed width
        ("(猫：１．２）", "(猫:1.2)"),
        ("(猫：１．２)", "(猫:1.2)"),  # an ASCII pair is syntax anyway
        ("（（猫））", "((猫))"),
        ("（(猫）)", "((猫))"),
        ("（（（猫）））", "(((猫)))"),
        ("（（猫：１．２））", "((猫:1.2))"),
        ("（（猫：１．２）：１．５）", "((猫:1.2):1.5)"),
        ("（東京（新宿）：１．２）", "(東京（新宿）:1.2)"),
        ("（東京（（新宿）））", "（東京((新宿))）"),
        ("（時刻：夜：１．２）", "(時刻：夜:1.2)"),
        ("（猫２：１．２）", "(猫２:1.2)"),
        ("［［猫］］", "[[猫]]"),
        ("［春：秋：０．５］の京都", "[春:秋:0.5]の京都"),
        ("［桜：５］", "[桜:5]"),
        ("［桜：：０．７］", "[桜::0.7]"),
        ("［：桜：０．３］", "[:桜:0.3]"),
        ("[猫：犬：0.5]", "[猫:犬:0.5]"),
        ("［春｜夏｜秋］", "[春|夏|秋]"),
        ("［春|夏］", "[春|夏]"),
        ("［（猫：１．２）：犬：０．５］", "[(猫:1.2):犬:0.5]"),
        ("｛猫｜犬｝", "{猫|犬}"),
        ("｛猫|犬｝", "{猫|犬}"),
        ("{猫｜犬}", "{猫|犬}"),
        ("｛０．７：：猫｜０．３：：犬｝", "{0.7::猫|0.3::犬}"),
        ("｛２＄＄と＄＄猫｜犬｜鳥｝", "{2$$と$$猫|犬|鳥}"),
        ("｛１－２$$、$$猫｜犬｝", "{1-2$$、$$猫|犬}"),
        ("｛２$$０．７：：猫｜犬｝", "{2$$0.7::猫|犬}"),
        ("｛猫｜｛犬｜鳥｝｝", "{猫|{犬|鳥}}"),
        ("｛２$$＿＿季節＿＿｝", "{2$$__季節__}"),
        ("＿＿季節＿＿の＿＿和風／色＿＿", "__季節__の__和風／色__"),
        ("＿＿＊季節＊＿＿", "__＊季節＊__"),
        ("＜lora：水彩 絵柄：０．８＞", "<lora:水彩 絵柄:0.8>"),
        ("＜ｌｏｒａ：水彩（改）＞", "<lora:水彩（改）>"),
        ("<lora:水彩：0.8>", "<lora:水彩:0.8>"),
        ("＼（猫＼）", r"\(猫\)"),
        (r"＼(猫＼]", r"\(猫\]"),
        ("＼｛猫｜犬＼｝", "\\{猫｜犬\\}"),
    ],
)
def test_full_width_syntax_becomes_ascii(typed: str, read: str) -> None:
    assert ascii_syntax(typed) == read
    assert ascii_syntax(read) == read


@pytest.mark.parametrize(
    "text",
    [
        *["東京（新宿）の夜景", "［新宿］", "｛猫｝", "（猫", "猫）", "（猫：１．２", "猫：１．２）", "（猫］", "（（猫）と犬）"],
        *["（猫（犬））", "［（猫）］", "（［猫］）", "｛｛猫｝｝"],
        *["（猫：）", "（猫：いち）", "（猫：１．２．３）", "（午後３：３０）", "（16：9）", "（年齢：２０）", "（高さ：180）", "［３：３０］"],
        *["［春：秋］", "［a：b：c：０．５］", "猫｜犬", "春：秋：０．５", "２＄＄", "(｀・ω・´)", "＜猫＞", "猫＼犬", "＼", "\\（猫：１．２\\）"],
        *["名前：＿＿＿＿、年齢：＿＿＿＿", "＿＿、＿＿", "＿季節＿", "＿＿＿季節＿＿＿", "＿＿＿季節＿＿", "＿＿季節＿＿＿"],
        *["＜lora＞", "＜lora：名前：強く＞", "<lora:（（水彩））：夜:0.8>"],
    ],
)
def test_punctuation_stays(text: str) -> None:
    assert ascii_syntax(text) == text


@PROPERTY
@given(TEXT | BRACKETS)
def test_full_width_syntax_is_read_once(text: str) -> None:
    read = ascii_syntax(text)
    assert len(read) == len(text)
    assert ascii_syntax(read) == read
    changed = {(was, now) for was, now in zip(text, read, strict=True) if was != now}
    assert all(now.isascii() and not was.isascii() for was, now in changed)


def test_full_width_nesting_of_any_depth_is_read() -> None:
    assert ascii_syntax("（" * 10_000 + "猫" + "）" * 10_000) == "(" * 10_000 + "猫" + ")" * 10_000


# ── AND ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("text", "expected"), AND)
def test_and_is_read_as_the_web_ui_does(text: str, expected: list[list[object]]) -> None:
    assert lists(split_and(text, dialect="a1111")) == expected
    assert lists(split_and(text)) == JPGEN.get(text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("猫：０．５AND犬：1.2", [("猫", 0.5), ("犬", 1.2)]),
        ("猫 AND", [("猫", 1.0), ("", 1.0)]),
        ("猫 :-.5 AND 犬:1.2.3", [("猫", -0.5), (" 犬:1.2.3", 1.0)]),
        ("時刻は3:30", [("時刻は3:30", 1.0)]),
        (" 猫 ", [(" 猫 ", 1.0)]),
        ("猫と犬 SAND and ANDY", [("猫と犬 SAND and ANDY", 1.0)]),
        ("猫AND犬:" + "9" * 400, [("猫", 1.0), ("犬:" + "9" * 400, 1.0)]),
    ],
)
def test_and_in_japanese(text: str, expected: list[tuple[str, float]]) -> None:
    assert split_and(text) == expected


def test_a_prompt_alone_has_a_weight_in_the_web_ui() -> None:
    assert split_and("猫:1.2", dialect="a1111") == [("猫", 1.2)]


@PROPERTY
@given(TEXT, st.sampled_from(["jpgen", "a1111"]))
def test_any_text_is_split(text: str, dialect: Dialect) -> None:
    parts = split_and(text, dialect=dialect)
    assert all(math.isfinite(weight) for _, weight in parts)
    assert sum(len(part) for part, _ in parts) <= len(text)
