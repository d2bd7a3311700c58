"""Train the judge of `jpgen.evaluate` on rendered scenes that mame never saw, and measure how well it reads them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jpgen.evaluate.judge import CEILING, LAYOUTS, WEIGHTS, Facts, Judge, JudgeConfig, JudgeNetwork, logits, score, shrink
from jpgen.train.backgrounds import BACKGROUNDS
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.scenes import ANYWHERE, COLORLESS, COLORS, FLAT_ART, Scene, Stage, concepts, plan, read_staging, render
from jpgen.train.sprites import Drawing, load_sprites
from jpgen.train.styles import STYLES
from jpgen.weights import load_weights

JUDGE_ART = (*FLAT_ART, "fluent")
"""The drawings the judge learns from: those of mame; the last only where the style (3D) asks for it."""

UNSEEN_ART = ("emojione",)
"""Drawings that neither mame's backbone nor the judge ever learns from."""

STAGINGS = (ANYWHERE, read_staging("mame"))
"""Its scenes are staged by these in turn: a judge that has not seen mame's fixed places misreads three things there as one."""

FIRST_SEED = 710_000_000
"""First seed of the scenes it learns from; mame's stay below 100,000,000."""

CEILING_SEED = 900_000_000
BATCH = 48
UNSAID = -100  # cross_entropy passes over it


def judge_config() -> JudgeConfig:
    """Everything a scene can show, in the order of its tables."""
    return JudgeConfig(
        things=tuple(concept.emoji for concept in concepts()),
        colors=("", *(color.key for color in COLORS)),
        backgrounds=tuple(background.key for background in BACKGROUNDS),
        styles=tuple(style.key for style in STYLES),
    )


def facts_of(scene: Scene) -> Facts:
    """What the scene shows, in full: every field but `second` is said."""
    first = scene.things[0]
    return Facts(
        first=first.concept.emoji,
        second=scene.things[1].concept.emoji if len(scene.things) > 1 else None,
        color=first.color.key if first.color else "",
        count=scene.count,
        layout=scene.layout if scene.layout in LAYOUTS else "one",
        background=scene.background.key,
        style=scene.style.key,
    )


def asked(facts: Facts) -> Facts:
    """The facts of a scene that a prompt would state: a colour, background or style it has, and how many of one kind there are, up to four."""
    counted = facts.count if facts.second is None and (facts.count or 5) < 5 else None
    return Facts(facts.first, facts.second, facts.color or None, counted, facts.layout, facts.background or None, facts.style or None)


def labels(facts: Facts, config: JudgeConfig) -> list[int]:
    """The class of every head, in the order of `config.heads`; the colour is `UNSAID` in styles that would hide it.

    Raises ValueError for what the config does not name.
    """
    return [
        config.things.index(facts.first or ""),
        len(config.things) if facts.second is None else config.things.index(facts.second),
        UNSAID if facts.style in COLORLESS else config.colors.index(facts.color or ""),
        (facts.count or 1) - 1,
        LAYOUTS.index(facts.layout or "one"),
        config.backgrounds.index(facts.background or ""),
        config.styles.index(facts.style or ""),
    ]


def scenes(drawings: Sequence[Drawing], art: Sequence[str], seeds: Iterator[int]) -> Iterator[Scene]:
    """The scenes of these seeds whose drawings are all of the sets `art` (a style with a set of its own draws from that one alone).

    The seed tells which of `STAGINGS` it is.
    """
    own = {style.art for style in STYLES}
    stages = [Stage(drawings, art=tuple(name for name in art if name not in own), staging=staging) for staging in STAGINGS]
    for seed in seeds:
        scene = plan(seed, stages[seed % len(stages)])
        if all(thing.drawing.art in art for thing in scene.things):
            yield scene


def soften(rng: np.random.Generator, picture: Image.Image) -> np.ndarray:
    """The picture uint8 [side, side, 3] as a model might have drawn it: blurred, of lower resolution, of other contrast, noisy; often untouched."""
    if rng.random() < 0.25:
        return np.asarray(picture)
    if rng.random() < 0.4:
        side = int(rng.integers(picture.width * 3 // 8, picture.width))
        picture = picture.resize((side, side), Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BICUBIC)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, picture.width / 128)))  # 0–2 pixels of 256
    pixels = np.asarray(picture, np.float32)
    contrast, brightness, noise = rng.uniform(0.88, 1.12), rng.uniform(-10, 10), rng.uniform(0, 7)
    pixels = (pixels - 128) * np.float32(contrast) + 128 + np.float32(brightness)
    return np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 255).astype(np.uint8)


class JudgedScenes(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches: softened scenes uint8 [48, 3, 128, 128] and the classes int64 [48, heads] of what they show."""

    def __init__(self, data: Path, first_seed: int, art: Sequence[str], config: JudgeConfig) -> None:
        self.data, self.first_seed, self.art, self.config = data, first_seed, tuple(art), config

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        sprites, drawings = load_sprites(self.data)
        worker = get_worker_info()
        step, start = (worker.num_workers, worker.id) if worker else (1, 0)
        endless = iter(range(self.first_seed + start, 2**62, step))
        pictures, classes = [], []
        for scene in scenes(drawings, self.art, endless):
            pictures.append(soften(np.random.default_rng((scene.seed, 3)), shrink(render(scene, sprites))))
            classes.append(labels(facts_of(scene), self.config))
            if len(pictures) == BATCH:
                yield torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.tensor(classes)
                pictures, classes = [], []


def judge_loss(answers: Mapping[str, Tensor], classes: Tensor) -> Tensor:
    """Sum of the heads' cross entropies; `classes` int64 [batch, heads]."""
    losses = []
    for answer, wanted in zip(answers.values(), classes.T, strict=True):
        said = (wanted != UNSAID).sum().clamp_min(1)
        losses.append(F.cross_entropy(answer, wanted, ignore_index=UNSAID, reduction="sum") / said)
    return torch.stack(losses).sum()


def train_judge(
    data: Path, out: Path, *, steps: int, art: Sequence[str] = JUDGE_ART, learning_rate: float = 1e-3, workers: int = 1, ceiling: int = 4000
) -> Judge:
    """Train for `steps` batches of 48 in all, then write config, weights and the ceiling (over `ceiling` scenes) to `out/`.

    The state and the curve stand beside the folder, as `out.pt` (which it resumes) and `out.jsonl`; without a state it starts from the weights in
    `out/` if there are any. Raises TrainingDataError if `data` has no sprites or the state is damaged.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    config = judge_config()
    network = JudgeNetwork(config)
    if (out / WEIGHTS).exists():
        network.load_state_dict(load_weights(out / WEIGHTS))
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    vectors = [p for p in network.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}], lr=learning_rate)
    done = 0
    if state := load_state(out.with_suffix(".pt")):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    curve = Curve(out.with_suffix(".jsonl"))
    pictures = JudgedScenes(data, FIRST_SEED + done * BATCH, art, config)
    loader = iter(DataLoader(pictures, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
    recent: dict[str, list[float]] = defaultdict(list)
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((step + 1) / 300, 1.0, (steps - step) / max(1, steps - 300))
        pixels, classes = next(loader)
        answers = logits(network, pixels)
        loss = judge_loss(answers, classes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        recent["loss"].append(loss.item())
        for (name, answer), wanted in zip(answers.items(), classes.T, strict=True):
            said = wanted != UNSAID
            recent[name].append((answer.argmax(1) == wanted)[said].float().mean().item() if said.any() else 1.0)
        curve.count(BATCH)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            curve.row(step=step + 1, **{name: float(np.mean(values)) for name, values in recent.items()})
            recent.clear()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(out.with_suffix(".pt"), {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    Judge(network, config).save(out)
    judge = Judge.load(out)  # measured as it is shipped, in 8 bits
    write_ceiling(judge, data, out, art=art, count=ceiling)
    return judge


def write_ceiling(judge: Judge, data: Path, out: Path, *, art: Sequence[str] = JUDGE_ART, count: int = 4000) -> None:
    """Write `out/ceiling.json`: what the judge reads right of `count` fresh renders in drawings it knows ("seen"), "unseen" of fewer in new ones.

    "styles" are its shares of the seen ones in each style.
    """
    seen, styles = measure_judge(judge, data, art, range(CEILING_SEED, CEILING_SEED + count))
    unseen, _ = measure_judge(judge, data, UNSEEN_ART, range(CEILING_SEED, CEILING_SEED + count // 4))
    figures = {"seen": seen, "unseen": unseen, "styles": styles}
    (out / CEILING).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def measure_judge(judge: Judge, data: Path, art: Sequence[str], seeds: Sequence[int]) -> tuple[dict[str, int | float], dict[str, float]]:
    """The share (0…1) of renders of these seeds that the judge reads rightly, for each figure of `score`, and of the styles one by one.

    `pictures` is how many renders there were.
    """
    sprites, drawings = load_sprites(data)
    hits: dict[str, list[bool]] = defaultdict(list)
    styles: dict[str, list[bool]] = defaultdict(list)
    chosen = list(scenes(drawings, art, iter(seeds)))
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        for scene, reading in zip(batch, judge.read([render(scene, sprites) for scene in batch]), strict=True):
            for name, hit in score(asked(facts_of(scene)), reading).items():
                hits[name].append(hit)
            if scene.style.key:
                styles[scene.style.key].append(reading.style == scene.style.key)
    return {"pictures": len(chosen), **_shares(hits)}, _shares(styles)


def _shares(hits: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(hits.items())}
