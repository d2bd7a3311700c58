"""The two text encoders of Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952) side by side, each with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from jpgen.emphasis import Chunk, TokenWindow, encode_weighted
from jpgen.encoders import clip
from jpgen.encoders.clip import ClipEncoder
from jpgen.encoders.embeddings import PAIR, Embedding
from jpgen.errors import IncompatibleError
from jpgen.types import Conditioning, ConditioningSpec

BASE = 2**20
"""More than any vocabulary has: a pair of ids a, b is the one id a·BASE + b."""

ABSENT = BASE - 1
"""In a pair: this encoder has no token here, the other one does."""


class SdxlEncoder:
    """Penultimate states of both encoders, without the final norm, beside each other; the pooled state is the second's.

    Each reads a text with its own tokenizer. Chunks stay aligned by pairs: the n-th id of a text stands for the n-th token of either encoder, or for
    none where one of them needs fewer, so a chunk that is full for one is full for both. Each encoder then sees its own tokens alone.
    """

    def __init__(self, name: str, first: ClipEncoder, second: ClipEncoder) -> None:
        if second.spec.pooled_width is None:
            raise IncompatibleError(f"{name}: 2 つ目のエンコーダに射影がありません / the second encoder lacks a text projection: choose SDXL's")
        self.name = name
        self.pair = (first, second)
        self.modules = {"text_encoder": first.modules["text_encoder"], "text_encoder_2": second.modules["text_encoder"]}
        self.groups = {a * BASE + b: count for (a, count), b in zip(first.groups.items(), second.groups, strict=True)}
        self.spec = ConditioningSpec(width=first.spec.width + second.spec.width, pooled_width=second.spec.pooled_width)
        one, other = first.window, second.window
        begin, end = _paired(one.begin, other.begin), _paired(one.end, other.end)
        full = min(window.length + len(window.begin + window.end) for window in (one, other))
        self.window = TokenWindow(full - len(begin + end), begin=begin, end=end, pad=one.pad * BASE + other.pad, fixed=True)

    def tokenize(self, text: str) -> list[int]:
        """The pairs of ids of the text, without begin and end."""
        return [pair for piece in self.pair[0].pieces(text) for pair in _paired(*(encoder.tokenize(piece) for encoder in self.pair))]

    def with_clip_skip(self, clip_skip: int) -> SdxlEncoder:
        """The same encoders, both read so many layers from the end (2, the penultimate, is SDXL's own); raises SettingError."""
        first, second = self.pair
        return SdxlEncoder(self.name, first.with_clip_skip(clip_skip), second.with_clip_skip(clip_skip))

    def with_embeddings(self, embeddings: Sequence[Embedding]) -> SdxlEncoder:
        """The same encoders that know these embeddings too; raises IncompatibleError for those that have not vectors for both."""
        widths = [encoder.spec.width for encoder in self.pair]
        names = [embedding.name for embedding in embeddings]
        vectors = [embedding.require(PAIR, widths, self.name) for embedding in embeddings]
        first, second = (encoder.with_vectors(names, [both[place] for both in vectors]) for place, encoder in enumerate(self.pair))
        return SdxlEncoder(self.name, first, second)

    def share(self, place: int, chunk: Chunk) -> Chunk:
        """What the first (0) or second (1) encoder sees of a chunk of pairs."""
        own = [(_own(place, token), weight, span) for token, weight, span in zip(chunk.ids, chunk.weights, chunk.spans, strict=True)]
        ids, weights, spans = zip(*[token for token in own if token[0] != ABSENT], strict=True) if any(t[0] != ABSENT for t in own) else ((), (), ())
        return Chunk(ids, weights, spans)

    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """States fp32 [batch, seq, width] of pairs int64 [batch, seq], none of which sees one whose mask is 0; pooled [batch, pooled width]."""
        states, pooled = zip(*[self._half(place, ids, mask) for place in (0, 1)], strict=True)
        return torch.cat(states, dim=-1), pooled[1]

    def _half(self, place: int, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        own = ids // BASE if place == 0 else ids % BASE
        absent = own == ABSENT
        order = absent.int().argsort(dim=1, stable=True)  # what is there moves up, what is not becomes filling
        own = own.masked_fill(absent, self.pair[place].window.pad).gather(1, order)
        return self.pair[place].encode_ids(own, mask.masked_fill(absent, 1).gather(1, order))

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, 77 a chunk, width] in fp32, nothing masked; longer texts in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def _paired(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    return tuple(a * BASE + b for a, b in zip_longest(first, second, fillvalue=ABSENT))


def _own(place: int, token: int) -> int:
    return token // BASE if place == 0 else token % BASE


def load(folder: Path, *, text_encoder: str = "", text_encoder_2: str = "", clip_skip: int = 1) -> SdxlEncoder:
    """The encoders of a diffusers folder or a single file; another folder or file may bring both (Tohoku's) or either (Evo's: the first of JSDXL).

    `text_encoder` names it, as a path from `folder`; the second is there too, if it has one, unless `text_encoder_2` names yet another. Raises
    WeightsError, IncompatibleError.
    """
    here = folder.parent if folder.is_file() else folder
    one = here / Path(text_encoder).expanduser() if text_encoder else folder
    two = here / Path(text_encoder_2).expanduser() if text_encoder_2 else one if one.is_file() or (one / "text_encoder_2").is_dir() else folder
    first = clip.load(one, clip_skip=clip_skip, final_norm=False, projection=False)
    second = clip.load(two, suffix="_2", clip_skip=clip_skip, final_norm=False, projection=True)
    return SdxlEncoder("sdxl", first, second)


def toy() -> SdxlEncoder:
    """Two encoders of two layers of random weights, each 32 wide; pooled 24."""
    return SdxlEncoder("toy-sdxl", clip.toy(clip_skip=1, final_norm=False), clip.toy(projection=True, clip_skip=1, final_norm=False))
