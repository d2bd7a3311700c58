"""The training loops: resumable to the same numbers, safe against kills, explained when data is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jpgen.encoders import bert
from jpgen.errors import TrainingDataError, UnknownNameError
from jpgen.train import backbone, mame
from jpgen.train.checkpoint import load_state, save_state
from jpgen.train.latents import LatentPool, encode_ragged
from jpgen.train.mame import run_stage
from jpgen.train.scenes import concepts
from jpgen.train.sprites import Drawing
from jpgen.weights import WEIGHTS, load_weights

SMALL = backbone.CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "cross_attention_dim": 32, "caption_channels": 32}


def shard(path: Path, rows: int = 12, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (rows,), generator=generator)
    tokens = torch.randn(int(lengths.sum()), 32, generator=generator).bfloat16()
    path.parent.mkdir(exist_ok=True, parents=True)
    latents = torch.randn(rows, 16, 8, 8, generator=generator).half()
    places = torch.randint(0, 3, (rows, 3, 2, 2), generator=generator).short()
    ends = {"ja_ends": lengths.cumsum(0), "en_ends": lengths.cumsum(0)}
    save_file({"latents": latents, "regions": places, "ja": tokens, "en": tokens.clone(), **ends}, path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = bert.toy()
    monkeypatch.setattr(backbone, "CONFIG", SMALL | {"sample_size": 8})
    monkeypatch.setattr(backbone, "BATCH", 4)
    monkeypatch.setattr(backbone, "READ_AFTER", 1)
    monkeypatch.setattr(backbone, "SAVE_EVERY", 2)
    monkeypatch.setattr(backbone, "load_text_encoder", lambda _folder: (encoder._model, encoder._tokenizer))


def test_a_run_in_two_parts_is_the_run_in_one(small: None, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        shard(folder / "latents" / "shard-000.safetensors")
    backbone.train_backbone(one, steps=6, compiled=False)
    backbone.train_backbone(two, steps=4, compiled=False)
    backbone.train_backbone(two, steps=6, compiled=False)
    states = [load_state(folder / "backbone.pt") for folder in (one, two)]
    assert [s["step"] for s in states] == [6, 6]
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], value, msg=name)
    assert (two / "transformer" / "config.json").exists()
    assert json.loads((two / "scheduler" / "scheduler_config.json").read_text())["use_flow_sigmas"] is True


def test_without_a_checkpoint_training_starts_from_the_weights_there(small: None, tmp_path: Path) -> None:
    shard(tmp_path / "latents" / "shard-000.safetensors")
    backbone.train_backbone(tmp_path, steps=2, compiled=False)
    (tmp_path / "backbone.pt").unlink()
    before = load_weights(tmp_path / "transformer" / WEIGHTS)
    backbone.train_backbone(tmp_path, steps=0, compiled=False)
    after = load_weights(tmp_path / "transformer" / WEIGHTS)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_at_a_learning_rate_of_nothing_the_weights_stay(small: None, tmp_path: Path) -> None:
    shard(tmp_path / "latents" / "shard-000.safetensors")
    backbone.train_backbone(tmp_path, steps=2, compiled=False)
    before = load_state(tmp_path / "backbone.pt")["model"]
    backbone.train_backbone(tmp_path, steps=4, learning_rate=0.0, compiled=False)
    after = load_state(tmp_path / "backbone.pt")["model"]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    backbone.train_backbone(tmp_path, steps=6, learning_rate=1e-3, compiled=False)
    assert not all(torch.equal(load_state(tmp_path / "backbone.pt")["model"][name], value) for name, value in before.items())


def test_the_decay_leaves_the_checkpoint_before_it(small: None, tmp_path: Path) -> None:
    shard(tmp_path / "latents" / "shard-000.safetensors")
    backbone.train_backbone(tmp_path, steps=6, decay=2, compiled=False)
    assert load_state(tmp_path / "backbone.pt")["step"] == 4


def test_the_loss_falls_when_there_is_something_to_learn(small: None, tmp_path: Path) -> None:
    shard(tmp_path / "latents" / "shard-000.safetensors", rows=2)
    pool = LatentPool(tmp_path / "latents")
    torch.manual_seed(0)
    model = backbone.ReadingBackbone(backbone.new_backbone())
    optimizer = backbone.Optimizer(model)
    import numpy as np

    made = []
    for step in range(60):
        batch = pool.sample(8, 16, 0.5, np.random.default_rng(step))
        told = backbone.losses(model, batch, torch.Generator().manual_seed(step))
        sum(told.values()).backward()
        optimizer.step(3e-3)
        made.append([value.item() for value in told.values()])
    assert all(sum(values[-10:]) < 0.75 * sum(values[:10]) for values in zip(*made, strict=True))


def test_new_shards_are_taken_up(tmp_path: Path) -> None:
    shard(tmp_path / "shard-000.safetensors")
    pool = LatentPool(tmp_path)
    assert len(pool) == 12
    shard(tmp_path / "shard-001.safetensors", rows=5, seed=1)
    pool.refresh()
    assert len(pool) == 17


def test_captions_that_are_too_long_are_passed_over(tmp_path: Path) -> None:
    import numpy as np

    shard(tmp_path / "shard-000.safetensors")
    lengths = [LatentPool(tmp_path).sample(64, length, 0.5, np.random.default_rng(0)).mask.sum(1).max().item() for length in (3, 9)]
    assert lengths == [3, 8]


def test_ragged_states_equal_padded_ones() -> None:
    encoder = bert.toy()
    texts = ["猫", "赤い船と青い海", "犬"]
    rows, ends = encode_ragged(texts, encoder._model, encoder._tokenizer, batch=2)
    padded = encoder.encode(texts)
    for i in range(3):
        row = rows[int(ends[i - 1]) if i else 0 : int(ends[i])].float()
        torch.testing.assert_close(row, padded.tokens[i, : len(row)], atol=0.03, rtol=0.02)


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}


def test_a_damaged_checkpoint_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingDataError, match="delete it"):
        load_state(path)


@pytest.mark.parametrize("stage", ["latents", "backbone", "autoencoder", "text_encoder", "sheet", "score"])
def test_a_stage_without_its_data_says_what_to_run(stage: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="jpgen train"):
        run_stage(stage, tmp_path / "data", tmp_path / "out", steps=1)


def test_weights_are_scored_on_captions_in_both_languages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawings = [Drawing(concept.emoji, art, 0) for concept in concepts() for art in ("noto", "fluent")]
    monkeypatch.setattr(mame, "load_sprites", lambda _data: (np.zeros((1, 48, 48, 4), np.uint8), drawings))
    caplog.set_level("INFO", "jpgen.train")
    mame.score_captions(tmp_path, Path(mame.__file__).parents[1] / "mame", scenes=2)
    rows = [line.split("|") for line in caplog.text.splitlines() if line.startswith("| ")]
    (objects,) = (row for row in rows if "object top-1" in row[1])
    assert objects[2].strip() == "2"
    assert objects[3].strip().endswith("%") and objects[4].strip().endswith("%")


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'backbone'"):
        run_stage("backbon", tmp_path, tmp_path, steps=1)
