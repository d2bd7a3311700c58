"""Measure mame: both languages of every prompt of a file, `--count` pairs a prompt, one seed a pair, read by the judge.

python -m jpgen.evaluate.bench_mame [--prompts FILE] [--seed N] [--count N] [--limit N] [--json OUT] [--sheet OUT.png]

The ceiling is how often the judge reads real renders rightly; the gates are shares of it. Four pictures a prompt, as in GenEval (Ghosh et al. 2023,
arXiv 2310.11513): of 40 questions drawn once, one answer moves a share by 2.5 points, half of what the languages may differ.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jpgen.errors import JpgenError, OutputError, PromptError, WeightsError
from jpgen.evaluate.cases import evenly
from jpgen.evaluate.judge import CEILING, Facts, Judge, Reading, score
from jpgen.evaluate.statistics import paired
from jpgen.pipeline import Pipeline

PROMPTS = Path("prompts") / "mame_eval.tsv"
SEED = 1000
COUNT = 4
COLUMNS = ("id", "kind", "ja", "en", "first", "second", "color", "count", "layout", "background", "style")
CLOSE = 0.05
"""How far English may be from Japanese."""

ROWS = (
    ("object", "もの 1位 / object top-1", 0.75),
    ("object_top5", "もの 5位以内 / object top-5", None),
    ("background", "背景 / background", 0.90),
    ("color", "色 / colour", 0.75),
    ("style", "画風 / style", 0.80),
    ("count", "個数 1〜4 / count 1–4", 0.60),
    ("left_right", "左右（両方のものと順） / left/right", 0.70),
    ("order", "左右の順（両方あるとき） / left/right order, both there", None),
    ("culture", "日本のもの / culture words", None),
)
"""Figure of `score`, its label, and the share of the ceiling that is wanted."""


@dataclass(frozen=True)
class Question:
    """One prompt in both languages and what it says."""

    id: str
    kind: str
    ja: str
    en: str
    facts: Facts


@dataclass(frozen=True)
class Answer:
    """Both pictures of a question and what the judge reads in them."""

    question: Question
    seed: int
    images: tuple[Image.Image, Image.Image]
    ja: Reading
    en: Reading


@dataclass(frozen=True)
class Figure:
    """One row of the table: how many pairs tell of it, shares right in 0…1, the 95 % interval (over prompts) of Japanese − English.

    None where nothing is known.
    """

    name: str
    label: str
    n: int
    ja: float | None
    en: float | None
    ceiling: float | None
    wanted: float | None
    interval: tuple[float, float] | None

    def of_ceiling(self, share: float | None) -> float | None:
        """The share as a part of the ceiling."""
        return share / self.ceiling if share is not None and self.ceiling else None

    @property
    def passed(self) -> bool | None:
        """Whether Japanese reaches the gate and English is within 5 points of it; None without a gate or a ceiling."""
        reached = self.of_ceiling(self.ja)
        if self.wanted is None or reached is None or self.ja is None or self.en is None:
            return None
        return reached >= self.wanted and abs(self.ja - self.en) <= CLOSE + 1e-9


def read_questions(path: Path) -> list[Question]:
    """The questions of a TSV file with the columns `COLUMNS`; raises PromptError for a file that is not there or not like that."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise PromptError(f"{path}: 列が違います / wanted the columns {', '.join(COLUMNS)}, got {', '.join(reader.fieldnames or ())}")
            return [_question(row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} を読めません / cannot read the prompts {path}: {error}; pass --prompts FILE") from error
    except ValueError as error:
        raise error if isinstance(error, PromptError) else PromptError(f"{path}: 個数は整数で / a count is not a number: {error}") from error


def _question(row: dict[str, str]) -> Question:
    said = {name: row[name] or None for name in ("first", "second", "color", "layout", "background", "style")}
    facts = Facts(count=int(row["count"]) if row["count"] else None, **said)
    return Question(row["id"], row["kind"], row["ja"], row["en"], facts)


def read_ceiling(part: str = "seen") -> dict[str, float]:
    """The judge's figures on real renders: of drawings it knows ("seen"), of others ("unseen"), of the styles one by one ("styles").

    Empty if they were never measured. Raises WeightsError if the file is damaged.
    """
    file = resources.files("jpgen") / "evaluate" / "judge" / CEILING
    if not file.is_file():
        return {}
    try:
        return {name: float(value) for name, value in json.loads(file.read_text("utf-8"))[part].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{CEILING} は壊れています / the judge's {CEILING} is damaged: {error}; install jpgen again") from error


def answers(pipeline: Pipeline, judge: Judge, questions: Sequence[Question], seed: int, count: int) -> Iterator[Answer]:
    """`count` pairs of pictures of each question, the n-th pair of all from seed `seed` + n, and their readings."""
    for place, question in enumerate(questions):
        first = seed + place * count
        made = [one.image for one in pipeline.generate_many([question.ja, question.en], seed=first, count=count)]
        read = judge.read(made)
        for n in range(count):
            yield Answer(question, first + n, (made[n], made[count + n]), read[n], read[count + n])


def tabulate(given: Sequence[Answer], ceiling: dict[str, float]) -> list[Figure]:
    """A figure for each of `ROWS`, scored on the prompts that state that fact."""
    scores = [(answer.question.id, score(answer.question.facts, answer.ja), score(answer.question.facts, answer.en)) for answer in given]
    figures = []
    for name, label, wanted in ROWS:
        ja = np.array([float(a[name]) for _, a, _ in scores if name in a])
        en = np.array([float(b[name]) for _, _, b in scores if name in b])
        pairs = [(prompt, float(a[name]), float(b[name])) for prompt, a, b in scores if name in a and name in b]
        figures.append(Figure(name, label, len(ja), _mean(ja), _mean(en), ceiling.get(name), wanted, _interval(pairs)))
    return figures


def _interval(pairs: Sequence[tuple[str, float, float]]) -> tuple[float, float] | None:
    if not pairs:
        return None
    prompts, ja, en = (np.array(column) for column in zip(*pairs, strict=True))
    difference = paired(ja, en, prompts)
    return difference.low, difference.high


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table, padded for a terminal."""
    head = ["", "n", "日本語 / ja", "英語 / en", "上限 / ceiling", "ja÷上限", "en÷上限", "目標 / wanted", "ja−en [95 %]", ""]
    body = []
    for f in figures:
        interval = f"{_points(f.ja, f.en)} [{f.interval[0] * 100:+.1f}, {f.interval[1] * 100:+.1f}]" if f.interval else "—"
        wanted = f"≥ {f.wanted * 100:.0f} %" if f.wanted else ""
        shares = [_percent(v) for v in (f.ja, f.en, f.ceiling, f.of_ceiling(f.ja), f.of_ceiling(f.en))]
        body.append([f.label, str(f.n), *shares, wanted, interval, {True: "○", False: "×", None: ""}[f.passed]])
    widths = [max(_width(row[i]) for row in (head, *body)) for i in range(len(head))]
    lines = ["| " + " | ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)) + " |" for row in (head, *body)]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{share * 100:.1f} %"


def _points(ja: float | None, en: float | None) -> str:
    return "—" if ja is None or en is None else f"{(ja - en) * 100:+.1f}"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def sheet(given: Sequence[Answer], side: int = 96, across: int = 8) -> Image.Image:
    """The pairs, Japanese left and English right, each picture `side` pixels; a green frame where the thing is right, a red one where not."""
    gap, label = 6, 12
    wide, high = 2 * side + gap, side + label + gap
    paper = Image.new("RGB", (across * wide + gap, -(-len(given) // across) * high + gap), "white")
    draw = ImageDraw.Draw(paper)
    for n, answer in enumerate(given):
        x, y = gap + n % across * wide, gap + n // across * high
        draw.text((x, y), answer.question.id, fill="black")
        for at, image, reading in ((x, answer.images[0], answer.ja), (x + side, answer.images[1], answer.en)):
            paper.paste(image.resize((side, side), Image.Resampling.BOX), (at, y + label))
            right = reading.first == answer.question.facts.first
            draw.rectangle((at, y + label, at + side - 2, y + label + side - 1), outline="limegreen" if right else "red", width=2)
    return paper


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when it ran, 2 for bad input or a file that cannot be read or written."""
    parser = argparse.ArgumentParser(prog="python -m jpgen.evaluate.bench_mame", description="豆の実力を審判で測る / measure mame by the judge")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, metavar="FILE", help=f"TSV ({PROMPTS})")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="最初のペアのシード / seed of the first pair (%(default)s)")
    parser.add_argument(
        "--count", type=int, default=COUNT, metavar="N", help="どの組も N 回、別のシードで / every pair N times, other seeds (%(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="N 組だけ、全体から均等に / only N pairs, evenly from the whole file")
    parser.add_argument("--json", type=Path, metavar="OUT", help="図表と読み取りの記録 / figures and readings as JSON")
    parser.add_argument("--sheet", type=Path, metavar="OUT.png", help="全ペアの一覧画像 / contact sheet of the pairs")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count {options.count}: 1 以上で / want 1 or more")
    try:
        run(options.prompts, options.seed, options.count, options.limit, options.json, options.sheet)
    except JpgenError as error:
        print(f"エラー / error: {error}", file=sys.stderr)
        return 2
    return 0


def run(prompts: Path, seed: int, count: int, limit: int | None, json_out: Path | None, sheet_out: Path | None) -> None:
    """The whole bench: pictures, readings, table, and what was asked for besides. Raises JpgenError."""
    questions = evenly(read_questions(prompts), limit)
    for out in (json_out, sheet_out):
        if out and not out.parent.is_dir():
            raise OutputError(f"フォルダー {out.parent} がありません / no folder {out.parent}: make it first")
    judge, pipeline = Judge.load(), Pipeline("mame")
    given = []
    for answer in answers(pipeline, judge, questions, seed, count):
        given.append(answer)
        print(f"\r{len(given)}/{len(questions) * count}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    figures = tabulate(given, read_ceiling())
    seeds = f"seed {seed}–{seed + len(given) - 1}"
    print(f"{pipeline.info} {pipeline.info.weights_hash}, {len(questions)} 組 / pairs × {count}, {seeds}\n\n{table(figures)}")
    styles = ", ".join(f"{name} {_percent(share)}" for name, share in sorted(read_ceiling("styles").items(), key=lambda one: -one[1]))
    if styles:
        print(f"\n本物の場面で審判が当てる画風 / styles that the judge tells in real renders: {styles}")
    try:
        if json_out:
            readings = [{"id": a.question.id, "seed": a.seed, "ja": asdict(a.ja), "en": asdict(a.en)} for a in given]
            report = {"model": asdict(pipeline.info), "seed": seed, "figures": [asdict(f) for f in figures], "readings": readings}
            json_out.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", "utf-8")
        if sheet_out:
            sheet(given[::count]).save(sheet_out)
    except (OSError, ValueError) as error:
        raise OutputError(f"書き込めません / cannot write: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
