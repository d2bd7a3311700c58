"""The decoder learns to paint from guessed latents; the latents themselves stay what they were."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jpgen.errors import TrainingDataError
from jpgen.train import decoder
from jpgen.train.checkpoint import load_state
from jpgen.train.mame import run_stage
from jpgen.weights import WEIGHTS, load_weights


def scenes(_data: Path, _first_batch: int) -> Iterator[tuple[Tensor, list[str]]]:
    """The same two pictures again and again, each of one colour."""
    colors = torch.tensor([[0.9, -0.8, -0.8], [-0.8, -0.5, 0.9]])[..., None, None]
    while True:
        yield colors.expand(2, 3, 64, 64), ["赤い猫", "青い犬"]


@pytest.fixture
def folder(small_mame: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoder, "scenes", scenes)
    return small_mame(4)


def test_guesses_have_the_form_of_latents(folder: Path) -> None:
    guesses = decoder.Guesses(folder)
    made = guesses(torch.ones(2, 16, 4, 4), ["猫", "赤い船"], torch.Generator().manual_seed(0))
    assert made.shape == (2, 16, 4, 4)
    assert not made.any()  # an untrained backbone says nothing, with guidance too


def test_the_decoder_learns_and_the_encoder_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(decoder, "TRUE", 0.9)  # an untrained backbone tells nothing
    before = load_weights(folder / "vae" / WEIGHTS)
    told = folder / "decoder.jsonl"
    decoder.train_decoder(folder, folder, steps=100)
    after = load_weights(folder / "vae" / WEIGHTS)
    for name, value in after.items():
        if not name.startswith("decoder."):
            torch.testing.assert_close(value, before[name], msg=name)
    trained = load_state(folder / "decoder.pt")["model"]["decoder.0.weight"]
    mean = (before["decoder.0.weight"] + trained) / 2
    assert (trained - mean).abs().max() > 0.05 > (after["decoder.0.weight"] - mean).abs().max()  # but for the eight bits
    first, last = (float(line.split('"mse": ')[1].split(",")[0]) for line in told.read_text().splitlines())
    assert last < 0.5 * first


def test_it_goes_on_from_its_checkpoint(folder: Path) -> None:
    decoder.train_decoder(folder, folder, steps=2)
    decoder.train_decoder(folder, folder, steps=3)
    state = load_state(folder / "decoder.pt")
    assert state is not None and state["step"] == 3
    assert {int(part["step"]) for part in state["optimizer"]["state"].values()} == {3}


def test_without_a_backbone_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="--stage autoencoder"):
        run_stage("decoder", tmp_path, tmp_path, steps=1)


def test_texture_is_its_strength_and_not_its_place() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (0.2 * torch.randn(1, 1, 128, 128, generator=generator).expand(1, 3, 128, 128) for _ in range(2))
    flat, colored = torch.zeros(1, 3, 128, 128), 0.2 * torch.randn(1, 3, 128, 128, generator=generator)
    same, missing, tinted = (decoder.texture_loss(got, one).item() for got in (other, flat, colored))
    assert decoder.texture_loss(one, one).item() == 0
    assert same < 0.1 * missing  # other grain as strong as the wanted
    assert tinted > 0.5 * missing  # coloured grain where it should be grey
