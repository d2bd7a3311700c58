"""CLIP's text encoder with its byte-level BPE tokenizer (Radford et al. 2021, arXiv 2103.00020): that of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from jpgen.compute import best_dtype
from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.errors import SettingError, WeightsError
from jpgen.types import Conditioning, ConditioningSpec

START, END = "<|startoftext|>", "<|endoftext|>"
TOY_MERGES = (
    "a t</w>", "c at</w>", "r e", "re d</w>", "o g</w>", "d og</w>", "s h", "i p</w>", "sh ip</w>", "e a</w>", "s ea</w>",
    "ã ģ", "ãģ ®", "ãģ ®</w>", "ãģ Ħ", "ãģ Ħ</w>",
)  # fmt: skip
"""A few English words and kana; all else is bytes."""


class ClipEncoder:
    """States of a frozen CLIP text model, always full length: a backbone attends to the filling too, as it did in training.

    `clip_skip` layers are left out at the end (0: the last layer; 1: the penultimate, as SDXL wants), then comes the final norm unless
    `final_norm` is False (as SDXL wants). A model with a projection gives the pooled state (SDXL's second encoder).
    """

    def __init__(
        self, name: str, model: CLIPTextModel | CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, *, clip_skip: int = 0, final_norm: bool = True
    ) -> None:
        layers = model.config.num_hidden_layers
        if not 0 <= clip_skip < layers:
            raise SettingError(f"clip_skip={clip_skip} は 0〜{layers - 1} にしてください / must be 0–{layers - 1}: the encoder has {layers} layers")
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._clip_skip, self._final_norm = clip_skip, final_norm
        self._projected = isinstance(model, CLIPTextModelWithProjection)
        self.spec = ConditioningSpec(width=model.config.hidden_size, pooled_width=model.config.projection_dim if self._projected else None)
        begin, end = (tokenizer.bos_token_id,), (tokenizer.eos_token_id,)
        length = model.config.max_position_embeddings - len(begin + end)
        self.window = TokenWindow(length, begin=begin, end=end, pad=tokenizer.pad_token_id, fixed=True)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without begin and end; their names in a text are text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0; pooled [batch, pooled width] or None."""
        made = self._model(ids, attention_mask=None if mask.all() else mask, output_hidden_states=True)
        if self._final_norm and not self._clip_skip:
            states = made.last_hidden_state
        else:
            states = made.hidden_states[-1 - self._clip_skip]
            states = _text_model(self._model).final_layer_norm(states) if self._final_norm else states
        return states.float(), made.text_embeds.float() if self._projected else None

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, 77 a chunk, width] in fp32, nothing masked; texts of more than 75 tokens in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def _text_model(model: CLIPTextModel | CLIPTextModelWithProjection) -> Any:
    return getattr(model, "text_model", model)  # transformers < 5.23 has one in both classes, later ones in that with a projection alone


def load(folder: Path, *, suffix: str = "", clip_skip: int = 0, final_norm: bool = True) -> ClipEncoder:
    """The encoder in `folder/text_encoder` with the tokenizer in `folder/tokenizer` (`suffix="_2"`: SDXL's second); raises WeightsError."""
    place = folder / f"text_encoder{suffix}"
    try:
        config = CLIPTextConfig.from_pretrained(place, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True)
        kind = CLIPTextModelWithProjection if "CLIPTextModelWithProjection" in (config.architectures or []) else CLIPTextModel
        model, found = kind.from_pretrained(
            place, config=config, dtype=best_dtype(), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises OSError, ValueError and RuntimeError, tokenizers bare Exception, safetensors its own
        raise WeightsError(f"{place}: エンコーダを読めません / cannot read the text encoder ({error}); fetch the model again") from error
    if missing := sorted(found["missing_keys"]):
        raise WeightsError(f"{place} has no {', '.join(missing[:5])} ({len(missing)} tensors): not the weights of this config")
    if len(tokenizer) > config.vocab_size:
        raise WeightsError(f"{folder} has {len(tokenizer)} pieces in the tokenizer, {config.vocab_size} in the encoder: they are not of one model")
    return ClipEncoder(f"clip{suffix}", model, tokenizer, clip_skip=clip_skip, final_norm=final_norm)


def toy(*, projection: bool = False, clip_skip: int = 0, final_norm: bool = True) -> ClipEncoder:
    """Two layers of random weights, width 32, over bytes and a few merges."""
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in TOY_MERGES), START, END]
    merges = [tuple(merge.split()) for merge in TOY_MERGES]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=32, projection_dim=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=77, bos_token_id=len(pieces) - 2, eos_token_id=len(pieces) - 1, pad_token_id=len(pieces) - 1,
    )
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    torch.nn.init.normal_(_text_model(model).final_layer_norm.bias)  # as trained: its states have a mean
    return ClipEncoder("toy-clip", model, tokenizer, clip_skip=clip_skip, final_norm=final_norm)
