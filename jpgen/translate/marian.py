"""Marian models (Junczys-Dowmunt et al. 2018, arXiv 1804.00344), small ones for one pair of languages: OPUS-MT, FuguMT, ElanMT, and
jpgen's own, whose weights are in 8 bits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from jpgen.errors import WeightsError
from jpgen.safety import PICKLES, check_safetensors, read_json
from jpgen.translate.markers import MARKERS
from jpgen.weights import METADATA_KEY, load_weights

BEAMS = 4
"""Sentences kept in view while one is written."""

MOST_READ, MOST_WRITTEN = 150, 512
"""Tokens of a sentence; one that is longer to read is cut at its clauses, then anywhere."""

FILES = ("config.json", "source.spm", "target.spm", "vocab.json", "tokenizer_config.json")
"""What a folder holds besides its weights."""

SENTENCE = re.compile(r"[^。｡！？!?\n]*[。｡！？!?\n]+|[^。｡！？!?\n]+")
CLAUSE = re.compile(r"[^、､，,]*[、､，,]+|[^、､，,]+")


class MarianTranslator:
    """A frozen Marian model that writes by beam search: the same text gives the same translation, alone or among others."""

    def __init__(self, name: str, model: Any, tokenizer: Any, *, batch_size: int = 16) -> None:
        self.name = name
        self.knows_markers = set(MARKERS) <= tokenizer.get_vocab().keys()
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        positions = model.config.max_position_embeddings
        self._most_read, self._most_written = min(MOST_READ, positions // 2), min(MOST_WRITTEN, positions)

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The translation of each text, sentence by sentence, nothing cut off; "" of "".

            >>> translator.translate(["赤い猫。", ""])  # doctest: +SKIP
            ['A red cat.', '']
        """
        pieces = [(number, piece) for number, text in enumerate(texts) for piece in self._pieces(text)]
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i][1]))  # of like length together: less filling
        made = dict.fromkeys(order, "")
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            made.update(zip(batch, self._written([pieces[i][1] for i in batch]), strict=True))
        rows = [[made[i] for i, (number, _) in enumerate(pieces) if number == row] for row in range(len(texts))]
        return [" ".join(filter(None, row)) for row in rows]

    def _pieces(self, text: str) -> Iterator[str]:
        """Its sentences; of one that is too long its clauses, of a clause that is too long as many letters as fit."""
        for sentence in SENTENCE.findall(text):
            for clause in [sentence] if self._fits(sentence) else CLAUSE.findall(sentence):
                while clause.strip():
                    size = len(clause)
                    while not self._fits(clause[:size]):
                        size = size * 3 // 4
                    yield clause[:size].strip()
                    clause = clause[size:]

    def _fits(self, text: str) -> bool:
        return len(text) < 2 or len(self._tokenizer.tokenize(text)) <= self._most_read

    @torch.inference_mode()
    def _written(self, texts: list[str]) -> list[str]:
        read = self._tokenizer(texts, padding=True, return_tensors="pt")
        ids = self._model.generate(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"], num_beams=BEAMS, do_sample=False, early_stopping=True,
            max_length=self._most_written, bad_words_ids=[[self._model.config.pad_token_id]],
        )  # fmt: skip
        written: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True, use_source_tokenizer=False)
        return [" ".join(text.split()) for text in written]


def load(folder: Path) -> MarianTranslator:
    """The translator in a local folder (`source.spm target.spm vocab.json tokenizer_config.json config.json model.safetensors`).

    Raises WeightsError; of a folder that has only pickles it names the way to convert them.
    """
    _require_files(folder)
    header = check_safetensors(folder / "model.safetensors")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*sacremoses")  # it tidies quotation marks of English
            tokenizer = MarianTokenizer.from_pretrained(folder, local_files_only=True)
        model, missing = _quantized(folder) if METADATA_KEY in header.metadata else _opened(folder)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, sentencepiece RuntimeError
        why = " ".join(str(error).split())
        raise WeightsError(f"{folder}: 翻訳モデルを読めません / cannot read the translator ({why}); fetch it again") from error
    if missing:
        raise WeightsError(f"{folder} の重みが足りません / {folder} has no {', '.join(missing[:5])} ({len(missing)} tensors): fetch it again")
    if len(tokenizer) > model.config.vocab_size:
        raise WeightsError(
            f"{folder}: 語彙と重みが合いません / {folder} has {len(tokenizer)} pieces in the tokenizer, {model.config.vocab_size} in the model: "
            "they are not of one model; fetch it again"
        )
    return MarianTranslator(folder.name, model, tokenizer)


def _opened(folder: Path) -> tuple[Any, list[str]]:
    """The model of a folder as the hub has them, and the tensors that its file lacks."""
    model, found = MarianMTModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True)
    return model, sorted(found["missing_keys"])


def _quantized(folder: Path) -> tuple[Any, list[str]]:
    """The same for weights in jpgen's 8 bits; the sinusoids of the positions are computed, the tied tensors are one."""
    model = MarianMTModel(MarianConfig.from_pretrained(folder, local_files_only=True))
    missing, unexpected = model.load_state_dict(load_weights(folder / "model.safetensors"), strict=False)
    if unexpected:
        raise ValueError(f"unexpected tensors {', '.join(sorted(unexpected)[:5])}")
    model.tie_weights()
    tied = ("embed_positions.weight", "embed_tokens.weight", "lm_head.weight")
    return model, sorted(name for name in missing if not name.endswith(tied))


def _require_files(folder: Path) -> None:
    if not folder.is_dir():
        raise WeightsError(f"{folder} がありません / there is no folder {folder}: give the local folder of a Marian model")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} は Marian の翻訳モデルではありません / {folder} is no Marian translator, it has no {', '.join(missing)}: "
            "give the folder of one, such as opus-mt-ja-en"
        )
    if (kind := read_json(folder / "config.json").get("model_type")) != "marian":
        raise WeightsError(f"{folder} は Marian ではなく {kind} です / {folder} holds a model of type {kind!r}, wanted 'marian'")
    if not (folder / "model.safetensors").is_file():
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(PICKLES))
        what = f"only pickles ({', '.join(names)}), which can run any program when opened" if names else "no model.safetensors"
        raise WeightsError(
            f"{folder} に model.safetensors がありません{'（pickle は開きません）' if names else ''}。信頼できる隔離した環境で変換してください / "
            f"{folder} holds {what}: not opened; get model.safetensors, or convert on a machine you trust with it: {CONVERT}"
        )


CONVERT = 'from transformers import MarianMTModel; MarianMTModel.from_pretrained("FOLDER", use_safetensors=False).save_pretrained("FOLDER")'
"""Makes model.safetensors of pytorch_model.bin; transformers opens that with weights_only=True. The tensors are tied, so no plain copy will do."""
