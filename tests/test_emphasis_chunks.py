"""Chunks lose no token and end where a sentence does, whatever the tokenizer."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from jpgen.catalog import find_model
from jpgen.emphasis import Chunk, TokenEncoder, chunk
from jpgen.encoders import bert, clip, load_encoder
from tests.toys.letters import Letters

Spans = list[tuple[str, float]]
BREAK = ("BREAK", -1.0)


def read(chunks: Sequence[Chunk]) -> list[str]:
    return ["".join(map(chr, part.ids)) for part in chunks]


@pytest.mark.parametrize(
    ("spans", "wanted"),
    [
        ([("赤い猫", 1.0)], ["赤い猫"]),
        ([], []),
        ([("", 1.0)], []),
        ([("一二三四五六七八九十", 1.0)], ["一二三四五六七八九十"]),  # just full
        ([("一二三四五六七八九十一", 1.0)], ["一二三四五六七八九十", "一"]),  # nowhere to split
        ([("一二三四五、七八九十一", 1.0)], ["一二三四五、", "七八九十一"]),
        ([("一二三四五,七八九十一", 1.0)], ["一二三四五,", "七八九十一"]),
        ([("一二三四五。七八、十一", 1.0)], ["一二三四五。", "七八、十一"]),  # a sentence before a clause
        ([("一二三四五\n七八、十一", 1.0)], ["一二三四五\n", "七八、十一"]),
        ([("一二三四五！七八？十一", 1.0)], ["一二三四五！七八？", "十一"]),  # the last one
        ([("「三四五。」七八九十一", 1.0)], ["「三四五。」", "七八九十一"]),  # the bracket stays
        ([("一、三四五六七八九十一", 1.0)], ["一、三四五六七八九十", "一"]),  # more than 6 back
        ([("一二、四五六七八九十一", 1.0)], ["一二、四五六七八九十", "一"]),  # 7 back
        ([("一二三、五六七八九十一", 1.0)], ["一二三、", "五六七八九十一"]),  # 6 back
        ([("一二三四五六七八九、一", 1.0)], ["一二三四五六七八九、", "一"]),
        ([("1.5二三四五六七八九十", 1.0)], ["1.5二三四五六七八", "九十"]),  # a decimal point ends nothing
        ([("あいう. えおかきくけこ", 1.0)], ["あいう.", " えおかきくけこ"]),
        ([("赤", 1.0), BREAK, ("猫", 1.0)], ["赤", "猫"]),
        ([BREAK, ("赤", 1.0), BREAK, BREAK, ("猫", 1.0), BREAK], ["赤", "猫"]),  # no empty chunks
        ([("BREAK", 1.0)], ["BREAK"]),  # only -1 marks it
        ([("一二三四、", 1.5), ("六七八九十一二", 0.5)], ["一二三四、", "六七八九十一二"]),  # across spans
    ],
    ids=str,
)
def test_where_a_chunk_ends(spans: Spans, wanted: list[str]) -> None:
    assert read(chunk(spans, Letters(10), backtrack=6)) == wanted


def test_a_token_keeps_its_weight_and_its_span() -> None:
    made = chunk([("赤い", 1.5), BREAK, ("猫と", 0.5), ("犬", 1.0)], Letters(2))
    assert made == [
        Chunk((ord("赤"), ord("い")), (1.5, 1.5), (0, 0)),
        Chunk((ord("猫"), ord("と")), (0.5, 0.5), (2, 2)),
        Chunk((ord("犬"),), (1.0,), (3,)),
    ]


def test_hard_splits_when_nothing_may_move() -> None:
    assert read(chunk([("一二三、五六七八九十一", 1.0)], Letters(10), backtrack=0)) == ["一二三、五六七八九十", "一"]


STORY = (
    "夕焼けの海に浮かぶ赤い船、その上で猫と犬が並んで座り、遠くの島を眺めている。空には桃色の雲が広がり、かもめが三羽飛んでいる。\n"
    "「もうすぐ着くよ！」と猫が言うと、犬は尻尾を振った。島には白い灯台、青い屋根の家、満開の桜の木が見える、春の夕暮れ？水彩画風で描かれた、"
    "やわらかな光と影のある風景であり遠近法を用いて細部まで丁寧に描写された絵本の一場面のような作品、にじみ、かすれ、和紙の質感。"
)
LONG = (STORY * 10)[:1000]


def ends_by_pieces(encoder: TokenEncoder, text: str) -> list[int]:
    """What `chunk` must find out by tokenising, read off the pieces: 2 after a sentence, 1 after 、 or comma."""
    letters = {letter: byte for byte, letter in enumerate(bytes_to_letters())}
    if isinstance(encoder, clip.ClipEncoder):
        pieces = [bytes(letters[letter] for letter in piece.removesuffix("</w>")) for piece in encoder._tokenizer.inner.tokenize(text)]
    else:
        pieces = [piece.encode() for piece in encoder._tokenizer.encode(text, add_special_tokens=False).tokens]
    ends = []
    for i in range(len(pieces)):
        before, after = b"".join(pieces[: i + 1]), b"".join(pieces[i + 1 :]).decode(errors="replace")
        if before.decode(errors="replace").endswith("\ufffd"):  # within a letter
            ends.append(0)
        elif re.search("[。!?！？\n]」?$", before.decode()) and after[:1] not in ("。", "」", "\n"):
            ends.append(2)
        else:
            ends.append(int(before.decode().endswith(("、", ","))))
    return ends


def bytes_to_letters() -> list[str]:
    """GPT-2's table from bytes to letters: printable bytes are themselves, the others follow from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
    assert set(letters.values()) == set(ByteLevel.alphabet())
    return [letters[byte] for byte in range(256)]


@pytest.fixture(scope="module")
def mame() -> bert.BertEncoder:
    return load_encoder("bert", find_model("mame").folder)


@pytest.mark.parametrize("kind", ["clip", "mame"])
def test_a_thousand_letters_lose_no_token(kind: str, request: pytest.FixtureRequest) -> None:
    encoder = clip.toy() if kind == "clip" else request.getfixturevalue("mame")
    ids = encoder.tokenize(LONG)
    made = chunk([(LONG, 1.0)], encoder)
    assert [token for part in made for token in part.ids] == ids
    assert len(made) >= 3
    length, start, split = encoder.window.length, 0, []
    ends = ends_by_pieces(encoder, LONG)
    assert len(ends) == len(ids)
    for part, following in pairwise(made):
        assert len(part.ids) <= length and following.ids
        window = ends[start : start + length]
        places = [i + 1 for i in range(length - 21, length) if window[i] == max(window[length - 21 :])] if max(window[length - 21 :]) else [length]
        assert len(part.ids) == places[-1]
        split.append(max(window[length - 21 :]))
        start += len(part.ids)
    assert split.count(2) >= 1
    mask = encoder.encode([LONG]).mask
    specials = 2 * len(made)
    assert int(mask.sum()) == (len(made) * (length + 2) if encoder.window.fixed else len(ids) + specials)


@pytest.mark.parametrize("kind", ["clip", "mame"])
@pytest.mark.parametrize("mark", ["。", "\n", "！」", "、", ", ", "、「", "。」と"])
def test_real_tokenizers_split_after_the_mark(kind: str, mark: str, request: pytest.FixtureRequest) -> None:
    """Also where CLIP's bytes of 、 say nothing, and where 「 belongs to the same piece of its text."""
    filling = "cat " if mark == ", " else "猫"
    encoder = clip.toy() if kind == "clip" else request.getfixturevalue("mame")
    letters = 1
    while len(encoder.tokenize(filling * (letters + 1) + mark)) <= encoder.window.length - 8:
        letters += 1
    text = filling * letters + mark + filling * letters
    at = filling * letters + mark.rstrip("「と ")
    made = chunk([(text, 1.0)], encoder)
    assert [token for part in made for token in part.ids] == encoder.tokenize(text)
    rest = encoder.tokenize(text)[len(made[0].ids) :]
    assert len(made) == 2
    piece = encoder.tokenize(at)
    over = kind == "mame" and mark == "、「"  # one piece: it begins what follows
    assert len(made[0].ids) == len(piece) - over
    assert tuple(piece[: len(piece) - 1]) == made[0].ids[: len(piece) - 1] and tuple(rest) == made[1].ids


def test_chunking_reads_a_long_text_few_times(mame: bert.BertEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (STORY * 20)[:2000]
    for encoder in (clip.toy(), mame):
        read_letters: list[int] = []
        tokenize = encoder.tokenize

        def counted(part: str, tokenize: Callable[[str], list[int]] = tokenize, counts: list[int] = read_letters) -> list[int]:
            counts.append(len(part))
            return tokenize(part)

        monkeypatch.setattr(encoder, "tokenize", counted)
        chunk([(text, 1.0)], encoder)
        monkeypatch.setattr(encoder, "tokenize", tokenize)
        assert sum(read_letters) < 150 * len(text)
