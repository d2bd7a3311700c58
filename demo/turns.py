"""Whose turn it is: a bounded queue that serves sessions in rotation, so that ten requests of one never keep another waiting for more than one."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items waiting by session. The session that is being served joins the rotation again, at its end, when it has been `served`.

    Not safe for threads: whoever owns it holds a lock.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._rotation: deque[str] = deque()
        self._serving: str | None = None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def count(self, session: str) -> int:
        """How many items of this session wait."""
        return len(self._waiting.get(session, ()))

    def add(self, session: str, item: T) -> None:
        """Put an item behind the others of its session."""
        self._waiting.setdefault(session, deque()).append(item)
        if session != self._serving and session not in self._rotation:
            self._rotation.append(session)

    def remove(self, session: str, item: T) -> bool:
        """Take a waiting item out; False if it does not wait."""
        line = self._waiting.get(session, deque())
        if item not in line:
            return False
        line.remove(item)
        self._tidy(session)
        return True

    def next(self) -> T | None:
        """The item whose turn it is, now being served; None if none waits."""
        if not self._rotation:
            return None
        session = self._rotation.popleft()
        item = self._waiting[session].popleft()
        self._serving = session
        self._tidy(session)
        return item

    def served(self) -> None:
        """The item that `next` gave is done with."""
        session, self._serving = self._serving, None
        if session is not None and session in self._waiting:
            self._rotation.append(session)

    def ahead(self, session: str, item: T) -> int:
        """How many items will be served before this one, the one being served included; raises ValueError if it does not wait."""
        index = self._waiting.get(session, deque()).index(item)
        order = [*self._rotation, *([self._serving] if self._serving in self._waiting else [])]
        mine = order.index(session)
        others = sum(min(self.count(one), index + (place < mine)) for place, one in enumerate(order) if place != mine and one is not None)
        return others + index + (self._serving is not None)

    def items(self) -> list[T]:
        """All that wait, by session."""
        return [item for line in self._waiting.values() for item in line]

    def _tidy(self, session: str) -> None:
        if not self._waiting[session]:
            del self._waiting[session]
            if session in self._rotation:
                self._rotation.remove(session)
