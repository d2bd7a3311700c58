"""A BERT-shaped encoder with a Unigram tokenizer: mame's multilingual-e5-small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel

from jpgen.compute import best_dtype
from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.encoders import weightless
from jpgen.errors import WeightsError
from jpgen.types import Conditioning, ConditioningSpec
from jpgen.weights import load_weights

MAX_LENGTH = 256
"""Tokens of one pass, begin and end among them."""

BEGIN, PAD, END = 0, 1, 2


class BertEncoder:
    """The last hidden states of a frozen BertModel, one row a token; only tokens of the text are there to be attended to."""

    def __init__(self, name: str, model: BertModel, tokenizer: Tokenizer) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self.spec = ConditioningSpec(width=model.config.hidden_size)
        length = min(MAX_LENGTH, model.config.max_position_embeddings) - len((BEGIN, END))
        self.window = TokenWindow(length, begin=(BEGIN,), end=(END,), pad=PAD, fixed=False)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without begin and end."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0."""
        return self._model(ids, attention_mask=mask).last_hidden_state.float(), None

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, longest, width] in fp32, padded with zeros; texts of more than 254 tokens in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def load(folder: Path) -> BertEncoder:
    """The encoder in `folder/text_encoder` with the tokenizer in `folder/tokenizer`; raises WeightsError."""
    vocabulary = folder / "tokenizer" / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(vocabulary))
        config = BertConfig.from_pretrained(folder / "text_encoder")
    except Exception as error:  # tokenizers raises bare Exception, transformers OSError and ValueError
        raise WeightsError(f"{folder}: エンコーダを読めません / cannot read the text encoder ({error}); fetch the model again") from error
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise WeightsError(
            "トークナイザとエンコーダが別のモデルのものです / "
            f"{vocabulary} has {tokenizer.get_vocab_size()} pieces, the encoder {config.vocab_size}: they are not of one model"
        )
    dtype = best_dtype()
    with weightless():
        model = BertModel(config, add_pooling_layer=False)
    state = load_weights(folder / "text_encoder" / "model.safetensors", dtype)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: エンコーダの重みが合いません / the encoder's weights do not match its config: {error}") from error
    return BertEncoder("multilingual-e5-small-ja-en", model, tokenizer)


def toy() -> BertEncoder:
    """Two layers of random weights over a character vocabulary, width 32."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *sorted(set("赤青い猫犬船海とのがにabcdefghijklmnopqrstuvwxyz、。"))]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=PAD,
    )
    return BertEncoder("toy-bert", BertModel(config, add_pooling_layer=False), tokenizer)
