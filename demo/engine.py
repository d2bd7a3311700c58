"""A bounded fair queue before one worker: never two jobs at once, and nobody sees or stops what is another's.

    engine = Engine()
    ticket = engine.submit(session, partial(draw, text="柴犬"), title="柴犬")           # a job is called with a demo.worker.Desk
    engine.snapshot(ticket, session=session).state          # "waiting", "running", "done", "cancelled" or "failed"

Pages ask for snapshots; the worker (in a process of its own: demo.apart) knows nothing of pages.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jpgen
from demo.apart import WorkerApart
from demo.jobs import ENDED, Job, Snapshot, State
from demo.turns import Turns
from demo.worker import GENERAL_ERROR, Desk, Outcome, Progress

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger("jpgen.demo")

PREVIEW_PAUSE = 4
"""How long no preview is decoded after one, in times of what it took: of a machine that is slow or busy they take a fifth at most."""


class QueueFull(jpgen.JpgenError):
    """No more work is taken for now; the text says why and what to do."""


class UnknownTicket(jpgen.JpgenError):
    """No such ticket of this session: it was never given, is another's, or was forgotten long after its end."""


class Runner(Protocol):
    """What carries jobs out, one at a time: a demo.apart.WorkerApart, or in tests a demo.worker.Worker."""

    def run(self, work: Callable[[Desk], Any], progress: Progress) -> Outcome:
        """Carry a job out to its end."""

    def rest(self) -> None:
        """Give back the memory that the next job might have used."""


class Engine:
    """The queue and the thread that hands its jobs to the worker; safe for threads.

    `capacity` jobs wait at most, `per_session` of one session wait or run; the worker rests after `idle_seconds` without work. Jobs at which nobody
    has looked for `away_seconds` are cancelled (a tab was closed). Of a session the last `kept` finished jobs are remembered, for `kept_seconds`.
    """

    def __init__(
        self, *, capacity: int = 16, per_session: int = 3, idle_seconds: float = 600, away_seconds: float = 300, kept: int = 8,
        kept_seconds: float = 3600, worker: Runner | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.capacity, self.per_session = capacity, per_session
        self._idle_seconds, self._away_seconds, self._kept, self._kept_seconds = idle_seconds, away_seconds, kept, kept_seconds
        self._worker, self._clock = worker or WorkerApart(), clock
        self._changed = threading.Condition()
        self._turns: Turns[Job] = Turns()
        self._jobs: dict[str, Job] = {}
        self._running: Job | None = None
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

    # ── what the thread does, without the lock ──────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        resting = True
        while not self._closed:
            if job := self._next(None if resting else self._idle_seconds):
                self._do(job)
            elif not self._closed:
                self._worker.rest()
            resting = job is None
        self._worker.rest()

    def _next(self, timeout: float | None) -> Job | None:
        """The next job, waited for; None when there was nothing to do for so long, or the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._turns), timeout)
            self._forget()
            job = None if self._closed else self._turns.next()
            if job is not None:
                job.state, self._running = "running", job
            return job

    def _do(self, job: Job) -> None:
        try:
            outcome = self._worker.run(job.work, _Followed(job, self._changed, self._clock, self._away_seconds))
        except Exception:
            log.exception("a job could not be handed to the worker")
            outcome = Outcome("failed", error=GENERAL_ERROR)
        with self._changed:
            job.result, job.error = outcome.result, outcome.error
            self._running = None
            self._turns.served()
            self._end(job, outcome.state)


@dataclass(frozen=True)
class _Followed:
    """The Progress of a job, written down where snapshots are taken from."""

    job: Job
    lock: threading.Condition
    clock: Callable[[], float]
    away_seconds: float

    def stops(self) -> bool:
        with self.lock:
            return self.job.cancelled or self.clock() - self.job.seen > self.away_seconds

    def opening(self, now: bool) -> None:
        with self.lock:
            self.job.opening = now

    def expect(self, parts: int) -> None:
        with self.lock:
            self.job.parts = max(1, parts)

    def deliver(self, result: Any) -> None:
        with self.lock:
            job = self.job
            job.results, job.step, job.steps, job.preview = (*job.results, result), 0, 0, None

    def stepped(self, index: int, total: int) -> tuple[bool, bool]:
        if self.stops():
            return False, False
        with self.lock:
            job, now = self.job, self.clock()
            job.step, job.steps = index, total
            if job.began is None:
                job.began, job.begun = now, job.fraction
            wanted = job.watched and now >= job.preview_due and index < total
            if wanted:
                job.watched, job.preview_began = False, now
            return True, wanted

    def previewed(self, image: Image.Image) -> bool:
        with self.lock:
            now = self.clock()
            self.job.preview, self.job.preview_due = image, now + PREVIEW_PAUSE * (now - self.job.preview_began)
        return not self.stops()


def _nothing(desk: Desk) -> None:
    """The work of a job that has ended."""
