"""The autoencoder learns how strong the grain of a picture is; everything else of it stays."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jpgen.backbones.autoencoder import AutoencoderShuffle, Grain, speckles
from jpgen.backbones.loading import filled
from jpgen.errors import TrainingDataError
from jpgen.train import grain
from jpgen.train.checkpoint import Curve, load_state
from jpgen.train.mame import run_stage
from jpgen.weights import WEIGHTS, load_weights


def scenes(_data: Path, _first_batch: int) -> Iterator[tuple[Tensor, list[str]]]:
    """The same eight grainy pictures again and again."""
    while True:
        yield (0.2 * speckles(128, 128, grain.SIZE)).expand(8, 3, 128, 128), ["赤い猫"] * 8


@pytest.fixture
def folder(small_mame: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(grain, "scenes", scenes)
    return small_mame(8)


def test_calm_detail_is_that_of_the_paper_and_not_of_edges() -> None:
    paper = (0.1 * speckles(128, 128, 2.0)).expand(1, 3, 128, 128).clone()
    edges = torch.zeros(1, 3, 128, 128)
    edges[..., ::3, :64] = 1
    assert grain.calm_detail(edges).item() == 0
    alone = grain.calm_detail(paper).item()
    assert alone > 0.005
    torch.testing.assert_close(grain.calm_detail(paper * 2).item(), 2 * alone)
    assert grain.calm_detail(paper + edges).item() > 0.8 * alone


def test_its_strength_is_fitted_to_features(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 5 + 3 * torch.randn(1600, 8, generator=generator)
    strength = 0.05 * (features[:, 0] > 5)
    unit = grain.calm_detail(speckles(256, 256, 2.0).expand(1, 3, -1, -1))
    torch.manual_seed(0)
    made = Grain(4, 8, 2.0)
    grain.fit_grain(made, features, strength * unit, Curve(tmp_path / "grain.jsonl"))
    told = made.strength(features)[:, 0]
    assert told[features[:, 0] > 7].mean() == pytest.approx(0.05, rel=0.1)
    assert told[features[:, 0] < 3].abs().mean() < 0.01
    rows = [json.loads(line) for line in (tmp_path / "grain.jsonl").read_text().splitlines()]
    assert rows[-1]["held_out"] < 0.3 * rows[0]["held_out"]


def test_the_grain_learns_and_everything_else_stays(folder: Path) -> None:
    before = load_weights(folder / "vae" / WEIGHTS)
    grain.train_grain(folder, folder, steps=2)
    grain.train_grain(folder, folder, steps=8)
    state = load_state(folder / "grain.pt")
    assert state is not None and (state["step"], len(state["wanted"])) == (8, 64)
    after = load_weights(folder / "vae" / WEIGHTS)
    assert {name for name in after if not name.startswith("grain.")} == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model = filled(AutoencoderShuffle, folder / "vae", torch.float32)
    latents = torch.zeros(1, 16, 8, 8)
    added = model.decode(latents).sample - model.paint(model.features(latents))
    assert added.std().item() == pytest.approx(0.2, rel=0.3)  # what an untrained backbone guesses is 0


def test_without_a_backbone_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="--stage autoencoder"):
        run_stage("grain", tmp_path, tmp_path, steps=1)
