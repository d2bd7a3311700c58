"""What carries jobs out, one after another: the model that is open, and the desk at which a job sits. It knows nothing of queues and pages."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import jpgen
from demo.jobs import State

log = logging.getLogger("jpgen.demo")

T = TypeVar("T")
GENERAL_ERROR = (
    "うまくいきませんでした。設定を変えてもう一度お試しください。続くときは、動かしている人に時刻を伝えてください / "
    "something went wrong: try again with other settings; if it goes on, tell whoever runs this when it happened"
)
MEMORY_ERROR = "メモリが足りません。絵を小さくするか、枚数を減らしてください / out of memory: draw smaller or fewer pictures"


class Progress(Protocol):
    """Where a job that runs tells how it goes, and hears whether it is to go on."""

    def stops(self) -> bool:
        """Whether the job is to stop."""

    def opening(self, now: bool) -> None:
        """A model is being opened from now on, or no longer."""

    def expect(self, parts: int) -> None:
        """So many pictures will be delivered."""

    def deliver(self, result: Any) -> None:
        """A part of the result is finished."""

    def stepped(self, index: int, total: int) -> tuple[bool, bool]:
        """A step is done; says whether the job goes on, and whether a preview is wanted now."""

    def previewed(self, image: Any) -> bool:
        """A preview is decoded; says whether the job goes on."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: "done" with its result, "cancelled", or "failed" with what a person is told."""

    state: State
    result: Any = None
    error: str = ""


@dataclass(frozen=True)
class _Opened:
    """A pipeline that is open: for which model and autoencoder, and what is kept beside it."""

    key: tuple[str, str | None]
    pipeline: Any
    beside: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Runs jobs and keeps the pipeline of the last one open. `open_pipeline` is called with a model's name and `vae=` (None: jpgen.Pipeline)."""

    def __init__(self, open_pipeline: Callable[..., Any] | None = None) -> None:
        self._open_pipeline = open_pipeline
        self._open: _Opened | None = None

    @property
    def loaded(self) -> str:
        """The name of the model that is open, "" if none is."""
        return self._open.key[0] if self._open else ""

    def run(self, work: Callable[[Desk], Any], progress: Progress) -> Outcome:
        """Carry a job out; whatever happens in it becomes its outcome."""
        try:
            return Outcome("done", work(Desk(self, progress)))
        except jpgen.Cancelled:
            return Outcome("cancelled")
        except jpgen.JpgenError as told:
            return Outcome("failed", error=str(told))
        except MemoryError:
            return Outcome("failed", error=MEMORY_ERROR)
        except BaseException as fault:  # whatever it was, the next job has its turn
            log.exception("a job failed")
            return Outcome("failed", error=MEMORY_ERROR if type(fault).__name__ == "OutOfMemoryError" else GENERAL_ERROR)

    def rest(self) -> None:
        """Drop the pipeline that is open."""
        if self._open:
            log.info("%s を閉じました / unloaded", self.loaded)
            self._open = None
            gc.collect()

    def opened(self, model: str, vae: str | None, progress: Progress) -> _Opened:
        """The pipeline of a model (and autoencoder) with what is beside it, opened if it is not yet, in the place of another."""
        key = (str(model), None if vae is None else str(vae))
        if self._open is None or self._open.key != key:
            progress.opening(True)
            self.rest()  # two models at once may not fit
            try:
                self._open = _Opened(key, (self._open_pipeline or jpgen.Pipeline)(model, vae=vae))
            finally:
                progress.opening(False)
        return self._open


class Desk:
    """What a job has at hand while it runs."""

    def __init__(self, worker: Worker, progress: Progress) -> None:
        self._worker, self._progress = worker, progress
        self._beside: dict[str, Any] = {}

    @property
    def cancelled(self) -> bool:
        """Whether the job is to stop: for work that has no steps."""
        return self._progress.stops()

    def pipeline(self, model: str = "mame", *, vae: str | None = None) -> jpgen.Pipeline:
        """The pipeline of a model (and autoencoder), kept open for the next job that wants it; raises Cancelled if the job was cancelled."""
        opened = self._worker.opened(model, vae, self._progress)
        self._beside = opened.beside
        if self.cancelled:
            raise jpgen.Cancelled("取り消されました / cancelled")
        pipeline: jpgen.Pipeline = opened.pipeline
        return pipeline

    def beside(self, name: str, make: Callable[[], T]) -> T:
        """What `make` made for the job's pipeline (a live merge), kept under this name as long as that is open."""
        if name not in self._beside:
            self._beside[name] = make()
        kept: T = self._beside[name]
        return kept

    def expect(self, parts: int) -> None:
        """Say how many pictures will be delivered, for the progress."""
        self._progress.expect(parts)

    def deliver(self, result: Any) -> None:
        """Hand over a finished picture (or another part of the result) before the job's end; it is kept whatever happens afterwards."""
        self._progress.deliver(result)

    def on_step(self, step: jpgen.Step) -> bool:
        """The step callback for jpgen: tells the progress, decodes a preview now and then while anybody looks, False when cancelled."""
        going, wanted = self._progress.stepped(step.index, step.total)
        if going and wanted and (previews := step.preview()):
            return self._progress.previewed(previews[0])
        return going
