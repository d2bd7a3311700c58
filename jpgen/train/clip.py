"""Train mame-clip: pictures agree with mame's locked text encoder (LiT, arXiv 2111.07991) on rendered scenes.

The image tower begins from a trunk that knows photographs (see `clip_trunk`); its lower half is locked (see `clip_cells`). What learns is its upper
half, slowly, the pooling over what it sees, and the map of the texts, by softmax losses (arXiv 2103.00020): every picture against the names of all
things in both languages, of backgrounds, styles, colours and numbers, and against the captions of its batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jpgen.catalog import find_model
from jpgen.encoders import bert
from jpgen.evaluate.efficientnet import EfficientNetLite0
from jpgen.evaluate.mame_clip import ClipConfig, ClipNetwork, MameClip
from jpgen.protocols import TextEncoder
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.clip_cells import FIRST_SEED, SHARD, CellBatch, CellPool, cache_cells
from jpgen.train.clip_texts import QUESTIONS, Bank, read_banks
from jpgen.train.clip_trunk import read_trunk, source_path
from jpgen.train.scenes import concepts

BATCH = 128
SAVE_EVERY = 50
WARM_UP = 20
TRUNK_RATE, TEXT_RATE = 0.1, 0.3
"""Shares of the learning rate for the trunk, which has learnt before, and for the map of the texts, which must fit words nobody trained too."""

DROPPED = 0.1
"""Share of the cells' channels that a training step does not see, so that nothing leans on a single one."""

LOSS_WEIGHTS = {"first": 1.0, "caption": 0.3, "background": 0.2, "style": 0.2, "color": 0.2, "count": 0.2}


def train_clip(
    data: Path, out: Path, *, steps: int, shards: int = 24, learning_rate: float = 1e-3, config: ClipConfig | None = None,
    trunk: EfficientNetLite0 | None = None, encoder: TextEncoder | None = None,
) -> MameClip:  # fmt: skip
    """Train for `steps` batches of 128 in all, on `shards` of 500 scenes, and write config and weights to `out/`.

    The `trunk` is that of `clip_trunk` unless another is given. The cells, the state and the curve stand beside the folder, as `out-cells/`, `out.pt`
    (which it resumes) and `out.jsonl`. Raises TrainingDataError if `data` has no sprites or the state is damaged, MissingExtraError.
    """
    encoder, trunk = encoder or bert.load(find_model("mame").place), trunk or read_trunk(source_path())
    config = config or ClipConfig(text_width=encoder.spec.width, width=encoder.spec.width)
    cells = out.with_name(f"{out.name}-cells")
    cells.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        shard = cells / f"shard-{number:03d}.safetensors"
        if not shard.exists():
            cache_cells(data, shard, FIRST_SEED + number * SHARD, trunk, encoder, side=config.side)
    pool, banks = CellPool(cells), read_banks(encoder)
    torch.manual_seed(0)
    network, done = ClipNetwork(config), 0
    network.trunk.load_state_dict(trunk.state_dict())
    optimizer = _optimizer(network, learning_rate)
    if state := load_state(out.with_suffix(".pt")):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    curve, recent = Curve(out.with_suffix(".jsonl")), defaultdict[str, list[float]](list)
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * min((step + 1) / WARM_UP, 1.0) * (1 + math.cos(math.pi * step / steps)) / 2
        rng = np.random.default_rng(step)
        losses, right = clip_losses(network, banks, _thinned(pool.sample(BATCH, rng), rng), rng)
        loss = sum((LOSS_WEIGHTS[name] * one for name, one in losses.items()), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for name, value in {"loss": loss, **losses}.items():
            recent[name].append(value.item())
        recent["right"].append(right)
        curve.count(BATCH)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            curve.row(step=step + 1, **{name: float(np.mean(values)) for name, values in recent.items()})
            recent.clear()
            save_state(out.with_suffix(".pt"), {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    MameClip(network, config, encoder).save(out)
    return MameClip.load(out, encoder=encoder)  # as it is shipped, in 8 bits


def _thinned(batch: CellBatch, rng: np.random.Generator) -> CellBatch:
    kept = torch.from_numpy(rng.random((*batch.cells.shape[:2], 1, 1)) >= DROPPED).float() / (1 - DROPPED)
    return CellBatch(batch.cells * kept, batch.facts, batch.captions)


def _optimizer(network: ClipNetwork, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; the trunk's lower half is locked."""
    network.trunk.requires_grad_(False).upper.requires_grad_(True)
    rates = {"trunk": TRUNK_RATE, "text": TEXT_RATE}
    groups = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = 0.05 if parameter.dim() >= 2 else 0.0
            groups.append({"params": [parameter], "weight_decay": decay, "full_lr": learning_rate * rates.get(name.split(".")[0], 1.0)})
    return torch.optim.AdamW(groups, lr=learning_rate)


def clip_losses(
    network: ClipNetwork, banks: dict[str, Bank], batch: CellBatch, rng: np.random.Generator
) -> tuple[dict[str, Tensor], float]:
    """A softmax loss for each of `LOSS_WEIGHTS` that the batch has an answer to, and the share (0…1) of pictures whose thing is found."""
    images, told, scale = network.features_of(batch.cells), batch.facts, network.log_scale.exp().clamp(max=100.0)
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
    matches = scale * images @ network.text_features(batch.captions).T
    same = torch.arange(len(images))
    losses["caption"] = (F.cross_entropy(matches, same) + F.cross_entropy(matches.T, same)) / 2
    found = answers[0].argmax(1)
    return losses, float(((found == first) | (found == second)).float().mean())
