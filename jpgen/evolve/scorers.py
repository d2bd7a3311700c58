"""Scorers: pictures in, one number out. Built-in ones by name, and any Python function as "module:function".

A function is imported, which runs its module: only for a name that stands in the user's own study file, never for one in a recipe.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from jpgen.errors import StudyError, UnknownNameError
from jpgen.evaluate import judge as judging
from jpgen.evaluate.judge import Facts, Judge
from jpgen.evolve.panel import Panel
from jpgen.types import Generation

Score = Callable[[Sequence[Generation]], float]
"""What a scorer is: it sees pictures of some prompts, and says how good they are together."""

STATED = ("object", "second", "color", "count", "left_right", "background", "style")
"""The figures of `jpgen.evaluate.judge.score` that are one fact each."""

GOALS = {"judge": "maximise", "judge_probability": "maximise", "drift": "minimise"}
"""The built-in scorers, and which way of each is better."""


@dataclass(frozen=True)
class Scorer:
    """An objective's scorer by name; `parent` is the model that `drift` is measured from (its place among the recipe's models, from 0)."""

    name: str
    parent: int = 0
    folder: str = field(default="", compare=False)
    """Where a function's module may be, besides the usual places."""

    @property
    def identity(self) -> str:
        """The name and, of a function, the SHA-256 of the file it is in: other code is another study."""
        if ":" not in self.name:
            return f"{self.name}({self.parent})" if self.name == "drift" else self.name
        source = inspect.getsourcefile(_function(self.name, self.folder))
        return f"{self.name} {hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ''}".strip()

    def open(self, panel: Panel, drawn_by_parent: Callable[[int], Sequence[Generation]]) -> Score:
        """The function for the pictures of `panel`. Raises UnknownNameError for a scorer that nobody knows, StudyError for prompts without facts."""
        if ":" in self.name:
            return _function(self.name, self.folder)
        if self.name == "drift":
            return Drift(drawn_by_parent(self.parent))
        if self.name in GOALS:
            return JudgeScore(Judge.load(), {question.ja: question.facts for question in panel.questions}, soft=self.name == "judge_probability")
        raise UnknownNameError.of("scorer", self.name, GOALS)


class JudgeScore:
    """The share of stated facts that the judge sees, averaged over pictures; `soft`: the probability it gives them, which no step hides."""

    def __init__(self, judge: Judge, facts: dict[str, Facts], *, soft: bool = False) -> None:
        self._judge, self._facts, self._soft = judge, facts, soft
        empty = [prompt for prompt, stated in facts.items() if stated == Facts()]
        if empty:
            raise StudyError(
                f"{empty[0]!r} が何を言うか書かれていません / nothing tells the judge what {len(empty)} prompts say, as {empty[0]!r}: give a .tsv "
                "with the columns of prompts/mame_eval.tsv, or another scorer"
            )

    def __call__(self, generations: Sequence[Generation]) -> float:
        """0…1."""
        facts = [self._facts[made.prompt.source] for made in generations]
        if self._soft:
            return float(np.mean(self._likely(generations, facts)))
        shares = []
        for stated, reading in zip(facts, self._judge.read([made.image for made in generations]), strict=True):
            found = judging.score(stated, reading)
            shares.append(float(np.mean([found[name] for name in STATED if name in found])))
        return float(np.mean(shares))

    @torch.inference_mode()
    def _likely(self, generations: Sequence[Generation], facts: Sequence[Facts]) -> list[float]:
        """For each picture the mean probability of its stated facts, each as its head of the network gives it."""
        config = self._judge.config
        made: list[float] = []
        names: dict[str, tuple[object, ...]] = {
            "first": config.things, "second": config.things, "color": config.colors, "count": tuple(range(1, judging.MAX_COUNT + 1)),
            "layout": judging.LAYOUTS, "background": config.backgrounds, "style": config.styles,
        }  # fmt: skip
        for generation, stated in zip(generations, facts, strict=True):
            pixels = torch.from_numpy(np.array(judging.shrink(generation.image))).permute(2, 0, 1)[None]
            answers = {name: answer[0].softmax(dim=0) for name, answer in judging.logits(self._judge.network, pixels).items()}
            said = {name: getattr(stated, name) for name in names if getattr(stated, name) is not None}
            known = {name: value in names[name] for name, value in said.items()}
            made.append(float(np.mean([float(answers[name][names[name].index(said[name])]) if known[name] else 0.0 for name in said])))
        return made


class Drift:
    """The mean distance of pixels, 0…1, from the pictures that a parent draws from the same prompts and seeds."""

    def __init__(self, drawn: Sequence[Generation]) -> None:
        self._drawn = {(made.prompt.source, made.seed): np.asarray(made.image.convert("RGB"), dtype=np.float64) for made in drawn}

    def __call__(self, generations: Sequence[Generation]) -> float:
        """0: the very same pictures."""
        apart = [np.abs(np.asarray(m.image.convert("RGB"), dtype=np.float64) - self._drawn[m.prompt.source, m.seed]).mean() for m in generations]
        return float(np.mean(apart)) / 255


def _function(name: str, folder: str) -> Score:
    """The function "module:function", whose module may be in `folder`; raises StudyError if it cannot be imported."""
    module, _, leaf = name.partition(":")
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), leaf)
    except Exception as error:  # whatever a user's module does
        raise StudyError(f"scorer {name} を読み込めません / cannot import the scorer {name}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise StudyError(f"scorer {name} は関数ではありません / the scorer {name} is no function: write def {leaf}(generations) -> float")
    score: Score = found
    return score
