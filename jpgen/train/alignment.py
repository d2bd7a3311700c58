"""Where the translator's embedding starts: Japanese pieces near the English ones that they are translated by.

Translation probabilities by IBM Model 1 (Brown et al. 1993, https://aclanthology.org/J93-2003): which English piece goes with which Japanese one is
counted, expected and counted again. Since one matrix is embedding and output, a decoder that passes on what it attends to then says its translation,
and a short training need not find the dictionary first.
"""

from __future__ import annotations

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from jpgen.train.parallel import Parallel

CHUNKS = 4
"""Chunks of pairs that are counted."""

ROUNDS = 5
OWN = 0.5
"""Length of what is a Japanese piece's own, beside a translation of length 1: words of one meaning stay two words."""

SCALE = 0.05
"""Standard deviation of the values."""


def bilingual_embedding(pairs: Parallel, vocabulary: SentencePieceProcessor, width: int) -> Tensor:
    """A start for the embedding, [pieces, width]."""
    ja, en, group = _together(pairs, vocabulary)
    size = len(vocabulary)
    keys, which = np.unique(ja * size + en, return_inverse=True)
    source, target = keys // size, keys % size
    chance = np.ones(len(keys))
    for _ in range(ROUNDS):
        expected = chance[which]
        expected /= np.bincount(group, expected)[group]
        counted = np.bincount(which, expected)
        chance = counted / np.bincount(source, counted, minlength=size)[source]
    rng = np.random.default_rng(13)
    own = rng.standard_normal((size, width)) / np.sqrt(width)
    meant = np.zeros((size, width))
    np.add.at(meant, source, chance[:, None] * own[target])
    length = np.linalg.norm(meant, axis=1, keepdims=True)
    translated = (length > 0) & (np.bincount(ja, minlength=size) > np.bincount(en, minlength=size))[:, None]
    made = np.where(translated, meant / np.maximum(length, 1e-9) + OWN * own, own)
    return torch.from_numpy(made * np.sqrt(width) * SCALE).float()


def _together(pairs: Parallel, vocabulary: SentencePieceProcessor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every Japanese piece with every English one of the same pair, and which English token of which pair that is."""
    ja, en, group, tokens = [], [], [], 0
    for number in range(CHUNKS):
        texts = pairs.chunk(number)
        sides = [[np.array(ids) for ids in vocabulary.encode([pair[side] for pair in texts])] for side in (0, 1)]
        for one, other in zip(*sides, strict=True):
            ja.append(np.tile(one, len(other)))
            en.append(np.repeat(other, len(one)))
            group.append(np.repeat(np.arange(len(other)), len(one)) + tokens)
            tokens += len(other)
    return np.concatenate(ja).astype(np.int64), np.concatenate(en).astype(np.int64), np.concatenate(group).astype(np.int64)
