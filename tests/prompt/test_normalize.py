"""normalize as a whole: the rules in their order, what they report, what they never do."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpgen.errors import PromptError, UnknownNameError
from jpgen.prompt import RULES, normalize
from jpgen.prompt.chain import CHARACTERS, MEANING
from jpgen.types import Edit

SET = Path(__file__).parents[2] / "prompts" / "normalization"


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SET / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("typed", "text", "negative"),
    [
        ("猫の絵を描いてください", "猫", ""),
        ("夕焼けの海に浮かぶ船を、水彩画風に描いていただけますか？", "夕焼けの海に浮かぶ船、水彩画風", ""),
        ("次の内容で画像を作成して：雪の金閣寺", "雪の金閣寺", ""),
        ("「走る猫」の絵を描いて", "走る猫", ""),
        ("海の絵を描いて。夕焼けでお願いします。", "海。夕焼け", ""),
        ("絵を描く少女", "絵を描く少女", ""),
        ("手紙を書いてほしいと頼む老人", "手紙を書いてほしいと頼む老人", ""),
        ("帽子をかぶっていない少年", "少年", "帽子"),
        ("猫、文字やロゴなし、夕焼け", "猫、夕焼け", "文字、ロゴ"),
        ("誰もいない教室", "教室", "人"),
        ("人のいない、夕焼けの鳥居", "夕焼けの鳥居", "人"),
        ("終わりのない、長い階段", "終わりのない、長い階段", ""),
        ("猫が走る。文字は入れないで。", "猫が走る。", "文字"),
        ("犬ではなく猫", "猫", "犬"),
        ("傘を持たずに歩く人", "歩く人", "傘"),
        ("切ない表情の少女、果てしない荒野", "切ない表情の少女、果てしない荒野", ""),
        ("底なし沼と梨", "底なし沼と梨", ""),
        ("笑っていない少女", "笑っていない少女", ""),
        ("猫しかいない島", "猫しかいない島", ""),
        ("猫が三匹と十二人の子供", "猫が3匹と12人の子供", ""),
        ("二、三羽の鳥と一万本のひまわり", "2、3羽の鳥と1万本のひまわり", ""),
        ("三日月と三毛猫と千本桜", "三日月と三毛猫と千本桜", ""),
        ("ﾈｺ　ＡＢＣ", "ネコ ABC", ""),
        ("龍と竜、綺麗な炬燵", "龍と竜、綺麗な炬燵", ""),
        ("（新宿）の夜景", "（新宿）の夜景", ""),
        ("夜空🌸", "夜空、桜", ""),
        ("猫(^_^)と犬（・∀・）", "猫(^_^)と犬（・∀・）", ""),
        ("猫BREAK犬", "猫、犬", ""),
    ],
)
def test_what_is_read(typed: str, text: str, negative: str) -> None:
    read = normalize(typed)
    assert (read.source, read.text, read.negative) == (typed, text, negative)


@pytest.mark.parametrize(
    ("typed", "text", "negative"),
    [
        ("赤い風船の絵をお願いします🙏", "赤い風船", ""),
        ("猫の絵を描いてください😊お願いします💦", "猫", ""),
        ("猫を描いて🐱", "猫。ネコの顔", ""),
        ("バスの絵、お願いできますか？💦", "バス", ""),
        ("祈る人🙏", "祈る人、祈り", ""),
        ("🙏のポスター", "祈りのポスター", ""),
        ("満開の桜🌸、青空", "満開の桜、青空", ""),
        ("カメラ📷とノート", "カメラとノート", ""),
        ("レトロな車のイラストお願いしますm(_ _)m", "レトロな車のイラスト", ""),
        ("猫(^_^)と犬(^_^)", "猫(^_^)と犬(^_^)", ""),
        ("海辺の街の絵を提案してください", "海辺の街", ""),
        ("旅行の行き先を提案してください", "旅行の行き先を提案してください", ""),
        ("背景に富士山を描き込んで", "背景に富士山", ""),
        ("細部まで描き込んでいる画家", "細部まで描き込んでいる画家", ""),
        ("猫の絵を描いてください、夜の海辺で", "猫、夜の海辺で", ""),
        ("「助けてください、誰か」と書かれた看板", "「助けてください、誰か」と書かれた看板", ""),
        ("助けてください、と叫ぶ男", "助けてください、と叫ぶ男", ""),
        ("ハンバーガー、ピクルスは抜いといて", "ハンバーガー", "ピクルス"),
        ("ラーメン、ネギを抜いてください", "ラーメン", "ネギ"),
        ("侍、刀は抜いて構える", "侍、刀は抜いて構える", ""),
        ("刀を抜いている侍", "刀を抜いている侍", ""),
        ("花が咲いとらん木", "木", "花"),
        ("眼鏡をかけとらん先生", "先生", "眼鏡"),
        ("しろいゆきにあかいてぶくろがかたほう", "しろいゆきにあかいてぶくろがかたほう", ""),
        ("うさぎとかめをかいてください", "うさぎとかめ", ""),
    ],
)
def test_asking_as_people_do(typed: str, text: str, negative: str) -> None:
    read = normalize(typed)
    assert (read.text, read.negative) == (text, negative)


@pytest.mark.parametrize(
    ("typed", "spans"),
    [
        ("（（猫：１．２））が走る", (("猫", pytest.approx(1.32)), ("が走る", 1.0))),
        ("(赤い猫:1.3)の絵を水彩画風に描いて", (("赤い猫", 1.3), ("、水彩画風", 1.0))),
        ("猫、(帽子をかぶっていない少年:1.4)", (("猫、", 1.0), ("少年", 1.4))),
        ("猫BREAK(犬:0.8)", (("猫", 1.0), ("BREAK", -1.0), ("犬", 0.8))),
        ("猫AND犬:0.5", (("猫", 1.0), ("BREAK", -1.0), ("犬", 0.5))),
        ("[桜:紅葉:0.5]の山", (("紅葉の山", 1.0),)),
    ],
)
def test_weights_stay_with_their_words(typed: str, spans: tuple[tuple[str, float], ...]) -> None:
    assert normalize(typed).spans == spans


def test_a_schedule_and_adapters_are_reported() -> None:
    read = normalize("[桜:紅葉:0.5]の山 <lora:水彩 v2:0.7>")
    assert (read.schedule, read.loras, read.text) == ("[桜:紅葉:0.5]の山", (("水彩 v2", 0.7),), "紅葉の山")
    assert any("スケジュール" in note for note in read.notes)
    assert read.written == "紅葉の山 <lora:水彩 v2:0.7>"


def test_choices_follow_the_seed() -> None:
    made = {normalize("{春|夏|秋|冬}の__花__", seed=seed).text for seed in range(40)}
    assert len(made) > 8
    assert normalize("{春|夏|秋|冬}", seed=3).text == normalize("｛春｜夏｜秋｜冬｝", seed=3).text
    with pytest.raises(PromptError, match="季節"):
        normalize("__季説__")


def test_every_rewrite_is_told_and_can_be_switched_off() -> None:
    typed = "ﾈｺが三匹、帽子なし。描いて！！ <lora:a:1> # メモ"
    read = normalize(typed)
    assert {edit.rule for edit in read.edits} >= {"lora", "width", "runs", "comments", "negation", "counts"}
    assert Edit("counts", "三", "3") in read.edits
    assert "counts: 「三」→「3」" in read.explain()
    for rule in RULES:
        assert rule not in {edit.rule for edit in normalize(typed, off=[rule]).edits}
    assert normalize("帽子をかぶっていない少年を描いて", off=RULES).text == "帽子をかぶっていない少年を描いて"
    with pytest.raises(UnknownNameError, match="counts"):
        normalize("猫", off=["count"])


def test_one_rewrite_of_a_rule_can_be_left_out() -> None:
    typed = "猫が三匹と犬が二匹、帽子なし、眼鏡なし"
    read = normalize(typed, off=["counts:三", "negation:、帽子なし"])
    assert (read.text, read.negative) == ("猫が三匹と犬が2匹、帽子なし", "眼鏡")
    for edit in normalize(typed).edits:
        alone = normalize(typed, off=[f"{edit.rule}:{edit.before}"])
        assert edit not in alone.edits
        assert alone.edits
    for strange, near in (("count:三", "counts"), ("variants:{猫|犬}", "variants")):
        with pytest.raises(UnknownNameError, match=near):
            normalize("猫", off=[strange])


def test_the_negative_prompt_typed_apart_comes_first() -> None:
    assert normalize("帽子なしの少年", negative="低品質，（ぼやけ：１．４）").negative == "低品質,(ぼやけ:1.4)、帽子"
    assert normalize("cat", negative="(worst quality:1.4), text").negative == "(worst quality:1.4), text"


def test_notes_speak_of_idioms_and_homographs() -> None:
    notes = " ".join(normalize("花より団子、はし").notes)
    assert "慣用句" in notes
    assert "橋・箸・端" in notes
    assert not normalize("団子と桜と橋").notes
    deserted = normalize("人気のない通り")
    assert (deserted.text, deserted.negative) == ("人気のない通り", "")
    assert "ひとけ" in " ".join(deserted.notes)


def test_a_lexicon_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.tsv"
    row = "猫に小判次郎\tねこにこばんじろう\tidiom\t猫に小判次郎\twasted\t内輪の言い回し"
    mine.write_text(f"surface\treading\tkind\tcanonical\tenglish\tnote\n{row}\n", encoding="utf-8")
    assert "内輪の言い回し" in " ".join(normalize("猫に小判次郎", lexicon=[mine]).notes)
    mine.write_text("surface\tenglish\n", encoding="utf-8")
    with pytest.raises(PromptError, match="一行目"):
        normalize("猫に小判次郎", lexicon=[mine])


@pytest.mark.parametrize(
    ("kind", "least"),
    [("request", 0.98), ("negation", 0.95), ("count", 0.98), ("characters", 0.98), ("mixed", 0.98), ("trap", 0.995), ("plain", 1.0)],
)
def test_the_dev_half(kind: str, least: float) -> None:
    kept = [row for row in rows("dev") if row["kind"] == kind]
    right = sum((read.text, read.negative) == (row["text"], row["negative"]) for row in kept for read in (normalize(row["source"]),))
    assert right / len(kept) >= least


@pytest.mark.parametrize("row", rows("characters"), ids=lambda row: row["source"])
def test_the_character_battery(row: dict[str, str]) -> None:
    off = [rule for rule in RULES if rule not in {*CHARACTERS, "width_of_syntax"} - {"emoji", "laughter"}]
    assert normalize(row["source"], off=off).text == row["text"]


def test_reading_twice_changes_nothing_more() -> None:
    for row in rows("dev"):
        once = normalize(row["source"])
        again = normalize(once.written)
        assert (again.text, again.spans, again.negative) == (once.text, once.spans, ""), row["source"]


MARKS = "（）()[]［］{}｛｝|｜:：＜＞<>\\＼1.2１．５ BREAK AND __ 季節 猫犬を描いてくださいない、。！!？〜ー①ｶﾞﾞ゛゜\u3099\u200b"
MARKS += "🌸👍🏽w笑三匹帽子なし^_^＿lora#＃\n"


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(alphabet=MARKS, max_size=40)))
def test_any_text_is_read_and_read_again_the_same(typed: str) -> None:
    once = normalize(typed, off=["variants"])
    again = normalize(once.written, off=["variants"])
    assert (again.text, again.spans, again.negative) == (once.text, once.spans, "")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
def test_ascii_stays_byte_for_byte(typed: str) -> None:
    assert normalize(typed, off=["lora", "comments", "variants", "syntax", "width_of_syntax"]).text == typed


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=MARKS, max_size=40))
def test_characters_leave_nothing_that_nfkc_would_still_change_but_syntax(typed: str) -> None:
    read = normalize(typed, off=[*MEANING, "syntax", "variants", "comments", "lora", "width_of_syntax"]).text
    kept = "（）［］｛｝：｜＜＞＼＿＄…‥゛゜´｀"
    assert all(unicodedata.normalize("NFKC", sign) == sign or sign in kept for sign in read)


def test_normalize_loads_no_torch() -> None:
    heavy = ("torch", "transformers", "numpy", "PIL")
    code = f"import sys, jpgen; jpgen.normalize('帽子をかぶっていない少年の絵を描いて'); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
