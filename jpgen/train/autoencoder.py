"""Train the autoencoder of mame on rendered scenes of every drawing, in any art set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.scenes import Concept, Stage, plan, render
from jpgen.train.sprites import ART, load_sprites
from jpgen.weights import WEIGHTS, eight_bit_matrices, save_weights

BATCH = 16
KL_WEIGHT = 1e-3


class ScenePictures(IterableDataset[Tensor]):
    """Endless batches of rendered scenes, uint8 [batch, 3, 256, 256], over every drawing there is."""

    def __init__(self, data: Path, first_seed: int) -> None:
        self.data, self.first_seed = data, first_seed

    def __iter__(self) -> Iterator[Tensor]:
        sprites, drawings = load_sprites(self.data)
        every = [Concept(emoji, (), (), "", 1.0) for emoji in sorted({d.emoji for d in drawings})]
        stage = Stage(drawings, among=every, art=tuple(ART))
        worker = get_worker_info()
        step, start = (worker.num_workers, worker.id) if worker else (1, 0)
        seed = self.first_seed + start
        while True:
            pictures = []
            for _ in range(BATCH):
                pictures.append(np.asarray(render(plan(seed, stage), sprites)))
                seed += step
            yield torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def reconstruction_loss(got: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute and squared error of pixels, and absolute error of their horizontal and vertical differences (edges)."""
    error = got - wanted
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + error.square().mean() + edges


def train_autoencoder(data: Path, out: Path, *, steps: int, learning_rate: float = 6e-4) -> AutoencoderShuffle:
    """Train for `steps` batches in all (resuming `out/autoencoder.pt`), then write `out/vae/`, its latents standardised."""
    out.mkdir(parents=True, exist_ok=True)
    model = AutoencoderShuffle().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    done = 0
    if state := load_state(out / "autoencoder.pt"):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    curve = Curve(out / "autoencoder.jsonl")
    loader = iter(DataLoader(ScenePictures(data, 10_000_000 + done * BATCH), batch_size=None, num_workers=1, prefetch_factor=4))
    errors: list[float] = []
    for step in range(done, steps):
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * (1.0 if share < 0.5 else max(0.02, 2 * (1 - share)))
        pictures = next(loader).to(memory_format=torch.channels_last).float() / 127.5 - 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = model.encode(pictures).latent_dist
            got = model.decode(posterior.sample()).sample
        loss = reconstruction_loss(got.float(), pictures) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        errors.append(F.mse_loss(got.float(), pictures).item())
        curve.count(BATCH)
        if (step + 1) % 50 == 0:
            curve.row(step=step + 1, mse=float(np.mean(errors[-50:])), loss=loss.item(), latent_std=posterior.mean.float().std().item())
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(out / "autoencoder.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
            sheet(pictures, got).save(out / "autoencoder.png")
    standardize_latents(model, loader)
    save_autoencoder(model, out)
    return model


def save_autoencoder(model: AutoencoderShuffle, out: Path) -> None:
    """Write `out/vae/`, its matrices in 8 bits."""
    folder = out / "vae"
    folder.mkdir(exist_ok=True)
    model.save_config(folder)
    save_weights(folder / WEIGHTS, model.state_dict(), bits=eight_bit_matrices)


@torch.no_grad()
def standardize_latents(model: AutoencoderShuffle, loader: Iterator[Tensor], batches: int = 32) -> None:
    """Set `latent_mean` (a channel's own) and `latent_std` (one for all, so that channels that say more weigh more) from a few hundred scenes."""
    latents = []
    for _ in range(batches):
        pictures = next(loader).to(memory_format=torch.channels_last).float() / 127.5 - 1
        latents.append(model.encoder(pictures).chunk(2, dim=1)[0])
    joined = torch.cat(latents)
    model.latent_mean.copy_(joined.mean((0, 2, 3), keepdim=True))
    model.latent_std.fill_((joined - model.latent_mean).std().item())


def sheet(pictures: Tensor, got: Tensor) -> Image.Image:
    """Up to eight pictures above their reconstructions."""
    pairs = torch.cat([pictures[:8].detach().float(), got[:8].detach().float()], dim=-2).clamp(-1, 1)
    strip = torch.cat(list(pairs), dim=-1).add(1).mul(127.5).byte().permute(1, 2, 0)
    return Image.fromarray(strip.numpy())
