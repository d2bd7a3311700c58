"""Scenes that mame-clip learns from, rendered once.

A shard is one safetensors file of 500 scenes: `pictures` uint8 [500, 3, 160, 160], `facts` int64 [500, questions] (see `clip_texts.facts`),
`captions` fp16 [500, text width], the pooled state of a caption of each in one language or the other.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from jpgen.errors import TrainingDataError
from jpgen.evaluate.mame_clip import pooled, shrink
from jpgen.protocols import TextEncoder
from jpgen.train.captions import caption
from jpgen.train.clip_texts import facts
from jpgen.train.judge import JUDGE_ART, UNSEEN_ART, soften
from jpgen.train.scenes import Scene, Stage, Staging, concepts, plan, render
from jpgen.train.sprites import ART, KIN, MORE_ART, ONE_COLOR, Drawing, fetch_art, load_sprites, render_sprites

KIN_ART = tuple(f"{art}{KIN}" for art in (*JUDGE_ART, *MORE_ART))
CLIP_ART = (*JUDGE_ART, *MORE_ART, *KIN_ART)
"""The drawings mame-clip learns from: those of the judge and some more, and their kin; `jpgen.train.judge.UNSEEN_ART` stays unseen."""

FIRST_SEED = 1_100_000_000
"""First seed of the scenes it learns from, above those of mame and of the judge."""

SHARD = 500
SIDE = 160
"""Side of a picture in pixels, as mame-clip sees it."""

LAYOUTS = {"one": 0.48, "large": 0.1, "small": 0.08, "beside": 0.08, "above": 0.05, "front": 0.05, "count": 0.16}
"""Layout -> share of the scenes: a picture of one kind of thing tells most about its name."""

STYLED, TINTED = 0.5, 0.4
"""Shares of the scenes with a style and of the things in a colour of their own, more than elsewhere: both make names harder to tell."""

MORE, KINDRED = "more", "kin"
"""The folders beside the sprites that hold those of `MORE_ART` and of `KIN_ART`."""

PAINTED = 0.75
"""Share of the drawings in one colour that are painted where the scene leaves them theirs."""


class Album:
    """The drawings of several folders of sprites, under one numbering."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Open them; raises TrainingDataError for one without sprites."""
        self._arrays: list[np.ndarray] = []
        self.drawings: list[Drawing] = []
        for number, folder in enumerate(folders):
            sprites, drawings = load_sprites(folder)
            self._arrays.append(sprites)
            self.drawings += [replace(drawing, row=drawing.row * len(folders) + number) for drawing in drawings]

    def pixels(self, drawing: Drawing) -> np.ndarray:
        """Its sprite uint8 [192, 192, 4]."""
        row, number = divmod(drawing.row, len(self._arrays))
        return np.asarray(self._arrays[number][row])


def prepare_more_art(data: Path) -> None:
    """Download `MORE_ART` and render its sprites into `data/more`, and the kin of all that it learns from, unless they are there."""
    if not (data / KINDRED / "sprites.json").is_file():  # what is made last
        fetch_art(data / "art", MORE_ART)
        learnt = {art: source for art, source in ART.items() if art not in UNSEEN_ART}
        words = {concept.emoji: concept.en for concept in concepts()}
        render_sprites(data / "art", data / MORE, MORE_ART, words=words)
        render_sprites(data / "art", data / KINDRED, {**learnt, **MORE_ART}, kin=read_kin())


def varied(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """The sprite uint8 [192, 192, 4] as another hand might have drawn it: mirrored, turned, stretched, of other hue, saturation and lightness."""
    image = Image.fromarray(sprite)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle, wide, high, slant = rng.normal(0, 0.12), rng.uniform(0.9, 1.25), rng.uniform(0.9, 1.25), rng.normal(0, 0.08)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.array([[wide, slant], [0, high]])
    centre = np.array(image.size) / 2
    shift = centre - turn @ centre
    image = image.transform(image.size, Image.Transform.AFFINE, (*turn[0], shift[0], *turn[1], shift[1]), Image.Resampling.BILINEAR)
    if rng.random() < 0.6:
        rgb, alpha = image.convert("RGB"), image.getchannel("A")
        hsv = np.asarray(rgb.convert("HSV")).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + round(rng.normal(0, 6))) % 256
        hsv[..., 1:] = np.clip(hsv[..., 1:] * rng.uniform((0.55, 0.8), (1.4, 1.15)), 0, 255)
        image = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")
        image.putalpha(alpha)
    return np.asarray(image)


def read_kin() -> dict[str, str]:
    """Emoji -> the emoji of the concept that it shows too, from `kin.tsv`."""
    lines = (resources.files("jpgen.train") / "kin.tsv").read_text("utf-8").splitlines()
    return {other: emoji for emoji, others in (line.split("\t") for line in lines if line and not line.startswith("#")) for other in others.split()}


def painted(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """The sprite uint8 [192, 192, 4] in some colour, light or dark, all over."""
    color = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.1, 1))
    return np.concatenate([np.broadcast_to(np.array(color) * 255, (*sprite.shape[:2], 3)).astype(np.uint8), sprite[..., 3:]], axis=-1)


def illustrate(scene: Scene, album: Album, rng: np.random.Generator) -> Image.Image:
    """The scene, 256×256 RGB, with the drawings of the album, varied; most of those in one colour, where the scene tells none, painted."""
    sprites = []
    for thing in scene.things:
        sprite = varied(rng, album.pixels(thing.drawing))
        free = thing.drawing.art.removesuffix(KIN) in ONE_COLOR and not thing.color
        sprites.append(painted(rng, sprite) if free and rng.random() < PAINTED else sprite)
    things = tuple(replace(thing, drawing=replace(thing.drawing, row=row)) for row, thing in enumerate(scene.things))
    return render(replace(scene, things=things), np.stack(sprites))


def cache_scenes(data: Path, shard: Path, first_seed: int, encoder: TextEncoder, *, art: Sequence[str] = CLIP_ART) -> None:
    """Render and soften one shard of `SHARD` scenes whose seeds start at `first_seed`, mostly of one kind of thing."""
    album = Album([data, data / MORE, data / KINDRED])
    stage = Stage(album.drawings, art=art, staging=Staging(layouts=LAYOUTS, styled=STYLED, tinted=TINTED))
    pictures, told, texts = [], [], []
    for seed in range(first_seed, first_seed + SHARD):
        scene, rng = plan(seed, stage), np.random.default_rng((seed, 5))
        pictures.append(soften(rng, shrink(illustrate(scene, album, rng), SIDE)))
        told.append(facts(scene))
        texts.append(caption(scene, "en" if rng.random() < 0.5 else "ja", rng))
    seen = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    partial = shard.with_suffix(".tmp")
    save_file({"pictures": seen, "facts": torch.tensor(told), "captions": pooled(encoder, texts).half()}, partial)
    partial.replace(shard)


@dataclass(frozen=True)
class SceneBatch:
    """Pictures [batch, 3, side, side], facts int64 [batch, questions], pooled captions fp32 [batch, text width] (NaN where none is true)."""

    pictures: Tensor
    facts: Tensor
    captions: Tensor


class ScenePool:
    """All shards of a folder, their pictures left on disk."""

    def __init__(self, folder: Path) -> None:
        """Open every shard; raises TrainingDataError if there is none."""
        self._shards = [load_file(file) for file in sorted(folder.glob("shard-*.safetensors"))]
        if not self._shards:
            raise TrainingDataError(f"{folder} にシャードがありません / no shards in {folder}: jpgen train clip makes them")

    def __len__(self) -> int:
        return sum(len(shard["facts"]) for shard in self._shards)

    def batch(self, rows: np.ndarray) -> SceneBatch:
        """The scenes at these places of all."""
        places = [divmod(row, len(self._shards[0]["facts"])) for row in rows.tolist()]
        taken = {name: torch.stack([self._shards[shard][name][row] for shard, row in places]) for name in self._shards[0]}
        return SceneBatch(taken["pictures"], taken["facts"], taken["captions"].float())
