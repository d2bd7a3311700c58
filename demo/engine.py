"""One thread that draws for everybody: a bounded fair queue, never two jobs at once, and nobody sees or stops what is another's.

    engine = Engine()
    ticket = engine.submit(session, lambda desk: desk.pipeline("mame").generate("柴犬", on_step=desk.on_step), title="柴犬")
    engine.snapshot(ticket, session=session).state          # "waiting", "running", "done", "cancelled" or "failed"

Pages ask for snapshots; the worker knows nothing of pages.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jpgen
from demo.jobs import ENDED, Job, Snapshot, State
from demo.priority import step_back
from demo.turns import Turns

log = logging.getLogger("jpgen.demo")

T = TypeVar("T")
GENERAL_ERROR = (
    "うまくいきませんでした。設定を変えてもう一度お試しください。続くときは、動かしている人に時刻を伝えてください / "
    "something went wrong: try again with other settings; if it goes on, tell whoever runs this when it happened"
)
PREVIEW_PAUSE = 4
"""How long no preview is decoded after one, in times of what it took: of a machine that is slow or busy they take a fifth at most."""

MEMORY_ERROR = "メモリが足りません。絵を小さくするか、枚数を減らしてください / out of memory: draw smaller or fewer pictures"


class QueueFull(jpgen.JpgenError):
    """No more work is taken for now; the text says why and what to do."""


class UnknownTicket(jpgen.JpgenError):
    """No such ticket of this session: it was never given, is another's, or was forgotten long after its end."""


@dataclass(frozen=True)
class _Opened:
    """A pipeline that is open: for which model and autoencoder, and what is kept beside it."""

    key: tuple[str, str | None]
    pipeline: Any
    beside: dict[str, Any] = field(default_factory=dict)


class Desk:
    """What a job has at hand while it runs."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job

    @property
    def cancelled(self) -> bool:
        """Whether the job is to stop: for work that has no steps."""
        return self._engine._stops(self._job)

    def pipeline(self, model: str = "mame", *, vae: str | None = None) -> jpgen.Pipeline:
        """The pipeline of a model (and autoencoder), kept open for the next job that wants it; raises Cancelled if the job was cancelled."""
        pipeline: jpgen.Pipeline = self._engine._opened(self._job, model, vae)
        return pipeline

    def beside(self, name: str, make: Callable[[], T]) -> T:
        """What `make` made for the pipeline that is open (a live merge), kept under this name as long as that is."""
        with self._engine._changed:
            opened = self._engine._open
        if opened is None:
            return make()
        if name not in opened.beside:
            opened.beside[name] = make()
        kept: T = opened.beside[name]
        return kept

    def expect(self, parts: int) -> None:
        """Say how many pictures will be delivered, for the progress."""
        with self._engine._changed:
            self._job.parts = max(1, parts)

    def deliver(self, result: Any) -> None:
        """Hand over a finished picture (or another part of the result) before the job's end; it is kept whatever happens afterwards."""
        with self._engine._changed:
            job = self._job
            job.results, job.step, job.steps, job.preview = (*job.results, result), 0, 0, None

    def on_step(self, step: jpgen.Step) -> bool:
        """The step callback for jpgen: tells the progress, decodes a preview now and then while anybody looks, False when cancelled."""
        return self._engine._stepped(self._job, step)


class Engine:
    """The one worker and its queue; safe for threads.

    `capacity` jobs wait at most, `per_session` of one session wait or run; open pipelines are dropped after `idle_seconds` without work. Jobs at
    which nobody has looked for `away_seconds` are cancelled (a tab was closed). Of a session the last `kept` finished jobs are remembered, for
    `kept_seconds`. `open_pipeline` is called with a model's name and `vae=` (None: jpgen.Pipeline).
    """

    def __init__(
        self, *, capacity: int = 16, per_session: int = 3, idle_seconds: float = 600, away_seconds: float = 300, kept: int = 8,
        kept_seconds: float = 3600, open_pipeline: Callable[..., Any] | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.capacity, self.per_session = capacity, per_session
        self._idle_seconds, self._away_seconds, self._kept, self._kept_seconds = idle_seconds, away_seconds, kept, kept_seconds
        self._open_pipeline, self._clock = open_pipeline, clock
        self._changed = threading.Condition()
        self._turns: Turns[Job] = Turns()
        self._jobs: dict[str, Job] = {}
        self._running: Job | None = None
        self._open: _Opened | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="jpgen-demo-engine", daemon=True)
        self._thread.start()

    def submit(self, session: str, work: Callable[[Desk], Any], *, title: str = "") -> str:
        """Put work into the queue; returns its ticket. Raises QueueFull if the queue or the session's share of it is full, or the engine closed."""
        with self._changed:
            self._forget()
            if self._closed:
                raise QueueFull("終了しています。ページを開き直してください / closed: open the page again")
            mine = self._turns.count(session) + (self._running is not None and self._running.session == session)
            if mine >= self.per_session:
                raise QueueFull(
                    f"順番待ちは一人 {self.per_session} 件までです。どれかが終わるのを待つか、取り消してください / "
                    f"at most {self.per_session} jobs each: wait for one to end, or cancel one"
                )
            if len(self._turns) >= self.capacity:
                raise QueueFull(
                    f"いま混み合っています（{self.capacity} 件待ち）。少し待ってからもう一度押してください / "
                    f"the queue is full ({self.capacity} waiting): try again in a moment"
                )
            job = Job(session, work, title, seen=self._clock())
            self._jobs[job.ticket] = job
            self._turns.add(session, job)
            self._changed.notify_all()
            return job.ticket

    def snapshot(self, ticket: str, *, session: str) -> Snapshot:
        """The job as it stands; looking at it also says that somebody still waits for it. Raises UnknownTicket."""
        with self._changed:
            job = self._job(ticket, session)
            job.watched, job.seen = True, self._clock()  # before anything that nobody has looked at is cancelled
            self._forget()
            return self._snapshot(job)

    def tickets(self, session: str) -> list[Snapshot]:
        """All jobs of a session that are remembered, in the order they were given in."""
        with self._changed:
            self._forget()
            return [self._snapshot(job) for job in self._jobs.values() if job.session == session]

    def cancel(self, ticket: str, *, session: str) -> None:
        """Stop a job: at once while it waits, after the present step while it runs; nothing happens to one that has ended. Raises UnknownTicket."""
        with self._changed:
            self._cancel(self._job(ticket, session))

    def wait(self, ticket: str, *, session: str, timeout: float | None = None) -> Snapshot:
        """Block until the job has ended (or for `timeout` seconds): for scripts and tests, not for pages."""
        with self._changed:
            job = self._job(ticket, session)
            job.seen = math.inf  # somebody waits all the time
            self._changed.wait_for(lambda: job.state in ENDED, timeout)
            job.seen = self._clock()
            return self._snapshot(job)

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs run (0 or 1) and how many wait, of everybody."""
        with self._changed:
            return int(self._running is not None), len(self._turns)

    @property
    def loaded(self) -> str:
        """The name of the model that is open, "" if none is."""
        with self._changed:
            return self._open.key[0] if self._open else ""

    def close(self) -> None:
        """Cancel everything and end the thread; returns when the job that runs has stopped."""
        with self._changed:
            self._closed = True
            for job in [*self._turns.items(), *([self._running] if self._running else [])]:
                self._cancel(job)
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ── what is called with the lock held ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _job(self, ticket: str, session: str) -> Job:
        job = self._jobs.get(ticket)
        if job is None or job.session != session:  # one answer for both: another's ticket must not be told from none
            raise UnknownTicket("この整理券はありません。もう一度生成してください / no such ticket: generate again")
        return job

    def _snapshot(self, job: Job) -> Snapshot:
        ahead = self._turns.ahead(job.session, job) if job.state == "waiting" else 0
        return job.snapshot(position=ahead, now=self._clock())

    def _cancel(self, job: Job) -> None:
        if job.state == "waiting" and self._turns.remove(job.session, job):
            self._end(job, "cancelled")
        elif job.state == "running":
            job.cancelled = True

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended, job.preview, job.opening = state, self._clock(), None, False
        job.work = _nothing  # what it holds (pictures, masks) is not needed any more
        self._changed.notify_all()

    def _forget(self) -> None:
        """Cancel what nobody waits for any more, and drop what ended long ago or is more than is kept of a session."""
        now = self._clock()
        for job in self._turns.items():
            if now - job.seen > self._away_seconds:
                self._cancel(job)
        kept: Counter[str] = Counter()
        for job in reversed([job for job in self._jobs.values() if job.state in ENDED]):
            kept[job.session] += 1
            if kept[job.session] > self._kept or kept.total() > self._kept * self.capacity or now - job.ended > self._kept_seconds:
                del self._jobs[job.ticket]

    # ── what the worker calls, without the lock ─────────────────────────────────────────────────────────────────────────────────────────────

    def _stops(self, job: Job) -> bool:
        with self._changed:
            return job.cancelled or self._clock() - job.seen > self._away_seconds

    def _opened(self, job: Job, model: str, vae: str | None) -> Any:
        key = (str(model), None if vae is None else str(vae))
        with self._changed:
            if self._open and self._open.key == key:
                return self._open.pipeline
            job.opening = True
        self._unload()  # two models at once may not fit
        try:
            made = (self._open_pipeline or jpgen.Pipeline)(model, vae=vae)
        finally:
            with self._changed:
                job.opening = False
        with self._changed:
            self._open = _Opened(key, made)
        if self._stops(job):
            raise jpgen.Cancelled("取り消されました / cancelled")
        return made

    def _stepped(self, job: Job, step: jpgen.Step) -> bool:
        if self._stops(job):
            return False
        with self._changed:
            began = self._clock()
            wanted, job.watched = job.watched and began >= job.preview_due, False
        previews = step.preview() if wanted and step.index < step.total else []
        with self._changed:
            job.step, job.steps = step.index, step.total
            if previews:
                now = self._clock()
                job.preview, job.preview_due = previews[0], now + PREVIEW_PAUSE * (now - began)
            if job.began is None:
                job.began, job.begun = self._clock(), job.fraction
        return not self._stops(job)

    def _work(self) -> None:
        step_back()
        while not self._closed:
            if job := self._next():
                self._do(job)
            elif not self._closed:
                self._unload()
        self._open = None

    def _next(self) -> Job | None:
        """The next job, waited for; None when there was nothing to do for the idle time, or the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._turns), self._idle_seconds if self._open else None)
            self._forget()
            job = None if self._closed else self._turns.next()
            if job is not None:
                job.state, self._running = "running", job
            return job

    def _unload(self) -> None:
        with self._changed:
            dropped, self._open = self._open, None
        if dropped:
            log.info("%s を閉じました / unloaded", dropped.key[0])
            del dropped
            gc.unfreeze()  # see demo.studio
            gc.collect()

    def _do(self, job: Job) -> None:
        result, error = None, ""
        state: State = "done"
        try:
            result = job.work(Desk(self, job))
        except jpgen.Cancelled:
            state = "cancelled"
        except jpgen.JpgenError as told:
            state, error = "failed", str(told)
        except MemoryError:
            state, error = "failed", MEMORY_ERROR
        except BaseException as fault:  # whatever it was, the next job has its turn
            log.exception("a job failed")
            state, error = "failed", MEMORY_ERROR if type(fault).__name__ == "OutOfMemoryError" else GENERAL_ERROR
        with self._changed:
            job.result, job.error = result, error
            self._running = None
            self._turns.served()
            self._end(job, state)


def _nothing(desk: Desk) -> None:
    """The work of a job that has ended."""
