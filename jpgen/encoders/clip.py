"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020), that of Stable Diffusion 1, 2 and XL, with CLIP's tokenizer or a Japanese one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from jpgen.compute import best_dtype
from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.encoders import weightless
from jpgen.encoders.embeddings import Embedding, Vocabulary
from jpgen.encoders.single_file import read_clip
from jpgen.encoders.tokenizers import ClipShapedTokenizer, bpe_tokenizer, read_tokenizer, require_pieces
from jpgen.errors import SettingError, WeightsError
from jpgen.types import Conditioning, ConditioningSpec
from jpgen.weights import load_sharded

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
        self,
        name: str,
        model: CLIPTextModel | CLIPTextModelWithProjection,
        tokenizer: ClipShapedTokenizer,
        *,
        clip_skip: int = 0,
        final_norm: bool = True,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        layers = model.config.num_hidden_layers
        if not 0 <= clip_skip < layers:
            raise SettingError(f"clip_skip={clip_skip} は 0〜{layers - 1} にしてください / must be 0–{layers - 1}: the encoder has {layers} layers")
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._clip_skip, self._final_norm = clip_skip, final_norm
        self._vocabulary = vocabulary or Vocabulary(model.config.vocab_size)
        self.groups = self._vocabulary.groups()
        self.modules = {"text_encoder": model}
        self._projected = isinstance(model, CLIPTextModelWithProjection)
        self.spec = ConditioningSpec(width=model.config.hidden_size, pooled_width=model.config.projection_dim if self._projected else None)
        length = min(model.config.max_position_embeddings, tokenizer.max_length) - len(tokenizer.begin + tokenizer.end)
        self.window = TokenWindow(length, begin=tokenizer.begin, end=tokenizer.end, pad=tokenizer.pad, fixed=True)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without begin and end; their names in a text are text, names of embeddings stand for their vectors."""
        pieces = self._vocabulary.pieces(text)
        return [token for piece, ids in pieces for token in (self._tokenizer.encode(piece) if ids is None else ids)]

    def pieces(self, text: str) -> list[str]:
        """The text cut before and after every name of an embedding."""
        return [piece for piece, _ in self._vocabulary.pieces(text)]

    def with_clip_skip(self, clip_skip: int) -> ClipEncoder:
        """The same encoder read so many layers from its end, as stable-diffusion-webui counts (1: the last); raises SettingError."""
        layers = self._model.config.num_hidden_layers
        if not 1 <= clip_skip <= layers:
            raise SettingError(
                f"clip_skip={clip_skip} は 1〜{layers} にしてください / must be 1–{layers} (1: the last layer): {self.name} has {layers} layers"
            )
        return self._again(clip_skip - 1, self._vocabulary)

    def with_embeddings(self, embeddings: Sequence[Embedding]) -> ClipEncoder:
        """The same encoder that knows these embeddings too; raises IncompatibleError for those of another width."""
        vectors = [embedding.require([""], [self.spec.width], self.name)[0] for embedding in embeddings]
        return self.with_vectors([embedding.name for embedding in embeddings], vectors)

    def with_vectors(self, names: Sequence[str], vectors: Sequence[Tensor]) -> ClipEncoder:
        """The same encoder that reads each name as its vectors [n, width]."""
        return self._again(self._clip_skip, Vocabulary(self._vocabulary.first, tuple(names), tuple(vectors)))

    def _again(self, clip_skip: int, vocabulary: Vocabulary) -> ClipEncoder:
        return ClipEncoder(self.name, self._model, self._tokenizer, clip_skip=clip_skip, final_norm=self._final_norm, vocabulary=vocabulary)

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0; pooled [batch, pooled width] or None."""
        with self._vocabulary.in_place(_text_model(self._model).embeddings.token_embedding, ids) as own:
            made = self._model(own, attention_mask=None if mask.all() else mask, output_hidden_states=True)
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


def load(folder: Path, *, suffix: str = "", clip_skip: int = 0, final_norm: bool = True, projection: bool | None = None) -> ClipEncoder:
    """The encoder in `folder/text_encoder` with the tokenizer in `folder/tokenizer` (`suffix="_2"`: SDXL's second), or in a single file.

    `projection` says whether there is a pooled state (None: if the config says so). Raises WeightsError.
    """
    dtype = best_dtype()
    tokenizer: ClipShapedTokenizer
    place = folder if folder.is_file() else folder / f"text_encoder{suffix}"
    if folder.is_file():
        config, state, tokenizer = read_clip(folder, suffix, dtype)
        projected = "text_projection.weight" in state
    else:
        try:
            config = CLIPTextConfig.from_pretrained(place, local_files_only=True)
            tokenizer = read_tokenizer(folder / f"tokenizer{suffix}")
        except WeightsError:
            raise
        except Exception as error:  # transformers raises OSError, ValueError and RuntimeError, tokenizers bare Exception
            raise WeightsError(f"{place}: エンコーダを読めません / cannot read the text encoder ({error}); fetch the model again") from error
        projected = "CLIPTextModelWithProjection" in (config.architectures or [])
        state = {name.removeprefix("text_model."): tensor for name, tensor in load_sharded(place, "model", dtype).items()}
    model = _filled(config, state, place, projected if projection is None else projection)
    require_pieces(len(tokenizer), config.vocab_size, folder)
    return ClipEncoder(f"clip{suffix}", model, tokenizer, clip_skip=clip_skip, final_norm=final_norm)


def _filled(config: CLIPTextConfig, state: dict[str, Tensor], place: Path, projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A model of this config holding these tensors, whose names lack `text_model.`; those that it has no use for are left out."""
    with weightless():
        model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    names = {name: name.removeprefix("text_model.") for name in model.state_dict()}
    if missing := sorted(own for own in names.values() if own not in state):
        raise WeightsError(
            "エンコーダの重みが足りません / "
            f"{place} has no {', '.join(missing[:5])} ({len(missing)} tensors): not the weights of this config"
        )
    try:
        model.load_state_dict({name: state[own] for name, own in names.items()}, assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise WeightsError(f"{place}: エンコーダの重みが合いません / the encoder's weights do not match its config: {why}") from error
    return model


def toy(*, projection: bool = False, clip_skip: int = 0, final_norm: bool = True) -> ClipEncoder:
    """Two layers of random weights, width 32, over bytes and a few merges."""
    tokenizer = bpe_tokenizer(TOY_MERGES)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, projection_dim=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=77, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1,
    )
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    torch.nn.init.normal_(_text_model(model).final_layer_norm.bias)  # as trained: its states have a mean
    return ClipEncoder("toy-clip", model, tokenizer, clip_skip=clip_skip, final_norm=final_norm)
