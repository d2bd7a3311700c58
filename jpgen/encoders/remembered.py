"""Texts that were encoded lately, so that another seed, or another picture of the batch, costs no forward of the encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from jpgen.emphasis import SpanEncoder, TokenEncoder, encode_weighted
from jpgen.protocols import TextEncoder
from jpgen.types import Conditioning

ENTRIES = 16
"""Calls that are remembered: a prompt and its negative one are an entry, of some megabytes with the longest encoders."""


@dataclass(frozen=True)
class Asked:
    """A text to encode: its spans with their weights, the whole of it for an encoder that takes no weights, hashes and weights of LoRAs."""

    spans: tuple[tuple[str, float], ...]
    text: str
    loras: tuple[tuple[str, float], ...] = ()


class Remembered:
    """What an encoder said to the last ENTRIES calls; the rows of a call are encoded in one pass, each text once."""

    def __init__(self) -> None:
        self._encoder: TextEncoder | None = None
        self._known: OrderedDict[tuple[object, ...], Conditioning] = OrderedDict()

    def encode(self, encoder: TextEncoder, asked: Sequence[Asked], emphasis: str) -> Conditioning:
        """Conditioning of the texts, one row each, filled to one length; raises what the encoder raises."""
        if encoder is not self._encoder:
            self._encoder = encoder
            self._known.clear()
        texts = list(dict.fromkeys(asked))
        key = (emphasis, *texts)
        if key not in self._known:
            self._known[key] = _encoded(encoder, texts, emphasis)
            while len(self._known) > ENTRIES:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        found = self._known[key]
        rows = [texts.index(one) for one in asked]
        return Conditioning(found.tokens[rows], found.mask[rows], None if found.pooled is None else found.pooled[rows])


def _encoded(encoder: TextEncoder, texts: Sequence[Asked], emphasis: str) -> Conditioning:
    if isinstance(encoder, SpanEncoder):
        return encoder.encode_spans([one.spans for one in texts], emphasis)
    if isinstance(encoder, TokenEncoder):
        return encode_weighted(encoder, [one.spans for one in texts], emphasis)
    return encoder.encode([one.text for one in texts])
