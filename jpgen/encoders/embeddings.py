"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): files whose vectors stand where their name stands in a prompt."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jpgen.errors import IncompatibleError, WeightsError
from jpgen.weights import load_weights

FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL (the second encoder)", 2048: "SDXL"}
"""Widths of vectors, and whose they are."""

PAIR = ("clip_l", "clip_g")
"""SDXL's keys: vectors for its first encoder, and for its second."""

LETTER = "A-Za-z0-9_"
MAX_VECTORS = 4096


@dataclass(frozen=True)
class Embedding:
    """An embedding file: `vectors` [n, width] by the key they have ("": the only one); `hash` the first 12 hex digits of the file's SHA-256."""

    name: str
    hash: str
    path: Path
    vectors: Mapping[str, Tensor] = field(compare=False)

    def require(self, keys: Sequence[str], widths: Sequence[int], encoder: str) -> list[Tensor]:
        """The vectors under these keys; raises IncompatibleError, saying what family they are for, unless they are there and of these widths."""
        found = [self.vectors.get(key) for key in keys]
        if len(self.vectors) == len(keys) and all(v is not None and v.shape[1] == width for v, width in zip(found, widths, strict=True)):
            return [v for v in found if v is not None]
        own = " + ".join(str(vectors.shape[1]) for vectors in self.vectors.values())
        family = "SDXL" if len(self.vectors) > 1 else FAMILIES.get(next(iter(self.vectors.values())).shape[1], "another model")
        raise IncompatibleError(
            f"埋め込み {self.path} は {encoder} に合いません（幅 {own}: {family} 用） / the embedding {self.path} is for {family} (width {own}), "
            f"{encoder} wants {' + '.join(map(str, widths))}: take it out of the prompt, or use one made for this model"
        )


def read_embedding(path: Path) -> Embedding:
    """The vectors in a `.safetensors` file: A1111's `emb_params`, diffusers' one tensor under its token, SDXL's `clip_l` and `clip_g`.

    Raises WeightsError for a pickle (`.pt`, unopened), a damaged file, vectors that are not finite, and what is no embedding.
    """
    tensors = load_weights(path)
    if tensors.keys() == set(PAIR):
        vectors = tensors
    elif len(tensors) == 1:
        vectors = {"": next(iter(tensors.values()))}
    else:
        raise WeightsError(
            f"{path} は埋め込みではありません / {path} is no embedding: it holds {', '.join(sorted(tensors)[:5]) or 'nothing'}; "
            "wanted emb_params, one tensor, or clip_l and clip_g"
        )
    vectors = {key: tensor[None] if tensor.dim() == 1 else tensor for key, tensor in vectors.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in vectors.items()}
    sound = all(len(shape) == 2 and 1 <= shape[0] <= MAX_VECTORS and shape[1] for shape in shapes.values())
    if not sound or len({shape[0] for shape in shapes.values()}) > 1:
        raise WeightsError(f"{path} は埋め込みではありません / {path} is no embedding: shapes {list(shapes.values())}; wanted [vectors, width]")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in vectors.values()):
        raise WeightsError(f"{path} は壊れています / damaged embedding {path}: its values are not finite numbers; fetch it again")
    return Embedding(unicodedata.normalize("NFC", path.stem), hashlib.sha256(path.read_bytes()).hexdigest()[:12], path, vectors)


def names_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds the names in a text, the longest first, in either case; a Latin one only as a word of its own."""
    found = []
    for name in sorted(names, key=len, reverse=True):
        before = f"(?<![{LETTER}])" if re.match(f"[{LETTER}]", name) else ""
        after = f"(?![{LETTER}])" if re.search(f"[{LETTER}]$", name) else ""
        found.append(f"{before}{re.escape(name)}{after}")
    return re.compile("|".join(found) or r"(?!)", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    """The vectors that one encoder knows beside its own pieces: of each name `vectors` [n, width]; their ids begin at `first`."""

    first: int
    names: tuple[str, ...] = ()
    vectors: tuple[Tensor, ...] = ()

    def pieces(self, text: str) -> list[tuple[str, range | None]]:
        """The text in pieces, each with the ids it stands for if it is a name."""
        if not self.names:
            return [(text, None)]
        made: list[tuple[str, range | None]] = []
        at = 0
        text = unicodedata.normalize("NFC", text)
        lower = [name.lower() for name in self.names]
        for found in names_pattern(self.names).finditer(text):
            if text[at : found.start()].strip():
                made.append((text[at : found.start()], None))
            made.append((found[0], self.ids(lower.index(found[0].lower()))))
            at = found.end()
        if text[at:].strip() or not made:
            made.append((text[at:], None))
        return made

    def ids(self, index: int) -> range:
        """The ids of a name's vectors."""
        start = self.first + sum(len(vectors) for vectors in self.vectors[:index])
        return range(start, start + len(self.vectors[index]))

    def groups(self) -> dict[int, int]:
        """Of each name the first id, and how many follow each other."""
        return {self.ids(i).start: len(vectors) for i, vectors in enumerate(self.vectors)}

    @contextmanager
    def in_place(self, table: Any, ids: Tensor) -> Iterator[Tensor]:
        """Ids of the encoder's own pieces; while they are looked up in `table`, vectors take the places that are theirs in `ids`."""
        own = ids >= self.first
        if not bool(own.any()):
            yield ids
            return
        rows = torch.cat(self.vectors)[(ids - self.first).clamp_min(0)]
        handle = table.register_forward_hook(lambda _module, _args, made: torch.where(own[..., None].to(made.device), rows.to(made), made))
        try:
            yield ids.masked_fill(own, 0)  # never the end, where the state is pooled
        finally:
            handle.remove()
