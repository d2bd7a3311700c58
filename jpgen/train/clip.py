"""Train mame-clip: pictures agree with mame's locked text encoder (LiT, arXiv 2111.07991) on rendered scenes.

The trunk of the image tower is the judge's and locked too (see `clip_cells`); what learns is the pooling over its cells, the image head, and the map
of the texts, by softmax losses (arXiv 2103.00020): every picture against the names of all things in both languages, of backgrounds, styles, colours
and numbers, and against the captions of its batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jpgen.catalog import find_model
from jpgen.encoders import bert
from jpgen.evaluate.judge import Judge
from jpgen.evaluate.mame_clip import HEAD, ClipConfig, ClipNetwork, MameClip
from jpgen.protocols import TextEncoder
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.clip_cells import FIRST_SEED, SHARD, CellBatch, CellPool, cache_cells
from jpgen.train.clip_texts import QUESTIONS, Bank, read_banks
from jpgen.train.scenes import concepts

BATCH = 128
SAVE_EVERY = 50
WARM_UP = 20
DROPPED = 0.3
"""Share of the cells' channels that a training step does not see, so that the head leans on no single one."""

FIT_STEPS = 160
RIDGE = 1e-4
FIT_RATE = 2e-3
LOSS_WEIGHTS = {"first": 1.0, "caption": 0.3, "background": 0.2, "style": 0.2, "color": 0.2, "count": 0.2}


def train_clip(
    data: Path, out: Path, *, steps: int, shards: int = 10, learning_rate: float = 5e-4, judge: Judge | None = None,
    encoder: TextEncoder | None = None,
) -> MameClip:  # fmt: skip
    """Train for `steps` batches of 128 in all, on `shards` of 500 scenes, and write config and weights to `out/`.

    The trunk is that of the `judge` (the package's own). The cells, the state and the curve stand beside the folder, as `out-cells/`, `out.pt` (which
    it resumes) and `out.jsonl`. Raises TrainingDataError if `data` has no sprites or the state is damaged.
    """
    judge, encoder = judge or Judge.load(), encoder or bert.load(find_model("mame").place)
    cells = out.with_name(f"{out.name}-cells")
    cells.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        shard = cells / f"shard-{number:03d}.safetensors"
        if not shard.exists():
            cache_cells(data, shard, FIRST_SEED + number * SHARD, judge.network, encoder)
    pool, banks = CellPool(cells), read_banks(encoder)
    config = ClipConfig(text_width=encoder.spec.width, width=encoder.spec.width, widths=judge.config.widths, queries=judge.config.queries)
    network = ClipNetwork(config)
    state = load_state(out.with_suffix(".pt"))
    if state is None:
        begin_from(judge, network, banks["first"])
    optimizer, done = _optimizer(network, learning_rate), 0
    if state is not None:
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
    kept = torch.from_numpy(rng.random((len(batch.cells), 1, batch.cells.shape[2])) >= DROPPED).float() / (1 - DROPPED)
    return CellBatch(batch.cells * kept, batch.facts, batch.captions)


def _optimizer(network: ClipNetwork, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; the convolutions stay as they are, and the map of the texts, which must fit words nobody trained too, learns ten times slower."""
    network.tower.body.requires_grad_(False)
    tower = [p for p in network.tower.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in tower if p.dim() >= 2], "weight_decay": 0.05, "full_lr": learning_rate},
        {"params": [p for p in tower if p.dim() < 2], "weight_decay": 0.0, "full_lr": learning_rate},
        {"params": [*network.text.parameters(), network.log_scale], "weight_decay": 0.0, "full_lr": learning_rate / 10},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def begin_from(judge: Judge, network: ClipNetwork, names: Bank) -> None:
    """Give the network the judge's trunk, and features in which it answers as the judge does about the first thing.

    The judge's head W = U S Vᵀ (things × cells' pooling, its mean taken off) is cut in two: Vᵀ becomes the image head, the rows of U S are what the
    names of the things should come to, and the map of the texts is fitted to them.
    """
    order = [judge.config.things.index(concept.emoji) for concept in concepts()]
    trunk = {name: tensor for name, tensor in judge.network.state_dict().items() if not name.startswith("heads.")}
    first, head = (cast("nn.Linear", one) for one in (judge.network.heads["first"], network.tower.heads[HEAD]))
    with torch.no_grad():
        network.tower.load_state_dict(trunk, strict=False)
        weight = first.weight[order]
        left, strength, right = torch.linalg.svd(weight - weight.mean(0), full_matrices=False)
        rank = min(len(strength), len(head.weight))
        head.weight.zero_()
        head.bias.zero_()
        head.weight[:rank] = right[:rank]
        anchors = torch.zeros(len(order), len(head.weight))
        anchors[:, :rank] = (left * strength)[:, :rank]
    fit_texts(network, names, F.normalize(anchors, dim=-1))


def fit_texts(network: ClipNetwork, names: Bank, anchors: Tensor) -> None:
    """Fit the map of the texts so that the names of each thing, in both languages, come to its anchor: `anchors` are unit vectors [things, width].

    By softmax steps, then the last layer anew as the ridge solution over all names: what is left of a name beside its anchor would drown a picture.
    """
    optimizer = torch.optim.AdamW(network.text.parameters(), lr=FIT_RATE, weight_decay=0.01)
    rng, scale = np.random.default_rng(0), float(network.log_scale.detach().exp())
    wanted = torch.arange(len(names)).repeat(2)
    for step in range(FIT_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = FIT_RATE * min(1.0, (step + 1) / 10) * (1 - step / FIT_STEPS)
        features = network.text_features(torch.cat([names.draw(language, rng) for language in ("ja", "en")]))
        loss = F.cross_entropy(scale * features @ anchors.T, wanted) + 1 - (features * anchors[wanted]).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, last = cast("nn.Linear", network.text[0]), cast("nn.Linear", network.text[2])
    with torch.no_grad():
        of_each = [names.all_of(one) for one in range(len(names))]
        hidden = F.pad(F.gelu(first(torch.cat(of_each))), (0, 1), value=1.0).double()
        targets = anchors.repeat_interleave(torch.tensor([len(rows) for rows in of_each]), dim=0).double()
        square = hidden.T @ hidden
        solved = torch.linalg.solve(square + RIDGE * square.diagonal().mean() * torch.eye(len(square)), hidden.T @ targets).float()
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])


def clip_losses(
    network: ClipNetwork, banks: dict[str, Bank], batch: CellBatch, rng: np.random.Generator
) -> tuple[dict[str, Tensor], float]:
    """A softmax loss for each of `LOSS_WEIGHTS` that the batch has an answer to, and the share (0…1) of pictures whose thing is found."""
    images, told, scale = network.cell_features(batch.cells), batch.facts, network.log_scale.exp().clamp(max=100.0)
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
