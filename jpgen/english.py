"""Prompts in English: which translator a model gets, the lexicon as its glossary, and what a person is told of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jpgen.errors import WeightsError
from jpgen.prompt.chain import normalize as normalized
from jpgen.prompt.syntax import parse_attention, render
from jpgen.prompt.terms import terms
from jpgen.protocols import Translator
from jpgen.translate import is_japanese, open_translator, translate_spans
from jpgen.translate.glossary import Gloss, Glossed
from jpgen.types import Prompt, Translation

log = logging.getLogger("jpgen")

BUILTIN = "mame-ja-en"
"""The translator that comes with jpgen."""

NOTES = {
    BUILTIN: "内蔵の小さな翻訳モデルで英訳しました。複雑な文は誤ることがあります（translator= に大きな翻訳モデルを指定できます） / "
    "translated by the small built-in model, which may err on involved sentences: a larger translator can be named",
    Gloss.name: "翻訳モデルを開けないので、辞書にある語だけを英語に置き換えました / "
    "no translator could be opened: only the words of the lexicon were put into English",
}
"""What is noted of a translation, by translator."""


def open_english(translator: str | Path | Translator | None = None) -> Translator | None:
    """The translator asked for, "" being none; without a wish the built-in one, and the lexicon's glosses should its files be missing.

    Raises what `jpgen.translate.open_translator` does, for a translator that was asked for.
    """
    if translator == Gloss.name:
        return Gloss(terms)
    if translator is not None:
        return open_translator(translator)
    try:
        return open_translator(BUILTIN)
    except WeightsError as error:
        log.warning("%s", error)
        return Gloss(terms)


def in_english(translator: Translator, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with what is Japanese of them in English, each text translated once, weights and windows kept; words of the lexicon by its English.

    A prompt that was translated before, or has neither kana nor kanji, stays as it is.
    """
    wanted = [i for i, prompt in enumerate(prompts) if is_japanese(prompt.text + prompt.negative) and not prompt.translation.by]
    if not wanted:
        return [*prompts]
    rows = [(prompts[i].spans or ((prompts[i].text, 1.0),), parse_attention(prompts[i].negative)) for i in wanted]
    glossed = translator if isinstance(translator, Gloss) else Glossed(translator, terms)
    made = translate_spans(glossed, [spans for row in rows for spans in row])
    done = [*prompts]
    for i, spans, unwanted in zip(wanted, made[::2], made[1::2], strict=True):
        text = "".join(" " if span == ("BREAK", -1.0) else span[0] for span in spans)
        noted = (*done[i].notes, NOTES[translator.name]) if translator.name in NOTES else done[i].notes
        done[i] = replace(done[i], translation=Translation(translator.name, text, render(unwanted), spans), notes=noted)
    return done


def to_english(texts: Sequence[str], *, translator: str | Path | Translator | None = None, normalize: bool = True) -> list[Prompt]:
    """Prompts read as `Pipeline.generate` reads them, with their English in `translation`; raises as `open_english` and `normalize` do.

    >>> to_english(["赤い猫"])[0].translation.by
    'mame-ja-en'
    """
    read = [normalized(text) if normalize else Prompt(text, text, spans=((text, 1.0),)) for text in texts]
    opened = open_english(translator)
    return read if opened is None else in_english(opened, read)


def written_in_english(prompt: Prompt) -> str:
    """The prompt as its translation says it, in the notation of stable-diffusion-webui, with its adapters; as it was where nothing was translated."""
    if not prompt.translation.by:
        return prompt.written or prompt.text
    loras = "".join(f"<lora:{name}:{weight:g}>" for name, weight in prompt.loras)
    return " ".join(filter(None, (render(prompt.translation.spans), loras)))
