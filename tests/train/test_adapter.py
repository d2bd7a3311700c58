"""Training of adapters: losses fall, a run in two parts is the run in one, what does not fit is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jpgen.backbones import sdxl
from jpgen.encoders import bert, clip
from jpgen.encoders import sdxl as sdxl_encoder
from jpgen.encoders.pairing import read_pairing
from jpgen.errors import IncompatibleError, SettingError, TrainingDataError
from jpgen.train import adapter
from jpgen.train.adapter import FILE, Recipe, read_recipe, train_adapter
from jpgen.train.distillation import LossWeights, position_norms, state_loss
from jpgen.train.pairs import lexicon_pairs, read_pairs, scene_pairs, split
from jpgen.train.remembering import Remembering
from jpgen.types import Conditioning

COLORS = {"赤い": "red", "青い": "blue"}
THINGS = {"猫": "cat", "犬": "dog", "船": "ship", "海": "sea"}
PAIRS = [(color + thing, f"{COLORS[color]} {THINGS[thing]}") for color in COLORS for thing in THINGS]
RECIPE = Recipe("toy", "toy-sdxl", hidden=64, layers=1, batch=4, warm_up=2, steps=20, latent_side=8, save_every=3, learning_rate=5e-3, empty=0.0)


class ToyTeacher(adapter.Teacher):
    def __init__(self, model: str) -> None:
        self.name, self.backbone, self.encoder = model, sdxl.toy(), sdxl_encoder.toy()
        self.backbone.modules["denoiser"].requires_grad_(False)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "Teacher", ToyTeacher)
    monkeypatch.setattr(adapter, "open_source", lambda _model: bert.toy())


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "adapter.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "losses"),
    [("mlp", LossWeights()), ("resampler", LossWeights(hidden=1.0)), ("mixer", LossWeights(hidden=1.0, noise=0.0, features=0.0))],
)
def test_losses_fall_and_the_file_opens(kind: str, losses: LossWeights, tmp_path: Path) -> None:
    path = train_adapter(replace(RECIPE, kind=kind, losses=losses), PAIRS, tmp_path, sources=["test"])
    rows = curve(tmp_path)
    assert len(rows) == 20
    assert sum(row["pooled"] for row in rows[-5:]) < 0.7 * sum(row["pooled"] for row in rows[:5])
    if losses.hidden:
        assert sum(row["hidden"] for row in rows[-5:]) < 0.9 * sum(row["hidden"] for row in rows[:5])
    assert ("noise" in rows[0]) == bool(losses.noise)
    read = read_pairing(path)
    assert (read.spec.kind, read.spec.width, read.spec.pooled_width, read.spec.length) == (kind, 64, 24, 77)
    assert read.facts == {"sources": ["test"], "pairs": 8, "batch": 4, "steps": 20}


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train_adapter(RECIPE, PAIRS, one, steps=6)
    train_adapter(RECIPE, PAIRS, two, steps=4)
    train_adapter(RECIPE, PAIRS, two, steps=6)
    keep = [{key: value for key, value in row.items() if key != "samples_per_second"} for row in curve(one)]
    again = [{key: value for key, value in row.items() if key != "samples_per_second"} for row in curve(two)]
    assert keep == again and [row["step"] for row in keep] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(read_pairing(one / FILE).network.parameters(), read_pairing(two / FILE).network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_an_encoder_said_is_kept_and_the_same(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    encoder = bert.toy()

    class Counting:
        name, spec = encoder.name, encoder.spec

        def encode(self, texts: list[str]) -> Conditioning:
            asked.append(list(texts))
            return encoder.encode(texts)

    remembering = Remembering(Counting(), 2)
    for _ in range(2):
        for texts in (["赤い猫", "船"], ["船", "", "青い犬"]):
            got, wanted = remembering.encode(texts), encoder.encode(texts)
            torch.testing.assert_close(got.tokens * got.mask[..., None], wanted.tokens * wanted.mask[..., None], atol=1e-4, rtol=1e-4)
            assert torch.equal(got.mask, wanted.mask)
    assert asked == [["赤い猫", "船"], ["", "青い犬"], ["", "青い犬"]]


def test_the_backbone_is_asked_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    train_adapter(replace(RECIPE, noise_every=3, remember=100), PAIRS, tmp_path, steps=7)
    assert [("noise" in row) for row in curve(tmp_path)] == [True, False, False, True, False, False, True]


def test_another_adapter_does_not_go_on_from_it(tmp_path: Path) -> None:
    train_adapter(RECIPE, PAIRS, tmp_path, steps=2)
    with pytest.raises(IncompatibleError, match=r"holds a run of \[.*resampler\].*says \[.*mlp\]"):
        train_adapter(replace(RECIPE, kind="mlp"), PAIRS, tmp_path, steps=3)


def test_states_of_unlike_length_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="length = 77"):
        train_adapter(replace(RECIPE, length=9, losses=LossWeights(hidden=1.0)), PAIRS, tmp_path, steps=1)
    with pytest.raises(TrainingDataError, match="no pairs"):
        train_adapter(RECIPE, [], tmp_path, steps=1)


def test_the_state_loss_is_relative_to_the_teachers_size_at_each_position() -> None:
    states = clip.toy().encode(["a red cat", "ship"])
    norms = position_norms([states])
    torch.testing.assert_close(norms, states.tokens.square().mean(dim=(0, 2)).sqrt())
    silent = Conditioning(torch.zeros_like(states.tokens), states.mask)
    torch.testing.assert_close(state_loss(silent, states, norms), torch.tensor(1.0))
    assert state_loss(states, states, norms) == 0


def test_recipes_that_come_with_jpgen_are_read_and_bad_ones_explained(tmp_path: Path) -> None:
    assert read_recipe("sdxl").backbone == "sdxl-base"
    assert read_recipe("mame-sdxl").losses.hidden == 1.0
    bad = tmp_path / "bad.toml"
    bad.write_text('encoder = "mame"\nsteps = "many"\nspeed = 3\nbatch = -1\n[losses]\nnoize = 1.0\n')
    with pytest.raises(SettingError, match=r"backbone, steps, speed, batch, noize"):
        read_recipe(bad)
    with pytest.raises(SettingError, match="cannot read"):
        read_recipe(tmp_path / "none.toml")


def test_pairs_are_read_joined_and_split_the_same_always(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("ja\ten\n私 は 猫 が 好き で す 。\ti don 't like cats .\n赤い Red Bull 缶\ta can\tmore\n", "utf-8")
    assert read_pairs(file) == [("私は猫が好きです。", "i don't like cats."), ("赤いRed Bull缶", "a can")]
    file.write_text("猫だけ\n", "utf-8")
    with pytest.raises(TrainingDataError, match="line 1"):
        read_pairs(file)
    pairs = lexicon_pairs()
    train, held_out = split(pairs + pairs)
    assert len(pairs) > 1000 and len(train) + len(held_out) == len(dict.fromkeys(pairs)) and 0.01 < len(held_out) / len(pairs) < 0.05
    assert not set(train) & set(held_out) and split(pairs)[1] == held_out


def test_captions_of_scenes_vary_in_japanese_and_not_in_english() -> None:
    pairs = scene_pairs("mame-sdxl", range(400))
    assert pairs == scene_pairs("mame-sdxl", range(400)) and len(pairs) == 400
    two = [en for _, en in pairs if " on the left, " in en]
    assert 100 < len(two) < 170, "a third of the three layouts"
    assert not any(word in en for _, en in pairs for word in (" next to ", "kitty", "puppy", " to the right of "))
    cats = {ja for ja, en in scene_pairs("mame-sdxl", range(6000)) if en == "a cat"}
    assert len(cats) > 2 and {"猫"} < cats
