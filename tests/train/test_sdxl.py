"""mame-sdxl's stages on made-up latents: each resumes to the same numbers, and the folder is a Stable Diffusion XL that jpgen opens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from jpgen.backbones import sdxl as sdxl_backbone
from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.encoders import sdxl as sdxl_encoder
from jpgen.errors import TrainingDataError, UnknownNameError
from jpgen.models import recognise
from jpgen.train import sdxl
from jpgen.train.checkpoint import load_state
from jpgen.train.scenes import plan, read_staging
from jpgen.train.sdxl import CaptionedLatents
from jpgen.train.sprites import Drawing
from jpgen.weights import WEIGHTS, save_weights

FULL = dict(sdxl.UNET)
"""The U-Net's sizes as they are shipped, before the fixture makes them small."""

CAPTIONS = [f"{color} {thing}" for color in ("red", "blue", "green") for thing in ("cat", "dog", "ship", "sea", "torii gate")]


class MadeUp(CaptionedLatents):
    def __init__(self, data: Path, folder: Path) -> None:
        self.latents = torch.randn(15, 16, 8, 8, generator=torch.Generator().manual_seed(0)).half()
        self.captions = CAPTIONS


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdxl, "CaptionedLatents", MadeUp)
    monkeypatch.setattr(sdxl, "BATCH", {"clip": 4, "unet": 4})
    monkeypatch.setattr(sdxl, "SAVE_EVERY", 2)
    monkeypatch.setattr(sdxl, "VOCABULARY", 300)
    monkeypatch.setattr(sdxl, "WIDTHS", (64, 64))
    monkeypatch.setattr(sdxl, "TEXT_LAYERS", 2)
    sizes = {"block_out_channels": (16, 64), "attention_head_dim": (1, 1), "transformer_layers_per_block": (1, 1)}
    monkeypatch.setattr(sdxl, "UNET", sdxl.UNET | sizes)


def run(out: Path, stage: str, steps: int = 2) -> None:
    if stage == "unet":
        sdxl.train_unet(MadeUp(out, out), out, steps=steps)
    else:
        sdxl.run_stage(stage, out, out, steps=steps)


def test_the_stages_make_a_folder_that_opens_and_draws(tmp_path: Path) -> None:
    for stage in ("tokenizer", "clip", "unet"):
        run(tmp_path, stage)
    vae = AutoencoderShuffle(block_out_channels=(12, 0, 0, 16, 16), encoder_layers=(1, 1), decoder_layers=(1, 1))
    (tmp_path / "vae").mkdir()
    vae.save_config(tmp_path / "vae")
    save_weights(tmp_path / "vae" / WEIGHTS, vae.state_dict())
    encoder = sdxl_encoder.load(tmp_path)
    assert encoder.spec.width == 128 and encoder.spec.pooled_width == 64 and encoder.window.length == sdxl.TEXT_LENGTH - 2
    assert encoder.pair[0].tokenize("red cat") == encoder.pair[1].tokenize("Red  CAT")
    entry = recognise(tmp_path)
    assert (entry.family, entry.route) == ("sdxl", "translate")
    backbone = sdxl_backbone.load(entry, torch.float32)
    assert backbone.spec.width == 128 and backbone.spec.pooled_width == 64
    states = encoder.encode(["a red cat"])
    config = backbone.default.__class__(width=128, height=128, steps=2, guidance_scale=2.0, scheduler="euler")
    picture = backbone.sample(states, states, config, generators=[torch.Generator().manual_seed(0)])[0]
    assert picture.size == (128, 128)


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        run(folder, "tokenizer")
    for stage in ("clip", "unet"):
        run(one, stage, 4)
        run(two, stage, 2)
        run(two, stage, 4)
        states = [load_state(folder / f"{stage}.pt") for folder in (one, two)]
        assert [state["step"] for state in states] == [4, 4]
        for name, value in states[0]["model"].items():
            torch.testing.assert_close(states[1]["model"][name], value, msg=name)


def test_the_contrastive_loss_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdxl, "BATCH", {"clip": 12})
    run(tmp_path, "tokenizer")
    run(tmp_path, "clip", 80)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "clip.jsonl").read_text().splitlines()]
    assert np.mean(losses[-2:]) < 0.6 * np.log(12)


def test_nothing_said_is_zeros_in_training_too(tmp_path: Path) -> None:
    run(tmp_path, "tokenizer")
    run(tmp_path, "clip")
    tokens, _, pooled = sdxl._plain(sdxl_encoder.load(tmp_path).encode(["red cat", "blue dog"]), torch.tensor([1.0, 0.0]))
    assert bool(tokens[0].any()) and not tokens[1].any() and not pooled[1].any()


def test_the_full_size_stays_small() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL, cross_attention_dim=320, projection_class_embeddings_input_dim=192 + 192, norm_num_groups=16)
    assert sum(p.numel() for p in unet.parameters()) < 21_000_000


def test_scenes_become_latents_once_and_their_captions_are_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = read_staging("mame-sdxl")
    drawings = [Drawing(concept.emoji, "noto", 0) for concept in staging.concepts()]
    sprites = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 4), dtype=np.uint8)
    monkeypatch.setattr(sdxl, "load_sprites", lambda _data: (sprites, drawings))
    monkeypatch.setattr(sdxl, "SHARD", 6)
    sdxl.run_stage("latents", tmp_path, tmp_path, steps=0, shards=2)
    files = sorted((tmp_path / "latents").iterdir())
    assert [file.name for file in files] == ["shard-000.safetensors", "shard-001.safetensors"]
    before = files[0].stat().st_mtime_ns
    sdxl.cache_latents(tmp_path, tmp_path / "latents", 2)
    assert files[0].stat().st_mtime_ns == before
    scenes = CaptionedLatents(tmp_path, tmp_path / "latents")
    assert scenes.latents.shape == (12, 16, 8, 8) and len(scenes.captions) == 12
    words = [plan(sdxl.FIRST_SEED + 6, sdxl.the_stage(tmp_path)).things[0].concept.en]
    assert any(word.split()[0] in scenes.captions[6] for word in words[0])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unet"):
        run(tmp_path, "unett")
    with pytest.raises(TrainingDataError, match="--stage tokenizer"):
        run(tmp_path, "clip")
