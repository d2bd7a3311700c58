"""Train mame's backbone: a PixArt transformer by rectified flow on cached latents.

Rectified flow (Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206): with data z, noise e and a time t, the network sees
x = (1 − t) z + t e and learns e − z. Times are logit-normal, a tenth of the captions empty, the weights averaged (EMA). Matrices inside the
blocks are trained by Muon (Jordan et al. 2024, as torch ships it), the rest by AdamW. The learning rate is constant after its warm-up; the last
`decay` steps take it to zero from a copy, so that a later run goes on from the constant part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jpgen.backbones import load_backbone
from jpgen.catalog import find_model
from jpgen.compute import best_dtype
from jpgen.encoders import load_encoder
from jpgen.pipeline import Pipeline
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.latents import LatentPool, encode_ragged
from jpgen.train.text_encoder import load_text_encoder
from jpgen.types import ModelInfo
from jpgen.weights import WEIGHTS, eight_bit_matrices, load_weights, save_weights

BATCH = 128
TEXT_LENGTH = 40
ENGLISH = 0.45
EMPTY = 0.1
WARM_UP = 100
EMA_DECAY = 0.9985
LEARNING_RATE = 3e-3
SAVE_EVERY = 100

CONFIG = {
    "num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 10, "cross_attention_dim": 384, "caption_channels": 384,
    "in_channels": 16, "out_channels": 16, "sample_size": 16, "patch_size": 2, "norm_type": "ada_norm_single", "use_additional_conditions": False,
}


def new_backbone() -> PixArtTransformer2DModel:
    """An untrained transformer: 64 latent tokens, 10 layers of width 384, 25 M parameters; its output and gates start at zero."""
    model = PixArtTransformer2DModel(**CONFIG)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.adaln_single.linear.weight)
    nn.init.zeros_(model.adaln_single.linear.bias)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for everything else, at a third of its learning rate."""

    def __init__(self, model: nn.Module) -> None:
        inside = {id(p) for name, p in model.named_parameters() if "transformer_blocks" in name and p.ndim == 2 and "table" not in name}
        matrices = [p for p in model.parameters() if id(p) in inside]
        others = [p for p in model.parameters() if id(p) not in inside]
        self.parts = (
            torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, learning_rate: float) -> None:
        """Update the parameters (Muon's at this rate, see the class) and drop the gradients."""
        for part, share in zip(self.parts, (1.0, 1 / 3), strict=True):
            for group in part.param_groups:
                group["lr"] = learning_rate * share
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, object]]:
        """The states of both parts."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Take the states of both parts."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def flow_loss(model: Callable[..., tuple[Tensor]], latents: Tensor, states: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity: latents [batch, 16, 16, 16], states [batch, length, 384], mask [batch, length]."""
    times = torch.sigmoid(torch.randn(len(latents), generator=generator))
    noise = torch.randn(latents.shape, generator=generator)
    at = times[:, None, None, None]
    mixed = (1 - at) * latents + at * noise
    conditions: dict[str, None] = {"resolution": None, "aspect_ratio": None}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        velocity = model(
            mixed, encoder_hidden_states=states, encoder_attention_mask=mask, timestep=times * 1000, added_cond_kwargs=conditions, return_dict=False
        )[0]
    return F.mse_loss(velocity.float(), noise - latents)


def train_backbone(folder: Path, *, steps: int, decay: int = 0, compiled: bool = True) -> None:
    """Train on `folder/latents` until `steps` in all and write `folder/transformer` and `folder/scheduler`.

    Resumes `folder/backbone.pt`; without it, starts from the weights in `folder/transformer` if there are any (a copy of `jpgen/mame`, say). The
    last `decay` steps anneal; their result is written but the checkpoint stays before them.
    """
    torch.manual_seed(0)
    pool = LatentPool(folder / "latents")
    encoder, tokenizer = load_text_encoder(folder)
    empty = encode_ragged([""], encoder, tokenizer)[0].float()
    del encoder
    model = new_backbone()
    if (folder / "transformer" / WEIGHTS).exists():
        model.load_state_dict(load_weights(folder / "transformer" / WEIGHTS))
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = Optimizer(model)
    done = 0
    if state := load_state(folder / "backbone.pt"):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    network = torch.compile(model, dynamic=False) if compiled else model
    curve = Curve(folder / "backbone.jsonl")
    losses: list[float] = []
    for step in range(done, steps):
        rng, generator = np.random.default_rng((7, step)), torch.Generator().manual_seed(step)
        latents, states, mask = pool.sample(BATCH, TEXT_LENGTH, ENGLISH, rng)
        for i in np.flatnonzero(rng.random(BATCH) < EMPTY):
            states[i], mask[i] = 0, 0
            states[i, : len(empty)], mask[i, : len(empty)] = empty, 1
        loss = flow_loss(network, latents, states, mask, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(LEARNING_RATE * min(1.0, (step + 1) / WARM_UP, (steps - step) / max(decay, 1)))
        keep = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        losses.append(loss.item())
        curve.count(BATCH)
        if (step + 1) % 50 == 0:
            curve.row(step=step + 1, samples=(step + 1) * BATCH, loss=float(np.mean(losses[-50:])))
        if (step + 1) % SAVE_EVERY == 0 and step + 1 <= steps - decay:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_state(folder / "backbone.pt", state)
            write_backbone(average, folder)
            pool.refresh()
    write_backbone(average, folder)


def write_backbone(model: PixArtTransformer2DModel, folder: Path) -> None:
    """Write `folder/transformer` in 8 bits and the sampler's settings in `folder/scheduler`."""
    target = folder / "transformer"
    target.mkdir(exist_ok=True)
    model.save_config(target)
    save_weights(target / WEIGHTS, model.state_dict(), bits=eight_bit_matrices)
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0).save_pretrained(folder / "scheduler")


SHEET = (
    ("猫", "a cat"),
    ("赤い船", "a red ship"),
    ("富士山", "Mount Fuji"),
    ("夕焼けの海に浮かぶ赤い船", "a red ship, the sea at sunset"),
    ("鳥居と桜並木", "torii gate, cherry blossom trees"),
    ("左に犬、右に車", "a dog on the left, a car on the right"),
    ("三つのりんご", "three apples"),
    ("ドット絵の鬼", "an oni, pixel art"),
    ("水彩画風の桜の花", "watercolor of a cherry blossom"),
    ("夜空の満月", "a full moon, starry night sky"),
    ("青いうさぎ、雪景色", "a blue rabbit, a snowy landscape"),
    ("浮世絵風の大きな波", "a big wave, ukiyo-e style"),
)
"""Prompts of the sample sheet, Japanese and English."""


def sample_sheet(folder: Path) -> Image.Image:
    """Pictures of `SHEET` by the weights in `folder`, pairs with the same seed."""
    pipeline = open_folder(folder)
    sheet = Image.new("RGB", (256 * len(SHEET), 512))
    for column, pair in enumerate(SHEET):
        for row, made in enumerate(pipeline.generate_many(pair, seed=column)):
            sheet.paste(made.image, (256 * column, 256 * row))
    return sheet


def open_folder(folder: Path) -> Pipeline:
    """The pipeline of a mame in training."""
    entry = replace(find_model("mame"), path=str(folder), revision="training")
    return Pipeline.from_parts(load_encoder(entry.encoder, folder), load_backbone(entry), ModelInfo("mame", "training", entry.license, ""))
