"""Trials judged: an open pipeline whose weights are merged in place, its pictures, their scores; in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from jpgen.errors import IncompatibleError, StudyError, WeightsError
from jpgen.evolve.panel import Panel
from jpgen.evolve.recipes import Formulas
from jpgen.evolve.scorers import Score, Scorer
from jpgen.lora import DENOISER
from jpgen.merge.live import RATIO, Formula, LiveModules
from jpgen.merge.search import Genome
from jpgen.merge.study import Evaluate, Outcome, Trial
from jpgen.pipeline import Pipeline
from jpgen.protocols import Adaptable
from jpgen.types import Generation

PICTURES = 512
"""How many pictures are kept for the next time they are wanted."""

DENOISERS = {"sd": "unet", "sdxl": "unet", "pixart": "transformer", "flux": "transformer"}
"""What the denoiser is called in the folder of a model of each family."""


@dataclass(frozen=True)
class Spec:
    """All that judging a trial needs, and nothing of what is held out; it is sent to processes.

    `opened` makes the open parts anew: the pipeline and the formulas of the recipe for its modules.
    """

    opened: Callable[[], tuple[Pipeline, Formulas]]
    genome: Genome
    panel: Panel
    scorers: tuple[Scorer, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    ratio: tuple[float, float] = RATIO


class Tryout:
    """An open pipeline in which candidates are tried: it draws with their weights, and has its own again afterwards."""

    def __init__(self, spec: Spec) -> None:
        """Raises what opening the model, its weights and scorers raises."""
        self._spec = spec
        self.pipeline, self.formulas = spec.opened()
        self._config = self.pipeline.config(**spec.sampling)
        self.live = LiveModules(live_modules(self.pipeline), self.formulas.keys)
        self._drawn: OrderedDict[tuple[Hashable, str, int], Generation] = OrderedDict()
        self._scores = self.scores_of(spec.panel)

    def scores_of(self, panel: Panel) -> list[Score]:
        """The scorers for the pictures of a panel."""
        return [scorer.open(panel, partial(self._by_parent, panel)) for scorer in self._spec.scorers]

    def outcome(self, trial: Trial) -> Outcome:
        """The scores of a trial; weights that are no good and scorers that fail make it fail, and are told."""
        began = time.perf_counter()
        numbers = self._spec.genome.numbers(trial.point)
        try:
            drawn = self.draw(trial.point, self.formulas.merged(numbers), self._spec.panel)
        except WeightsError as error:
            return Outcome(trial.id, (None,) * len(self._scores), (str(error),), time.perf_counter() - began)
        scores: list[float | None] = []
        faults: list[str] = []
        for scorer, score in zip(self._spec.scorers, self._scores, strict=True):
            try:
                scores.append(float(score(drawn)))
            except Exception as error:  # a scorer may be anybody's code
                scores.append(None)
                faults.append(f"{scorer.name}: {type(error).__name__}: {error}")
        return Outcome(trial.id, tuple(scores), tuple(faults), time.perf_counter() - began)

    def draw(self, name: Hashable, formula: Formula, panel: Panel) -> list[Generation]:
        """The panel's pictures with these weights, all of the first prompt, then of the second …; `name` tells candidates apart."""
        wanted = [(question.ja, panel.seed + n) for question in panel.questions for n in range(panel.pictures)]
        if missing := [prompt for prompt, seed in wanted if (name, prompt, seed) not in self._drawn]:
            with self.live.applied(formula, ratio=self._spec.ratio):
                for made in self.pipeline.stream(dict.fromkeys(missing), seed=panel.seed, count=panel.pictures, config=self._config):
                    self._drawn[name, made.prompt.source, made.seed] = made
        found = [self._drawn[name, prompt, seed] for prompt, seed in wanted]
        while len(self._drawn) > PICTURES:
            self._drawn.popitem(last=False)
        return found

    def _by_parent(self, panel: Panel, index: int) -> list[Generation]:
        return self.draw(("parent", index), self.formulas.parent(index), panel)


def live_modules(pipeline: Pipeline) -> dict[str, torch.nn.Module]:
    """The modules of an open pipeline by component; raises IncompatibleError for one that shows none."""
    backbone, encoder = pipeline.backbone, pipeline.encoder
    family = getattr(backbone, "family", "")
    if not isinstance(backbone, Adaptable) or family not in DENOISERS:
        raise IncompatibleError(
            f"{pipeline.info.name} の中では配合できません / the weights of {pipeline.info.name} cannot be merged in place: open a model of "
            f"{', '.join(DENOISERS)}"
        )
    modules = dict(encoder.modules) if isinstance(encoder, Adaptable) else {}
    modules[DENOISERS[family]] = backbone.modules[DENOISER]
    return modules


@contextmanager
def workers(spec: Spec, count: int) -> Iterator[Evaluate]:
    """A function that judges trials with `count` processes (1: this one); what it gives does not depend on how many, only on `spec.threads`."""
    if count == 1:
        with threads(spec.threads):
            yield _here(spec)
        return
    data = pickle.dumps(spec)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(spec.threads,))
    try:
        yield lambda trials: _spread(pool, data, trials)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """For the time of the block torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here(spec: Spec) -> Evaluate:
    opened: list[Tryout] = []

    def evaluate(trials: Sequence[Trial]) -> Iterator[Outcome]:
        if not opened:
            opened.append(Tryout(spec))
        return map(opened[0].outcome, trials)

    return evaluate


def _spread(pool: ProcessPoolExecutor, data: bytes, trials: Sequence[Trial]) -> Iterator[Outcome]:
    try:
        for future in as_completed([pool.submit(_judged, data, trial) for trial in trials]):
            yield future.result()
    except BrokenProcessPool as error:
        raise StudyError(
            "作業プロセスが落ちました（メモリ不足かも） / a worker process died (out of memory?): run again to continue, with fewer --workers"
        ) from error


def _begin(count: int) -> None:
    """What a worker process does first: take its share of threads, and end when the one that started it does, however that ends."""
    torch.set_num_threads(count)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _judged(data: bytes, trial: Trial) -> Outcome:
    return _tryout(data).outcome(trial)


@lru_cache(maxsize=1)
def _tryout(data: bytes) -> Tryout:
    spec: Spec = pickle.loads(data)  # of the process that started this one
    return Tryout(spec)
