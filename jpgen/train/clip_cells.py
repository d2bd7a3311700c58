"""What mame-clip's trunk sees of rendered scenes, computed once: the trunk is the judge's and stays as it is, so training reads only its cells.

A shard is one safetensors file of 500 scenes: `cells` fp16 [500, 64, 256], `facts` int64 [500, questions] (see `clip_texts.facts`), `captions` fp16
[500, text width], the pooled state of a caption of each in one language or the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from jpgen.errors import TrainingDataError
from jpgen.evaluate.judge import JudgeNetwork, shrink
from jpgen.evaluate.mame_clip import pooled
from jpgen.protocols import TextEncoder
from jpgen.train.captions import caption
from jpgen.train.clip_texts import facts
from jpgen.train.judge import JUDGE_ART, soften
from jpgen.train.scenes import Scene, Stage, plan, render
from jpgen.train.sprites import MORE_ART, Drawing, fetch_art, load_sprites, render_sprites

CLIP_ART = (*JUDGE_ART, *MORE_ART)
"""The drawings mame-clip learns from: those of the judge and some more; `jpgen.train.judge.UNSEEN_ART` stays unseen."""

FIRST_SEED = 1_100_000_000
"""First seed of the scenes it learns from, above those of mame and of the judge."""

SHARD = 500
BATCH = 50
MORE = "more"
"""The folder beside the sprites that holds those of `MORE_ART`."""


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
    """Download `MORE_ART` and render its sprites into `data/more`, unless they are there."""
    if not (data / MORE / "sprites.json").is_file():
        fetch_art(data / "art", MORE_ART)
        render_sprites(data / "art", data / MORE, MORE_ART)


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


def illustrate(scene: Scene, album: Album, rng: np.random.Generator) -> Image.Image:
    """The scene, 256×256 RGB, with the drawings of the album, varied."""
    sprites = np.stack([varied(rng, album.pixels(thing.drawing)) for thing in scene.things])
    things = tuple(replace(thing, drawing=replace(thing.drawing, row=row)) for row, thing in enumerate(scene.things))
    return render(replace(scene, things=things), sprites)


@torch.no_grad()
def cache_cells(data: Path, shard: Path, first_seed: int, network: JudgeNetwork, encoder: TextEncoder, *, art: Sequence[str] = CLIP_ART) -> None:
    """Render, soften and read one shard of `SHARD` scenes whose seeds start at `first_seed`."""
    album = Album([data, data / MORE])
    stage = Stage(album.drawings, art=art)
    network = network.eval()
    cells, told, texts = [], [], []
    for start in range(first_seed, first_seed + SHARD, BATCH):
        pictures = []
        for seed in range(start, start + BATCH):
            scene, rng = plan(seed, stage), np.random.default_rng((seed, 5))
            pictures.append(soften(rng, shrink(illustrate(scene, album, rng))))
            told.append(facts(scene))
            texts.append(caption(scene, "en" if rng.random() < 0.5 else "ja", rng))
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(memory_format=torch.channels_last).float() / 127.5 - 1
        cells.append(network.cells(pixels).half())
    tensors = {"cells": torch.cat(cells), "facts": torch.tensor(told), "captions": pooled(encoder, texts).half()}
    partial = shard.with_suffix(".tmp")
    save_file(tensors, partial)
    partial.replace(shard)


@dataclass(frozen=True)
class CellBatch:
    """Cells fp32 [batch, 64, width], facts int64 [batch, questions], pooled captions fp32 [batch, text width]."""

    cells: Tensor
    facts: Tensor
    captions: Tensor


class CellPool:
    """All shards of a folder in memory."""

    def __init__(self, folder: Path) -> None:
        """Load every shard; raises TrainingDataError if there is none."""
        shards = [load_file(file) for file in sorted(folder.glob("shard-*.safetensors"))]
        if not shards:
            raise TrainingDataError(f"{folder} にシャードがありません / no shards in {folder}: jpgen train clip makes them")
        self._all = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}

    def __len__(self) -> int:
        return len(self._all["facts"])

    def sample(self, batch: int, rng: np.random.Generator) -> CellBatch:
        """A random batch."""
        rows = torch.from_numpy(rng.integers(len(self), size=batch))
        return CellBatch(self._all["cells"][rows].float(), self._all["facts"][rows], self._all["captions"][rows].float())
