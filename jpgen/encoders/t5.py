"""The encoder half of T5 (Raffel et al. 2020, arXiv 1910.10683) with its SentencePiece tokenizer: that of PixArt and, beside CLIP, of FLUX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from jpgen.compute import best_dtype
from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.encoders import checked_variant
from jpgen.encoders.tokenizers import require_pieces
from jpgen.errors import SettingError, WeightsError
from jpgen.types import Conditioning, ConditioningSpec

PAD, END, UNKNOWN = 0, 1, 2
MAX_TOKENS = 300
"""Tokens of one pass, the end among them, unless told: those of PixArt-Σ."""

Tokenize = Callable[[str], list[int]]
"""From a text to its ids, without the end."""


class T5Encoder:
    """The last states of a frozen T5 encoder, one row a token, `</s>` at the end.

    `fixed`: every pass is filled to `max_tokens` and sees the filling, as FLUX wants; else filling is masked, as PixArt wants. `lower`: texts are put
    in small letters first, as PixArt's were.
    """

    def __init__(
        self, name: str, model: T5EncoderModel, ids_of: Tokenize, *, max_tokens: int = MAX_TOKENS, fixed: bool = False, lower: bool = False
    ) -> None:
        if max_tokens < 2:
            raise SettingError(f"max_tokens={max_tokens} は 2 以上にしてください / must be at least 2: one of text and the end")
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self.modules = {"text_encoder": model}
        self._ids_of, self._lower = ids_of, lower
        self.spec = ConditioningSpec(width=model.config.d_model)
        self.window = TokenWindow(max_tokens - 1, begin=(), end=(END,), pad=PAD, fixed=fixed)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without the end."""
        return self._ids_of(text.lower() if self._lower else text)

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0."""
        return self._model(ids, attention_mask=None if mask.all() else mask).last_hidden_state.float(), None

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, longest, width] in fp32, padded with zeros; texts beyond `max_tokens` in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def load(folder: Path, *, suffix: str = "", max_tokens: int = MAX_TOKENS, fixed: bool = False, lower: bool | None = None) -> T5Encoder:
    """The encoder in `folder/text_encoder` with tokenizer.json or spiece.model in `folder/tokenizer` (`suffix="_2"`: FLUX's); raises WeightsError.

    `lower` None: where model_index.json names a pipeline of PixArt.
    """
    place = folder / f"text_encoder{suffix}"
    ids_of, pieces = _tokenizer(folder / f"tokenizer{suffix}")
    variant = checked_variant(place)
    try:
        config = T5Config.from_pretrained(place, local_files_only=True)
        model, found = T5EncoderModel.from_pretrained(
            place, config=config, dtype=best_dtype(), local_files_only=True, use_safetensors=True, variant=variant, output_loading_info=True
        )
    except Exception as error:  # transformers raises OSError, ValueError and RuntimeError, safetensors its own
        raise WeightsError(f"{place}: エンコーダを読めません / cannot read the text encoder ({error}); fetch the model again") from error
    if missing := sorted(found["missing_keys"]):
        raise WeightsError(
            "エンコーダの重みが足りません / "
            f"{place} has no {', '.join(missing[:5])} ({len(missing)} tensors): not the weights of this config"
        )
    require_pieces(pieces, config.vocab_size, folder)
    return T5Encoder(f"t5{suffix}", model, ids_of, max_tokens=max_tokens, fixed=fixed, lower=_of_pixart(folder) if lower is None else lower)


def _tokenizer(folder: Path) -> tuple[Tokenize, int]:
    """What makes ids of a text, and how many pieces it knows; names of special pieces in a text are text."""
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return _plain(tokenizer), tokenizer.get_vocab_size()
        pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    except Exception as error:  # tokenizers raises bare Exception, sentencepiece OSError and RuntimeError
        raise WeightsError(f"{folder}: トークナイザを読めません / cannot read the tokenizer ({error}); fetch the model again") from error
    if (pieces.pad_id(), pieces.eos_id(), pieces.unk_id()) != (PAD, END, UNKNOWN):
        raise WeightsError(f"{folder / 'spiece.model'} は T5 のものではありません / is not T5's: it does not begin with <pad>, </s>, <unk>")
    return pieces.encode, pieces.get_piece_size()


def _plain(tokenizer: Tokenizer) -> Tokenize:
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _of_pixart(folder: Path) -> bool:
    try:
        return "PixArt" in str(json.loads((folder / "model_index.json").read_text("utf-8")).get("_class_name"))
    except (OSError, ValueError, AttributeError):
        return False


def toy(*, max_tokens: int = 64, fixed: bool = False) -> T5Encoder:
    """Two layers of random weights over a character vocabulary, width 32."""
    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        dropout_rate=0.0, initializer_factor=0.1,
    )  # fmt: skip
    return T5Encoder("toy-t5", T5EncoderModel(config), _plain(tokenizer), max_tokens=max_tokens, fixed=fixed)


def toy_tokenizer() -> Tokenizer:
    """A Unigram of a few letters, laid out as T5's."""
    letters = sorted(set("赤青い猫犬船海とのがに左右車abcdefghijklmnopqrstuvwxyz、。"))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return tokenizer
