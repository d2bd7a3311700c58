"""The reading half of the built-in translator says what the whole translator's encoder says."""

import torch

from jpgen.catalog import find_model
from jpgen.encoders import marian
from jpgen.encoders.adapted import open_source
from jpgen.translate.marian import load


def test_states_are_those_of_the_whole_translator() -> None:
    folder = find_model("mame-ja-en").place
    texts = ["赤いりんご", "青空の猫、黒い犬", ""]
    made = open_source("mame-ja-en").encode(texts)
    whole = load(folder)
    read = whole._tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = whole._model.model.encoder(read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    assert torch.equal(made.mask, read["attention_mask"])
    torch.testing.assert_close(made.tokens, wanted * read["attention_mask"][..., None], atol=1e-5, rtol=1e-5)


def test_an_unknown_letter_is_a_piece_of_its_own() -> None:
    encoder = marian.toy()
    assert encoder.tokenize("猫鰯") == [encoder.tokenize("猫")[0], 1]
