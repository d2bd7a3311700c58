"""The stages that make mame from public packages, in order: art, text_encoder, autoencoder, latents, backbone, decoder, grain.

At any time: sheet (some pictures by the weights so far) and score (how well they follow captions, by the judge).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.compute import best_dtype
from jpgen.errors import TrainingDataError, UnknownNameError
from jpgen.evaluate.bench_mame import Question, answers, read_ceiling, table, tabulate
from jpgen.evaluate.judge import Judge
from jpgen.train.autoencoder import train_autoencoder
from jpgen.train.backbone import LEARNING_RATE, open_folder, sample_sheet, train_backbone
from jpgen.train.captions import caption
from jpgen.train.decoder import train_decoder
from jpgen.train.grain import train_grain
from jpgen.train.judge import asked, facts_of
from jpgen.train.latents import BACKBONE_ART, LANGUAGES, SHARD, STAGING, cache_shard
from jpgen.train.scenes import Stage, plan, read_staging
from jpgen.train.sprites import fetch_art, load_sprites, render_sprites
from jpgen.train.text_encoder import convert_text_encoder, load_text_encoder
from jpgen.weights import WEIGHTS, load_weights

CAPTION_SEED = 50_000_000
"""First seed of the scenes whose captions standardise the text encoder."""

SCORE_SEED = 80_000_000
"""First seed of the scenes whose captions choose among weights: not trained on, nor in the bench."""

log = logging.getLogger("jpgen.train")


def run_stage(stage: str, data: Path, out: Path, *, steps: int, decay: int = 0, shards: int = 6, learning_rate: float = LEARNING_RATE) -> None:
    """Run one stage; each resumes what it finds in `data` and `out`. `learning_rate` is the backbone's.

    Raises UnknownNameError, TrainingDataError, MissingExtraError.
    """
    stages: dict[str, Callable[[], object]] = {
        "art": lambda: prepare_art(data),
        "text_encoder": lambda: convert_text_encoder(out, sample_captions(data)),
        "autoencoder": lambda: train_autoencoder(data, out, steps=steps),
        "decoder": lambda: learn_from_guesses(train_decoder, data, out, steps),
        "grain": lambda: learn_from_guesses(train_grain, data, out, steps),
        "latents": lambda: cache_latents(data, out, shards),
        "backbone": lambda: train_backbone(out, steps=steps, decay=decay, learning_rate=learning_rate),
        "sheet": lambda: draw_sheet(out),
        "score": lambda: score_captions(data, out),
    }
    if stage not in stages:
        raise UnknownNameError.of("学習の段階 / training stage", stage, stages)
    stages[stage]()


def prepare_art(data: Path) -> None:
    """Download the art and render the sprites."""
    fetch_art(data / "art")
    render_sprites(data / "art", data)


def sample_captions(data: Path, scenes: int = 2000) -> list[str]:
    """Captions in both languages of some scenes."""
    stage = Stage(load_sprites(data)[1])
    seeds = range(CAPTION_SEED, CAPTION_SEED + scenes)
    return [caption(plan(seed, stage), language, np.random.default_rng((seed, 2))) for seed in seeds for language in LANGUAGES]


def draw_sheet(out: Path) -> None:
    """Write `out/backbone.png`, pictures by the weights so far."""
    require_made(out / "transformer", "backbone")
    sample_sheet(out).save(out / "backbone.png")


def score_captions(data: Path, out: Path, scenes: int = 200) -> None:
    """Draw captions in both languages by the weights so far and log the bench's table of them, so that its own prompts choose nothing."""
    require_made(out / "transformer", "backbone")
    stage = Stage(load_sprites(data)[1], art=BACKBONE_ART, staging=read_staging(STAGING))
    questions = []
    for seed in range(SCORE_SEED, SCORE_SEED + scenes):
        scene = plan(seed, stage)
        ja, en = (caption(scene, language, np.random.default_rng((seed, 2))) for language in LANGUAGES)
        questions.append(Question(str(seed), scene.layout, ja, en, asked(facts_of(scene))))
    given = list(answers(open_folder(out), Judge.load(), questions, SCORE_SEED, 1))
    log.info("%d 場面の説明文 / captions of scenes\n\n%s", scenes, table(tabulate(given, read_ceiling())))


def require_made(folder: Path, stage: str) -> None:
    """Raise TrainingDataError if an earlier stage has not made this folder yet."""
    if not folder.is_dir():
        raise TrainingDataError(f"{folder} がありません。先に --stage {stage} を / {folder} is missing: run jpgen train mame --stage {stage} first")


def learn_from_guesses(train: Callable[..., object], data: Path, out: Path, steps: int) -> None:
    """Train a part of the autoencoder on what the backbone guesses."""
    for folder, stage in (("vae", "autoencoder"), ("text_encoder", "text_encoder"), ("transformer", "backbone")):
        require_made(out / folder, stage)
    train(data, out, steps=steps)


def cache_latents(data: Path, out: Path, shards: int) -> None:
    """Write the first `shards` shards of latents to `out/latents`, skipping those already there."""
    require_made(out / "vae", "autoencoder")
    require_made(out / "text_encoder", "text_encoder")
    vae = AutoencoderShuffle.from_config(AutoencoderShuffle.load_config(out / "vae")).eval()
    vae.load_state_dict(load_weights(out / "vae" / WEIGHTS))
    encoder, tokenizer = load_text_encoder(out)
    folder = out / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(shards):
        shard = folder / f"shard-{index:03d}.safetensors"
        if not shard.exists():
            cache_shard(data, shard, index * SHARD, vae.to(memory_format=torch.channels_last), encoder.to(best_dtype()), tokenizer)
