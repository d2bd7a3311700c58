"""The engine, its worker in this process, with fake work that waits for events: order, limits, cancelling; nobody meets what is another's."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError

import pytest
from PIL import Image

from demo.engine import Engine, QueueFull, UnknownTicket
from demo.worker import GENERAL_ERROR, MEMORY_ERROR, Desk, Worker
from jpgen import Cancelled, Pipeline, SettingError, Step

WAIT = 60  # seconds until a test that hangs fails


class Gate:
    """Work that says when it has begun, and ends (or takes a step) when it is let."""

    def __init__(self, name: str = "", steps: int = 0, error: BaseException | None = None) -> None:
        self.name, self.steps, self.error = name, steps, error
        self.began, self.let = threading.Event(), threading.Event()
        self.stepped = threading.Semaphore(0)
        self.may_step = threading.Semaphore(0)

    def __call__(self, desk: Desk) -> str:
        self.began.set()
        for index in range(1, self.steps + 1):
            assert self.may_step.acquire(timeout=WAIT)
            going = desk.on_step(Step(index, self.steps, lambda: [picture(self.name)]))
            self.stepped.release()
            if going is False:
                raise Cancelled("stopped")
        if not self.steps:
            assert self.let.wait(WAIT)
        if self.error is not None:
            raise self.error
        return f"made {self.name}"

    def step(self) -> None:
        self.may_step.release()
        assert self.stepped.acquire(timeout=WAIT)


def picture(text: str) -> Image.Image:
    image = Image.new("RGB", (2, 2))
    image.info["of"] = text
    return image


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def make(clock: list[float]) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def made(**settings: object) -> Engine:
        engines.append(Engine(**{"clock": lambda: clock[0], "worker": Worker()} | settings))  # type: ignore[arg-type]
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def test_work_runs_and_its_result_is_there(make: Callable[..., Engine]) -> None:
    engine = make()
    ticket = engine.submit("a", lambda desk: 6 * 7, title="六×七")
    shot = engine.wait(ticket, session="a", timeout=WAIT)
    assert (shot.state, shot.result, shot.title, shot.fraction, shot.ended) == ("done", 42, "六×七", 1.0, True)
    with pytest.raises(FrozenInstanceError):
        shot.state = "failed"  # type: ignore[misc]


def test_sessions_take_turns_and_positions_are_told(make: Callable[..., Engine]) -> None:
    engine, order = make(), []
    first = Gate("first")
    running = engine.submit("a", first)
    assert first.began.wait(WAIT)
    tickets = [(name, engine.submit(name[0], lambda desk, name=name: order.append(name))) for name in ("a1", "a2", "b1", "c1")]
    assert engine.snapshot(running, session="a").position == 0
    assert {name: engine.snapshot(ticket, session=name[0]).position for name, ticket in tickets} == {"b1": 1, "c1": 2, "a1": 3, "a2": 4}
    assert engine.load == (1, 4)
    first.let.set()
    for name, ticket in tickets:
        assert engine.wait(ticket, session=name[0], timeout=WAIT).state == "done"
    assert order == ["b1", "c1", "a1", "a2"]


def test_never_two_jobs_at_once(make: Callable[..., Engine]) -> None:
    engine, active, most = make(capacity=40, per_session=40), [0], [0]

    def work(desk: Desk) -> None:
        active[0] += 1
        most[0] = max(most[0], active[0])
        active[0] -= 1

    barrier = threading.Barrier(4)

    def give(session: str) -> None:
        barrier.wait(WAIT)
        for ticket in [engine.submit(session, work) for _ in range(8)]:
            assert engine.wait(ticket, session=session, timeout=WAIT).state == "done"

    threads = [threading.Thread(target=give, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert most == [1]


def test_a_full_queue_and_a_full_share_are_refused_in_japanese(make: Callable[..., Engine]) -> None:
    engine, gate = make(capacity=2, per_session=2), Gate()
    engine.submit("a", gate)
    assert gate.began.wait(WAIT)
    engine.submit("a", gate)
    with pytest.raises(QueueFull, match=r"一人 2 件まで.* at most 2 jobs each"):
        engine.submit("a", gate)
    engine.submit("b", gate)
    with pytest.raises(QueueFull, match=r"混み合っています.* the queue is full"):
        engine.submit("c", gate)
    gate.let.set()


def test_progress_preview_and_time_left(make: Callable[..., Engine], clock: list[float]) -> None:
    engine, gate = make(), Gate("猫", steps=4)
    ticket = engine.submit("a", gate)
    gate.step()
    clock[0] = 1.0
    shot = engine.snapshot(ticket, session="a")
    assert (shot.state, shot.step, shot.steps, shot.fraction, shot.seconds_left) == ("running", 1, 4, 0.25, None)
    assert shot.preview is not None and shot.preview.info["of"] == "猫"
    clock[0] = 2.0
    gate.step()
    shot = engine.snapshot(ticket, session="a")
    assert (shot.step, shot.fraction, shot.seconds_left) == (2, 0.5, 4.0)
    gate.step(), gate.step()
    shot = engine.wait(ticket, session="a", timeout=WAIT)
    assert (shot.state, shot.preview, shot.result) == ("done", None, "made 猫")


def test_previews_are_decoded_only_when_somebody_looked(make: Callable[..., Engine]) -> None:
    engine, decoded = make(), []
    gate, go_on = threading.Event(), threading.Event()

    def work(desk: Desk) -> None:
        for index in range(1, 5):
            desk.on_step(Step(index, 5, lambda index=index: decoded.append(index) or [picture("")]))
            if index == 3:
                gate.set()
                assert go_on.wait(WAIT)

    ticket = engine.submit("a", work)
    assert gate.wait(WAIT)
    assert decoded == [1]
    engine.snapshot(ticket, session="a")
    go_on.set()
    engine.wait(ticket, session="a", timeout=WAIT)
    assert decoded == [1, 4]


def test_partial_results_outlive_cancelling(make: Callable[..., Engine]) -> None:
    engine, gate = make(), Gate("二枚目", steps=2)

    def work(desk: Desk) -> str:
        desk.expect(2)
        desk.deliver("一枚目")
        return gate(desk)

    ticket = engine.submit("a", work)
    gate.step()
    shot = engine.snapshot(ticket, session="a")
    assert (shot.results, shot.part, shot.parts, shot.fraction) == (("一枚目",), 2, 2, 0.75)
    engine.cancel(ticket, session="a")
    gate.step()
    shot = engine.wait(ticket, session="a", timeout=WAIT)
    assert (shot.state, shot.results, shot.result) == ("cancelled", ("一枚目",), None)


def test_cancelling_what_waits_is_at_once_and_twice_is_no_harm(make: Callable[..., Engine]) -> None:
    engine, gate, ran = make(), Gate(), []
    running = engine.submit("a", gate)
    assert gate.began.wait(WAIT)
    waiting = engine.submit("a", lambda desk: ran.append(1))
    engine.cancel(waiting, session="a")
    engine.cancel(waiting, session="a")
    assert engine.snapshot(waiting, session="a").state == "cancelled"
    gate.let.set()
    assert engine.wait(running, session="a", timeout=WAIT).state == "done"
    engine.cancel(running, session="a")
    assert engine.snapshot(running, session="a").state == "done"
    assert not ran


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SettingError("steps=0 は 1〜1000 に / must be 1–1000"), "steps=0 は 1〜1000 に / must be 1–1000"),
        (MemoryError("Unable to allocate"), MEMORY_ERROR),
        (RuntimeError("/home/somebody/secret"), GENERAL_ERROR),
        (SystemExit(1), GENERAL_ERROR),
    ],
)
def test_errors_are_told_without_traceback_and_the_next_job_runs(
    make: Callable[..., Engine], error: BaseException, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine, gate = make(), Gate(error=error)
    gate.let.set()
    failed = engine.wait(engine.submit("a", gate), session="a", timeout=WAIT)
    assert (failed.state, failed.error) == ("failed", told)
    assert ("a job failed" in caplog.text) == (told is GENERAL_ERROR)
    assert engine.wait(engine.submit("a", lambda desk: 1), session="a", timeout=WAIT).result == 1


class Opened:
    """Stands for a pipeline."""

    def __init__(self, model: str, vae: str | None) -> None:
        self.model, self.vae = model, vae


def test_a_pipeline_is_opened_once_and_another_takes_its_place(make: Callable[..., Engine]) -> None:
    opened: list[tuple[str, str | None]] = []
    refs: list[weakref.ref[Opened]] = []

    def open_pipeline(model: str, *, vae: str | None = None) -> Opened:
        assert not [ref for ref in refs if ref()], "the old one is still there"
        opened.append((model, vae))
        made = Opened(model, vae)
        refs.append(weakref.ref(made))
        return made

    worker = Worker(open_pipeline)
    engine = make(worker=worker)
    for model, vae in (("mame", None), ("mame", None), ("other", None), ("other", "vae"), ("mame", None)):
        shot = engine.wait(engine.submit("a", lambda desk, m=model, v=vae: desk.pipeline(m, vae=v).model), session="a", timeout=WAIT)
        assert (shot.state, shot.result, worker.loaded) == ("done", model, model)
    assert opened == [("mame", None), ("other", None), ("other", "vae"), ("mame", None)]


def test_what_is_open_is_dropped_when_idle(make: Callable[..., Engine]) -> None:
    dropped = threading.Event()

    def open_pipeline(model: str, *, vae: str | None = None) -> Opened:
        made = Opened(model, vae)
        weakref.finalize(made, dropped.set)
        return made

    worker = Worker(open_pipeline)
    engine = make(worker=worker, idle_seconds=0.05)
    shot = engine.wait(engine.submit("a", lambda desk: desk.pipeline("mame").model), session="a", timeout=WAIT)
    assert shot.state == "done"
    assert dropped.wait(WAIT)
    assert worker.loaded == ""


def test_cancelling_while_a_model_opens_stops_before_anything_is_drawn(make: Callable[..., Engine]) -> None:
    opening, go_on, drawn = threading.Event(), threading.Event(), []

    def open_pipeline(model: str, *, vae: str | None = None) -> Opened:
        opening.set()
        assert go_on.wait(WAIT)
        return Opened(model, vae)

    engine = make(worker=Worker(open_pipeline))
    ticket = engine.submit("a", lambda desk: drawn.append(desk.pipeline("mame")))
    assert opening.wait(WAIT)
    assert engine.snapshot(ticket, session="a").opening
    engine.cancel(ticket, session="a")
    go_on.set()
    assert engine.wait(ticket, session="a", timeout=WAIT).state == "cancelled"
    assert not drawn


def test_another_session_can_neither_see_nor_cancel(make: Callable[..., Engine]) -> None:
    engine, gate = make(), Gate()
    ticket = engine.submit("a", gate, title="秘密のプロンプト")
    assert gate.began.wait(WAIT)
    for act in (engine.snapshot, engine.cancel, engine.wait):
        with pytest.raises(UnknownTicket) as foreign:
            act(ticket, session="b")
        with pytest.raises(UnknownTicket) as unknown:
            act("no such ticket", session="b")
        assert str(foreign.value) == str(unknown.value)
    assert engine.tickets("b") == []
    gate.let.set()
    assert engine.wait(ticket, session="a", timeout=WAIT).state == "done"


def test_previews_take_a_fifth_of_the_time_at_most(make: Callable[..., Engine], clock: list[float]) -> None:
    def slow() -> list[Image.Image]:
        clock[0] += 2.0
        return [picture("猫")]

    seen = []

    def work(desk: Desk) -> None:
        for index in range(1, 13):
            engine.snapshot(tickets[0], session="a")
            before = clock[0]
            desk.on_step(Step(index, 20, slow))
            seen.append(clock[0] > before)
            clock[0] += 1.0

    engine, tickets = make(), []
    began = Gate()
    engine.submit("b", began)
    tickets.append(engine.submit("a", work))
    began.let.set()
    assert engine.wait(tickets[0], session="a", timeout=WAIT).state == "done"
    assert seen == ([True] + [False] * 7) + [True] + [False] * 3


def test_ended_jobs_are_forgotten_by_number_and_time(make: Callable[..., Engine], clock: list[float]) -> None:
    engine = make(kept=2, kept_seconds=100)
    tickets = [engine.submit("a", lambda desk: 1) for _ in range(1)]
    for _ in range(3):
        engine.wait(tickets[-1], session="a", timeout=WAIT)
        tickets.append(engine.submit("a", lambda desk: 1))
    engine.wait(tickets[-1], session="a", timeout=WAIT)
    other = engine.submit("b", lambda desk: 1)
    engine.wait(other, session="b", timeout=WAIT)
    assert [shot.ticket for shot in engine.tickets("a")] == tickets[-2:]
    assert engine.snapshot(other, session="b").state == "done"
    with pytest.raises(UnknownTicket):
        engine.snapshot(tickets[0], session="a")
    clock[0] = 101.0
    assert engine.tickets("a") == engine.tickets("b") == []


def test_what_nobody_looks_at_any_more_is_cancelled(make: Callable[..., Engine], clock: list[float]) -> None:
    engine, gate, ran = make(away_seconds=10), Gate(steps=3), []
    running = engine.submit("a", gate)
    waiting = engine.submit("b", lambda desk: ran.append("b"))
    watched = engine.submit("c", lambda desk: ran.append("c"))
    gate.step()
    clock[0] = 11.0
    engine.snapshot(watched, session="c")
    gate.step()
    assert engine.wait(running, session="a", timeout=WAIT).state == "cancelled"
    assert engine.wait(watched, session="c", timeout=WAIT).state == "done"
    assert engine.snapshot(waiting, session="b").state == "cancelled"
    assert ran == ["c"]


def test_closing_cancels_everything_and_takes_nothing_more(make: Callable[..., Engine]) -> None:
    engine, gate = make(), Gate(steps=9)
    running, waiting = engine.submit("a", gate), engine.submit("b", Gate())
    gate.step()
    closer = threading.Thread(target=engine.close)
    closer.start()
    assert engine.wait(waiting, session="b", timeout=WAIT).state == "cancelled"
    gate.step()
    closer.join(WAIT)
    assert not closer.is_alive()
    assert engine.snapshot(running, session="a").state == "cancelled"
    with pytest.raises(QueueFull, match="終了"):
        engine.submit("a", gate)


def test_what_a_job_held_is_let_go_when_it_ends(make: Callable[..., Engine]) -> None:
    engine, held = make(), Opened("mask", None)
    ref = weakref.ref(held)
    ticket = engine.submit("a", lambda desk, held=held: None)
    engine.wait(ticket, session="a", timeout=WAIT)
    del held
    gc.collect()
    assert ref() is None


class Shared:
    """A pipeline that all sessions share; its steps wait to be let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_step, self.steps, self.ending = threading.Semaphore(0), 3, False

    def generate(self, prompt: str, *, on_step: Callable[[Step], bool]) -> tuple[str, Image.Image]:
        self.asked.append(prompt)
        if "error" in prompt:
            raise SettingError(f"{prompt}: だめです / no good")
        for index in range(1, self.steps + 1):
            assert self.ending or self.may_step.acquire(timeout=WAIT)
            if not on_step(Step(index, self.steps, lambda: [picture(prompt)])):
                raise Cancelled("stopped")
        return prompt, picture(prompt)


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_two_sessions_in_200_interleavings_never_meet(make: Callable[..., Engine], first: int) -> None:
    for seed in range(first, first + 20):
        interleaved(make, random.Random(seed))


def interleaved(make: Callable[..., Engine], chance: random.Random) -> None:
    """Sessions give in work, look, cancel and let the shared pipeline step in any order; whatever one sees is its own, and only it cancels it."""
    shared = Shared()
    engine = make(per_session=4, kept=50, worker=Worker(lambda model, vae=None: shared))
    tickets: dict[str, list[str]] = {"太郎": [], "花子": []}
    prompts: dict[str, str] = {}
    cancelled: set[str] = set()

    def look(session: str) -> None:
        for shot in engine.tickets(session):
            check(session, shot.ticket)
        for ticket in tickets[session]:
            check(session, ticket)

    def check(session: str, ticket: str) -> None:
        shot, prompt = engine.snapshot(ticket, session=session), prompts[ticket]
        assert ticket in tickets[session]
        assert shot.title == prompt and prompt.startswith(session)
        for image in [shot.preview, *(made[1] for made in (*shot.results, *([shot.result] if shot.result else [])))]:
            assert image is None or image.info["of"] == prompt
        assert shot.state != "cancelled" or ticket in cancelled
        assert shot.error == (f"{prompt}: だめです / no good" if shot.state == "failed" else "")

    for number in range(24):
        session, other = chance.sample(["太郎", "花子"], 2)
        match chance.choice(["submit", "submit", "step", "step", "cancel", "steal", "look"]):
            case "submit":
                prompt = f"{session} {number}{' error' if chance.random() < 0.2 else ''}"

                def work(desk: Desk, prompt: str = prompt) -> object:
                    made = desk.pipeline().generate(prompt, on_step=desk.on_step)  # type: ignore[arg-type]
                    desk.deliver(made)
                    return made

                try:
                    ticket = engine.submit(session, work, title=prompt)
                except QueueFull:
                    continue
                tickets[session].append(ticket)
                prompts[ticket] = prompt
            case "step":
                shared.may_step.release()
            case "cancel" if tickets[session]:
                ticket = chance.choice(tickets[session])
                engine.cancel(ticket, session=session)
                cancelled.add(ticket)
            case "steal" if tickets[other]:
                for act in (engine.cancel, engine.snapshot):
                    with pytest.raises(UnknownTicket):
                        act(chance.choice(tickets[other]), session=session)
            case _:
                look(session)
    shared.ending = True
    shared.may_step.release()
    for session, mine in tickets.items():
        for ticket in mine:
            shot = engine.wait(ticket, session=session, timeout=WAIT)
            assert shot.ended
            assert shot.state == ("failed" if "error" in prompts[ticket] else "done") or ticket in cancelled
            if shot.state == "done":
                assert shot.result[0] == prompts[ticket]
        look(session)
    engine.close()


def test_a_real_pipeline_draws_with_previews_and_is_cancelled(make: Callable[..., Engine], toy: Pipeline) -> None:
    engine, shots = make(worker=Worker(lambda model, vae=None: toy)), []
    tickets: list[str] = []
    given = threading.Event()

    def draw(desk: Desk) -> object:
        assert given.wait(WAIT)

        def on_step(step: Step) -> bool:
            going = desk.on_step(step)
            shots.append(engine.snapshot(tickets[-1], session="a"))
            if len(tickets) == 2:
                engine.cancel(tickets[-1], session="a")
            return going

        pipeline = desk.pipeline()
        return pipeline.generate("夕焼けの海", seed=1, config=pipeline.config(steps=3), on_step=on_step)

    tickets.append(engine.submit("a", draw))
    given.set()
    shot = engine.wait(tickets[0], session="a", timeout=WAIT)
    assert (shot.state, shot.error, shot.result.seed) == ("done", "", 1)
    assert [(one.step, one.steps, one.preview is not None and one.preview.size) for one in shots] == [(n, 3, (64, 64)) for n in (1, 2, 3)]

    given.clear()
    tickets.append(engine.submit("a", draw))
    given.set()
    shot = engine.wait(tickets[1], session="a", timeout=WAIT)
    assert (shot.state, shot.step, shot.result) == ("cancelled", 1, None)
    assert len(shots) == 5
