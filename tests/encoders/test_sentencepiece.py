"""Our SentencePiece tokenizer reads rinna's layout right, where transformers' does not, and says what surprises it."""

import json
from pathlib import Path

import pytest
import torch

from jpgen.encoders import clip
from jpgen.encoders.tokenizers import START, clip_tokenizer, read_sentencepiece, read_tokenizer
from jpgen.errors import WeightsError
from tests.toys.stable_diffusion import rinna, write_sentencepiece

UNKNOWN = "鬱"


def test_an_unknown_character_is_the_unknown_piece_and_not_the_end(tmp_path: Path) -> None:
    pieces = write_sentencepiece(tmp_path / "t")
    tokenizer = read_tokenizer(tmp_path / "t")
    ids = tokenizer.encode(f"赤い{UNKNOWN}猫")
    assert 0 in ids and 2 not in ids
    assert pieces.unk_id() == 0 and tokenizer.end == (2,)


def test_rinnas_layout(tmp_path: Path) -> None:
    pieces = write_sentencepiece(tmp_path / "t")
    tokenizer = read_tokenizer(tmp_path / "t")
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad, tokenizer.max_length, len(tokenizer)) == ((), (2,), 3, 77, len(pieces))
    assert tokenizer.encode("A Red CAT") == tokenizer.encode("a red cat") == pieces.encode("a red cat")


def test_letters_keep_their_case_unless_told(tmp_path: Path) -> None:
    pieces = write_sentencepiece(tmp_path / "t", do_lower_case=False)
    assert read_tokenizer(tmp_path / "t").encode("RED") == pieces.encode("RED") != pieces.encode("red")


def test_names_of_special_pieces_in_a_text_are_text(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "t")
    assert not {1, 2, 3} & {*read_tokenizer(tmp_path / "t").encode("<s></s>[PAD]")}


@pytest.mark.parametrize(
    ("config", "begin", "end"),
    [
        ({"tokenizer_class": "AlbertTokenizer"}, (4,), (5,)),
        ({"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}, (1,), (2,)),
        ({"add_bos_token": True}, (1,), (2,)),
        ({"eos_token": {"content": "</s>", "lstrip": False}}, (), (2,)),
    ],
)
def test_begin_and_end_by_class_and_settings(config: dict[str, object], begin: tuple[int, ...], end: tuple[int, ...], tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "t", **config)
    tokenizer = read_tokenizer(tmp_path / "t")
    assert (tokenizer.begin, tokenizer.end) == (begin, end)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer_class": "SurpriseTokenizer"}, "unknown tokenizer class 'SurpriseTokenizer'"),
        ({"pad_token": "<nothing>"}, "pad_token '<nothing>' is no piece"),
        ({"tokenizer_class": "LlamaTokenizer"}, "puts no end after a text"),
        ({"model_max_length": "many"}, "model_max_length = 'many'"),
    ],
)
def test_surprises_are_told(config: dict[str, object], message: str, tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "t", **config)
    with pytest.raises(WeightsError, match=message):
        read_tokenizer(tmp_path / "t")


def test_without_its_settings_or_damaged_it_is_not_guessed(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json"):
        read_tokenizer(tmp_path / "t")
    (tmp_path / "t" / "spiece.model").write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged SentencePiece model"):
        read_sentencepiece(tmp_path / "t" / "spiece.model")


def test_another_tokenizer_without_its_model_is_not_taken_for_clips(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "t")
    (tmp_path / "t" / "spiece.model").unlink()
    with pytest.raises(WeightsError, match=r"class 'T5Tokenizer': wanted CLIP's, or a SentencePiece model \(spiece\.model"):
        read_tokenizer(tmp_path / "t")


def test_rinnas_encoder_sees_ids_end_and_filling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "best_dtype", lambda *_device: torch.float32)
    toy = rinna(tmp_path)
    text = f"赤い{UNKNOWN}猫"
    ids = toy.pieces.encode(text)
    row = torch.tensor([[*ids, 2, *[3] * (76 - len(ids))]])
    with torch.inference_mode():
        wanted = toy.texts[0](row).last_hidden_state
    torch.testing.assert_close(clip.load(tmp_path).encode([text]).tokens, wanted, atol=1e-6, rtol=1e-5)


def test_a_tokenizer_with_more_pieces_than_the_encoder_is_refused(tmp_path: Path) -> None:
    rinna(tmp_path)
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 9}))
    with pytest.raises(WeightsError):
        clip.load(tmp_path)


def test_clips_own_tokenizer_is_here() -> None:
    """Ids as OpenAI's and every Stable Diffusion's: 320 is "a", 2368 is "cat" …"""
    tokenizer = clip_tokenizer()
    assert (len(tokenizer), tokenizer.begin, tokenizer.end, tokenizer.pad) == (49408, (49406,), (49407,), 49407)
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert clip_tokenizer("!").pad == 0
    assert 49406 not in tokenizer.encode(START)
