"""What every text encoder promises; a new file in jpgen/encoders is found by its name."""

import importlib
from pathlib import Path

import pytest
import torch

from jpgen.encoders import kinds, load_encoder
from jpgen.errors import PromptError, UnknownNameError, WeightsError
from jpgen.types import TextEncoder

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


def test_padding_is_masked_and_zero(encoder: TextEncoder) -> None:
    made = encoder.encode(TEXTS)
    assert made.mask.sum(dim=1).tolist() != [made.mask.shape[1]] * len(TEXTS)
    assert not made.tokens[made.mask == 0].any()


def test_a_batch_equals_one_by_one(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        length = int(alone.mask.sum())
        torch.testing.assert_close(together.tokens[i, :length], alone.tokens[0, :length], atol=2e-5, rtol=1e-4)


def test_the_empty_text_has_tokens(encoder: TextEncoder) -> None:
    assert int(encoder.encode([""]).mask.sum()) >= 1


def test_too_long_is_an_error_with_numbers(encoder: TextEncoder) -> None:
    with pytest.raises(PromptError, match=r"\d+ tokens, at most \d+ fit"):
        encoder.encode(["猫と犬、" * 500])


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="'bert'"):
        load_encoder("berto", Path())


def test_a_folder_without_an_encoder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="fetch the model again"):
        load_encoder("bert", tmp_path)
