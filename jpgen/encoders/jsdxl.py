"""The text encoder of Japanese Stable Diffusion XL without its repository's code: CLIP's penultimate states beside zeros.

Its pipeline has a second encoder of no weights ("null"), which gives zeros in place of the 1,280 wide states and pooled state of SDXL's second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from jpgen.emphasis import encode_weighted
from jpgen.encoders import clip
from jpgen.encoders.clip import ClipEncoder
from jpgen.encoders.embeddings import Embedding
from jpgen.errors import IncompatibleError
from jpgen.safety import read_json
from jpgen.types import Conditioning, ConditioningSpec

NULL_WIDTH = 1280
"""Width of SDXL's second encoder."""


class JsdxlEncoder:
    """Penultimate states without the final norm, with zeros of `null_width` at their right; the pooled state is zeros of that width."""

    def __init__(self, name: str, inner: ClipEncoder, null_width: int = NULL_WIDTH) -> None:
        self.name = name
        self._inner = inner
        self._null_width = null_width
        self.spec = ConditioningSpec(width=inner.spec.width + null_width, pooled_width=null_width)
        self.window, self.groups, self.modules = inner.window, inner.groups, inner.modules

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without begin and end."""
        return self._inner.tokenize(text)

    def with_clip_skip(self, clip_skip: int) -> JsdxlEncoder:
        """The same encoder read so many layers from its end (2, the penultimate, is its own); raises SettingError."""
        return JsdxlEncoder(self.name, self._inner.with_clip_skip(clip_skip), self._null_width)

    def with_embeddings(self, embeddings: Sequence[Embedding]) -> JsdxlEncoder:
        """The same encoder that knows these embeddings too; raises IncompatibleError for those of another width."""
        return JsdxlEncoder(self.name, self._inner.with_embeddings(embeddings), self._null_width)

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0; pooled zeros [batch, null width]."""
        states, _ = self._inner.encode_ids(ids, mask)
        return pad(states, (0, self._null_width)), torch.zeros(len(ids), self._null_width)

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, 77 a chunk, width] in fp32, nothing masked; longer texts in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def load(folder: Path, *, text_encoder: str = "", clip_skip: int = 1) -> JsdxlEncoder:
    """The encoder in `folder` (or in the folder `text_encoder`, for a U-Net in `folder`); the U-Net's config, if it is there, tells the null width.

    Raises WeightsError, IncompatibleError.
    """
    inner = clip.load(folder / Path(text_encoder).expanduser(), clip_skip=clip_skip, final_norm=False, projection=False)
    config = folder / "unet" / "config.json"
    null_width = read_json(config).get("cross_attention_dim", 0) - inner.spec.width if config.is_file() else NULL_WIDTH
    if null_width < 1:
        raise IncompatibleError(f"{folder}: エンコーダと U-Net が合いません / the encoder's width {inner.spec.width} leaves the U-Net no null states")
    return JsdxlEncoder("jsdxl", inner, null_width)


def toy() -> JsdxlEncoder:
    """Two layers of random weights, width 32, beside zeros of width 24."""
    return JsdxlEncoder("toy-jsdxl", clip.toy(clip_skip=1, final_norm=False), 24)
