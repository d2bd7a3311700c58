"""From Japanese to English, for models that read English alone: translators, and what is translated of a prompt."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from jpgen.catalog import TRANSLATORS, load_catalog
from jpgen.errors import IncompatibleError, UnknownNameError, WeightsError
from jpgen.models import open_model
from jpgen.protocols import Translator
from jpgen.safety import read_json, sha256_of
from jpgen.translate.cache import Remembering

JAPANESE = re.compile("[\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]")
"""Kana and kanji: a text that has none is left as it is."""

BREAK = ("BREAK", -1.0)

EDGE = re.compile(r"^([\s、。，．,.]*)(.*?)([\s、。，．,.]*)$", re.DOTALL)
"""A span's text between the stops at its two ends."""

STOPS = str.maketrans({"、": ", ", "，": ", ", "。": ". ", "．": ". ", "\u3000": " "})

Spans = Sequence[tuple[str, float]]


def open_translator(translator: str | Path | Translator) -> Translator | None:
    """The translator of this name in the catalogue or in this local folder; one that is open passes through, "" is none.

    What it translates is kept on disk (see `jpgen.translate.cache`). Raises UnknownNameError, LicenseError, WeightsError, and IncompatibleError for a
    model that draws.
    """
    if isinstance(translator, Translator):
        return translator
    if not str(translator):
        return None
    catalog = load_catalog()
    if str(translator) not in catalog:
        place = Path(translator).expanduser()
        if not place.exists():
            known = [name for name, row in catalog.items() if row.family in TRANSLATORS]
            raise UnknownNameError.of("翻訳モデル / translator", str(translator), known)
        return _remembering(kind_of(place), place.resolve(), place.resolve().name)
    entry = catalog[str(translator)]
    if entry.family not in TRANSLATORS:
        raise IncompatibleError(f"{entry.name} は翻訳モデルではありません / {entry.name} is no translator: give it as model")
    return _remembering(entry.family, open_model(entry.name).folder, entry.name)


def kind_of(folder: Path) -> str:
    """Which file of this package opens the translator in a folder: "causal" where its config.json names a causal language model, else "marian"."""
    try:
        names = read_json(folder / "config.json").get("architectures") or ()
    except WeightsError:
        return "marian"  # which says what is missing
    return "causal" if any(str(name).endswith("ForCausalLM") for name in names) else "marian"


def _remembering(kind: str, folder: Path, name: str) -> Translator:
    made = load_translator(kind, folder)
    digest = hashlib.sha256(kind.encode())
    for file in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".spm", ".json", ".jinja") and path.is_file()):
        digest.update(f"{file.name}:{sha256_of(file)}".encode())
    return Remembering(made, digest.hexdigest()[:16], name=name)


@lru_cache(maxsize=2)
def load_translator(kind: str, folder: Path) -> Translator:
    """The translator of this kind ("marian", "causal": files of this package) in a local folder, kept open for the next call; raises WeightsError."""
    made: Translator = importlib.import_module(f"jpgen.translate.{kind}").load(folder)
    return made


def is_japanese(text: str) -> bool:
    """Whether there is kana or kanji in it.

    >>> is_japanese("a café"), is_japanese("a 猫")
    (False, True)
    """
    return bool(JAPANESE.search(text))


def translate_spans(translator: Translator, prompts: Sequence[Spans]) -> list[tuple[tuple[str, float], ...]]:
    """The prompts, given as spans with their attention weights, in English: each span apart, so that its weight stays its own.

    What has neither kana nor kanji stays as it is, letter by letter; 、 and 。 at the ends of a span become , and . Equal texts are translated once.
    """
    wanted = {EDGE.sub(r"\2", text): "" for spans in prompts for text, weight in spans if (text, weight) != BREAK and is_japanese(text)}
    if wanted:
        wanted = dict(zip(wanted, translator.translate(list(wanted)), strict=True))

    def english(text: str) -> str:
        if not is_japanese(text):
            return text
        before, body, after = EDGE.fullmatch(text).groups()  # type: ignore[union-attr]  # it fits every text
        return f"{before.translate(STOPS)}{wanted[body].strip()}{after.translate(STOPS)}"

    return [_spaced([(text, weight) if (text, weight) == BREAK else (english(text), weight) for text, weight in spans]) for spans in prompts]


def _spaced(spans: list[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Spans with a space between two words that would become one; Japanese wants none there, so there was none."""
    made = spans[:1]
    for (one, _), (text, weight) in pairwise(spans):
        glued = (text, weight) != BREAK and one[-1:].isalnum() and text[:1].isalnum() and one != "BREAK"
        made.append((f" {text}" if glued else text, weight))
    return tuple(made)
