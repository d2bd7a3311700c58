"""The worker in a process of its own: jobs of this file go there, and tell their progress to a list here."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo.apart import DIED, NICER, WorkerApart, step_back
from demo.engine import Engine
from demo.gallery import Gallery
from demo.made import keep
from demo.worker import GENERAL_ERROR, MEMORY_ERROR, Desk, Outcome
from jpgen import Generation, ModelInfo, SamplingConfig, SettingError, Step, normalize

WAIT = 60
ROOT = Path(__file__).resolve().parents[2]


class Told:
    """A Progress that writes everything down; `act` is called at every step before it is answered, `going` until the step after which it stops."""

    def __init__(self, act: Callable[[], object] = lambda: None, *, going: int = 99) -> None:
        self.act, self.going, self.said = act, going, list[Any]()

    def stops(self) -> bool:
        return False

    def opening(self, now: bool) -> None:
        self.said.append(("opening", now))

    def expect(self, parts: int) -> None:
        self.said.append(("expect", parts))

    def deliver(self, result: Any) -> None:
        self.said.append(("deliver", result))

    def stepped(self, index: int, total: int) -> tuple[bool, bool]:
        self.said.append(("stepped", index, total))
        self.act()
        return index < self.going, index == 2

    def previewed(self, image: Image.Image) -> bool:
        self.said.append(("previewed", image.getpixel((0, 0))))
        return True


@pytest.fixture
def worker() -> Iterator[WorkerApart]:
    made = WorkerApart()
    yield made
    made.rest()


def preview() -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), "navy")]


def draw(desk: Desk, steps: int) -> tuple[int, int]:
    """Takes its steps, or as many as it may; returns its process and how many they were."""
    desk.expect(2)
    desk.deliver("一枚目")
    for index in range(1, steps + 1):
        if not desk.on_step(Step(index, steps, preview)):
            return os.getpid(), index
    return os.getpid(), steps


def fail(desk: Desk, error: BaseException) -> None:
    raise error


def surroundings(desk: Desk) -> tuple[list[int], str, list[str]]:
    """How far all threads have stepped back, what torch is told, and where modules are looked for."""
    step_back()
    threads = [int(thread.name) for thread in Path("/proc/self/task").iterdir()]
    return [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads], os.environ["OMP_NUM_THREADS"], sys.path


def noise(desk: Desk) -> str:
    """Writes where libraries might, and reads where nothing is to be had."""
    sys.stdout.write("雑音\n")
    sys.stdout.flush()
    os.write(1, b"noise")
    return sys.stdin.read() + "済"


def unsendable(desk: Desk, *, deliver: bool) -> object:
    if deliver:
        desk.deliver(lambda: None)
    return lambda: None


def add(desk: Desk, kept: Gallery, text: str) -> object:
    (image,), model = preview(), ModelInfo("mame", "0", "Apache-2.0", "0")
    return keep(kept, Generation(image, normalize(text), SamplingConfig(4, 4, 1, 1.0), 1, model, "fake", "native", 0.0))


def test_a_job_runs_there_and_tells_here_how_it_goes(worker: WorkerApart) -> None:
    told = Told()
    outcome = worker.run(partial(draw, steps=3), told)
    assert outcome == Outcome("done", (worker.pid, 3))
    assert worker.pid != os.getpid()
    steps = [("stepped", 1, 3), ("stepped", 2, 3), ("previewed", (0, 0, 128)), ("stepped", 3, 3)]
    assert told.said == [("expect", 2), ("deliver", "一枚目"), *steps]
    assert worker.run(partial(draw, steps=1), Told()).result == (worker.pid, 1)  # the same process


def test_a_job_hears_that_it_is_to_stop(worker: WorkerApart) -> None:
    assert worker.run(partial(draw, steps=9), Told(going=4)).result == (worker.pid, 4)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SettingError("steps=0 は 1〜1000 に / must be 1–1000"), "steps=0 は 1〜1000 に / must be 1–1000"),
        (MemoryError("Unable to allocate"), MEMORY_ERROR),
        (RuntimeError("/home/somebody/secret"), GENERAL_ERROR),
        (SystemExit(1), GENERAL_ERROR),
    ],
)
def test_errors_come_back_as_texts_and_their_traces_go_to_the_log(
    worker: WorkerApart, error: BaseException, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert worker.run(partial(fail, error=error), Told()) == Outcome("failed", error=told)
    assert ("raise error" in capfd.readouterr().err) == (told is GENERAL_ERROR)
    assert worker.run(partial(draw, steps=1), Told()).state == "done"


def test_a_process_that_is_killed_fails_its_job_alone(worker: WorkerApart) -> None:
    first = worker.run(partial(draw, steps=1), Told()).result[0]
    assert worker.run(partial(draw, steps=3), Told(lambda: os.kill(first, signal.SIGKILL))) == Outcome("failed", error=DIED)
    assert "メモリが足りない" in DIED
    second = worker.run(partial(draw, steps=1), Told()).result[0]
    assert second == worker.pid != first
    os.kill(second, signal.SIGKILL)  # while it had nothing to do: nobody notices
    os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
    assert worker.run(partial(draw, steps=1), Told()).state == "done"


def test_an_interrupt_is_for_the_server(worker: WorkerApart) -> None:
    pid = worker.run(partial(draw, steps=1), Told()).result[0]
    assert worker.run(partial(draw, steps=3), Told(lambda: os.kill(pid, signal.SIGINT))).result == (pid, 3)


def test_what_cannot_be_sent_fails_and_leaves_nothing_in_the_pipe(worker: WorkerApart, capfd: pytest.CaptureFixture[str]) -> None:
    for deliver in (True, False):
        assert worker.run(partial(unsendable, deliver=deliver), Told()) == Outcome("failed", error=GENERAL_ERROR)
        assert "pickle" in capfd.readouterr().err
        assert worker.run(partial(draw, steps=2), Told()).state == "done"


def test_a_job_that_cannot_be_sent_fails_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    try:
        shot = engine.wait(engine.submit("a", lambda desk: 1), session="a", timeout=WAIT)
        assert (shot.state, shot.error) == ("failed", GENERAL_ERROR)
        assert "pickle" in caplog.text
        assert engine.wait(engine.submit("a", partial(draw, steps=2)), session="a", timeout=WAIT).state == "done"
    finally:
        engine.close()


def test_what_libraries_print_disturbs_nothing(worker: WorkerApart, capfd: pytest.CaptureFixture[str]) -> None:
    assert worker.run(noise, Told()).result == "済"
    out, err = capfd.readouterr()
    assert out == ""
    assert "雑音\nnoise" in err


@pytest.mark.skipif(sys.platform != "linux", reason="Linux: priorities of threads")
def test_the_process_steps_back_and_leaves_a_core_to_the_pages(worker: WorkerApart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    nice, threads, path = worker.run(surroundings, Told()).result
    assert set(nice) == {NICER}
    assert worker.pid is not None and os.getsid(worker.pid) == worker.pid  # a session that can step back alone
    assert len(nice) > 1
    assert int(threads) == max(1, len(os.sched_getaffinity(0)) - 1)
    assert path == sys.path


def test_a_picture_that_is_kept_there_is_in_the_gallery_here(worker: WorkerApart, tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    for kept, text in ((gallery, "赤い船"), (gallery.of("花子"), "青い花")):
        made = worker.run(partial(add, kept=kept, text=text), Told()).result
        (item,) = kept.search().items
        assert (item.path, item.prompt) == (made.path, text)
        assert made.settings.source == text


def test_closing_the_engine_ends_the_process() -> None:
    worker = WorkerApart()
    engine = Engine(worker=worker)
    pid = engine.wait(engine.submit("a", partial(draw, steps=1)), session="a", timeout=WAIT).result[0]
    assert worker.pid == pid
    engine.close()
    assert worker.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_engine_without_work_ends_the_process_and_the_next_job_has_another() -> None:
    engine = Engine(idle_seconds=0)
    try:
        first, second = (engine.wait(engine.submit("a", partial(draw, steps=1)), session="a", timeout=WAIT).result[0] for _ in range(2))
        assert first != second
    finally:
        engine.close()


def hang(desk: Desk) -> None:
    """Tells which process it is, and is busy for longer than any test."""
    desk.deliver(os.getpid())
    select.select([], [], [], 1000)


class Printing(Told):
    """Prints what is delivered."""

    def deliver(self, result: Any) -> None:
        sys.stdout.write(f"{result}\n")
        sys.stdout.flush()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux: waits for a process that is no child of this one")
def test_a_server_that_is_killed_leaves_no_process_behind() -> None:
    script = "from demo.apart import WorkerApart; from tests.demo.test_apart import Printing, hang; WorkerApart().run(hang, Printing())"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as server:
        assert server.stdout is not None
        left = os.pidfd_open(int(server.stdout.readline()))
        server.kill()
    with os.fdopen(left):
        assert select.select([left], [], [], WAIT)[0]  # it has ended
