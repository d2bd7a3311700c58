"""The brake on guesses, by a clock of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from demo.brake import FIRST, FORGOTTEN, FREE, LONGEST, Brake


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def brake(clock: Clock) -> Brake:
    return Brake(clock=clock)


def wrong(brake: Brake, times: int = 1) -> None:
    for _ in range(times):
        assert brake.attempt(lambda: False) is False


def never() -> bool:
    raise AssertionError("asked while nobody may try")


def test_a_few_mistakes_cost_nothing(brake: Brake) -> None:
    wrong(brake, FREE)
    assert brake.attempt(lambda: True) is True


def test_then_every_wrong_try_doubles_the_wait_which_has_an_end(brake: Brake, clock: Clock) -> None:
    wrong(brake, FREE)
    waits = []
    for _ in range(12):
        wrong(brake)
        waits.append(brake.attempt(never))  # the password is not even looked at, right or wrong
        clock.now += waits[-1]
    assert waits == [min(LONGEST, FIRST * 2**n) for n in range(12)]


def test_the_wait_runs_down_and_is_not_made_longer_by_trying(brake: Brake, clock: Clock) -> None:
    wrong(brake, FREE + 1)
    clock.now += 0.5
    assert [brake.attempt(never) for _ in range(3)] == [FIRST - 0.5] * 3
    clock.now += FIRST - 0.5
    assert brake.attempt(lambda: True) is True


def test_who_knows_the_password_does_not_loosen_it(brake: Brake, clock: Clock) -> None:
    wrong(brake, FREE)
    assert brake.attempt(lambda: True) is True
    wrong(brake)
    assert brake.attempt(never) == FIRST


def test_wrong_tries_are_forgotten_in_time(brake: Brake, clock: Clock) -> None:
    wrong(brake, FREE + 1)
    clock.now += FORGOTTEN
    wrong(brake, FREE)
    assert brake.attempt(lambda: True) is True


def test_many_at_once_have_no_more_tries_than_one(brake: Brake) -> None:
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda _: brake.attempt(lambda: False), range(200)))
    assert said.count(False) == FREE + 1
    assert set(said) == {False, FIRST}
