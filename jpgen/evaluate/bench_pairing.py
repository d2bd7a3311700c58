"""Measure the pairing: how close Japanese comes to English on a model that learnt English alone.

python -m jpgen.evaluate.bench_pairing [--model NAME] [--adapter FILE] [--prompts FILE] [--seeds N] [--limit N] [--keep FOLDER] [--json OUT] …

Four arms draw the same prompts from the same seeds: English as the oracle, Japanese by the adapter, Japanese translated, Japanese as it is (the
control). The judge must choose among what the prompts name. Besides: the noise gap and the recall of the states (`jpgen.evaluate.pairing`), on the
captions of fresh scenes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jpgen.encoders.adapted import open_source
from jpgen.errors import JpgenError, OutputError, PromptError
from jpgen.evaluate.bench_mame import Question, read_questions
from jpgen.evaluate.journal import Journal, key_of
from jpgen.evaluate.judge import CEILING, Judge, Reading, score
from jpgen.evaluate.pairing import noise_gaps, recall_at_1, stacked
from jpgen.evaluate.statistics import Difference, bootstrap, paired
from jpgen.models import open_model
from jpgen.pipeline import Pipeline
from jpgen.protocols import TextEncoder
from jpgen.safety import read_json
from jpgen.types import Conditioning

PROMPTS = Path("prompts") / "pairing_eval.tsv"
CAPTIONS = Path("prompts") / "pairing_captions.tsv"
"""1,000 captions, no two alike, of scenes that no training saw (seeds from 81,000,000); a short one may be said in training too, of another scene."""

MODEL = "mame-sdxl"
SEED = 5000
BATCH = 10
ARMS = {"english": "英語 / English", "adapter": "アダプタ / adapter", "translate": "翻訳 / translation", "raw": "そのまま / raw"}
"""Arm -> its label; the first is what the others are compared with."""

ROWS = {
    "object": ("もの 1位 / object top-1", 0.05),
    "color": ("色 / colour", 0.07),
    "count": ("個数 / count", 0.07),
    "left_right": ("左右 / place: left, right", 0.07),
    "background": ("背景 / place: background", 0.07),
    "culture": ("日本のもの / culture words", None),
}
"""Figure of `score` -> its label, and how far the adapter may stay behind English (None: at least the translation)."""

KEEP = Path("out") / "bench-pairing"
GAP, RECALL = 0.30, 0.90
"""The noise gap that is allowed at most, the recall that is wanted at least."""


@dataclass(frozen=True)
class Answer:
    """What the judge reads in the picture of a question by an arm, from a seed."""

    question: Question
    arm: str
    seed: int
    reading: Reading
    picture: Path = Path()


@dataclass(frozen=True)
class Figure:
    """One figure: shares right by arm (0…1) with their 95 % intervals, and the adapter's difference from English; `ceiling` is real renders."""

    name: str
    label: str
    pictures: int
    shares: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    difference: Difference
    ceiling: float | None
    passed: bool


def open_arms(model: str, adapter: Path | None) -> dict[str, Pipeline]:
    """The pipeline of each arm, the model's own parts shared; raises what opening raises."""
    own = Pipeline(model, route="raw", batch_size=BATCH)
    paired_up = Pipeline(model, route="adapter", adapter=adapter, batch_size=BATCH)
    return {"english": own, "adapter": paired_up, "translate": own.with_translator("mame-ja-en"), "raw": own}


def drawn(arms: dict[str, Pipeline], judge: Judge, questions: Sequence[Question], seeds: Sequence[int], journal: Journal) -> Iterator[Answer]:
    """What the judge reads of every question by every arm from every seed; what the journal holds is not drawn again."""
    for seed in seeds:
        for start in range(0, len(questions), BATCH):
            for arm, pipeline in arms.items():
                batch = {key_of_answer(pipeline, arm, question, seed): question for question in questions[start : start + BATCH]}
                absent = {key: question for key, question in batch.items() if key not in journal.rows}
                if absent:
                    texts = [question.en if arm == "english" else question.ja for question in absent.values()]
                    images = [made.image for made in pipeline.generate_many(texts, seed=seed)]
                    for key, image, reading in zip(absent, images, judge.read(images), strict=True):
                        image.save(journal.picture(key))
                        journal.write(key, **asdict(reading))
                for key, question in batch.items():
                    told: dict[str, Any] = {name: value for name, value in journal.rows[key].items() if name != "key"}
                    told["first_top5"] = tuple(told["first_top5"])
                    yield Answer(question, arm, seed, Reading(**told), journal.picture(key))


def key_of_answer(pipeline: Pipeline, arm: str, question: Question, seed: int) -> str:
    """What names a picture: the weights, the adapter, the settings, the words and the seed."""
    behind = asdict(pipeline.pairing) if pipeline.pairing else {}
    words = question.en if arm == "english" else question.ja
    return key_of(model=pipeline.info.weights_hash, adapter=behind, settings=asdict(pipeline.config()), arm=arm, words=words, seed=seed)


def tabulate(answers: Sequence[Answer], ceiling: dict[str, float]) -> list[Figure]:
    """A figure for each of ROWS that some prompt states."""
    figures = []
    for name, (label, allowed) in ROWS.items():
        right: dict[str, dict[tuple[str, int], float]] = {arm: {} for arm in ARMS}
        for answer in answers:
            said = score(answer.question.facts, answer.reading)
            if name in said:
                right[answer.arm][answer.question.id, answer.seed] = float(said[name])
        places = sorted(right["english"])
        if not places:
            continue
        values = {arm: np.array([found[place] for place in places]) for arm, found in right.items()}
        prompts = np.array([question for question, _ in places])
        shares = {arm: float(value.mean()) for arm, value in values.items()}
        behind = paired(values["adapter"], values["english"], prompts)
        passed = shares["adapter"] >= shares["translate"] if allowed is None else behind.mean >= -allowed - 1e-9
        intervals = {arm: _interval(value, prompts) for arm, value in values.items()}
        figures.append(Figure(name, label, len(places), shares, intervals, behind, ceiling.get(name), passed))
    return figures


def _interval(values: np.ndarray, prompts: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a share, over the prompts."""
    _, place = np.unique(prompts, return_inverse=True)
    return bootstrap(np.bincount(place, values) / np.bincount(place)) or (np.nan, np.nan)


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    head = ["", "n", *ARMS.values(), "アダプタ−英語 / adapter−English", "実物 / renders", ""]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for f in figures:
        cells = [f"{f.shares[arm] * 100:.1f} [{f.intervals[arm][0] * 100:.0f}, {f.intervals[arm][1] * 100:.0f}]" for arm in ARMS]
        apart = f"{f.difference.mean * 100:+.1f} [{f.difference.low * 100:+.1f}, {f.difference.high * 100:+.1f}]"
        ceiling = "—" if f.ceiling is None else f"{f.ceiling * 100:.1f}"
        lines.append("| " + " | ".join([f.label, str(f.pictures), *cells, apart, ceiling, "○" if f.passed else "×"]) + " |")
    return "\n".join(lines)


def measure_states(arms: dict[str, Pipeline], model: str, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Noise gap and recall of each Japanese arm's states against the English teacher's, over pairs of Japanese and English."""
    teacher = open_source(model)
    wanted, empty = encoded(teacher, [en for _, en in pairs]), zeros(teacher)
    translator = arms["translate"].translator
    texts = {"adapter": [ja for ja, _ in pairs], "translate": translator.translate([ja for ja, _ in pairs]) if translator else [],
             "raw": [ja for ja, _ in pairs]}  # fmt: skip
    figures = {}
    for arm, said in texts.items():
        encoder = arms[arm].encoder
        if encoder is None or not said:
            continue
        states = encoded(encoder, said)
        side = arms[arm].backbone.default.width // arms[arm].backbone.size_multiple
        gaps = noise_gaps(arms[arm].backbone, states, wanted, empty, latent_side=side)
        figures[arm] = {"noise_gap": float(gaps.mean()), "noise_gap_median": float(gaps.median()), "recall": recall_at_1(states, wanted)}
    return figures


def encoded(encoder: TextEncoder, texts: Sequence[str]) -> Conditioning:
    """The states of many texts, a few at a time."""
    return stacked([encoder.encode(texts[start : start + 50]) for start in range(0, len(texts), 50)])


def zeros(teacher: TextEncoder) -> Conditioning:
    """What SDXL takes for nothing said."""
    states = teacher.encode([""])
    return Conditioning(torch.zeros_like(states.tokens), states.mask, None if states.pooled is None else torch.zeros_like(states.pooled))


def read_captions(path: Path) -> list[tuple[str, str]]:
    """The pairs of a TSV file, Japanese then English a line under a header; raises PromptError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [(row["ja"], row["en"]) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise PromptError(f"{path} を読めません / cannot read the captions {path} (columns ja, en): {error}; pass --captions FILE") from error


def read_ceiling(model: str) -> dict[str, float]:
    """What the judge reads rightly of real renders of the model's scenes, as its folder tells; empty if it does not."""
    file = open_model(model).folder / CEILING
    figures: dict[str, float] = read_json(file) if file.is_file() else {}
    return figures


def fitted_judge(questions: Sequence[Question]) -> Judge:
    """The judge, choosing among what the questions say."""
    facts = [question.facts for question in questions]
    things = dict.fromkeys(one for fact in facts for one in (fact.first, fact.second) if one)
    colors, backgrounds = (dict.fromkeys(one for fact in facts if (one := getattr(fact, name))) for name in ("color", "background"))
    return Judge.load().among(things=list(things), colors=list(colors), backgrounds=list(backgrounds))


def sheet(pictures: dict[str, list[Image.Image]], side: int = 128, across: int = 12) -> Image.Image:
    """A row of pictures for each arm, the same prompts under each other, in blocks of `across`."""
    total = min(map(len, pictures.values()))
    blocks = -(-total // across)
    paper = Image.new("RGB", (across * side, blocks * (len(pictures) * side + 8)), "white")
    for row, images in enumerate(pictures.values()):
        for n, image in enumerate(images[:total]):
            paper.paste(image.resize((side, side)), (n % across * side, n // across * (len(pictures) * side + 8) + row * side))
    return paper


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when it ran, 2 for bad input or a file that cannot be read or written."""
    parser = argparse.ArgumentParser(prog="python -m jpgen.evaluate.bench_pairing", description="日本語は英語にどこまで近いか / measure pairing")
    parser.add_argument("--model", default=MODEL, help="英語だけのモデル / a model of English alone (%(default)s)")
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="アダプタ（省くと内蔵） / the adapter, else the model's own")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, metavar="FILE", help=f"TSV ({PROMPTS})")
    parser.add_argument("--captions", type=Path, default=CAPTIONS, metavar="FILE", help=f"TSV ({CAPTIONS})")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="一つの文からの枚数 / pictures of a prompt by each arm (%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="N 題だけ、全体から均等に / only N prompts, evenly from the whole file")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="今回描く経路。表は全部そろってから / draw only these now")
    parser.add_argument("--keep", type=Path, default=KEEP, metavar="FOLDER", help="絵と読みを置き、続きから / pictures and readings (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="図表の記録 / figures as JSON")
    parser.add_argument("--sheet", type=Path, metavar="OUT.png", help="最初のシードの一覧 / contact sheet of the first seed")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except JpgenError as error:
        print(f"エラー / error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """The whole bench. Raises JpgenError."""
    questions = read_questions(options.prompts)
    if options.limit is not None and options.limit < len(questions):
        questions = [questions[i * len(questions) // max(1, options.limit)] for i in range(max(1, options.limit))]
    for out in (options.json, options.sheet):
        if out and not out.parent.is_dir():
            raise OutputError(f"フォルダー {out.parent} がありません / no folder {out.parent}: make it first")
    captions, judge = read_captions(options.captions), fitted_judge(read_questions(options.prompts))
    arms = open_arms(options.model, options.adapter)
    answers: list[Answer] = []
    chosen = {arm: arms[arm] for arm in options.arms}
    for answer in drawn(chosen, judge, questions, range(SEED, SEED + options.seeds), Journal(options.keep)):
        answers.append(answer)
        print(f"\r{len(answers)}/{len(questions) * len(chosen) * options.seeds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if len(chosen) < len(ARMS):
        print(f"{options.keep}: {', '.join(chosen)} まで。残りの経路のあとで表になります / drawn; the table comes with the other arms")
        return
    figures = tabulate(answers, read_ceiling(options.model))
    states = measure_states(arms, options.model, captions)
    info = arms["adapter"].info
    print(f"{info} {info.weights_hash}, {len(questions)} 題 / prompts × {options.seeds}\n\n{table(figures)}\n")
    for arm, told_of in states.items():
        print(f"{ARMS[arm]}: noise gap {told_of['noise_gap']:.3f} (≤ {GAP}), R@1 of {len(captions)} {told_of['recall']:.3f} (≥ {RECALL})")
    try:
        if options.json:
            report = {"model": asdict(info), "adapter": str(arms["adapter"].pairing), "figures": [asdict(f) for f in figures], "states": states}
            options.json.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", "utf-8")
        if options.sheet:
            first = [answer for answer in answers if answer.seed == SEED]
            sheet({arm: [Image.open(one.picture) for one in first if one.arm == arm] for arm in ARMS}).save(options.sheet)
    except (OSError, ValueError) as error:
        raise OutputError(f"書き込めません / cannot write: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
