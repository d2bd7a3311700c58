"""The reading half of a Marian translator (Junczys-Dowmunt et al. 2018, arXiv 1804.00344): what it knows of a Japanese text before it writes English.

jpgen's own mame-ja-en is one, 160 wide: small enough to pair with a backbone where the 37 M parameters of mame's encoder are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor
from transformers import MarianConfig
from transformers.models.marian.modeling_marian import MarianEncoder

from jpgen.emphasis import TokenWindow, encode_weighted
from jpgen.errors import WeightsError
from jpgen.safety import read_json
from jpgen.types import Conditioning, ConditioningSpec
from jpgen.weights import load_weights

PREFIX = "model.encoder."
SHARED = "model.shared.weight"
"""The embeddings that both halves have, under the encoder's own name or this one."""

UNKNOWN = "<unk>"


class MarianReader:
    """The last hidden states of a frozen Marian encoder, one a piece and one for the end; only pieces of the text are there to be attended to."""

    def __init__(self, name: str, model: Any, pieces: Callable[[str], list[str]], vocabulary: Mapping[str, int]) -> None:
        self.name = name
        self.modules = {"text_encoder": model.eval().requires_grad_(False)}
        self.spec = ConditioningSpec(width=model.config.d_model)
        self._pieces, self._vocabulary = pieces, vocabulary
        end, pad = model.config.eos_token_id, model.config.pad_token_id
        self.window = TokenWindow(model.config.max_position_embeddings - 1, begin=(), end=(end,), pad=pad, fixed=False)

    def tokenize(self, text: str) -> list[int]:
        """The ids of the text, without the end."""
        unknown = self._vocabulary[UNKNOWN]
        return [self._vocabulary.get(piece, unknown) for piece in self._pieces(text)]

    @torch.inference_mode()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """States fp32 [batch, seq, width] of ids int64 [batch, seq], none of which sees one whose mask is 0."""
        return self.modules["text_encoder"](ids, attention_mask=mask).last_hidden_state.float(), None

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Token states [batch, longest, width] in fp32, padded with zeros; longer texts in chunks, one after the other."""
        return encode_weighted(self, [[(text, 1.0)] for text in texts])


def load(folder: Path) -> MarianReader:
    """The encoder in a translator's folder (`source.spm vocab.json config.json model.safetensors`); raises WeightsError."""
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
        config = MarianConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # sentencepiece raises OSError and RuntimeError, transformers OSError and ValueError
        why = " ".join(str(error).split())
        raise WeightsError(f"{folder}: エンコーダを読めません / cannot read the text encoder ({why}); fetch the model again") from error
    model = MarianEncoder(config)
    tensors = load_weights(folder / "model.safetensors")
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    state.setdefault("embed_tokens.weight", tensors.get(SHARED, torch.empty(0)))
    state.setdefault("embed_positions.weight", model.embed_positions.weight)  # sinusoids, which need not be stored
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise WeightsError(f"{folder}: エンコーダの重みが合いません / the encoder's weights do not match its config: {why}") from error
    return MarianReader(folder.name, model, lambda text: pieces.encode(text, out_type=str), read_json(folder / "vocab.json"))


def toy() -> MarianReader:
    """Two layers of random weights over a character vocabulary, width 32."""
    letters = ["</s>", UNKNOWN, *sorted(set("赤青い猫犬船海とのがにabcdefghijklmnopqrstuvwxyz、。")), "<pad>"]
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=len(letters), d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, max_position_embeddings=64,
        pad_token_id=len(letters) - 1, eos_token_id=0, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64,
    )  # fmt: skip
    return MarianReader("toy-marian", MarianEncoder(config), list, {letter: place for place, letter in enumerate(letters)})
