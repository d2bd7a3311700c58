"""The worker in a process of its own, so that the pages never feel what opening a model and drawing do to an interpreter and its memory.

The two sides speak by pickles over the pipes of the process, which nobody else can reach.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, cast

import jpgen
from demo.worker import GENERAL_ERROR, Desk, Outcome, Progress, Worker

log = logging.getLogger("jpgen.demo")

NICER = 10
"""By how much the process steps back once it has a model and may draw: a core that the pages or the browser want is theirs nine times out of ten."""

DIED = (
    "描いている途中で処理が止まりました。メモリが足りないのかもしれません。絵を小さくするか、枚数を減らして、もう一度お試しください / "
    "what was drawing has died, perhaps for lack of memory: try again with smaller or fewer pictures"
)
START = "import sys; sys.path[:] = sys.argv[1:]; from demo.apart import serve; serve()"


class WorkerApart:
    """A Worker in another process, which starts when there is work and ends with this one, however that ends.

    Jobs and what they deliver are pickled: functions of modules with their arguments (functools.partial), not closures.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The number of the process, None while there is none."""
        return self._process.pid if self._process else None

    def run(self, work: Callable[[Desk], Any], progress: Progress) -> Outcome:
        """Have a job carried out. If the process dies only this job fails: the next one has another process."""
        job = pickle.dumps(work)
        if self._process is None or self._process.poll() is not None:
            self.rest()
            self._process = _started()
        try:
            return _carried_out(self._process, job, progress)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.rest()
            log.warning("the process that draws has died")
            return Outcome("failed", error=DIED)
        except BaseException:
            self.rest()  # what it says next would be taken for the next job's
            raise

    def rest(self) -> None:
        """End the process: all its memory comes back."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _started() -> subprocess.Popen[bytes]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(1, cores - 1))}  # a core is left to the pages and the browser: torch's threads wait by spinning
    command = [sys.executable, "-c", START, *sys.path]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=threads | os.environ, start_new_session=True)


def _carried_out(process: subprocess.Popen[bytes], job: bytes, progress: Progress) -> Outcome:
    """Send the job, and answer for its progress until it has ended."""
    assert process.stdin is not None and process.stdout is not None
    _send(process.stdin, job)
    while not isinstance(told := pickle.load(process.stdout), Outcome):
        name, given = told
        _send(process.stdin, getattr(progress, name)(*given))
    return told


def _send(pipe: IO[bytes], what: Any) -> None:
    pipe.write(pickle.dumps(what))  # not dump: what cannot be pickled must leave nothing in the pipe
    pipe.flush()


# ── in the process ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Told:
    """The Progress of the job on the other side: every method sends its arguments there, and returns what comes back."""

    def __init__(self, heard: SimpleQueue[Any], out: IO[bytes]) -> None:
        self._heard, self._out = heard, out

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._ask, name)

    def _ask(self, name: str, *given: Any) -> Any:
        _send(self._out, (name, given))
        return self._heard.get()


def serve() -> None:
    """Carry out what comes in by the standard input until that closes. What libraries print goes where errors go."""
    jpgen.doze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C means the server
    given, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    heard: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_hear, args=(given, heard), daemon=True).start()
    worker, progress = Worker(_open), cast(Progress, _Told(heard, out))
    while True:
        job = heard.get()
        outcome = worker.run(partial(_do, job), progress)
        try:
            _send(out, outcome)
        except (pickle.PicklingError, TypeError, AttributeError):
            log.exception("the result of a job cannot be sent")
            _send(out, Outcome("failed", error=GENERAL_ERROR))


def _hear(given: IO[bytes], heard: SimpleQueue[Any]) -> None:
    """Read whatever comes, and end the process at once, whatever it is at, when the other side is gone."""
    try:
        while True:
            heard.put(pickle.load(given))
    finally:
        os._exit(0)


def _do(job: bytes, desk: Desk) -> Any:
    return pickle.loads(job)(desk)


def _open(model: str, *, vae: str | None = None) -> jpgen.Pipeline:
    """A pipeline, opened without a look for garbage, and left out of those that follow: with torch loaded one takes half a second."""
    gc.disable()
    try:
        return jpgen.Pipeline(model, vae=vae)
    finally:
        gc.freeze()
        gc.enable()
        step_back()


def step_back() -> None:
    """Let others go before this process: its session, as Linux shares cores among sessions, and all threads in it. On other systems nothing."""
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without groups of sessions
            Path("/proc/self/autogroup").write_text(str(NICER))
        for thread in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                os.setpriority(os.PRIO_PROCESS, int(thread.name), NICER)
