"""Text states that come again in every epoch, kept instead of computed again."""

from __future__ import annotations

from collections.abc import Sequence

from jpgen.evaluate.pairing import stacked
from jpgen.protocols import TextEncoder
from jpgen.types import Conditioning


class Remembering:
    """An encoder that keeps what it said, of up to `most` texts (fp32, without filling): for texts that come again and again."""

    def __init__(self, encoder: TextEncoder, most: int) -> None:
        self.name, self.spec = encoder.name, encoder.spec
        self._encoder, self._most = encoder, most
        self._known: dict[str, Conditioning] = {}

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """What the encoder says, filled with masked zeros to the longest."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        said = dict(zip(fresh, _rows(self._encoder.encode(fresh)), strict=True)) if fresh else {}
        made = stacked([said[text] if text in said else self._known[text] for text in texts])
        self._known.update(list(said.items())[: max(0, self._most - len(self._known))])
        return made


def _rows(states: Conditioning) -> list[Conditioning]:
    """Each row by itself, without the filling at its end."""
    ends = [int(mask.nonzero().max()) + 1 if mask.any() else 1 for mask in states.mask]
    rows = [states.rows(n, n + 1) for n in range(len(ends))]
    return [Conditioning(row.tokens[:, :end].clone(), row.mask[:, :end].clone(), row.pooled) for row, end in zip(rows, ends, strict=True)]
