"""What a picture costs in counts, which no other load on the machine changes: forwards and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from jpgen.emphasis import PairedEncoder
from jpgen.pipeline import Pipeline


@dataclass
class Counts:
    """Rows of each forward, in order: of the denoiser as a whole, of its depth (what a step cache spares), of a text encoder, of the decoder."""

    forwards: list[int] = field(default_factory=list)
    deep: list[int] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)


@contextmanager
def counted(pipeline: Pipeline) -> Iterator[Counts]:
    """Within, every forward of the pipeline's models is counted where it is really computed."""
    counts = Counts()
    backbone: Any = pipeline.backbone
    parts = backbone._pipeline
    outer, deep = _leaves(getattr(parts, "unet", None) or parts.transformer)
    encoder: Any = pipeline.encoder
    encoders = encoder.pair if isinstance(encoder, PairedEncoder) else (encoder,)
    with ExitStack() as stack:
        for module, rows in ((outer, counts.forwards), (deep, counts.deep)):
            stack.callback(module.register_forward_hook(_hook(rows)).remove)
        for one in encoders:
            stack.enter_context(_listening(one, "encode_ids", counts.encoded))
        stack.enter_context(_listening(parts.vae, "decode", counts.decoded))
        yield counts


def _leaves(denoiser: Any) -> tuple[nn.Module, nn.Module]:
    """A module that runs in every forward, and one of the depth."""
    if hasattr(denoiser, "mid_block"):
        return denoiser.conv_in, denoiser.mid_block.resnets[0].conv1
    if hasattr(denoiser, "caption_projection"):
        return denoiser.pos_embed, denoiser.transformer_blocks[-1].attn1.to_q
    return denoiser.x_embedder, denoiser.transformer_blocks[-1].attn.to_q


def _hook(rows: list[int]) -> Callable[..., None]:
    return lambda _module, given, _made: rows.append(len(given[0]))


@contextmanager
def _listening(thing: Any, name: str, rows: list[int]) -> Iterator[None]:
    method = getattr(thing, name)

    def heard(first: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(first))
        return method(first, *args, **kwargs)

    setattr(thing, name, heard)
    try:
        yield
    finally:
        delattr(thing, name)
