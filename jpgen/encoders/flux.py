"""FLUX.1's two encoders: T5 gives the tokens, filling and all, CLIP the pooled state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from jpgen.emphasis import encode_weighted
from jpgen.encoders import clip, t5
from jpgen.encoders.clip import ClipEncoder
from jpgen.encoders.t5 import T5Encoder
from jpgen.types import Conditioning, ConditioningSpec

MAX_TOKENS = 256
"""Tokens of one pass of T5, the end among them, unless told: those of FLUX.1-schnell (512: dev)."""


class FluxEncoder:
    """Token states of T5, every pass filled to full length, nothing masked; the pooled state is CLIP's at the end of the text's first 75 tokens."""

    def __init__(self, tokens: T5Encoder, pooled: ClipEncoder) -> None:
        self.name = f"{tokens.name}+{pooled.name}"
        self._tokens, self._pooled = tokens, pooled
        self.window = tokens.window
        self.modules = {"text_encoder": pooled.modules["text_encoder"], "text_encoder_2": tokens.modules["text_encoder"]}
        self.spec = ConditioningSpec(width=tokens.spec.width, pooled_width=pooled.spec.width)

    def tokenize(self, text: str) -> list[int]:
        """T5's ids of the text, without the end."""
        return self._tokens.tokenize(text)

    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """T5's states fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0."""
        return self._tokens.encode_ids(ids, mask)

    @torch.inference_mode()
    def encode_pooled(self, texts: Sequence[str]) -> Tensor:
        """CLIP's states fp32 [batch, pooled width] where each text ends."""
        window = self._pooled.window
        kept = [self._pooled.tokenize(text)[: window.length] for text in texts]
        rows = [[*window.begin, *ids, *window.end, *[window.pad] * (window.length - len(ids))] for ids in kept]
        states, _ = self._pooled.encode_ids(torch.tensor(rows), torch.ones(len(rows), len(rows[0]), dtype=torch.int64))
        return states[torch.arange(len(rows)), torch.tensor([len(window.begin) + len(ids) for ids in kept])]

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, 256 a chunk, width] and pooled [batch, pooled width] in fp32, nothing masked."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def load(folder: Path, *, max_tokens: int = MAX_TOKENS) -> FluxEncoder:
    """CLIP in `text_encoder/` and `tokenizer/`, T5 in `text_encoder_2/` and `tokenizer_2/`, as diffusers lays them out; raises WeightsError."""
    return FluxEncoder(t5.load(folder, suffix="_2", max_tokens=max_tokens, fixed=True), clip.load(folder))


def toy() -> FluxEncoder:
    """Two encoders of two layers of random weights, widths 32 and 32."""
    return FluxEncoder(t5.toy(fixed=True), clip.toy())
