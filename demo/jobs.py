"""What is handed in to be drawn: a job as the engine keeps it, and as pages may see it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from demo.worker import Desk

State = Literal["waiting", "running", "done", "cancelled", "failed"]
ENDED = ("done", "cancelled", "failed")


@dataclass(frozen=True)
class Snapshot:
    """A job as it stands. `position`: jobs to be done before it (0: its turn); `fraction` 0…1 of all its pictures.

    `step` of `steps` belong to the picture that is being drawn, number `part` (from 1) of `parts`. `results` are what is finished so far, `result`
    what the work returned. `opening`: a model is being loaded. `seconds_left` is None where nothing can be said yet.
    """

    ticket: str
    title: str
    state: State
    position: int = 0
    step: int = 0
    steps: int = 0
    part: int = 1
    parts: int = 1
    fraction: float = 0.0
    opening: bool = False
    preview: Image.Image | None = None
    results: tuple[Any, ...] = ()
    result: Any = None
    error: str = ""
    seconds_left: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


@dataclass(eq=False)
class Job:
    """A job as the engine keeps it; every field is read and written under the engine's lock."""

    session: str
    work: Callable[[Desk], Any]
    title: str
    ticket: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = "waiting"
    cancelled: bool = False
    watched: bool = True
    seen: float = 0.0
    ended: float = 0.0
    began: float | None = None  # when its first step was done: what comes before (opening a model) tells nothing of the rest
    begun: float = 0.0  # the fraction that was done by then
    step: int = 0
    steps: int = 0
    parts: int = 1
    opening: bool = False
    preview: Image.Image | None = None
    preview_began: float = 0.0  # when the one that is being decoded was wanted
    preview_due: float = 0.0
    results: tuple[Any, ...] = ()
    result: Any = None
    error: str = ""

    @property
    def fraction(self) -> float:
        """How much of all its pictures is done, 0…1."""
        if self.state == "done":
            return 1.0
        return min(1.0, (len(self.results) + (self.step / self.steps if self.steps else 0.0)) / self.parts)

    def snapshot(self, *, position: int, now: float) -> Snapshot:
        """Itself as it stands `now`, with so many jobs before it."""
        fraction, left = self.fraction, None
        if self.state == "running" and self.began is not None and fraction > self.begun:
            left = (now - self.began) * (1 - fraction) / (fraction - self.begun)
        return Snapshot(
            self.ticket, self.title, self.state, position=position, step=self.step, steps=self.steps, part=min(len(self.results) + 1, self.parts),
            parts=self.parts, fraction=fraction, opening=self.opening, preview=self.preview, results=self.results, result=self.result,
            error=self.error, seconds_left=left,
        )  # fmt: skip
