"""Who goes first where cores are scarce: the pages and the browser, not the thread that draws."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

NICER = 5
"""By how much the worker steps back (Linux): a core that the pages or the browser want is theirs three times out of four. Not more: a worker that
hardly runs would keep the interpreter's lock from the pages."""


def step_back() -> None:
    """Let others go before this thread, and before those that torch starts from it; on systems where a thread has no priority of its own, nothing."""
    if sys.platform == "linux":
        me = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + NICER)
