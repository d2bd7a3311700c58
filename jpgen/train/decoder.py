"""Teach mame's decoder to paint from latents as its backbone guesses them.

Even where little noise is left, the backbone's guess is off by a fifth of the latents' spread. A decoder that has only seen true latents paints that
as coloured grain. So it learns from guesses, and paints the scene that was meant: the noise-augmented decoding of representation autoencoders
(Zheng et al. 2025, arXiv 2510.11690), with the backbone's own errors for noise. The encoder stays as it is, and so do the latents.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from torch import Tensor
from torch.utils.data import DataLoader

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.backbones.loading import filled
from jpgen.catalog import find_model
from jpgen.compute import best_dtype
from jpgen.train.autoencoder import reconstruction_loss, save_autoencoder, sheet
from jpgen.train.backbone import TEXT_LENGTH
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.latents import LANGUAGES, CaptionedScenes, collate
from jpgen.train.text_encoder import load_text_encoder

BATCH = 8
FIRST_SEED = 30_000_000
TIMES = (0.1, 0.4)
"""How noisy are the latents that the backbone guesses from: as at the last steps of sampling."""

TRUE = 0.25
"""Share of the pictures that are painted from their own latents: a picture may also be given to begin from."""

TEXTURE_WEIGHT = 3.0
"""Of `texture_loss`, beside the errors of pixels."""

MIXED = 0.5
"""Share of the trained weights in what is written; the rest are those before."""

LEARNING_RATE = 3e-4
SAVE_EVERY = 100


class Guesses:
    """Latents of scenes as the backbone in `folder` guesses them, with the guidance mame draws with."""

    def __init__(self, folder: Path, times: tuple[float, float] = TIMES) -> None:
        """Load `folder/transformer` and `folder/text_encoder`; it guesses from latents between these two of the times 0 (clean) … 1 (noise).

        Raises WeightsError.
        """
        self.times = times
        self.backbone: PixArtTransformer2DModel = filled(PixArtTransformer2DModel, folder / "transformer", torch.float32)
        self.encoder, self.tokenizer = load_text_encoder(folder)
        self.tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=TEXT_LENGTH)
        self.tokenizer.enable_truncation(TEXT_LENGTH)
        self.guidance = find_model("mame").default.guidance_scale

    @torch.no_grad()
    def __call__(self, latents: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        """Noise on `latents` [batch, 16, 16, 16], and what the backbone takes them for with these captions; same shape."""
        low, high = self.times
        times = low + (high - low) * torch.rand(len(latents), generator=generator)
        at = times[:, None, None, None]
        mixed = (1 - at) * latents + at * torch.randn(latents.shape, generator=generator)
        ids = torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch([*captions, *[""] * len(captions)])])
        mask = (ids != 1).long()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16):
            states = self.encoder(ids, attention_mask=mask).last_hidden_state
            guess = self.backbone(
                torch.cat([mixed, mixed]), encoder_hidden_states=states, encoder_attention_mask=mask, timestep=times.repeat(2) * 1000,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
            )[0]
        told, untold = guess.float().chunk(2)
        return untold + self.guidance * (told - untold)


def texture_loss(got: Tensor, wanted: Tensor) -> Tensor:
    """How much the strength of fine detail differs, on average over cells, at three sizes of detail, in lightness and in both colour contrasts.

    Where detail cannot be known from a guess (paper, strokes), the mean is what errors of pixels ask for: a smooth picture. Strength asks for grain
    as coarse and as strong as the style's, and for none where there is none. Pictures are [batch, 3, side, side], the side divisible by 64.
    """
    red, green, blue = torch.stack([got, wanted]).unbind(2)
    contrasts = torch.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], dim=2).flatten(0, 1)
    total = got.new_zeros(())
    for size in (1, 2, 4):
        small = F.avg_pool2d(contrasts, size)
        fine = small - F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        strength = (F.avg_pool2d(fine.square(), 16) + 1e-5).sqrt()
        first, second = strength.chunk(2)
        total = total + (first - second).abs().mean()
    return total


def train_decoder(data: Path, folder: Path, *, steps: int) -> AutoencoderShuffle:
    """Train the decoder in `folder/vae` for `steps` batches in all (resuming `folder/decoder.pt`) and write it; the latents stay as they are.

    Written is the mean of the weights before and after (Wortsman et al. 2022, arXiv 2109.01903), which paints true latents nearly as before.
    Raises TrainingDataError (no sprites, a damaged checkpoint), WeightsError.
    """
    guesses = Guesses(folder)
    model: AutoencoderShuffle = filled(AutoencoderShuffle, folder / "vae", torch.float32).to(memory_format=torch.channels_last)
    model.decoder.requires_grad_(True)
    before = copy.deepcopy(model.decoder.state_dict())
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    done = 0
    if state := load_state(folder / "decoder.pt"):
        model.load_state_dict(state["model"])
        before = state["before"]
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    curve = Curve(folder / "decoder.jsonl")
    errors: list[float] = []
    for step, (pictures, captions) in zip(range(done, steps), scenes(data, done), strict=False):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        latents = model.encode(pictures, return_dict=False)[0].mode()
        kept = torch.rand(len(latents), 1, 1, 1, generator=generator) < TRUE
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16):
            given = torch.where(kept, latents, guesses(latents, captions, generator))
            got = model.paint(model.features(given))
        loss = reconstruction_loss(got.float(), pictures) + TEXTURE_WEIGHT * texture_loss(got.float(), pictures)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        errors.append(F.mse_loss(got.float(), pictures).item())
        curve.count(BATCH)
        if (step + 1) % 50 == 0:
            curve.row(step=step + 1, mse=float(np.mean(errors[-50:])), loss=loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "before": before, "optimizer": optimizer.state_dict(), "step": step + 1}
            save_state(folder / "decoder.pt", state)
            sheet(pictures, got).save(folder / "decoder.png")
    model.decoder.load_state_dict({name: before[name].lerp(weight, MIXED) for name, weight in model.decoder.state_dict().items()})
    save_autoencoder(model, folder)
    return model


def scenes(data: Path, first_batch: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches of pictures [batch, 3, 256, 256] in −1…1 that mame learns from, each with its caption in one of the languages."""
    first = FIRST_SEED + first_batch * BATCH
    found = CaptionedScenes(data, range(first, FIRST_SEED + 10_000_000))
    for pictures, _, words in DataLoader(found, BATCH, num_workers=1, collate_fn=collate, prefetch_factor=4):
        captions = [word[LANGUAGES[i % len(LANGUAGES)]] for i, word in enumerate(words)]
        yield pictures.to(memory_format=torch.channels_last).float() / 127.5 - 1, captions
