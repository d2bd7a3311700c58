"""SDXL's pair of encoders: chunks stay aligned whatever the tokenizers, and weights act in each of the two alone."""

from pathlib import Path

import pytest
import torch

from jpgen.emphasis import MODES, encode_weighted
from jpgen.encoders import clip, jsdxl, sdxl
from jpgen.encoders.sdxl import SdxlEncoder
from jpgen.encoders.tokenizers import SentencePieceTokenizer
from jpgen.errors import IncompatibleError
from tests.toys.stable_diffusion import text_model, write_sentencepiece

BREAK = ("BREAK", -1.0)
PROMPTS = [[("赤い", 1.3), ("猫", 1.0), ("と海", 0.6)], [("red cat", 1.0), BREAK, ("a ship", 1.5)], [("", 1.0)]]


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> SdxlEncoder:
    """SentencePiece beside bytes: the first takes one token where the second takes three, and no begin."""
    folder: Path = tmp_path_factory.mktemp("unlike") / "t"
    pieces = write_sentencepiece(folder)
    tokenizer = SentencePieceTokenizer(pieces, end=(2,), pad=3)
    first = clip.ClipEncoder("ja", text_model(len(pieces), 12), tokenizer, clip_skip=1, final_norm=False)
    return SdxlEncoder("evo", first, clip.toy(projection=True, clip_skip=1, final_norm=False))


def test_like_tokenizers_are_both_encoders_side_by_side() -> None:
    toy = sdxl.toy()
    texts = ["赤い猫", "a red cat, " * 40, ""]
    made, halves = toy.encode(texts), [encoder.encode(texts) for encoder in toy.pair]
    torch.testing.assert_close(made.tokens, torch.cat([half.tokens for half in halves], -1))
    torch.testing.assert_close(made.pooled, halves[1].pooled)
    assert made.tokens.shape[1] == 77 * 3


def test_unlike_tokenizers_are_each_as_alone(unlike: SdxlEncoder) -> None:
    texts = ["赤い猫が海を見る", ""]
    made, halves = unlike.encode(texts), [encoder.encode(texts) for encoder in unlike.pair]
    torch.testing.assert_close(made.tokens, torch.cat([half.tokens for half in halves], -1))
    ids = torch.tensor([[*unlike.window.begin, *unlike.tokenize(texts[0]), *unlike.window.end]])
    ids = torch.cat([ids, torch.full((1, 77 - ids.shape[1]), unlike.window.pad)], 1)
    states, pooled = unlike.encode_ids(ids, torch.ones_like(ids))
    torch.testing.assert_close(states, made.tokens[:1])
    torch.testing.assert_close(pooled, made.pooled[:1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["like", "unlike"])
def test_weights_act_in_each_alone(kind: str, mode: str, unlike: SdxlEncoder) -> None:
    encoder = unlike if kind == "unlike" else sdxl.toy()
    made = encode_weighted(encoder, PROMPTS, mode)
    halves = [encode_weighted(one, PROMPTS, mode) for one in encoder.pair]
    torch.testing.assert_close(made.tokens, torch.cat([half.tokens for half in halves], -1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.pooled, halves[1].pooled)


def test_a_long_text_loses_no_token_of_either(unlike: SdxlEncoder) -> None:
    from jpgen.emphasis import chunk

    text = "赤い猫が海を見る、" * 12
    chunks = chunk([(text, 1.0)], unlike)
    assert len(chunks) > 1
    for place, encoder in enumerate(unlike.pair):
        own = [unlike.share(place, part) for part in chunks]
        assert [token for part in own for token in part.ids] == encoder.tokenize(text)
        assert all(len(part.ids) <= encoder.window.length for part in own)


def test_the_second_wants_a_projection() -> None:
    with pytest.raises(IncompatibleError, match="projection"):
        SdxlEncoder("no", clip.toy(), clip.toy())


def test_jsdxls_zeros_stay_zeros_under_weights() -> None:
    toy = jsdxl.toy()
    for mode in MODES:
        made = encode_weighted(toy, PROMPTS, mode)
        assert not made.tokens[..., 32:].any() and not made.pooled.any()
        inner = encode_weighted(toy._inner, PROMPTS, mode)
        torch.testing.assert_close(made.tokens[..., :32], inner.tokens, atol=1e-5, rtol=1e-4)
    assert (toy.spec.width, toy.spec.pooled_width) == (56, 24)
