"""Train mame-clip: pictures agree with mame's locked text encoder (LiT, arXiv 2111.07991) on rendered scenes.

The image tower begins from a trunk that knows photographs (see `clip_trunk`). First only what is new learns, on what the trunk sees as it is; then
all of it, the trunk slowly and but for its first blocks (linear probing, then fine-tuning, keeps what the trunk knows of drawings that are not seen
here: Kumar et al. 2022, arXiv 2202.10054). Softmax losses (arXiv 2103.00020): every picture against the names of all things in both languages, of
backgrounds, styles, colours and numbers, and against the captions of its batch; but many are seen in other colours than they were painted in, and are
asked for things and numbers alone. What is kept is a running mean of the weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jpgen.catalog import find_model
from jpgen.encoders import bert
from jpgen.evaluate.efficientnet import EfficientNetLite0
from jpgen.evaluate.mame_clip import ClipConfig, ClipNetwork, MameClip
from jpgen.protocols import TextEncoder
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.clip_scenes import FIRST_SEED, SHARD, SceneBatch, ScenePool, cache_scenes
from jpgen.train.clip_texts import COLORFUL, QUESTIONS, UNSAID, Bank, read_banks
from jpgen.train.clip_trunk import read_trunk, source_path
from jpgen.train.scenes import concepts

PROBE_SCENES, PROBE_BATCH, PROBE_STEPS = 4000, 128, 400
"""The first stage: on what the untouched trunk sees of so many scenes."""

BATCH = 64
SAVE_EVERY = 50
WARM_UP = 30
LOCKED = 5
"""Blocks of the trunk that stay as they are: they see edges and spots."""

SEEN_SIDE = 128
"""Side in pixels of the pictures it trains on: smaller and cheaper than those it will see, the things in them of about the same size or larger
(Touvron et al. 2019, arXiv 1906.06423)."""

WINDOW, SHIFT = (0.75, 1.1), 0.12
"""Share of a picture's side that is seen in training, and how far off its middle at most, in halves of the side."""

RECOLORED, SATURATION, GAMMA = 0.4, (0.0, 1.6), (0.6, 2.4)
"""Share of the pictures that are seen in other colours, and how saturated and dark they may become: a cat may be black, yellow or grey, and hands
that draw the same thing agree on its colours least. What colours tell (background, style, colour, caption) is not asked of these."""

TRUNK_RATE, TEXT_RATE = 0.3, 0.3
"""Shares of the learning rate for the trunk, which has learnt before, and for the map of the texts, which must fit words nobody trained too."""

KEPT = 0.99
"""Share of the running mean of the weights that a step leaves."""

LOSS_WEIGHTS = {"first": 1.0, "caption": 0.3, "background": 0.2, "style": 0.2, "color": 0.2, "count": 0.2}


def train_clip(
    data: Path, out: Path, *, steps: int, shards: int = 25, learning_rate: float = 1e-3, config: ClipConfig | None = None,
    trunk: EfficientNetLite0 | None = None, encoder: TextEncoder | None = None,
) -> MameClip:  # fmt: skip
    """Train for `steps` batches of 64 in all, on `shards` of 500 scenes, and write config and weights to `out/`.

    The `trunk` is that of `clip_trunk` unless another is given. The scenes, the state and the curve stand beside the folder, as `out-scenes/`,
    `out.pt` (which it resumes) and `out.jsonl`. Raises TrainingDataError if `data` has no sprites or the state is damaged, MissingExtraError.
    """
    encoder = encoder or bert.load(find_model("mame").place)
    config = config or ClipConfig(text_width=encoder.spec.width, width=encoder.spec.width)
    folder = out.with_name(f"{out.name}-scenes")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        shard = folder / f"shard-{number:03d}.safetensors"
        if not shard.exists():
            cache_scenes(data, shard, FIRST_SEED + number * SHARD, encoder)
    pool, banks, curve = ScenePool(folder), read_banks(encoder), Curve(out.with_suffix(".jsonl"))
    torch.manual_seed(0)
    network, done = ClipNetwork(config), 0
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(KEPT))
    state = load_state(out.with_suffix(".pt"))
    if state is None:
        network.trunk.load_state_dict((trunk or read_trunk(source_path())).state_dict())
        probe(network, pool, banks, curve, learning_rate=learning_rate)
        mean.update_parameters(network)
    optimizer = _optimizer(network, learning_rate, locked=LOCKED)

    def keep(step: int) -> None:
        kept = {"model": network.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        save_state(out.with_suffix(".pt"), kept)

    if state is None:
        keep(0)
    else:
        network.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    figures = []
    for step in range(done, steps):
        rng = np.random.default_rng((step, 1))
        batch = pool.batch(rng.choice(len(pool), min(BATCH, len(pool)), replace=False))
        batch = recolored(replace(batch, pictures=moved(batch.pictures, rng)), rng)
        images = network.image_features(batch.pictures)
        figures.append(_learn(network, optimizer, _pace(step, steps), clip_losses(network, banks, images, batch, rng)))
        mean.update_parameters(network)
        curve.count(BATCH)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            curve.row(step=step + 1, **_means(figures))
            figures = []
            keep(step + 1)
    MameClip(cast("ClipNetwork", mean.module), config, encoder).save(out)
    return MameClip.load(out, encoder=encoder)  # as it is shipped, in 8 bits


def probe(network: ClipNetwork, pool: ScenePool, banks: dict[str, Bank], curve: Curve, *, learning_rate: float) -> None:
    """The first stage: teach all but the trunk on what it sees of `PROBE_SCENES` scenes, every channel of it counting alike at first."""
    scenes = pool.batch(np.arange(min(PROBE_SCENES, len(pool))))
    with torch.no_grad():
        cells = torch.cat([network.cells(resized(part)).half() for part in scenes.pictures.split(BATCH)])
        pooled = F.layer_norm(cells.float().mean(dim=1), (cells.shape[2],))
        network.norm.weight.copy_(1 / pooled.std(dim=0).clamp_min(1e-3))
        network.norm.bias.copy_(-pooled.mean(dim=0) * network.norm.weight)
    optimizer = _optimizer(network, learning_rate, locked=len(network.trunk.blocks))
    figures = []
    for step in range(PROBE_STEPS):
        rng = np.random.default_rng((step, 0))
        rows = torch.from_numpy(rng.integers(len(cells), size=PROBE_BATCH))
        batch = SceneBatch(scenes.pictures[:0], scenes.facts[rows], scenes.captions[rows])
        images = network.cell_features(cells[rows].float())
        figures.append(_learn(network, optimizer, _pace(step, PROBE_STEPS), clip_losses(network, banks, images, batch, rng)))
        curve.count(PROBE_BATCH)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == PROBE_STEPS:
            curve.row(probe=step + 1, **_means(figures))
            figures = []


def resized(pictures: Tensor) -> Tensor:
    """Pictures uint8 [batch, 3, side, side] at the size it trains on, in fp32."""
    return F.interpolate(pictures.float(), (SEEN_SIDE, SEEN_SIDE), mode="bilinear", antialias=True)


def moved(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """The same, each moved and seen from a little nearer or farther."""
    size = rng.uniform(*WINDOW, len(pictures))
    places = np.zeros((len(pictures), 2, 3), np.float32)
    places[:, 0, 0] = places[:, 1, 1] = size
    places[:, :, 2] = rng.uniform(-SHIFT, SHIFT, (len(pictures), 2))
    grid = F.affine_grid(torch.from_numpy(places), [len(pictures), 3, SEEN_SIDE, SEEN_SIDE], align_corners=False)
    return F.grid_sample(pictures.float(), grid, padding_mode="reflection", align_corners=False)


def recolored(batch: SceneBatch, rng: np.random.Generator) -> SceneBatch:
    """The batch with `RECOLORED` of its pictures in other colours: hues turned by any angle, white as it was.

    Of these, the answers to questions of `COLORFUL` become `UNSAID`, and the captions NaN.
    """
    chosen = torch.from_numpy(rng.random(len(batch.pictures)) < RECOLORED)
    angle, saturation, gamma = (rng.uniform(low, high, int(chosen.sum())) for low, high in ((0.0, 2 * np.pi), SATURATION, GAMMA))
    grey = np.full((3, 3), 1 / 3)
    turn = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # a quarter around the axis of greys
    parts = np.cos(angle)[:, None, None] * (np.eye(3) - grey) + np.sin(angle)[:, None, None] * turn
    matrices = torch.from_numpy(grey + saturation[:, None, None] * parts).float()
    pictures, told, captions = batch.pictures.clone(), batch.facts.clone(), batch.captions.clone()
    turned = torch.einsum("brc,bchw->brhw", matrices, pictures[chosen]).clamp(0, 255)
    pictures[chosen] = 255 * (turned / 255) ** torch.from_numpy(gamma).float()[:, None, None, None]
    told[torch.nonzero(chosen), [QUESTIONS[name] for name in COLORFUL]] = UNSAID
    captions[chosen] = torch.nan
    return SceneBatch(pictures, told, captions)


def _pace(step: int, steps: int) -> float:
    """Share of the learning rate: a short rise, then half a cosine."""
    return min((step + 1) / WARM_UP, 1.0) * (1 + math.cos(math.pi * step / steps)) / 2


def _optimizer(network: ClipNetwork, learning_rate: float, *, locked: int) -> torch.optim.AdamW:
    """AdamW; so many blocks of the trunk stay as they are, and all of it if these are all."""
    network.trunk.requires_grad_(locked < len(network.trunk.blocks))
    network.trunk.stem.requires_grad_(False)
    network.trunk.blocks[:locked].requires_grad_(False)
    rates = {"trunk": TRUNK_RATE, "text": TEXT_RATE}
    groups = defaultdict[tuple[float, float], list[Tensor]](list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[learning_rate * rates.get(name.split(".")[0], 1.0), 0.05 if parameter.dim() >= 2 else 0.0].append(parameter)
    return torch.optim.AdamW([{"params": members, "full_lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()])


def _learn(network: ClipNetwork, optimizer: torch.optim.Optimizer, pace: float, told: tuple[dict[str, Tensor], float]) -> dict[str, float]:
    """One step down these losses; what they were."""
    losses, right = told
    loss = torch.stack([LOSS_WEIGHTS[name] * one for name, one in losses.items()]).sum()
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * pace
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return {"loss": loss.item(), **{name: one.item() for name, one in losses.items()}, "right": right}


def _means(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name: None for row in figures for name in row}
    return {name: float(np.mean([row[name] for row in figures if name in row])) for name in names}


def clip_losses(
    network: ClipNetwork, banks: dict[str, Bank], images: Tensor, batch: SceneBatch, rng: np.random.Generator
) -> tuple[dict[str, Tensor], float]:
    """A softmax loss for each of `LOSS_WEIGHTS` that the batch has an answer to, and the share (0…1) of pictures whose thing is found.

    `images` are the features [batch, width] of its pictures.
    """
    told, scale = batch.facts, network.log_scale.exp().clamp(max=100.0)
    losses: dict[str, Tensor] = {}
    for name in (*COLORFUL, "count"):
        answer = told[:, QUESTIONS[name]]
        if (asked := answer >= 0).any():
            texts = network.text_features(banks[name].draw("en" if rng.random() < 0.5 else "ja", rng))
            losses[name] = F.cross_entropy(scale * images[asked] @ texts.T, answer[asked])
    first, second = told[:, QUESTIONS["first"]], told[:, QUESTIONS["second"]]
    two = (second >= 0).float()[:, None]
    wanted = (F.one_hot(first, len(concepts())) + F.one_hot(second.clamp_min(0), len(concepts())) * two) / (1 + two)
    answers = scale * images @ network.text_features(banks["first"].draw("en" if rng.random() < 0.5 else "ja", rng)).T
    losses["first"] = F.cross_entropy(answers, wanted)
    if (described := ~batch.captions.isnan().any(dim=1)).any():
        matches = scale * images[described] @ network.text_features(batch.captions[described]).T
        same = torch.arange(len(matches))
        losses["caption"] = (F.cross_entropy(matches, same) + F.cross_entropy(matches.T, same)) / 2
    found = answers.argmax(1)
    return losses, float(((found == first) | (found == second)).float().mean())
