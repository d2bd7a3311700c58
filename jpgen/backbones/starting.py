"""Sampling that begins from a picture (SDEdit, Meng et al. 2022, arXiv 2108.01073) and keeps parts of it (RePaint's blending, arXiv 2201.09865).

One way for every family: diffusers' text-to-image pipeline runs as always, with its own scheduler, which here starts late (`timesteps` hold the last
part alone) from latents that the scheduler itself made noisy, and puts the noisy original back outside the mask after every step. That is what
diffusers' own Img2Img and Inpaint pipelines do, and the pictures are theirs; but it needs no pipeline a family, so PixArt, which has none, can too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jpgen.backbones.latents import encode, to_pixels
from jpgen.pictures import Fitted, fitted, steps_of
from jpgen.types import InitImage, SamplingConfig

Pack = Callable[[Tensor], Tensor]
"""From latents [batch, channels, rows, columns] to the form in which a pipeline samples them."""


@dataclass(frozen=True)
class Start:
    """Where sampling begins: the fitted `init`, its `clean` latents, fresh `noise` and `mask` (1: drawn anew), in the pipeline's form and fp32.

    Of the steps the first `skipped` are not run; `steps` are.
    """

    init: Fitted
    clean: Tensor
    noise: Tensor
    mask: Tensor | None
    skipped: int
    steps: int


def make_start(
    init: InitImage, config: SamplingConfig, vae: Any, generators: Sequence[torch.Generator], *, factor: int, pack: Pack = lambda latents: latents,
    blend: bool = True,
) -> Start:  # fmt: skip
    """Encode the picture and draw, in this order, what the autoencoder samples and the noise, from each generator.

    `factor`: pixels of a latent. A latent of which any pixel is masked is drawn anew; the pixels outside are put back by `paste`. A picture of which
    nothing is left (strength 1, no mask or no `blend`) is not encoded: what is drawn is then the very picture that the words alone give.
    """
    fit = fitted(init, config.width, config.height)
    if fit.strength < 1 or (blend and fit.mask is not None):
        clean = encode(vae, to_pixels(fit.image), generators)
    else:
        clean = torch.zeros(len(generators), vae.config.latent_channels, config.height // factor, config.width // factor)
    noise = torch.cat([torch.randn(clean[:1].shape, generator=generator) for generator in generators])
    mask = None if fit.mask is None else latent_mask(fit.mask, factor).expand_as(clean)
    steps = steps_of(config.steps, fit.strength)
    return Start(fit, pack(clean), pack(noise), None if mask is None else pack(mask), config.steps - steps, steps)


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """A mask of 0 and 255 as fp32 [1, 1, rows, columns] of latents, 1 where any of its pixels is white."""
    return torch.nn.functional.max_pool2d(torch.from_numpy(np.asarray(mask, np.float32) / 255)[None, None], factor)


def begin(scheduler: Any, start: Start, set_timesteps: Callable[[Any], object], *, blend: bool = True) -> Tensor:
    """Make the scheduler begin where the start says, and give the latents that the pipeline is to be given.

    `set_timesteps` sets the scheduler as the pipeline will; `blend`: put the noisy original back outside the mask.
    """
    own_timesteps, own_step, skipped = scheduler.set_timesteps, scheduler.step, start.skipped * getattr(scheduler, "order", 1)
    counts = hasattr(scheduler, "set_begin_index")
    whole = late = torch.empty(0)
    done = 0

    @functools.wraps(own_timesteps)
    def begin_late(*args: Any, **kwargs: Any) -> None:
        nonlocal whole, late, done
        own_timesteps(*args, **kwargs)
        whole, done = scheduler.timesteps, 0
        scheduler.timesteps = late = whole[skipped:]
        if counts:
            scheduler.set_begin_index()

    @functools.wraps(own_step)
    def step_and_blend(output: Any, time: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        scheduler.timesteps = whole  # the pipeline has its own list by now; the scheduler's arithmetic wants all of them
        made = own_step(output, time, sample, *args, **kwargs)
        done += 1
        if start.mask is None or not blend:
            return made
        latents = made[0]
        original, noise, mask = start.clean.to(latents), start.noise.to(latents), start.mask.to(latents)
        if done < len(late):
            original = noisy(scheduler, original, noise, late[done : done + 1])
        return ((1 - mask) * original + mask * latents, *made[1:])

    scheduler.set_timesteps, scheduler.step = begin_late, step_and_blend
    if counts:  # some pipelines say that they begin with the first
        own_begin = scheduler.set_begin_index
        scheduler.set_begin_index = lambda begin_index=0: own_begin(begin_index + skipped)
    set_timesteps(scheduler)
    if start.init.strength == 1:
        return start.noise
    return noisy(scheduler, start.clean, start.noise, late[:1]) / getattr(scheduler, "init_noise_sigma", 1)  # the pipeline multiplies by it


def noisy(scheduler: Any, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Clean latents with the noise of a timestep [1], by the scheduler."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(clean, time, noise)
    return scheduler.add_noise(clean, noise, time)


def paste(images: list[Image.Image], init: Fitted | None) -> list[Image.Image]:
    """The pictures with every pixel outside the mask exactly as in the original."""
    if init is None or init.mask is None:
        return images
    return [Image.composite(image, init.image, init.mask) for image in images]
