"""The tokenizers of CLIP-shaped text encoders: CLIP's own, and SentencePiece as rinna, Tohoku and Japanese Stable Diffusion XL use it.

transformers 5 opens a bare `spiece.model` only with protobuf, ignores `do_lower_case`, and takes id 2 for the unknown token whatever the model says:
in rinna's layout that is </s>, so every unknown character would end the text.
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sentencepiece import SentencePieceProcessor
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from jpgen.errors import WeightsError
from jpgen.safety import read_json

START, END = "<|startoftext|>", "<|endoftext|>"

MODELS = ("spiece.model", "sentencepiece.model", "tokenizer.model", "spm.model")
"""File names of SentencePiece models."""

ENDS = {
    "T5Tokenizer": (False, True, "eos_token"), "T5TokenizerFast": (False, True, "eos_token"),
    "LlamaTokenizer": (True, False, "eos_token"), "LlamaTokenizerFast": (True, False, "eos_token"),
    "AlbertTokenizer": (True, True, "sep_token"), "AlbertTokenizerFast": (True, True, "sep_token"),
    "GemmaTokenizer": (True, False, "eos_token"), "GemmaTokenizerFast": (True, False, "eos_token"),
    "XLMRobertaTokenizer": (True, True, "eos_token"), "CamembertTokenizer": (True, True, "eos_token"),
}  # fmt: skip
"""What each class of tokenizer_config.json puts around a text: its begin, its end, and what it calls the end."""

NAMES = {"bos_token": "<s>", "cls_token": "[CLS]", "eos_token": "</s>", "sep_token": "[SEP]", "pad_token": "<pad>"}
"""Special tokens where the config does not name them."""


@runtime_checkable
class ClipShapedTokenizer(Protocol):
    """Ids of a text, and of what is put around it."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    max_length: int

    def __len__(self) -> int:
        """How many pieces there are."""

    def encode(self, text: str) -> list[int]:
        """The ids of the text, whole, without begin and end; their names in a text are text."""


class SentencePieceTokenizer:
    """A SentencePiece model with what stands around a text. A character that it does not know is its unknown piece."""

    def __init__(
        self,
        model: SentencePieceProcessor,
        *,
        begin: tuple[int, ...] = (),
        end: tuple[int, ...] = (),
        pad: int,
        max_length: int = 77,
        lower: bool = False,
    ) -> None:
        self.model = model
        self._lower = lower
        self.begin, self.end, self.pad, self.max_length = begin, end, pad, max_length

    def __len__(self) -> int:
        return int(self.model.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """The ids of the text, whole, without begin and end."""
        ids: list[int] = self.model.encode(text.lower() if self._lower else text)
        return ids

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None if there is no such piece."""
        found = int(self.model.piece_to_id(piece))
        return found if self.model.id_to_piece(found) == piece else None


class ClipTokenizer:
    """CLIP's byte-level BPE."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.inner = tokenizer
        self.begin: tuple[int, ...] = (tokenizer.bos_token_id,)
        self.end: tuple[int, ...] = (tokenizer.eos_token_id,)
        self.pad: int = tokenizer.pad_token_id
        self.max_length: int = tokenizer.model_max_length

    def __len__(self) -> int:
        return len(self.inner)

    def encode(self, text: str) -> list[int]:
        """The ids of the text, without begin and end; their names in a text are text."""
        ids: list[int] = self.inner(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return ids


def require_pieces(pieces: int, known: int, place: Path) -> None:
    """Raise WeightsError if a tokenizer has more pieces than its encoder knows."""
    if pieces > known:
        raise WeightsError(
            "トークナイザとエンコーダが別のモデルのものです / "
            f"{place} has {pieces} pieces in the tokenizer, {known} in the encoder: they are not of one model"
        )


def read_tokenizer(folder: Path) -> ClipShapedTokenizer:
    """The tokenizer in a folder: of a SentencePiece model if it holds one, else CLIP's; raises WeightsError on a surprise."""
    model = next((folder / name for name in MODELS if (folder / name).is_file()), None)
    if model is None:
        config = folder / "tokenizer_config.json"
        kind = read_json(config).get("tokenizer_class", "CLIPTokenizer") if config.is_file() else "CLIPTokenizer"
        if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
            raise WeightsError(
                f"{folder}: トークナイザ {kind} は読めません / cannot read tokenizer class {kind!r}: wanted CLIP's, or a SentencePiece model "
                f"({', '.join(MODELS)}); fetch the model again"
            )
        return ClipTokenizer(CLIPTokenizer.from_pretrained(folder, local_files_only=True))
    return read_sentencepiece(model)


def read_sentencepiece(model: Path) -> SentencePieceTokenizer:
    """The tokenizer of a SentencePiece model with the tokenizer_config.json beside it; raises WeightsError naming all that is not as it should be."""
    folder = model.parent
    try:
        pieces = SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{model} は壊れています / damaged SentencePiece model {model} ({error}); fetch the model again") from error
    config = read_json(folder / "tokenizer_config.json")
    special = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
    kind = str(config.get("tokenizer_class", "T5Tokenizer"))
    if kind not in ENDS:
        raise WeightsError(
            f"{folder}: トークナイザ {kind} は知りません / unknown tokenizer class {kind!r} over a SentencePiece model; known: {', '.join(ENDS)}"
        )
    with_begin, with_end, end_name = ENDS[kind]
    with_begin, with_end = bool(config.get("add_bos_token", with_begin)), bool(config.get("add_eos_token", with_end))
    begin_name = "cls_token" if end_name == "sep_token" else "bos_token"
    wrong = []

    def of(name: str) -> int:
        token = config.get(name) or special.get(name) or NAMES[name]
        text = str(token["content"] if isinstance(token, dict) else token)
        found = int(pieces.piece_to_id(text))
        if pieces.id_to_piece(found) != text:
            wrong.append(f"{name} {text!r} is no piece of {model.name}")
        return found

    begin, end, pad = (of(begin_name),) if with_begin else (), (of(end_name),) if with_end else (), of("pad_token")
    if not end:
        wrong.append(f"{kind} puts no end after a text, where a CLIP encoder pools")
    length = config.get("model_max_length", 77)
    if not isinstance(length, int | float) or isinstance(length, bool) or length < 3:
        wrong.append(f"model_max_length = {length!r}")
    if wrong:
        faults = "; ".join(wrong)
        raise WeightsError(f"{folder}: トークナイザの設定が合いません / the tokenizer's settings do not fit: {faults}; fetch the model again")
    lower = bool(config.get("do_lower_case", False))
    return SentencePieceTokenizer(pieces, begin=begin, end=end, pad=pad, max_length=int(min(length, 10**6)), lower=lower)


@lru_cache(maxsize=2)
def clip_tokenizer(pad: str = END) -> ClipTokenizer:
    """The tokenizer of every CLIP and OpenCLIP text encoder, for files that bring none; `pad` is "!" (id 0) for OpenCLIP's."""
    packed = (resources.files("jpgen.encoders") / "clip_merges.txt.gz").read_bytes()
    return bpe_tokenizer(gzip.decompress(packed).decode("utf-8").splitlines(), pad)


def bpe_tokenizer(merges: list[str] | tuple[str, ...], pad: str = END) -> ClipTokenizer:
    """CLIP's tokenizer with these merges ("sh ip</w>"), its pieces in OpenAI's order: bytes, bytes that end a word, merges, start, end."""
    letters = list(_bytes_in_order())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    pairs: Any = [tuple(merge.split()) for merge in merges]
    return ClipTokenizer(CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77))


def _bytes_in_order() -> list[str]:
    """The 256 letters that stand for bytes: printable ones first, then the others in the order of their bytes."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, own), *(chr(256 + i) for i in range(256 - len(own)))]
    if set(letters) != set(ByteLevel.alphabet()):
        raise WeightsError("tokenizers のバイト表が変わりました / the tokenizers package has another table of bytes: install the version jpgen names")
    return letters
