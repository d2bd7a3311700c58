"""Teach mame's autoencoder how strong the grain of a picture is: the paper of watercolours.

Such detail is noise. Its latents cannot be known, so the backbone guesses their mean, and the decoder paints it smooth. How strong it was can be seen
in the rest of the picture (pale, blurred), and the autoencoder's `Grain` puts noise of that strength back.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jpgen.backbones.autoencoder import AutoencoderShuffle, Grain, pooled, speckles
from jpgen.backbones.loading import filled
from jpgen.train.autoencoder import save_autoencoder
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.decoder import BATCH, Guesses, scenes

SIZE = 2.0
"""Of the specks, in pixels: on three scales, their detail is to each other as that of a watercolour's paper."""

TIMES = (0.1, 0.7)
"""How noisy are the latents that the backbone guesses from: wider than the decoder's, as how strong a grain is shows early."""

CALM = 1 / 32
"""Share of a picture's cells, the calmest, that tell its grain: no edge runs through them."""

EPOCHS, ROWS = 60, 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.5
SAVE_EVERY = 50


def calm_detail(pictures: Tensor) -> Tensor:
    """Strength of the finest detail of lightness in the calmest cells: pictures [batch, 3, side, side] to [batch], as in −1…1."""
    lightness = pictures.mean(1, keepdim=True)
    fine = lightness - F.avg_pool2d(F.pad(lightness, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    cells = F.avg_pool2d(fine.square(), 16).flatten(1)
    return cells.topk(max(1, int(cells.shape[1] * CALM)), largest=False).values.mean(1).sqrt()


def train_grain(data: Path, folder: Path, *, steps: int) -> AutoencoderShuffle:
    """Look at `steps` batches of guesses in all (going on from `folder/grain.pt`), then fit the grain of `folder/vae` to all of them and write it.

    Nothing else of the autoencoder changes. Raises TrainingDataError (no sprites, a damaged checkpoint), WeightsError.
    """
    bare: AutoencoderShuffle = filled(AutoencoderShuffle, folder / "vae", torch.float32)
    model = AutoencoderShuffle.from_config(bare.config, grain_size=SIZE)
    model.load_state_dict(bare.state_dict(), strict=False)
    model.requires_grad_(False).to(memory_format=torch.channels_last)
    guesses = Guesses(folder, TIMES)
    state = load_state(folder / "grain.pt") or {"features": torch.empty(0), "wanted": torch.empty(0), "step": 0}
    features, wanted = list(state["features"].split(BATCH)), list(state["wanted"].split(BATCH))
    done = state["step"]
    for step, (pictures, captions) in zip(range(done, steps), scenes(data, done), strict=False):
        with torch.no_grad():
            latents = model.encode(pictures, return_dict=False)[0].mode()
            features.append(pooled(model.features(guesses(latents, captions, torch.Generator().manual_seed(step)))))
        wanted.append(calm_detail(pictures))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save_state(folder / "grain.pt", {"features": torch.cat(features), "wanted": torch.cat(wanted), "step": step + 1})
    fit_grain(model.grain, torch.cat(features), torch.cat(wanted), Curve(folder / "grain.jsonl"))
    save_autoencoder(model, folder)
    return model


def fit_grain(grain: Grain, features: Tensor, wanted: Tensor, curve: Curve) -> None:
    """Make `grain.strength` tell of `pooled` features how strong a grain has the wanted `calm_detail` [rows]; an eighth of them is held out."""
    target = wanted / calm_detail(speckles(256, 256, grain.size).expand(1, 3, -1, -1))
    mean, spread = features.mean(0), features.std(0) + 0.01
    scale = target.square().mean().sqrt()
    held = len(features) // 8
    inputs, outputs = ((features - mean) / spread).tensor_split([held]), (target / scale).tensor_split([held])
    grain.strength.requires_grad_(True)
    optimizer = torch.optim.AdamW(grain.strength.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - epoch / EPOCHS)
        for rows in torch.randperm(len(inputs[1]), generator=generator).split(ROWS):
            loss = F.mse_loss(grain.strength(inputs[1][rows])[:, 0], outputs[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            curve.row(step=epoch + 1, loss=loss.item(), held_out=F.mse_loss(grain.strength(inputs[0])[:, 0], outputs[0]).item())
    grain.strength.requires_grad_(False)
    weights = grain.strength.state_dict()  # it is to take features as they are, and to tell strength as it is
    weights["0.bias"] -= weights["0.weight"] @ (mean / spread)
    weights["0.weight"] /= spread
    for name in ("2.weight", "2.bias"):
        weights[name] *= scale
