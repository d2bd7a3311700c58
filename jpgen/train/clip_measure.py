"""How well a scorer names what rendered scenes show, in drawings that mame-clip never saw."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jpgen.errors import TrainingDataError
from jpgen.evaluate.scorer import ImageTextScorer
from jpgen.evaluate.scores import label_features
from jpgen.train.captions import caption
from jpgen.train.judge import UNSEEN_ART
from jpgen.train.latents import LANGUAGES
from jpgen.train.scenes import Concept, Scene, Stage, plan, render
from jpgen.train.sprites import load_sprites

FIRST_SEED = 1_300_000_000
"""First seed of the scenes it is measured on: no training uses these."""

CLASSES = 100
BATCH = 50


def classes(stage: Stage) -> list[Concept]:
    """The hundred things that training shows most often, of those this stage has drawings of; ties in the order of the table."""
    return sorted(stage.concepts, key=lambda concept: -concept.weight)[:CLASSES]


def measure_clip(
    scorer: ImageTextScorer, data: Path, *, pictures: int = 1000, art: Sequence[str] = UNSEEN_ART
) -> dict[str, float | int]:
    """Shares (0…1) of `pictures` scenes of one kind of thing in drawings of `art` that are named rightly.

    For each language `<lang>`: `top1_<lang>` among the names of `classes`, `top1_all_<lang>` among those of every thing there is a drawing of, and
    `caption_<lang>`: the scene's own caption is the nearest of those of 50 scenes.
    """
    sprites, drawings = load_sprites(data)
    stage = Stage(drawings, art=art)
    named = classes(stage)
    chosen = list(itertools.islice(_alone(stage, named), pictures))
    features = torch.cat([scorer.image_features([render(scene, sprites) for scene in chosen[i : i + BATCH]]) for i in range(0, pictures, BATCH)])
    told: dict[str, float | int] = {"pictures": pictures, "classes": len(named), "classes_all": len(stage.concepts)}
    for language in LANGUAGES:
        for name, known in (("top1", named), ("top1_all", stage.concepts)):
            words = label_features(scorer, [getattr(concept, language)[0] for concept in known])
            right = torch.tensor([known.index(scene.things[0].concept) for scene in chosen])
            told[f"{name}_{language}"] = _share((features @ words.T).argmax(1) == right)
        captions = scorer.text_features([caption(scene, language, np.random.default_rng((scene.seed, 2))) for scene in chosen])
        blocks = [features[i : i + BATCH] @ captions[i : i + BATCH].T for i in range(0, pictures, BATCH)]
        told[f"caption_{language}"] = _share(torch.cat([block.argmax(1) == torch.arange(len(block)) for block in blocks]))
    return told


def _alone(stage: Stage, named: Sequence[Concept]) -> Iterator[Scene]:
    """Endless scenes of one kind of thing, of these concepts, in drawings of the stage."""
    if not named:
        raise TrainingDataError("測る絵がありません / no drawings to measure on: run jpgen train mame --stage art")
    for seed in itertools.count(FIRST_SEED):
        scene = plan(seed, stage)
        if len(scene.things) == 1 and scene.things[0].concept in named and all(thing.drawing.art in stage.art for thing in scene.things):
            yield scene


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)
