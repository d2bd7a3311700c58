"""The built-in model that ships inside the package."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from jpgen.api import load_generation, open_pipeline
from jpgen.catalog import find_model
from jpgen.pipeline import Pipeline


@pytest.fixture(scope="module")
def mame() -> Pipeline:
    return open_pipeline("mame")


def test_the_weights_are_small_enough() -> None:
    total = sum(file.stat().st_size for file in find_model("mame").folder.rglob("*") if file.is_file())
    assert total <= 60e6


def test_there_is_a_card_with_licences_and_limits() -> None:
    card = (find_model("mame").folder / "README.md").read_text("utf-8")
    assert all(word in card for word in ("Apache-2.0", "CC BY 4.0", "MIT", "samples", "Limits"))


def test_a_picture_of_its_own_size(mame: Pipeline) -> None:
    made = mame.generate("夕焼けの海に浮かぶ赤い船", seed=1)
    assert made.image.size == (256, 256)
    assert np.asarray(made.image).std() > 10


def test_alone_or_in_a_batch_the_same_picture(mame: Pipeline) -> None:
    few = mame.config(steps=4)
    many = mame.generate_many(["猫", "左に犬、右に車"], seed=3, count=2, config=few)
    for made in many:
        alone = mame.generate(made.prompt.source, seed=made.seed, config=few)
        assert alone.image.tobytes() == made.image.tobytes()


def test_a_saved_picture_repeats_itself_to_the_byte(mame: Pipeline, tmp_path: Path) -> None:
    made = mame.generate("富士山と桜", seed=2**40, negative="人", config=mame.config(steps=6))
    again = load_generation(made.save(tmp_path / "fuji.png"))
    assert hashlib.sha256(again.image.tobytes()).digest() == hashlib.sha256(made.image.tobytes()).digest()


def test_japanese_and_english_share_one_space(mame: Pipeline) -> None:
    ja = ["猫", "富士山と桜", "赤い風船を持った女の子", "子猫を抱いた帽子の女性", "夕焼けの海", "寿司"]
    en = ["cat", "Mount Fuji and cherry blossoms", "a girl with a red balloon", "a woman in a hat holding a kitten", "sea at sunset", "sushi"]

    def pooled(texts: list[str]) -> np.ndarray:
        made = mame.encoder.encode(texts)
        vectors = (made.tokens.sum(1) / made.mask.sum(1, keepdim=True)).numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    assert (pooled(ja) @ pooled(en).T).argmax(axis=1).tolist() == list(range(len(ja)))


def test_the_prompt_matters(mame: Pipeline) -> None:
    """The background that is asked for shows: night is dark, snow is light, with the same noise."""
    night, snow = (np.asarray(mame.generate(text, seed=4).image).mean() for text in ("夜空", "雪景色"))
    assert night + 60 < snow
