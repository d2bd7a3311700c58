"""Attention weights into embeddings, and prompts of any length in chunks, for every encoder that says how it reads tokens.

A prompt is a list of spans, (text, weight), as the prompt parser leaves them; `BREAK` among them starts a new chunk. Every span is tokenised
alone; chunks of as many tokens as one pass of the encoder takes are encoded each alone and put in line. A weight then scales what its tokens
say, in one of the ways of `MODES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jpgen.errors import PromptError, UnknownNameError
from jpgen.types import Conditioning

BREAK = ("BREAK", -1.0)  # the span that starts a new chunk

MAX_WEIGHT = 100
LEAST_MEAN = 1e-5  # a mean smaller than this part of the mean size is rounding
LEAST_WEIGHT = 1e-5  # compel's: a weight of 0 counts as this, for tan(π/2) is not finite
ENDS = re.compile(r"(?P<sentence>(?:[\r\n。｡！？!?]|\.(?=\s))+[」』）)】〉》\]”’\"']*)|[、､，,]+")
"""Where a chunk may end: after a sentence rather than after a clause. A closing bracket stays with its sentence."""


@dataclass(frozen=True)
class TokenWindow:
    """What one pass of an encoder takes: `length` tokens of text between the ids `begin` and `end`.

    `fixed`: every pass is filled with `pad` to full length and sees the filling (CLIP); else filling only makes a batch, and is masked.
    """

    length: int
    begin: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    fixed: bool


@runtime_checkable
class TokenEncoder(Protocol):
    """A text encoder that can be asked token by token."""

    @property
    def window(self) -> TokenWindow:
        """What one pass takes."""

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, whole, without begin and end."""

    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """States fp32 [batch, seq, width] and pooled [batch, pooled width] or None of int64 [batch, seq]; no token sees one of mask 0."""


@runtime_checkable
class SpanEncoder(Protocol):
    """A text encoder that weighs spans by itself (one behind which an adapter stands)."""

    def encode_spans(self, prompts: Sequence[Sequence[tuple[str, float]]], mode: str) -> Conditioning:
        """Conditioning of prompts given as spans, one row each, their weights acting as `mode` says."""


@runtime_checkable
class PooledEncoder(Protocol):
    """A token encoder whose pooled state comes of the whole text by another model, with other tokens (FLUX: CLIP beside T5)."""

    def encode_pooled(self, texts: Sequence[str]) -> Tensor:
        """Pooled states fp32 [batch, pooled width] of the texts."""


@runtime_checkable
class PairedEncoder(Protocol):
    """A token encoder made of two of fixed passes, whose states stand side by side (SDXL); its ids are pairs of theirs.

    Weights act in each of the two alone, as they do in every program for SDXL.
    """

    @property
    def pair(self) -> tuple[TokenEncoder, TokenEncoder]:
        """The two."""

    def share(self, place: int, chunk: Chunk) -> Chunk:
        """What the first (0) or second (1) sees of a chunk."""


@runtime_checkable
class GroupingEncoder(Protocol):
    """A token encoder some of whose tokens belong together: the vectors of an embedding, which a chunk takes all or none of."""

    @property
    def groups(self) -> Mapping[int, int]:
        """The first id of each group, and how many tokens it has."""


@dataclass(frozen=True)
class Chunk:
    """The text tokens of one pass: their ids, their weights, and the number of the span each is from."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    spans: tuple[int, ...] = ()


@dataclass(frozen=True)
class Passes:
    """What a mode sees: a row for every chunk, begin, end and filling in place (weight 1, span -1); `prompts` says whose it is.

    `ids`, `mask` and `spans` (numbered through all prompts) int64, `weights` fp32, all [rows, seq]; `states` [rows, seq, width].
    """

    encoder: TokenEncoder
    ids: Tensor
    mask: Tensor
    weights: Tensor
    spans: Tensor
    prompts: tuple[int, ...]
    states: Tensor

    def empty(self) -> Tensor:
        """States of the empty prompt, filled as the rows are: [1, seq, width]."""
        ids, mask, _, _ = _fill([Chunk()], self.encoder.window, self.ids.shape[1])
        return self.encoder.encode_ids(ids, mask)[0]


def chunk(spans: Sequence[tuple[str, float]], encoder: TokenEncoder, *, backtrack: int = 20) -> list[Chunk]:
    """The tokens of the spans, all of them, in chunks of at most `encoder.window.length`; none for an empty prompt.

    A full chunk ends at the last newline or 。！？ of its last `backtrack` tokens, else at the last 、 or comma there, else where it is full.
    `BREAK` ends a chunk; two in a row make no empty one. An embedding that does not fit whole begins the next chunk.
    """
    length = encoder.window.length
    groups = encoder.groups if isinstance(encoder, GroupingEncoder) else {}
    chunks: list[Chunk] = []
    row: list[tuple[int, float, int, int]] = []  # id, weight, span, what ends after it

    def close(size: int) -> None:
        if size:
            ids, weights, numbers, _ = zip(*row[:size], strict=True)
            chunks.append(Chunk(ids, weights, numbers))
            del row[:size]

    for is_break, section in groupby(enumerate(spans), key=lambda item: tuple(item[1]) == BREAK):
        tokens = [(number, text, weight, encoder.tokenize(text)) for number, (text, weight) in section if not is_break]
        fits = sum(len(ids) for *_, ids in tokens) <= length
        for number, text, weight, ids in tokens:
            ends = [0] * len(ids) if fits else _ends(text, ids, encoder)
            for token, end in zip(ids, ends, strict=True):
                needed = groups.get(token, 1)
                while len(row) + (needed if needed <= length else 1) > length:
                    full = len(row)
                    last = range(max(0, full - 1 - backtrack), full)
                    best = max(last, key=lambda i: (row[i][3], i), default=full - 1)
                    close(best + 1 if row[best][3] else full)
                row.append((token, float(weight), number, end))
        close(len(row))
    return chunks


def _ends(text: str, ids: list[int], encoder: TokenEncoder) -> list[int]:
    """For each token whether a sentence (2) or a clause (1) ends with it.

    No tokenizer is asked for its pieces: the text up to the end of the clause is tokenised again, or what follows; where this gives the tokens
    of the whole, the clause ends between two of them. A piece that reaches over, like 、「, begins what follows.
    """
    ends = [0] * len(ids)
    for match in ENDS.finditer(text):
        head = encoder.tokenize(text[: match.end()])
        if ids[: len(head)] == head:
            cut = len(head)
        elif ids[len(ids) - len(tail := encoder.tokenize(text[match.end() :])) :] == tail:
            cut = len(ids) - len(tail)
        else:
            cut = len(head) - 1 if ids[: len(head) - 1] == head[:-1] else 0
        if cut > 0:
            ends[cut - 1] = max(ends[cut - 1], 2 if match["sentence"] else 1)
    return ends


def a1111(passes: Passes) -> Tensor:
    """AUTOMATIC1111's "Original": z' = z·w, then z'·mean(z)/mean(z') over the chunk, masked filling left out.

    Made for CLIP, whose states have a mean. The nearer it is to 0, the less the quotient means; where a mean is rounding, z' stays as it is.
    """
    scaled = a1111_nonorm(passes)
    before, after = ((states * passes.mask[..., None]).sum(dim=(1, 2), keepdim=True) for states in (passes.states, scaled))
    size = (scaled * passes.mask[..., None]).abs().sum(dim=(1, 2), keepdim=True)
    return scaled * torch.where(torch.minimum(before.abs(), after.abs()) > LEAST_MEAN * size, before / after, 1)


def a1111_nonorm(passes: Passes) -> Tensor:
    """AUTOMATIC1111's "No norm": z·w."""
    return passes.states * passes.weights[..., None]


def comfy(passes: Passes) -> Tensor:
    """ComfyUI's: (z - z₀)·w + z₀, where z₀ is the empty prompt."""
    return _from_empty(passes.states, passes.empty(), passes.weights)


def compel(passes: Passes) -> Tensor:
    """compel's: as ComfyUI's, then (z + Σ tₖ·zₖ) / (1 + Σ tₖ) over the spans k of w<1: zₖ with span k masked, t = tan((1-w)·π/2)."""
    empty = passes.empty()
    base = _from_empty(passes.states, empty, passes.weights)
    pairs = [(row, span) for row, low in enumerate(passes.weights < 1) for span in passes.spans[row, low].unique().tolist()]
    if not pairs:
        return base
    rows, spans = torch.tensor(pairs).T
    within = passes.spans[rows] == spans[:, None]
    masked = passes.encoder.encode_ids(passes.ids[rows], passes.mask[rows] * ~within)[0]
    masked = _from_empty(masked, empty, passes.weights[rows])
    owner = {span: passes.prompts[row] for row, span in pairs}  # a span may lie in several rows, all of one prompt
    lows = {span: float(passes.weights[row, place][0]) for (row, span), place in zip(pairs, within, strict=True)}
    strength = {span: math.tan((1 - max(LEAST_WEIGHT, low)) * math.pi / 2) for span, low in lows.items()}
    total = {prompt: 1 + sum(t for span, t in strength.items() if owner[span] == prompt) for prompt in owner.values()}
    share = torch.tensor([strength[span] / total[owner[span]] for _, span in pairs])
    return base.index_add(0, rows, (masked - base[rows]) * share[:, None, None])


def _from_empty(states: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """States moved away from the empty prompt's by their weights; those of weight 1 exactly as they are."""
    return torch.where(weights[..., None] == 1, states, (states - empty) * weights[..., None] + empty)


MODES: Mapping[str, Callable[[Passes], Tensor]] = {"a1111": a1111, "a1111-nonorm": a1111_nonorm, "comfy": comfy, "compel": compel}
"""The ways to apply weights, by name: each takes all passes and gives their states [rows, seq, width]."""


@torch.inference_mode()
def encode_weighted(encoder: TokenEncoder, prompts: Sequence[Sequence[tuple[str, float]]], mode: str = "a1111") -> Conditioning:
    """Conditioning of prompts given as spans, one row each; chunks follow each other along the sequence, `pooled` is the first chunk's (of a
    PooledEncoder: the text's), unweighted.

    Shorter rows are filled up with the empty prompt where passes have a fixed length, else with masked zeros. A chunk whose weights are all 1 is
    exactly what the encoder gives. Raises PromptError (a weight that is not finite or beyond ±100), UnknownNameError (mode).

        >>> from jpgen.emphasis import encode_weighted
        >>> from jpgen.encoders import clip
        >>> encode_weighted(clip.toy(), [[("赤い", 1.0), ("猫", 1.3)], [("猫", 1.0), ("BREAK", -1.0), ("犬", 1.0)]], "comfy").tokens.shape
        torch.Size([2, 154, 32])
    """
    if mode not in MODES:
        raise UnknownNameError.of("強調の方式 / emphasis mode", mode, MODES)
    _require_weights(prompts)
    window = encoder.window
    lines = [chunk(spans, encoder) or [Chunk()] for spans in prompts]
    if window.fixed:
        most = max(map(len, lines))
        lines = [[*line, *[Chunk()] * (most - len(line))] for line in lines]
    chunks = [(number, part) for number, line in enumerate(lines) for part in line]
    owners = tuple(number for number, _ in chunks)
    parts = [part for _, part in chunks]
    if isinstance(encoder, PairedEncoder):
        seq = len(window.begin) + window.length + len(window.end)
        halves = [_states(one, [encoder.share(n, part) for part in parts], owners, mode, seq) for n, one in enumerate(encoder.pair)]
        states, pooled, mask = torch.cat([half[0] for half in halves], dim=-1), halves[1][1], halves[1][2]
    else:
        states, pooled, mask = _states(encoder, parts, owners, mode)
    sizes = mask.sum(dim=1).tolist()
    rows = [torch.cat([states[i, : sizes[i]] for i, owner in enumerate(owners) if owner == number]) for number in range(len(lines))]
    if isinstance(encoder, PooledEncoder):
        pooled = encoder.encode_pooled(["".join(" " if tuple(span) == BREAK else span[0] for span in prompt) for prompt in prompts])
    elif pooled is not None:
        pooled = pooled[[owners.index(number) for number in range(len(lines))]]
    return Conditioning(
        tokens=pad_sequence(rows, batch_first=True),
        mask=pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True),
        pooled=pooled,
    )


def _states(
    encoder: TokenEncoder, chunks: Sequence[Chunk], owners: tuple[int, ...], mode: str, seq: int | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """States with their weights, pooled states and mask of chunks, whose prompts `owners` tells."""
    ids, mask, weights, spans = _fill(chunks, encoder.window, seq)
    spans += torch.where(spans < 0, 0, torch.tensor(owners)[:, None] * (int(spans.max()) + 1))
    states, pooled = encoder.encode_ids(ids, mask)
    weighted = (weights != 1).any(dim=1)
    if weighted.any():
        changed = MODES[mode](Passes(encoder, ids, mask, weights, spans, owners, states))
        states = torch.where(weighted[:, None, None], changed, states)
    return states, pooled, mask


def _fill(chunks: Sequence[Chunk], window: TokenWindow, seq: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, mask, weights and spans [rows, seq] of the chunks between begin and end; `seq` None: full length, or the longest row's."""
    before, after = len(window.begin), len(window.end)
    rows = [[*window.begin, *part.ids, *window.end] or [window.pad] for part in chunks]  # a row without any token would be no row
    seq = seq or (before + window.length + after if window.fixed else max(map(len, rows)))
    ids = torch.full((len(rows), seq), window.pad)
    mask = torch.full((len(rows), seq), int(window.fixed))
    weights, spans = torch.ones(len(rows), seq), torch.full((len(rows), seq), -1)
    for i, (row, part) in enumerate(zip(rows, chunks, strict=True)):
        text = slice(before, before + len(part.ids))
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        weights[i, text], spans[i, text] = torch.tensor(part.weights), torch.tensor(part.spans, dtype=torch.int64)
    return ids, mask, weights, spans


def _require_weights(prompts: Sequence[Sequence[tuple[str, float]]]) -> None:
    """Raise PromptError naming every weight that is not a number within ±MAX_WEIGHT."""
    spans = [span for prompt in prompts for span in prompt]
    if wrong := "、".join(f"「{text[:20]}」:{w}" for text, w in spans if not (isinstance(w, int | float) and abs(w) <= MAX_WEIGHT)):
        raise PromptError(f"重みは ±{MAX_WEIGHT} までの数にしてください: {wrong} / weights must be finite numbers up to ±{MAX_WEIGHT}")
