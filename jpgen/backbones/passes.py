"""Which forwards of a denoiser a run of the sampler pays for: guidance on some of the steps only, and an opt-in step cache.

Nothing of a pipeline or a model is changed: for the time of one `sample` the denoiser's forward is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from jpgen.backbones.caches import cached
from jpgen.backbones.forwards import Forward, chosen, replaced
from jpgen.types import SamplingConfig


def is_guided(config: SamplingConfig) -> bool:
    """Whether any step sees the negative prompt."""
    return config.guidance_scale > 1 and config.guidance_start < config.guidance_stop


def guided_steps(config: SamplingConfig, total: int) -> range:
    """Which of `total` forwards (from 0) are guided: those at or after `guidance_start`·total and before `guidance_stop`·total."""
    start, stop = (math.ceil(round(fraction * total, 6)) for fraction in (config.guidance_start, config.guidance_stop))
    return range(start, stop)


@contextmanager
def passes(denoiser: nn.Module, config: SamplingConfig, scheduler: Any, *, guided: bool, in_turn: bool = False) -> Iterator[None]:
    """Within, a `guided` run of `scheduler` pays for the negative prompt on the steps of the guidance interval alone, and the step cache is on.

    Limited-interval guidance (Kynkäänniemi et al. 2024, arXiv 2404.07724); the fractions are of the steps that are run. Elsewhere only the
    conditional rows run and stand for both halves, so that classifier-free guidance gives their prediction whatever its scale. `in_turn`: the
    pipeline runs the prompt, then the negative one (FLUX); else both in one batch, the negative rows first. Raises UnknownNameError or
    IncompatibleError for the cache.
    """
    with ExitStack() as stack:
        stack.enter_context(cached(denoiser, config.cache))
        if guided and (config.guidance_start > 0 or config.guidance_stop < 1):
            wrap = _second_spared if in_turn else _half_spared
            stack.enter_context(replaced(denoiser, lambda forward: wrap(forward, config, scheduler)))
        yield


def _half_spared(forward: Forward, config: SamplingConfig, scheduler: Any) -> Forward:
    done, steps = 0, range(0)

    def run(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal done, steps
        steps = steps if done else guided_steps(config, len(scheduler.timesteps))  # as they are before the first step: those that will be run
        guided = done in steps
        done += 1
        if guided:
            return forward(sample, *args, **kwargs)
        rows = len(sample)
        first, *others = chosen((sample, *args), rows, lambda tensor: tensor[rows // 2 :])
        made = forward(first, *others, **chosen(kwargs, rows, lambda tensor: tensor[rows // 2 :]))
        return chosen(made, rows - rows // 2, lambda tensor: torch.cat([tensor, tensor]))

    return run


def _second_spared(forward: Forward, config: SamplingConfig, scheduler: Any) -> Forward:
    done, steps = 0, range(0)
    last: Any = None

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal done, steps, last
        steps = steps if done else guided_steps(config, len(scheduler.timesteps))
        step, second = divmod(done, 2)
        done += 1
        if not second or step in steps:
            last = forward(*args, **kwargs)
        return last

    return run
