"""A backbone's denoiser asked by itself, without a sampler: what training and measuring compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jpgen.errors import IncompatibleError
from jpgen.lora import DENOISER
from jpgen.types import Conditioning

TIMES = 1000
"""Time steps of the backbones that are trained on noise."""


def denoised(backbone: Any, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
    """What the backbone predicts for noisy latents [batch, channels, height, width] at times int64 [batch]; raises IncompatibleError.

    Backbones of the families sd, sdxl and pixart; a transformer that also learned sigma gives its prediction alone.
    """
    model = backbone.modules[DENOISER]
    shared = {"encoder_hidden_states": conditioning.tokens.to(noisy), "encoder_attention_mask": conditioning.mask, "return_dict": False}
    if backbone.family in ("sd", "sdxl"):
        more: dict[str, Any] = {}
        if conditioning.pooled is not None:
            height, width = (side * backbone.size_multiple for side in noisy.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=noisy.dtype).expand(len(noisy), -1)
            more["added_cond_kwargs"] = {"text_embeds": conditioning.pooled.to(noisy), "time_ids": sizes.to(noisy.device)}
        made: Tensor = model(noisy, times, **shared, **more)[0]
        return made
    if backbone.family == "pixart":
        conditions = {"resolution": None, "aspect_ratio": None}
        predicted: Tensor = model(noisy, timestep=times, **shared, added_cond_kwargs=conditions)[0]
        return predicted[:, : noisy.shape[1]]
    raise IncompatibleError(
        f"{backbone.name} ではノイズの蒸留ができません / {backbone.name} is of the family {backbone.family}: noise can be distilled from sd, sdxl "
        "and pixart; set the weights noise and features to 0 to learn from its text states alone"
    )


@contextmanager
def watched(backbone: Any) -> Iterator[list[Tensor]]:
    """Within, the list gets the output of each of the backbone's blocks, in the order they run."""
    model, seen = backbone.modules[DENOISER], []
    mid = getattr(model, "mid_block", None)
    blocks = [*getattr(model, "down_blocks", ()), *([mid] if mid is not None else ()), *getattr(model, "up_blocks", ())]

    def look(_module: nn.Module, _inputs: object, made: Any) -> None:
        seen.append(made[0] if isinstance(made, tuple) else made)

    handles = [block.register_forward_hook(look) for block in blocks or model.transformer_blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def random_noise(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pure noise [batch, channels, height, width] in the place of noisy latents, and uniform times int64 [batch]."""
    return torch.randn(tuple(shape), generator=generator), torch.randint(TIMES, (shape[0],), generator=generator)
