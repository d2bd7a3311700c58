"""What every text encoder promises; a new file in jpgen/encoders is found by its name."""

import importlib
from pathlib import Path

import pytest
import torch

from jpgen.emphasis import TokenEncoder, chunk
from jpgen.encoders import kinds, load_encoder
from jpgen.errors import UnknownNameError, WeightsError
from jpgen.protocols import TextEncoder

TEXTS = ["赤い船", "猫", "左に犬、右に車"]


@pytest.fixture(scope="module", params=kinds())
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    return importlib.import_module(f"jpgen.encoders.{request.param}").toy()


def test_it_meets_the_protocol_and_its_spec(encoder: TextEncoder) -> None:
    assert isinstance(encoder, TextEncoder)
    made = encoder.encode(TEXTS)
    assert made.tokens.shape == (*made.mask.shape, encoder.spec.width)
    assert len(made.tokens) == len(TEXTS)
    assert made.tokens.dtype == torch.float32


def test_padding_is_masked_and_zero_or_part_of_every_pass(encoder: TextEncoder) -> None:
    made = encoder.encode(TEXTS)
    assert (made.mask.sum(dim=1).tolist() == [made.mask.shape[1]] * len(TEXTS)) == encoder.window.fixed
    assert not made.tokens[made.mask == 0].any()


def test_a_batch_equals_one_by_one(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        length = int(alone.mask.sum())
        torch.testing.assert_close(together.tokens[i, :length], alone.tokens[0, :length], atol=2e-5, rtol=1e-4)


def test_the_empty_text_has_tokens(encoder: TextEncoder) -> None:
    assert int(encoder.encode([""]).mask.sum()) >= 1


def test_a_long_text_is_encoded_in_chunks_and_loses_no_token(encoder: TextEncoder) -> None:
    assert isinstance(encoder, TokenEncoder)
    window = encoder.window
    text = "猫と犬、" * (16 * window.length // len(encoder.tokenize("猫と犬、")) + 1)
    chunks = chunk([(text, 1.0)], encoder)
    assert [token for part in chunks for token in part.ids] == encoder.tokenize(text)
    made = encoder.encode([text, "猫"])
    specials = len(window.begin) + len(window.end)
    each = [specials + (window.length if window.fixed else len(part.ids)) for part in chunks]
    assert len(each) > 10 and int(made.mask[0].sum()) == made.tokens.shape[1] == sum(each)
    ids = torch.tensor([[*window.begin, *chunks[1].ids, *window.end] + [window.pad] * (each[1] - specials - len(chunks[1].ids))])
    second, _ = encoder.encode_ids(ids, torch.ones_like(ids))
    torch.testing.assert_close(made.tokens[:1, each[0] : each[0] + each[1]], second, atol=2e-5, rtol=1e-4)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="'bert'"):
        load_encoder("berto", Path())


@pytest.mark.parametrize("kind", kinds())
def test_a_folder_without_an_encoder_is_explained(kind: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="fetch the model again"):
        load_encoder(kind, tmp_path)
