"""The Japanese text towers of rinna's and Recruit's CLIP, and of rinna's CLOOB: RoBERTa with a projection and rinna's SentencePiece tokenizer.

Their repositories want code of their own, for names alone: `text_model.*` is transformers' RobertaModel, `text_projection.weight` a matrix. What
their code does beside it is done here: small letters, [CLS] before a text and nothing after it, places from 0 (RoBERTa's begin after its filling).
A contrastive encoder: its states are of use only to a backbone or an adapter that was trained on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn import Linear
from transformers import RobertaConfig, RobertaModel

from jpgen.compute import best_dtype
from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.encoders import fill, read_as, tower_of, weightless
from jpgen.encoders.tokenizers import MODELS, SentencePieceTokenizer, read_sentencepiece, require_pieces
from jpgen.errors import WeightsError
from jpgen.safety import read_json
from jpgen.types import Conditioning, ConditioningSpec
from jpgen.weights import load_sharded

TOWER, PROJECTION = "text_model.", "text_projection.weight"
"""Names of tensors: of the tower, and of what makes its first state the pooled one."""

BEGIN = "[CLS]"

LENGTH = 77
"""Tokens of one pass, [CLS] among them: as their code pads and cuts."""


class RobertaClipEncoder:
    """The last states of a frozen RoBERTa, one row a token, [CLS] in front; filling is masked. `pooled`: with the projected state of [CLS]."""

    def __init__(self, name: str, model: RobertaModel, projection: Tensor, tokenizer: SentencePieceTokenizer, *, pooled: bool = False) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._projection = projection
        self._tokenizer = tokenizer
        self._pooled = pooled
        self.spec = ConditioningSpec(width=model.config.hidden_size, pooled_width=len(projection) if pooled else None)
        length = min(LENGTH, model.config.max_position_embeddings) - len(tokenizer.begin)
        self.window = TokenWindow(length, begin=tokenizer.begin, end=(), pad=tokenizer.pad, fixed=False)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without [CLS]; names of special pieces in a text are text."""
        return self._tokenizer.encode(text)

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0; pooled [batch, pooled width] or None."""
        places = torch.arange(ids.shape[1])[None].expand(len(ids), -1)
        states = self._model(input_ids=ids, attention_mask=mask, position_ids=places).last_hidden_state
        return states.float(), (states[:, 0] @ self._projection.T).float() if self._pooled else None

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, longest, width] in fp32, padded with zeros; texts of more than 76 tokens in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def load(folder: Path, *, text_encoder: str = "", pooled: bool = False) -> RobertaClipEncoder:
    """The text tower in the local folder `text_encoder` (a path from `folder`; "": `folder/text_encoder`), which holds spiece.model too.

    The picture tower is not read, and no code of the folder runs. Raises WeightsError.
    """
    place = tower_of(folder, text_encoder)
    config = _config(read_json(place / "config.json"), place)
    tokenizer = _tokenizer(place)
    require_pieces(len(tokenizer), config.vocab_size, place)
    state = load_sharded(place, "model", best_dtype())
    if PROJECTION not in state or state[PROJECTION].dim() != 2 or state[PROJECTION].shape[1] != config.hidden_size:
        raise WeightsError(
            f"{place} に幅 {config.hidden_size} の {PROJECTION} がありません / {place} has no {PROJECTION} of width {config.hidden_size}: no CLIP of "
            "rinna's kind; name another folder in parts.text_encoder"
        )
    with weightless():
        model = RobertaModel(config, add_pooling_layer=False)
    fill(model, {name.removeprefix(TOWER): tensor for name, tensor in state.items() if name.startswith(TOWER)}, place)
    return RobertaClipEncoder("roberta_clip", model, state[PROJECTION], tokenizer, pooled=pooled)


def _config(told: dict[str, Any], place: Path) -> RobertaConfig:
    inner = told.get("text_config") or told
    if inner.get("model_type", "roberta") != "roberta" or "hidden_size" not in inner:
        raise WeightsError(
            f"{place}: RoBERTa の文エンコーダではありません / {place} holds a text tower of type {inner.get('model_type')!r}, wanted "
            "'roberta' (rinna's and Recruit's CLIP): name such a folder in parts.text_encoder"
        )
    return read_as(RobertaConfig, inner, place)


def _tokenizer(place: Path) -> SentencePieceTokenizer:
    """rinna's, in small letters whatever its settings say, as its own code does."""
    model = next((place / name for name in MODELS if (place / name).is_file()), place / MODELS[0])
    read = read_sentencepiece(model)
    begin = read.id_of(BEGIN)
    if begin is None:
        raise WeightsError(f"{model} に {BEGIN} がありません / {model} has no piece {BEGIN}: no tokenizer of rinna's; fetch the model again")
    return SentencePieceTokenizer(read.model, begin=(begin,), pad=read.pad, max_length=LENGTH, lower=True)


def toy(*, pooled: bool = True) -> RobertaClipEncoder:
    """Two layers of random weights, width 32, over a SentencePiece model of a few words; pooled 24."""
    pieces = SentencePieceProcessor(model_proto=_toy_pieces())
    torch.manual_seed(0)
    model = RobertaModel(toy_config(len(pieces)), add_pooling_layer=False)
    tokenizer = SentencePieceTokenizer(pieces, begin=(pieces.piece_to_id(BEGIN),), pad=pieces.pad_id(), max_length=LENGTH, lower=True)
    return RobertaClipEncoder("toy-roberta-clip", model, Linear(32, 24, bias=False).weight.detach(), tokenizer, pooled=pooled)


def toy_config(vocabulary: int) -> RobertaConfig:
    """A RoBERTa of two layers, width 32."""
    return RobertaConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=80,
        type_vocab_size=2, pad_token_id=3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _toy_pieces() -> bytes:
    """A trained SentencePiece model in rinna's layout: <unk> 0, <s> 1, </s> 2, [PAD] 3, then [CLS] [SEP] [MASK]."""
    import io

    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    lines = ["赤い船と猫", "左に犬、右に車", "青い海の白い花", "a red ship", "the blue sea and a white flower"]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=120, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=3,
        pad_piece="[PAD]", control_symbols="[CLS],[SEP],[MASK]", character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()
