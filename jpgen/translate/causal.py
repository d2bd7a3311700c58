"""Instruction language models as translators (CAT-Translate, Jinnai 2026, arXiv 2606.21413): asked in their own chat template, answered greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from jpgen.compute import best_dtype
from jpgen.errors import WeightsError
from jpgen.safety import check_safetensors
from jpgen.weights import find_weights

ASKED = "Translate the following Japanese text into English.\n\n {}"
"""What CAT-Translate was taught to be asked; other instruction models understand it."""

MOST_WRITTEN = 256
"""Tokens of an answer at most."""


class CausalTranslator:
    """A frozen causal language model that is asked for one translation a text; an answer ends at its end token or after `MOST_WRITTEN` tokens."""

    def __init__(self, name: str, model: Any, tokenizer: Any, *, batch_size: int = 8) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The translation of each text on one line; "" of what is blank.

            >>> translator.translate(["赤い猫。", ""])  # doctest: +SKIP
            ['A red cat.', '']
        """
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))  # of like length together: less filling
        made = [""] * len(texts)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            for i, written in zip(batch, self._written([texts[i] for i in batch]), strict=True):
                made[i] = written
        return made

    @torch.inference_mode()
    def _written(self, texts: list[str]) -> list[str]:
        asked = [
            self._tokenizer.apply_chat_template([{"role": "user", "content": ASKED.format(text)}], tokenize=False, add_generation_prompt=True)
            for text in texts
        ]
        read = self._tokenizer(asked, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
        ids = self._model.generate(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"], do_sample=False, num_beams=1, max_new_tokens=MOST_WRITTEN,
            temperature=None, top_p=None, top_k=None, pad_token_id=self._tokenizer.pad_token_id,
        )  # fmt: skip
        answers = self._tokenizer.batch_decode(ids[:, read["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(answer.split()) for answer in answers]


def load(folder: Path) -> CausalTranslator:
    """The language model in a local folder (config, tokenizer with a chat template, safetensors), of a type that transformers itself has.

    Nothing is fetched and no code of the folder runs. Raises WeightsError.
    """
    for file in find_weights(folder, "model", best_dtype()):
        check_safetensors(file)
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **safe)
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=best_dtype(), use_safetensors=True, output_loading_info=True, **safe
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and RuntimeError
        why = " ".join(str(error).split())
        raise WeightsError(
            f"{folder}: 翻訳に使う言語モデルを読めません / cannot read the language model ({why}); models that bring their own code are refused"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise WeightsError(f"{folder} の重みが足りません / {folder} has no {', '.join(missing[:5])} ({len(missing)} tensors): fetch it again")
    if not tokenizer.chat_template:
        raise WeightsError(
            f"{folder} には会話の書式（chat template）がありません / {folder} has no chat template: "
            "it is no instruction model; name one that is, such as cat-translate-0.8b"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return CausalTranslator(folder.name, model, tokenizer)
