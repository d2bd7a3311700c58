"""Train mame's backbone: a PixArt transformer on cached latents along the straight paths of rectified flow.

Rectified flow (Liu et al. 2022, arXiv 2209.03003): with data z, noise e and a time t, the network sees x = (1 − t) z + t e. It says z itself, not
e − z: a patch of 4 × 4 latents has 256 numbers, of which few are the picture's and all the noise's (Li & He 2025, arXiv 2511.13720). Errors weigh
1 / t², as they would in e − z, up to `HEAVIEST`. A tenth of the captions are empty, the weights averaged (EMA). Matrices inside the blocks are
trained by Muon (Jordan et al. 2024), the rest by AdamW. The learning rate is constant after its warm-up; the last `decay` steps take it to zero
from a copy, so that a later run goes on from the constant part.

Times are uniform, then shifted towards noise (Esser et al. 2024, arXiv 2403.03206, equation 23): the less is to be seen, the more the network must
listen to the words. Of logit-normal times 4 % lie above t = 0.85, of these half.

The noise alone teaches slowly which word belongs to which place. So a linear reader in the middle of the network must also say which thing, colour
and style each patch shows: the representation alignment of REPA (Yu et al. 2025, arXiv 2410.06940), with the renderer's own facts in place of another
network's features. It is dropped when training ends.
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
from jpgen.train.latents import Batch, LatentPool, encode_ragged
from jpgen.train.muon import Muon
from jpgen.train.scenes import COLORS, UNTOLD, concepts
from jpgen.train.styles import STYLES
from jpgen.train.text_encoder import load_text_encoder
from jpgen.types import ModelInfo
from jpgen.weights import WEIGHTS, eight_bit_matrices, load_weights, save_weights

BATCH = 64
TEXT_LENGTH = 32
"""Tokens of a caption; the few that are longer are passed over."""

SHIFT = 6.0
"""Of the times, in training as in sampling: t becomes s t / (1 + (s − 1) t)."""

HEAVIEST = 10.0
"""Weight of an error at the most, where there is little noise."""

ENGLISH = 0.4
EMPTY = 0.1
WARM_UP = 50
EMA_DECAY = 0.995
LEARNING_RATE = 2e-3
SAVE_EVERY = 100
READ_AFTER = 4
"""The reader looks at what this many blocks have made of the picture."""

READING_WEIGHT = 0.1
BACKGROUND_WEIGHT = 0.2
"""Weight of a patch where nothing stands, against one with a thing."""

READ = {"thing": len(concepts()) + 1, "color": len(COLORS) + 1, "style": len(STYLES)}
"""What the reader must say of every patch, in the order of `scenes.regions` -> number of classes."""

CONFIG = {
    "num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 8, "cross_attention_dim": 384, "caption_channels": 384,
    "in_channels": 16, "out_channels": 16, "sample_size": 16, "patch_size": 4, "norm_type": "ada_norm_single", "use_additional_conditions": False,
}


def new_backbone() -> PixArtTransformer2DModel:
    """An untrained transformer: 16 latent tokens (patches of 64 pixels), 8 layers of width 384, 21 M parameters; output and gates start at zero."""
    model = PixArtTransformer2DModel(**CONFIG)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.adaln_single.linear.weight)
    nn.init.zeros_(model.adaln_single.linear.bias)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


class ReadingBackbone(nn.Module):
    """A backbone in training, with the reader of its middle: guessed latents [batch, 16, 16, 16] and logits [batch, 16, all classes of `READ`]."""

    def __init__(self, backbone: PixArtTransformer2DModel) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.config.num_attention_heads * backbone.config.attention_head_dim
        self.reader = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(READ.values())))
        self.middle: Tensor | None = None
        backbone.transformer_blocks[READ_AFTER - 1].register_forward_hook(self._look)

    def _look(self, _block: nn.Module, _inputs: object, states: Tensor) -> None:
        self.middle = states

    def forward(self, mixed: Tensor, states: Tensor, mask: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents [batch, 16, 16, 16], text states [batch, length, 384], mask [batch, length], times [batch] in 0…1."""
        conditions: dict[str, None] = {"resolution": None, "aspect_ratio": None}
        guess = self.backbone(
            mixed, encoder_hidden_states=states, encoder_attention_mask=mask, timestep=times * 1000, added_cond_kwargs=conditions, return_dict=False
        )[0]
        return guess, self.reader(self.middle)


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for everything else, at a third of its learning rate."""

    def __init__(self, model: nn.Module) -> None:
        inside = {id(p) for name, p in model.named_parameters() if "transformer_blocks" in name and p.ndim == 2 and "table" not in name}
        matrices = [p for p in model.parameters() if id(p) in inside]
        others = [p for p in model.parameters() if id(p) not in inside]
        self.parts = (
            Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05),
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


def losses(model: Callable[..., tuple[Tensor, Tensor]], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Of a `ReadingBackbone`: the squared error of the guessed latents weighted by time, and the cross entropy of each of `READ`."""
    latents = batch.latents
    even = torch.rand(len(latents), generator=generator)
    times = SHIFT * even / (1 + (SHIFT - 1) * even)
    noise = torch.randn(latents.shape, generator=generator)
    at = times[:, None, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        guess, logits = model((1 - at) * latents + at * noise, batch.states, batch.mask, times)
    told = {"loss": ((guess.float() - latents) ** 2 * (1 / at**2).clamp_max(HEAVIEST)).mean()}
    for name, answers, right in zip(READ, logits.float().flatten(0, 1).split(list(READ.values()), dim=1), batch.regions.unbind(1), strict=True):
        weights = torch.ones(READ[name])
        if name == "thing":
            weights[0] = BACKGROUND_WEIGHT
        told[name] = F.cross_entropy(answers, right.flatten(), weight=weights, ignore_index=UNTOLD)
    return told


def train_backbone(folder: Path, *, steps: int, decay: int = 0, learning_rate: float = LEARNING_RATE, compiled: bool = True) -> None:
    """Train on `folder/latents` until `steps` in all and write `folder/transformer` and `folder/scheduler`.

    Resumes `folder/backbone.pt`; without it, starts from the weights in `folder/transformer` if there are any (a copy of `jpgen/mame`, say). The
    last `decay` steps anneal; their result is written but the checkpoint stays before them. `learning_rate` is Muon's before that.
    """
    torch.manual_seed(0)
    pool = LatentPool(folder / "latents")
    encoder, tokenizer = load_text_encoder(folder)
    empty = encode_ragged([""], encoder, tokenizer)[0].float()
    del encoder
    model = ReadingBackbone(new_backbone())
    if (folder / "transformer" / WEIGHTS).exists():
        model.backbone.load_state_dict(load_weights(folder / "transformer" / WEIGHTS))
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
    recent: list[list[float]] = []
    for step in range(done, steps):
        rng, generator = np.random.default_rng((7, step)), torch.Generator().manual_seed(step)
        batch = pool.sample(BATCH, TEXT_LENGTH, ENGLISH, rng)
        for i in np.flatnonzero(rng.random(BATCH) < EMPTY):
            batch.states[i], batch.mask[i] = 0, 0
            batch.states[i, : len(empty)], batch.mask[i, : len(empty)] = empty, 1
        told = losses(network, batch, generator)
        (told["loss"] + READING_WEIGHT * sum(told[name] for name in READ)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate * min(1.0, (step + 1) / WARM_UP, (steps - step) / max(decay, 1)))
        keep = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        recent.append([value.item() for value in told.values()])
        curve.count(BATCH)
        if (step + 1) % 50 == 0:
            means = dict(zip(told, np.mean(recent, axis=0).tolist(), strict=True))
            curve.row(step=step + 1, samples=(step + 1) * BATCH, **means)
            recent.clear()
        if (step + 1) % SAVE_EVERY == 0 and step + 1 <= steps - decay:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_state(folder / "backbone.pt", state)
            write_backbone(average.backbone, folder)
            pool.refresh()
    write_backbone(average.backbone, folder)


def write_backbone(model: PixArtTransformer2DModel, folder: Path) -> None:
    """Write `folder/transformer` in 8 bits and the sampler's settings in `folder/scheduler`."""
    target = folder / "transformer"
    target.mkdir(exist_ok=True)
    model.save_config(target)
    save_weights(target / WEIGHTS, model.state_dict(), bits=eight_bit_matrices)
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="sample", flow_shift=SHIFT).save_pretrained(folder / "scheduler")


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
