"""`make bench-translate`: the built-in translator by BLEU, chrF, the words that matter in prompts, and time; the lexicon alone beside it.

Reads prompts/translation_tanaka.tsv (1,000 sentence pairs of the Tanaka Corpus, held out by a hash) and prompts/translation_eval.tsv (200 prompts
with their English and the words that must be in it) of a checkout; neither was learnt from. Times are those of one thread's CPU, so that other
load on the machine counts for little.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jpgen.english import BUILTIN
from jpgen.errors import MissingExtraError
from jpgen.models import open_model
from jpgen.prompt.lexicon import load_lexicon
from jpgen.prompt.terms import terms
from jpgen.protocols import Translator
from jpgen.translate import load_translator, open_translator
from jpgen.translate.glossary import Gloss, Glossed

SENTENCES = Path("prompts/translation_tanaka.tsv")
PROMPTS = Path("prompts/translation_eval.tsv")
LEAST_RECALL, MOST_MS, MOST_LOST = 0.8, 150.0, 0
TIMED = 40


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file with a header line."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def recall(made: Sequence[str], wanted: Sequence[str]) -> float:
    """The share of the content words that are there; `wanted` has them separated by |, each with / between words that do as well.

    A word counts from its beginning on, whatever follows: "flower" is in "two flowers", "art" is not in "heart".

    >>> recall(["two red flowers"], ["flower|scarlet/red|cat"])
    0.6666666666666666
    """
    found = [any(_there(word, text) for word in words.split("/")) for text, row in zip(made, wanted, strict=True) for words in row.split("|")]
    return sum(found) / len(found)


def _there(word: str, text: str) -> bool:
    return re.search(rf"(?<![a-z]){re.escape(word.lower())}", text.lower()) is not None


def scores(made: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """BLEU and chrF by sacrebleu (Post 2018, arXiv 1804.08771), 0–100, in small letters."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingExtraError("sacrebleu が要ります / wants sacrebleu: pip install sacrebleu") from error
    lowered = [text.lower() for text in made]
    wanted = [[text.lower() for text in references]]
    bleu: Any = BLEU(lowercase=True)
    return float(bleu.corpus_score(lowered, wanted).score), float(CHRF(lowercase=True).corpus_score(lowered, wanted).score)


def lost(translator: Translator, texts: Sequence[str]) -> list[str]:
    """Words of the lexicon in the texts whose English is not in the translation."""
    made = translator.translate(texts)
    return [
        text[term.start : term.end]
        for text, english in zip(texts, made, strict=True)
        for term in terms(text)
        if term.english.split(", ")[0].lower() not in english.lower()
    ]


def milliseconds(translator: Translator, texts: Sequence[str]) -> float:
    """CPU time of a text, one at a time, as a pipeline asks."""
    translator.translate([texts[0]])
    began = time.process_time()
    for text in texts:
        translator.translate([text])
    return (time.process_time() - began) / len(texts) * 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the gates; 1 if one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BUILTIN, help="a translator of the catalogue or a local folder")
    parser.add_argument("--sentences", type=int, default=1000, help="how many of the Tanaka pairs")
    parser.add_argument("--show", type=int, default=0, help="print so many translations")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tanaka, prompts = rows(SENTENCES)[: chosen.sentences], rows(PROMPTS)
    plain = load_translator("marian", open_model(chosen.model).folder) if chosen.model == BUILTIN else open_translator(chosen.model)
    if plain is None:
        raise SystemExit("--model wants a translator")
    glossed, gloss = Glossed(plain, terms), Gloss(terms)
    said, japanese, english = [row["words"] for row in prompts], [row["ja"] for row in prompts], [row["en"] for row in prompts]
    print(f"{'':46}{'BLEU':>8}{'chrF':>8}{'recall':>8}")
    found = 0.0
    for name, arm in ((f"{chosen.model}, glossary", glossed), (f"{chosen.model} alone", plain), ("the lexicon's glosses alone", gloss)):
        made = arm.translate(japanese)
        bleu, chrf = scores(made, english)
        print(f"{f'{len(prompts)} prompts: {name}':46}{bleu:8.1f}{chrf:8.1f}{recall(made, said):8.3f}")
        if arm is glossed:
            found, shown = recall(made, said), made
    for name, arm in ((f"{chosen.model} alone", plain), ("the lexicon's glosses alone", gloss)):
        bleu, chrf = scores(arm.translate([row["ja"] for row in tanaka]), [row["en"] for row in tanaka])
        print(f"{f'{len(tanaka)} sentences: {name}':46}{bleu:8.1f}{chrf:8.1f}")
    for row, text in list(zip(prompts, shown, strict=True))[: chosen.show]:
        print(f"  {row['ja']} → {text}")
    took = milliseconds(glossed, japanese[:TIMED])
    gone = lost(glossed, [*japanese, *(f"{entry.surface}と猫" for entry in load_lexicon())])
    passed = [
        _gate("content-word recall", f"{found:.3f}", found >= LEAST_RECALL, f"≥ {LEAST_RECALL}"),
        _gate("CPU ms a prompt, one thread", f"{took:.0f}", took <= MOST_MS, f"≤ {MOST_MS:.0f}"),
        _gate("words of the lexicon lost", f"{len(gone)}", len(gone) <= MOST_LOST, f"{MOST_LOST}"),
    ]
    return 0 if all(passed) else 1


def _gate(name: str, got: str, good: bool, wanted: str) -> bool:
    print(f"{'✓' if good else '✗'} {name}: {got} ({wanted})")
    return good


if __name__ == "__main__":
    sys.exit(main())
