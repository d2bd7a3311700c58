"""A text encoder whose states a trained adapter turns into those that a backbone learnt from another encoder (see `jpgen.encoders.pairing`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from jpgen.emphasis import TokenEncoder, encode_weighted
from jpgen.encoders import load_encoder
from jpgen.encoders.pairing import Pairing, PairingSpec, new_network, paired, read_pairing
from jpgen.errors import IncompatibleError
from jpgen.models import open_model
from jpgen.protocols import TextEncoder
from jpgen.types import Conditioning

PROBE_TEXT = "桜の木の下の猫 / a cat under a cherry tree"
SAME = 0.99
"""Least cosine between what the encoder says to PROBE_TEXT now and what it said in training: bf16 and 8 bits stay above, another model does not."""


class AdaptedEncoder:
    """An encoder and an adapter behind it. Attention weights act on the encoder's own states, before the adapter sees them."""

    def __init__(self, encoder: TextEncoder, pairing: Pairing) -> None:
        spec = pairing.spec
        if encoder.spec.width != spec.source_width:
            raise IncompatibleError(
                f"アダプタ [{spec}] は {encoder.name} に合いません / the adapter [{spec}] wants states of width {spec.source_width}, {encoder.name} "
                f"gives {encoder.spec.width}: use the encoder it was trained with, or train one for this encoder"
            )
        if len(pairing.probe) and (near := _cosine(probe(encoder), pairing.probe)) < SAME:
            raise IncompatibleError(
                f"アダプタ [{spec}] の学習後にエンコーダが変わっています / {encoder.name} is not the one that the adapter [{spec}] was trained with "
                f"(cosine of a probe text {near:.3f}, wanted {SAME}): fetch that encoder, or train the adapter again"
            )
        self.name = f"{encoder.name}+{spec.kind}"
        self.spec = spec.given
        self._encoder, self._pairing = encoder, pairing

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states fp32 [batch, seq, width] of the texts, nothing cut off, and the pooled state if the backbone wants one."""
        return self._adapted(self._encoder.encode(texts))

    def encode_spans(self, prompts: Sequence[Sequence[tuple[str, float]]], mode: str) -> Conditioning:
        """Conditioning of prompts given as spans with their weights (see `jpgen.emphasis.encode_weighted`)."""
        if isinstance(self._encoder, TokenEncoder):
            return self._adapted(encode_weighted(self._encoder, prompts, mode))
        return self.encode(["".join(text for text, weight in spans if (text, weight) != ("BREAK", -1.0)) for spans in prompts])

    @torch.inference_mode()
    def _adapted(self, states: Conditioning) -> Conditioning:
        return paired(self._pairing.network, self._pairing.spec, states)


def probe(encoder: TextEncoder) -> Tensor:
    """The mean state fp32 [width] of PROBE_TEXT, by which an encoder is known again."""
    made = encoder.encode([PROBE_TEXT])
    return made.tokens[0][made.mask[0] == 1].mean(0).float()


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other.to(one), dim=0)) if one.shape == other.shape else 0.0


def open_source(model: str) -> TextEncoder:
    """The text encoder of a model of the catalogue, or of a local folder; raises what opening a model raises, and IncompatibleError for none."""
    entry = open_model(model)
    if not entry.encoder:
        raise IncompatibleError(f"{entry.name} のエンコーダは単独で開けません / the text encoder of {entry.name} cannot be opened by itself")
    return load_encoder(entry.encoder, entry.place, **entry.parts)


def load_adapted(path: Path) -> AdaptedEncoder:
    """The encoder that an adapter file names, with the adapter behind it; raises WeightsError, IncompatibleError, UnknownNameError, LicenseError."""
    pairing = read_pairing(path)
    return AdaptedEncoder(open_source(pairing.spec.encoder), pairing)


def toy(kind: str = "mlp", *, width: int = 64, pooled_width: int | None = 24) -> AdaptedEncoder:
    """A toy encoder of width 32 with an untrained adapter."""
    from jpgen.encoders import bert

    torch.manual_seed(0)
    encoder = bert.toy()
    spec = PairingSpec(kind, "toy", "toy", encoder.spec.width, width, pooled_width, hidden=32, layers=2, length=9)
    return AdaptedEncoder(encoder, Pairing(spec, new_network(spec).eval().requires_grad_(False), probe(encoder)))
