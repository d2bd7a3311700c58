"""The text tower of SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786; of SigLIP, arXiv 2303.15343, alike) with Gemma's tokenizer: waon-siglip2.

A contrastive encoder: its states are of use only to a backbone or an adapter that was trained on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import SiglipTextConfig, SiglipTextModel

from jpgen.compute import best_dtype
from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.encoders import fill, read_as, tower_of, weightless
from jpgen.encoders.llm import load_tokenizer, specials
from jpgen.encoders.tokenizers import MODELS, ClipShapedTokenizer, read_sentencepiece, require_pieces
from jpgen.errors import WeightsError
from jpgen.safety import read_json
from jpgen.types import Conditioning, ConditioningSpec
from jpgen.weights import load_sharded

TYPES = ("siglip", "siglip2", "siglip_text_model", "siglip2_text_model")
"""Model types of config.json; the text towers of all are one and the same."""

TOWER = "text_model."
"""What the names of the text tower's tensors begin with in a whole model; in a tower alone they may lack it."""

PAD = "<pad>"
"""What a pass is filled with where the tokenizer's settings do not name it. The config's id is no help: its default is SigLIP 1's."""


class _JsonTokenizer:
    """The tokenizer of a tokenizer.json."""

    def __init__(self, tokenizer: Tokenizer, pad: int = 0, max_length: int = 64) -> None:
        tokenizer.encode_special_tokens = True  # as text
        self._tokenizer = tokenizer
        self.begin, self.end = specials(tokenizer)
        self.pad, self.max_length = pad, max_length

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class SiglipEncoder:
    """The last states of a frozen SigLIP text tower, always full length: it saw its filling in training, and pools at the last place.

    Texts are put in small letters, as SigLIP 2's were. `pooled`: with the pooled state, what the tower compares with pictures.
    """

    def __init__(self, name: str, model: SiglipTextModel, tokenizer: ClipShapedTokenizer, *, pooled: bool = False) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._pooled = pooled
        self.spec = ConditioningSpec(width=model.config.hidden_size, pooled_width=model.config.projection_size if pooled else None)
        length = model.config.max_position_embeddings - len(tokenizer.begin + tokenizer.end)
        self.window = TokenWindow(length, begin=tokenizer.begin, end=tokenizer.end, pad=tokenizer.pad, fixed=True)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without begin and end; their names in a text are text."""
        return self._tokenizer.encode(text.lower())

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0; pooled [batch, pooled width] or None."""
        made = self._model(input_ids=ids, attention_mask=None if mask.all() else mask)
        return made.last_hidden_state.float(), made.pooler_output.float() if self._pooled else None

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, 64 a chunk, width] in fp32, nothing masked; longer texts in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def load(folder: Path, *, text_encoder: str = "", pooled: bool = False) -> SiglipEncoder:
    """The text tower in the local folder `text_encoder` (a path from `folder`; "": `folder/text_encoder`), which holds its tokenizer too.

    A whole model's picture tower is not read. The tokenizer is tokenizer.json or a SentencePiece model as Gemma's. Raises WeightsError.
    """
    place = tower_of(folder, text_encoder)
    config = _config(read_json(place / "config.json"), place)
    tokenizer = _tokenizer(place)
    require_pieces(len(tokenizer), config.vocab_size, place)
    state = load_sharded(place, "model", best_dtype())
    whole = any(name.startswith(TOWER) for name in state)
    tower = {name.removeprefix(TOWER): tensor for name, tensor in state.items() if name.startswith(TOWER) or not whole}
    with weightless():
        model = SiglipTextModel(config)
    fill(model, tower, place)
    return SiglipEncoder("siglip", model, tokenizer, pooled=pooled)


def _config(told: dict[str, Any], place: Path) -> SiglipTextConfig:
    """The config of the text tower, from its own or a whole model's."""
    if told.get("model_type") not in TYPES:
        raise WeightsError(
            f"{place}: SigLIP ではありません / {place} holds a model of type {told.get('model_type')!r}, wanted one of {', '.join(TYPES)}: "
            "name a SigLIP model in parts.text_encoder"
        )
    inner = told.get("text_config") or {} if "text_config" in told or "vision_config" in told else told
    return read_as(SiglipTextConfig, inner, place)


def _tokenizer(place: Path) -> ClipShapedTokenizer:
    model = next((place / name for name in MODELS if (place / name).is_file()), None)
    if model is not None and not (place / "tokenizer.json").is_file():
        return read_sentencepiece(model)
    tokenizer = load_tokenizer(place)
    told = read_json(place / "tokenizer_config.json").get("pad_token", PAD) if (place / "tokenizer_config.json").is_file() else PAD
    pad = tokenizer.token_to_id(str(told["content"] if isinstance(told, dict) else told))
    if pad is None:
        raise WeightsError(f"{place}: 詰め物 {told!r} がトークナイザにありません / the tokenizer has no {told!r} to fill with; fetch the model again")
    return _JsonTokenizer(tokenizer, pad)


def toy(*, pooled: bool = True) -> SiglipEncoder:
    """Two layers of random weights over letters, width 32; pooled 24."""
    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    return SiglipEncoder("toy-siglip", SiglipTextModel(toy_config(tokenizer.get_vocab_size())), _JsonTokenizer(tokenizer), pooled=pooled)


def toy_config(vocabulary: int) -> SiglipTextConfig:
    """A text tower of two layers, width 32, whose passes are 16 tokens long."""
    return SiglipTextConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        projection_size=24, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip


def toy_tokenizer() -> Tokenizer:
    """A BPE of letters in Gemma's layout: <pad> 0, <eos> 1, <bos> 2, <unk> 3, spaces as ▁, <eos> after a text."""
    letters = sorted(set("赤青白い猫犬船海空花とのがにを左右車abcdefghijklmnopqrstuvwxyz、。"))
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *letters, "赤い"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("赤", "い")], unk_token="<unk>"))
    tokenizer.add_special_tokens(pieces[:4])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer
