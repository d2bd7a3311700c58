"""JP-T2I-Bench 1.0: how well a model draws what Japanese prompts say, as one row of a table and a JSON file.

python -m jpgen.evaluate.bench_t2i [--model NAME] [--scorer NAME] [--limit N] [--seeds N] [--steps N] [--part P …] [--output FOLDER]

Four parts: (composition) things, colour, count, place and style read by the judge (built-in models, prompts/mame_eval.tsv); (culture) pictures of
Japanese culture recognised among all class names (prompts/culture.tsv); (gap) Japanese against English (prompts/pairs.tsv, its held-out split);
(normalizer) messy prompts with the normaliser and without (prompts/messy.tsv). It can be stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jpgen.errors import JpgenError, OutputError
from jpgen.evaluate.bench_mame import Answer, read_ceiling, read_questions, tabulate
from jpgen.evaluate.cases import Arm, Case, evenly, read_cases
from jpgen.evaluate.compare import compare
from jpgen.evaluate.judge import Judge
from jpgen.evaluate.scorer import DEFAULT_SCORER, ImageTextScorer, open_scorer
from jpgen.evaluate.scores import finite, label_features
from jpgen.pictures import read_picture
from jpgen.pipeline import DEFAULT_MODEL, Pipeline

VERSION = "1.0"
PARTS = ("composition", "culture", "gap", "normalizer")
FILES = {"composition": "mame_eval.tsv", "culture": "culture.tsv", "gap": "pairs.tsv", "normalizer": "messy.tsv"}
HELD_OUT = "held-out"
BATCH = 32


@dataclass(frozen=True)
class Plan:
    """What is run: model, scorer, folder of prompt files, prompts a part (None: all), seeds, steps (0: the model's own), parts, output folder."""

    model: str
    scorer: str
    prompts: Path
    limit: int | None
    seeds: tuple[int, ...]
    steps: int
    parts: tuple[str, ...]
    output: Path

    def arm(self, name: str, *, language: str = "ja", normalize: bool = True) -> Arm:
        """An arm with this model and these steps."""
        return Arm(name, self.model, language, normalize, steps=self.steps)

    def cases(self, part: str, split: str = "") -> tuple[Case, ...]:
        """The prompts of a part."""
        return read_cases(self.prompts / FILES[part], split=split, limit=self.limit)


def composition(plan: Plan, scorer: ImageTextScorer) -> dict[str, Any]:
    """Shares of prompts whose facts the judge reads in the picture, in both languages, and their share of its ceiling; one seed a prompt."""
    questions = evenly(read_questions(plan.prompts / FILES["composition"]), plan.limit)
    cases = tuple(dict.fromkeys(Case(one.ja, one.en) for one in questions))
    arms, seed = (plan.arm("ja"), plan.arm("en", language="en")), plan.seeds[0]
    found = compare(
        cases, arms=arms, seeds=[seed], model=scorer, output=plan.output / "composition", on_progress=_progress("composition")
    )
    files = {(one.arm, one.case): found.folder / "pictures" / one.file for one in found.outcomes if not one.problem}
    judge, given = Judge.load(), []
    for question in questions:
        case = cases.index(Case(question.ja, question.en))
        if ("ja", case) in files and ("en", case) in files:
            ja, en = (read_picture(files[language, case], "picture") for language in ("ja", "en"))
            given.append(Answer(question, seed, (ja, en), *judge.read([ja, en])))
    figures = {one.name: {"n": one.n, "ja": one.ja, "en": one.en, "of_ceiling": one.of_ceiling(one.ja)} for one in tabulate(given, read_ceiling())}
    return {"undrawn": len(questions) - len(given), "figures": figures}


def culture(plan: Plan, scorer: ImageTextScorer) -> dict[str, Any]:
    """Shares of pictures whose own class name is the first, or among the first five, of all names; for each category too."""
    cases = plan.cases("culture")
    found = compare(cases, arms=[plan.arm("ja")], seeds=plan.seeds, model=scorer, output=plan.output / "culture", on_progress=_progress("culture"))
    names = list(dict.fromkeys(case.ja for case in read_cases(plan.prompts / FILES["culture"])))  # all compete, whatever the limit
    labels = label_features(scorer, names)
    ranks: list[tuple[str, int]] = []
    drawn = [one for one in found.outcomes if not one.problem]
    for start in range(0, len(drawn), BATCH):
        batch = drawn[start : start + BATCH]
        images = [read_picture(found.folder / "pictures" / one.file, "picture") for one in batch]
        order = (finite(scorer.image_features(images), scorer) @ labels.T).argsort(dim=1, descending=True, stable=True).tolist()
        ranks += [(" ".join(cases[one.case].tags), row.index(names.index(cases[one.case].ja))) for one, row in zip(batch, order, strict=True)]
    told: dict[str, Any] = {"classes": len(names), "pictures": len(ranks), "undrawn": len(found.outcomes) - len(drawn), **_ranked(ranks)}
    told["categories"] = {name: _ranked([one for one in ranks if one[0] == name]) for name in sorted({name for name, _ in ranks})}
    return told


def _ranked(ranks: Sequence[tuple[str, int]]) -> dict[str, float | int]:
    n = max(1, len(ranks))
    return {"n": len(ranks), "top1": sum(rank == 0 for _, rank in ranks) / n, "top5": sum(rank < 5 for _, rank in ranks) / n}


def gap(plan: Plan, scorer: ImageTextScorer) -> dict[str, Any]:
    """Japanese against English on the held-out pairs."""
    arms = (plan.arm("ja"), plan.arm("en", language="en"))
    return _compared(plan, scorer, "gap", arms, plan.cases("gap", HELD_OUT))


def normalizer(plan: Plan, scorer: ImageTextScorer) -> dict[str, Any]:
    """Messy prompts read by the normaliser, against the same as typed."""
    return _compared(plan, scorer, "normalizer", (plan.arm("normalized"), plan.arm("as typed", normalize=False)), plan.cases("normalizer"))


def _compared(plan: Plan, scorer: ImageTextScorer, part: str, arms: tuple[Arm, Arm], cases: tuple[Case, ...]) -> dict[str, Any]:
    found = compare(cases, arms=arms, seeds=plan.seeds, model=scorer, output=plan.output / part, on_progress=_progress(part))
    means = {arm.name: float(np.nanmean(found.values(arm.name))) for arm in arms}
    first, second = arms
    tags = {tag: asdict(found.difference(first.name, second.name, tag=tag)) for tag in found.tags}
    return {"means": means, "difference": asdict(found.difference(first.name, second.name)), "tags": tags}


RUN: Mapping[str, Callable[[Plan, ImageTextScorer], dict[str, Any]]] = {
    "composition": composition, "culture": culture, "gap": gap, "normalizer": normalizer,
}  # fmt: skip


def run(plan: Plan) -> dict[str, Any]:
    """Run the parts and write `output/result.json` and `output/row.md`; returns what the JSON holds. Raises JpgenError."""
    began = time.monotonic()
    scorer = open_scorer(plan.scorer)
    info = Pipeline(plan.model).info
    parts = {part: RUN[part](plan, scorer) for part in plan.parts}
    result = {
        "benchmark": f"JP-T2I-Bench {VERSION}", "model": asdict(info), "scorer": scorer.name,
        "settings": {"limit": plan.limit, "seeds": plan.seeds, "steps": plan.steps},
        "prompts": {FILES[part]: hashlib.sha256((plan.prompts / FILES[part]).read_bytes()).hexdigest() for part in plan.parts},
        "versions": {name: metadata.version(name) for name in ("jpgen", "torch", "diffusers", "transformers")},
        "parts": parts, "seconds": round(time.monotonic() - began, 1), "peak_memory_bytes": _peak(),
    }  # fmt: skip
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
        (plan.output / "result.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
        (plan.output / "row.md").write_text(markdown(result) + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"{plan.output} に書けません / cannot write to {plan.output}: {error.strerror or error}") from error
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table of one row."""
    parts = result["parts"]
    cells = {"モデル / model": f"{result['model']['name']}@{result['model']['revision']}", "採点 / scorer": result["scorer"]}
    if "composition" in parts:
        figures = parts["composition"]["figures"]
        cells["もの・色・数 / object, colour, count"] = ", ".join(_share(figures[name]["ja"]) for name in ("object", "color", "count"))
    if "culture" in parts:
        cells["文化 / culture top-1, top-5"] = f"{_share(parts['culture']['top1'])}, {_share(parts['culture']['top5'])} (n={parts['culture']['n']})"
    for part, title in (("gap", "日本語−英語 / ja−en [95 %]"), ("normalizer", "正規化の効果 / normaliser [95 %]")):
        if part in parts:
            one = parts[part]["difference"]
            cells[title] = f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}] (n={one['prompts']})"
    cells |= {"秒 / seconds": f"{result['seconds']:.0f}", "メモリ / memory": f"{result['peak_memory_bytes'] / 2**30:.1f} GB"}
    rows = [list(cells), ["---"] * len(cells), list(cells.values())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value * 100:.1f} %"


def _peak() -> int:
    """The most memory this process held, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _progress(part: str) -> Callable[[int, int], None]:
    return lambda done, total: print(f"\r{part} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when it ran, 2 for bad input or a file that cannot be read or written."""
    parser = argparse.ArgumentParser(prog="python -m jpgen.evaluate.bench_t2i", description=f"JP-T2I-Bench {VERSION}")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="モデルの名前かフォルダ / model (%(default)s)")
    parser.add_argument("--scorer", default=DEFAULT_SCORER, help="採点モデルの名前かフォルダ / scorer (%(default)s)")
    parser.add_argument("--prompts", type=Path, default=Path("prompts"), metavar="FOLDER", help="プロンプトの置き場 / folder of the TSV files")
    parser.add_argument("--limit", type=int, metavar="N", help="一部門 N 個だけ、全体から均等に / N prompts a part, evenly from the whole")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="一つのプロンプトのシードの数 / seeds a prompt (%(default)s)")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="ステップ数（0: モデルのもの） / steps (0: the model's own)")
    parser.add_argument("--part", action="append", choices=PARTS, help="この部門だけ（何度でも） / only this part (repeatable)")
    parser.add_argument("--output", type=Path, default=Path("jp-t2i-bench"), metavar="FOLDER", help="結果と絵の置き場 / folder of the results")
    options = parser.parse_args(arguments)
    plan = Plan(
        options.model, options.scorer, options.prompts, options.limit, tuple(range(options.seeds)), options.steps,
        tuple(options.part or PARTS), options.output,
    )  # fmt: skip
    try:
        print(markdown(run(plan)))
    except JpgenError as error:
        print(f"エラー / error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
