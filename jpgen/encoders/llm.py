"""A frozen causal language model as text encoder, as CommonArt β reads Japanese: the states of one of its layers, one row a token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from jpgen.compute import best_dtype
from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.encoders import checked_variant
from jpgen.errors import IncompatibleError, SettingError, WeightsError
from jpgen.types import Conditioning, ConditioningSpec

MAX_TOKENS = 256
"""Tokens of one pass, begin among them, unless told."""


class LlmEncoder:
    """States of a frozen causal model after layer `hidden_layer`, as transformers counts them: 0 the word embeddings, -1 the normed last ones.

    A token never sees what follows it, so filling on the right changes nothing and is masked.
    """

    def __init__(self, name: str, model: Any, tokenizer: Tokenizer, *, hidden_layer: int = -1, max_tokens: int = MAX_TOKENS, pad: int = 0) -> None:
        layers = model.config.num_hidden_layers
        if not -layers - 1 <= hidden_layer <= layers:
            raise SettingError(f"hidden_layer={hidden_layer} は {-layers - 1}〜{layers} にしてください / must be {-layers - 1}–{layers}")
        self.name = name
        self._model = model.eval().requires_grad_(False).get_decoder()  # without the head: nobody asks for the next word
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # as text
        self._hidden_layer = hidden_layer
        self.spec = ConditioningSpec(width=model.config.hidden_size)
        begin, end = specials(tokenizer)
        length = min(max_tokens, model.config.max_position_embeddings) - len(begin) - len(end)
        if length < 1:
            raise SettingError(f"max_tokens={max_tokens} は小さすぎます / leaves no room for text between {len(begin)} and {len(end)} special tokens")
        self.window = TokenWindow(length, begin=begin, end=end, pad=pad, fixed=False)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without begin and end; their names in a text are text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0."""
        made = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return made.hidden_states[self._hidden_layer].float(), None

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, longest, width] in fp32, padded with zeros; texts beyond `max_tokens` in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def specials(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    start = next((i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain), 0)
    return tuple(whole[:start]), tuple(whole[start + len(plain) :])


def load(folder: Path, *, text_encoder: str = "", hidden_layer: int = -1, max_tokens: int = MAX_TOKENS) -> LlmEncoder:
    """The language model in the local folder `text_encoder` (relative to `folder`; "": `folder/text_encoder`), which also holds tokenizer.json.

    Only model types that transformers itself has; nothing is fetched and no code of the folder runs. Raises WeightsError, and IncompatibleError
    before any weights are read if its width is not what the transformer in `folder` wants.
    """
    place = folder / Path(text_encoder).expanduser() if text_encoder else folder / "text_encoder"
    tokenizer = load_tokenizer(place, folder / "tokenizer")
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError and KeyError
        raise WeightsError(
            f"{place}: 言語モデルの設定を読めません / cannot read the language model's config ({error}); models that bring their own code are "
            "refused: name a Llama-like one, or fetch the model again"
        ) from error
    _require_width(folder, place, config.get_text_config().hidden_size)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise WeightsError(
            f"{place} has {tokenizer.get_vocab_size()} pieces in the tokenizer, {config.vocab_size} in the language model: they are not of one model"
        )
    variant = checked_variant(place)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            place, config=config, dtype=best_dtype(), variant=variant, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises OSError, ValueError and RuntimeError, safetensors its own
        raise WeightsError(f"{place}: 言語モデルを読めません / cannot read the language model ({error}); fetch the model again") from error
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("lm_head")):
        raise WeightsError(
            "エンコーダの重みが足りません / "
            f"{place} has no {', '.join(missing[:5])} ({len(missing)} tensors): not the weights of this config"
        )
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) and config.pad_token_id >= 0 else 0
    name = Path(str(getattr(config, "_name_or_path", "") or place)).name
    return LlmEncoder(name, model, tokenizer, hidden_layer=hidden_layer, max_tokens=max_tokens, pad=pad)


def load_tokenizer(*folders: Path) -> Tokenizer:
    """The tokenizer.json in the first of the folders that has one, taken as it is written; raises WeightsError."""
    file = next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), folders[0] / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise WeightsError(f"{file}: トークナイザを読めません / cannot read the tokenizer ({error}); fetch the model again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _require_width(folder: Path, place: Path, width: int | None) -> None:
    """Raise IncompatibleError if a transformer lies in `folder` and wants states of another width."""
    for file in (folder / "config.json", folder / "transformer" / "config.json"):
        try:
            wanted = json.loads(file.read_text("utf-8")).get("caption_channels")
        except (OSError, ValueError, AttributeError):
            continue
        if wanted is not None and wanted != width:
            raise IncompatibleError(
                f"言語モデルと変換器の幅が違います / the language model {place.name} gives width {width}, the transformer {folder.name} wants "
                f"{wanted} (caption_channels): name the language model it was trained with in parts.text_encoder"
            )


def toy(*, hidden_layer: int = -1) -> LlmEncoder:
    """Two layers of random weights, width 32, over bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<unk>", "<s>", "</s>", *letters]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(pieces[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    return LlmEncoder("toy-llm", LlamaForCausalLM(config), tokenizer, hidden_layer=hidden_layer)
