"""Train mame-clip: an image tower that learns to agree with mame's locked text encoder (LiT, arXiv 2111.07991) on rendered scenes.

It begins from the judge, whose first head is put into the space of the texts by least squares, and learns by softmax losses (arXiv 2103.00020):
every picture against the names of all things in both languages, of backgrounds, styles, colours and numbers, and against the captions of its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jpgen.catalog import find_model
from jpgen.encoders import bert
from jpgen.evaluate.judge import Judge, shrink
from jpgen.evaluate.mame_clip import HEAD, ClipConfig, ClipNetwork, MameClip, pooled
from jpgen.protocols import TextEncoder
from jpgen.train.captions import caption
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.clip_texts import QUESTIONS, Bank, facts, read_banks
from jpgen.train.judge import JUDGE_ART, soften
from jpgen.train.scenes import Scene, Stage, concepts, plan, render
from jpgen.train.sprites import MORE_ART, Drawing, fetch_art, load_sprites, render_sprites

CLIP_ART = (*JUDGE_ART, *MORE_ART)
"""The drawings mame-clip learns from: those of the judge and some more; `jpgen.train.judge.UNSEEN_ART` stays unseen."""

FIRST_SEED = 1_100_000_000
"""First seed of the scenes it learns from, above those of mame and of the judge."""

BATCH = 48
SAVE_EVERY = 25
WARM_UP = 40
FROZEN = 4
"""The first parts of the tower's body, which work on the 32×32 grid, are not trained: a quarter of the cost of a step."""

FALLING = 0.4
"""The share of the steps, the last ones, over which the learning rate falls."""

LOSS_WEIGHTS = {"first": 1.0, "caption": 0.3, "background": 0.2, "style": 0.2, "color": 0.2, "count": 0.2}
CAPTIONED = 24
"""Pictures of a batch that are compared with their captions: reading these costs as much as a sixth of the pictures."""
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


def illustrate(scene: Scene, album: Album, rng: np.random.Generator | None = None) -> Image.Image:
    """The scene, 256×256 RGB, with the drawings of the album as they are or, given a generator, varied."""
    sprites = [album.pixels(thing.drawing) for thing in scene.things]
    if rng is not None:
        sprites = [varied(rng, sprite) for sprite in sprites]
    things = tuple(replace(thing, drawing=replace(thing.drawing, row=row)) for row, thing in enumerate(scene.things))
    return render(replace(scene, things=things), np.stack(sprites))


class ClipScenes(IterableDataset[tuple[Tensor, Tensor, list[str]]]):
    """Endless batches: softened scenes uint8 [48, 3, 128, 128], their facts int64 [48, questions] (see `clip_texts.facts`), a caption of each."""

    def __init__(self, folders: Sequence[Path], first_batch: int, art: Sequence[str] = CLIP_ART) -> None:
        self.folders, self.first_batch, self.art = folders, first_batch, tuple(art)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        album = Album(self.folders)
        stage = Stage(album.drawings, art=self.art)
        worker = get_worker_info()
        step, start = (worker.num_workers, worker.id) if worker else (1, 0)
        number = self.first_batch + start
        while True:
            yield self._batch(range(FIRST_SEED + number * BATCH, FIRST_SEED + (number + 1) * BATCH), stage, album)
            number += step

    def _batch(self, seeds: Sequence[int], stage: Stage, album: Album) -> tuple[Tensor, Tensor, list[str]]:
        pictures, told, captions = [], [], []
        for seed in seeds:
            scene, rng = plan(seed, stage), np.random.default_rng((seed, 5))
            pictures.append(soften(rng, shrink(illustrate(scene, album, rng))))
            told.append(facts(scene))
            captions.append(caption(scene, "en" if rng.random() < 0.5 else "ja", rng))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.tensor(told), captions


def train_clip(
    data: Path, out: Path, *, steps: int, learning_rate: float = 7e-4, workers: int = 1, judge: Judge | None = None, encoder: TextEncoder | None = None
) -> MameClip:
    """Train for `steps` batches of 48 in all and write config and weights to `out/`; it begins from the `judge` (the package's own).

    The state and the curve stand beside the folder, as `out.pt` (which it resumes) and `out.jsonl`. Raises TrainingDataError if `data` has no
    sprites or the state is damaged.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    encoder = encoder or bert.load(find_model("mame").place)
    banks = read_banks(encoder)
    config = ClipConfig(text_width=encoder.spec.width, width=encoder.spec.width)
    network = ClipNetwork(config)
    begin_from(judge or Judge.load(), network, banks["first"])
    optimizer = _optimizer(network, learning_rate)
    done = 0
    if state := load_state(out.with_suffix(".pt")):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    curve = Curve(out.with_suffix(".jsonl"))
    pictures = ClipScenes([data, data / MORE], done)
    loader = iter(DataLoader(pictures, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
    recent: dict[str, list[float]] = defaultdict(list)
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * min((step + 1) / WARM_UP, 1.0, (steps - step) / max(1.0, steps * FALLING))
        pixels, told, captions = next(loader)
        losses, right = clip_losses(network, banks, pixels, told, pooled(encoder, captions[:CAPTIONED]), np.random.default_rng(step))
        loss = sum((LOSS_WEIGHTS[name] * one for name, one in losses.items()), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for name, one in {"loss": loss, **losses}.items():
            recent[name].append(one.item())
        recent["right"].append(right)
        curve.count(BATCH)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            curve.row(step=step + 1, **{name: float(np.mean(values)) for name, values in recent.items()})
            recent.clear()
            save_state(out.with_suffix(".pt"), {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    MameClip(network, config, encoder).save(out)
    return MameClip.load(out, encoder=encoder)  # as it is shipped, in 8 bits


def _optimizer(network: ClipNetwork, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; the finest grid stays as the judge has it, the map of the texts, which must go on to fit words nobody trained, learns ten times slower."""
    network.tower.body[:FROZEN].requires_grad_(False)
    tower = [p for p in network.tower.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in tower if p.dim() >= 2], "weight_decay": 0.05, "full_lr": learning_rate},
        {"params": [p for p in tower if p.dim() < 2], "weight_decay": 0.0, "full_lr": learning_rate},
        {"params": [*network.text.parameters(), network.log_scale], "weight_decay": 0.0, "full_lr": learning_rate / 10},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


@torch.no_grad()
def begin_from(judge: Judge, network: ClipNetwork, names: Bank) -> None:
    """Give the network the judge's trunk, and heads that answer as the judge does about the first thing.

    The map of the texts whitens what differs within a thing's names (both languages, synonyms), so that they fall together; the image head is the
    least-squares solution of head · texts = the judge's head.
    """
    trunk = {name: tensor for name, tensor in judge.network.state_dict().items() if not name.startswith("heads.")}
    network.tower.load_state_dict(trunk, strict=False)
    of_each = [names.all_of(one) for one in range(len(names))]
    means = torch.stack([states.mean(0) for states in of_each])
    spread = torch.cat([states - states.mean(0) for states in of_each])
    within = spread.T @ spread / len(spread)
    values, vectors = torch.linalg.eigh(within + within.diagonal().mean() * torch.eye(len(within)))
    network.text.weight.copy_(vectors @ torch.diag(values.rsqrt()) @ vectors.T)
    network.text.bias.copy_(-network.text.weight @ means.mean(0))
    order = [judge.config.things.index(concept.emoji) for concept in concepts()]
    first, head = judge.network.heads["first"], network.tower.heads[HEAD]
    back = torch.linalg.pinv(network.text_features(means), rtol=0.02)
    head.weight.copy_(back @ first.weight[order])
    head.bias.copy_(back @ first.bias[order])


def clip_losses(
    network: ClipNetwork, banks: dict[str, Bank], pixels: Tensor, told: Tensor, captions: Tensor, rng: np.random.Generator
) -> tuple[dict[str, Tensor], float]:
    """A softmax loss for each of `LOSS_WEIGHTS` that the batch has an answer to, and the share (0…1) of pictures whose thing is found.

    `pixels` uint8 [batch, 3, 128, 128], `told` int64 [batch, questions], `captions` pooled text states [captions, text width] of the first pictures.
    """
    images, scale = network.image_features(pixels), network.log_scale.exp().clamp(max=100.0)
    losses: dict[str, Tensor] = {}
    for name in ("background", "style", "color", "count"):
        answer = told[:, QUESTIONS[name]]
        if (asked := answer >= 0).any():
            texts = network.text_features(banks[name].draw("en" if rng.random() < 0.5 else "ja", rng))
            losses[name] = F.cross_entropy(scale * images[asked] @ texts.T, answer[asked])
    first, second = told[:, QUESTIONS["first"]], told[:, QUESTIONS["second"]]
    two = (second >= 0).float()[:, None]
    wanted = (F.one_hot(first, len(concepts())) + F.one_hot(second.clamp_min(0), len(concepts())) * two) / (1 + two)
    answers = [scale * images @ network.text_features(banks["first"].draw(language, rng)).T for language in ("ja", "en")]
    losses["first"] = torch.stack([F.cross_entropy(answer, wanted) for answer in answers]).mean()
    matches = scale * images[: len(captions)] @ network.text_features(captions).T
    same = torch.arange(len(captions))
    losses["caption"] = (F.cross_entropy(matches, same) + F.cross_entropy(matches.T, same)) / 2
    found = answers[0].argmax(1)
    return losses, float(((found == first) | (found == second)).float().mean())
