"""A brake on guessing the password: after a few wrong tries every further one has to be waited for, longer and longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FREE = 5
"""Wrong tries that cost nothing: people mistype."""

FIRST, LONGEST = 2.0, 300.0
"""Seconds to wait after the next one; each further doubles them, up to the longest."""

FORGOTTEN = 3600.0
"""Seconds without a wrong try after which all are forgotten."""


class Brake:
    """One for the whole server, as who guesses opens as many sessions as there are guesses; safe for threads.

    A right password does not make wrong ones forgotten: who knows it would otherwise open the door to who guesses. While somebody guesses, others
    who have not come in yet have to wait too; who is in stays in.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong, self._last, self._until = 0, 0.0, 0.0

    def attempt(self, check: Callable[[], bool]) -> bool | float:
        """What `check` says, one at a time; or, without asking it, the seconds (above 0) that the next try has to wait."""
        with self._lock:
            now = self._clock()
            if now < self._until:
                return self._until - now
            if check():
                return True
            self._wrong = self._wrong + 1 if now - self._last < FORGOTTEN else 1
            self._last = now
            if self._wrong > FREE:
                self._until = now + min(LONGEST, FIRST * 2.0 ** min(self._wrong - FREE - 1, 30))
            return False
