"""Edits by words, a row an instruction: what the prompt and the negative prompt become, and what is not guessed at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.edits import difference, reword

CAT = "窓辺の猫、夕焼けの海"

ROWS = [
    # one thing becomes another: plain, polite, of the regions, English
    (CAT, "猫を犬に", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫を犬にして", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫を犬に変えてください", "窓辺の犬、夕焼けの海", ""),
    (CAT, "すみませんが、猫を犬に変更していただけますか？", "窓辺の犬、夕焼けの海", ""),
    (CAT, "ネコを犬に変更してほしいです", "窓辺の犬、夕焼けの海", ""),
    (CAT, "ねこちゃんを犬に", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫ちゃんを犬に差し替えて！", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫じゃなくて犬", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫ではなく犬にしてください", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫やなくて犬にしてや", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫を犬にしてくれへん？", "窓辺の犬、夕焼けの海", ""),
    (CAT, "ほな、猫を犬にしてえな", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫ば犬にしてくれんね", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫を犬にしとくれやす", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫を犬にしてけろ", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫をやめて犬に", "窓辺の犬、夕焼けの海", ""),
    (CAT, "猫の代わりにうさぎを描いて", "窓辺のうさぎ、夕焼けの海", ""),
    (CAT, "猫→うさぎ", "窓辺のうさぎ、夕焼けの海", ""),
    (CAT, "change the cat to a dog", "窓辺の犬、夕焼けの海", ""),
    (CAT, "Replace cat with rabbit.", "窓辺のうさぎ、夕焼けの海", ""),
    (CAT, "a dog instead of the cat", "窓辺の犬、夕焼けの海", ""),
    ("a cat on a chair", "turn the cat into a fox", "a fox on a chair", ""),
    ("黒猫と花", "猫を犬に", "黒犬と花", ""),
    ("猫、部屋", "猫を三匹にして", "三匹の猫、部屋", ""),
    ("二匹の猫、部屋", "猫を3匹に", "3匹の猫、部屋", ""),
    # something goes
    ("海辺に立つ人と犬、水彩画", "人を消して", "海辺に立つ犬、水彩画", "人"),
    ("海辺に立つ人と犬、水彩画", "犬を削除してください", "海辺に立つ人、水彩画", "犬"),
    ("白い猫と黒い犬、庭", "猫はいりません", "黒い犬、庭", "猫"),
    ("人のいる街、夜", "人を消して", "街、夜", "人"),
    ("人が歩く道、夜", "人をなくして", "道、夜", "人"),
    ("帽子をかぶった少年、公園", "帽子いらん", "少年、公園", "帽子"),
    ("黒猫がいる窓辺、雪", "猫を消してんか", "窓辺、雪", "猫"),
    ("海辺に立つ人", "人を消して", "海辺", "人"),
    ("青い船、人、海", "人は要らないです", "青い船、海", "人"),
    ("桜並木、文字", "文字なしで", "桜並木", "文字"),
    ("桜並木", "文字を入れないで", "桜並木", "文字"),
    ("電線と空", "電線を取り除いて", "空", "電線"),
    ("旅人、砂漠", "人をのけて", "砂漠", "人"),
    ("人形と花", "人を消して", "人形と花", "人"),
    ("桜並木、人", "remove the people", "桜並木", "人"),
    ("a cat, sunset", "remove the cat", "sunset", "cat"),
    ("a cat and a dog, sunset", "please remove the cat", "a dog, sunset", "cat"),
    # something comes
    (CAT, "犬を追加", f"{CAT}、犬", ""),
    (CAT, "犬も足しといて", f"{CAT}、犬", ""),
    (CAT, "犬もおってほしい", f"{CAT}、犬", ""),
    (CAT, "月を描き足してもらえますか", f"{CAT}、月", ""),
    (CAT, "空に月を浮かべて", f"{CAT}、空に月", ""),
    (CAT, "雪を降らせて", f"{CAT}、雪", ""),
    (CAT, "星がほしいなあ", f"{CAT}、星", ""),
    (CAT, "花ば入れてけろ", f"{CAT}、花", ""),
    (CAT, "add a dog", f"{CAT}、犬", ""),
    ("a cat on a chair", "add a red moon", "a cat on a chair, red moon", ""),
    ("猫、庭", "猫に帽子をかぶせて", "帽子をかぶった猫、庭", ""),
    ("庭の猫", "猫に赤いマフラーを巻いてあげて", "庭の赤いマフラーを巻いた猫", ""),
    # a style
    ("海、写真", "水彩画風にして", "海、水彩画風", ""),
    ("海", "この絵を浮世絵風に", "海、浮世絵風", ""),
    ("海、水彩画", "油絵っぽくして", "海、油絵風", ""),
    ("海、水彩画", "画風をアニメに変えて", "海、アニメ", ""),
    ("海", "アニメ調でお願いします", "海、アニメ調", ""),
    ("海", "make it watercolor", "海、水彩画", ""),
    # more and less
    ("海と船、夕焼け", "もっと夕焼けに", "海と船、(夕焼け:1.3)", ""),
    ("海と船", "もっと夕焼けに", "海と船、夕焼け", ""),
    ("海と(船:1.3)", "船をもっと強調して", "海と(船:1.7)", ""),
    ("海と船", "船を控えめに", "海と(船:0.7)", ""),
    ("海", "もうちょい明るくしてや", "海、明るい", ""),
    ("暗い海", "明るくして", "明るい海", ""),
    ("海、明るい", "もっと明るく", "海、(明るい:1.3)", ""),
    ("海", "めっちゃ可愛くして", "海、可愛い", ""),
    ("海", "more snow", "海、雪", ""),
    # times, seasons, weather, colours, backgrounds
    ("朝の海", "夜にして", "夜の海", ""),
    ("春の公園、花", "季節を秋に", "秋の公園、花", ""),
    ("晴れの海", "雨に変えて", "雨の海", ""),
    ("海", "冬にしてくださいませ", "海、冬", ""),
    ("赤い船、海", "船を青くして", "青い船、海", ""),
    ("船、海", "船を赤に", "赤い船、海", ""),
    ("長い髪の少女", "髪を短くして", "短い髪の少女", ""),
    ("猫、部屋", "背景を海にして", "猫、部屋、背景は海", ""),
    ("猫、背景は部屋", "背景を夜空に", "猫、背景は夜空", ""),
    # several at once
    ("窓辺の猫", "猫を犬に、背景を海にして", "窓辺の犬、背景は海", ""),
    ("窓辺の猫、人", "猫を犬にして、人を消して、雪を降らせて", "窓辺の犬、雪", "人"),
    # not to be guessed at
    ("猫", "猫を消さないで", None, ""),
    ("猫", "なんかいい感じにして", None, ""),
    ("猫", "犬をうさぎに", None, ""),
    ("猫", "犬にして", None, ""),
    ("猫", "もう一匹増やして", None, ""),
    ("猫", "もっと", None, ""),
    ("猫", "いいね", None, ""),
    ("猫", "ありがとう", None, ""),
    ("猫", "asdf", None, ""),
    ("猫", "　", None, ""),
    ("猫", "猫を犬に、いい感じで", None, ""),
    ("猫、夜", "夜にして", None, ""),
]


@pytest.mark.parametrize(("prompt", "instruction", "wanted", "negative"), ROWS)
def test_what_an_instruction_makes_of_a_prompt(prompt: str, instruction: str, wanted: str | None, negative: str) -> None:
    made = reword(prompt, instruction)
    assert (made.prompt if made.understood else None, made.negative) == (wanted, negative)
    assert made.understood == bool(made.kinds)
    if wanted is None:
        assert made.prompt == prompt
        assert " / " in made.note


def test_there_are_enough_rows() -> None:
    assert sum(wanted is not None for _, _, wanted, _ in ROWS) >= 60


def test_the_negative_prompt_keeps_what_is_not_meant_and_loses_what_is_wanted() -> None:
    assert reword("海、人", "人を消して", negative="文字").negative == "文字、人"
    assert reword("海、人", "人を消して", negative="人、文字").negative == "人、文字"
    assert reword("海", "犬を追加", negative="犬、文字").negative == "文字"
    assert reword("海", "add a dog", negative="dog, text").negative == "text"
    assert reword("桜並木", "文字を入れないで").note.startswith("文に「文字」はない")


def test_why_it_could_not_be_done_is_told() -> None:
    assert "「犬」がプロンプトに見つかりません" in reword("猫", "犬をうさぎに").note
    assert reword("猫、夜", "夜にして").note.startswith("もうそうなっています")
    assert "「いい感じで」をどう変えればよいか" in reword("猫", "猫を犬に、いい感じで").note


def test_the_difference_is_shown_piece_by_piece() -> None:
    made = reword("窓辺の猫、海", "猫を犬に")
    assert made.difference == (("same", "窓辺の"), ("out", "猫"), ("in", "犬"), ("same", "、海"))
    assert reword("海、人", "人を消して", negative="文字").negative_difference == (("same", "文字"), ("in", "、人"))


@given(st.text(max_size=40), st.text(max_size=40))
def test_pieces_put_together_are_both_texts(before: str, after: str) -> None:
    pieces = difference(before, after)
    assert "".join(text for kind, text in pieces if kind != "in") == before
    assert "".join(text for kind, text in pieces if kind != "out") == after


FRAGMENTS = st.sampled_from(
    ["猫", "犬", "を", "に", "して", "消して", "もっと", "明るく", "風に", "(", ")", ":1.3", "\\", "[", "*", "人", "の", "いる", "、", " ", "to"]
)


@given(st.lists(FRAGMENTS | st.characters(), max_size=12).map("".join), st.lists(FRAGMENTS | st.characters(), max_size=12).map("".join))
def test_nothing_makes_it_fail_and_what_is_not_understood_changes_nothing(prompt: str, instruction: str) -> None:
    made = reword(prompt, instruction, negative="文字")
    assert made.understood or (made.prompt, made.negative) == (prompt, "文字")


@pytest.mark.parametrize("long", ["猫" * 100_000, "を" * 300, "もっと" * 100, "消し" * 150, "<script>alert(1)</script>" * 12])
def test_long_and_hostile_instructions_are_answered(long: str) -> None:
    assert reword("窓辺の猫" * 500, long).prompt
