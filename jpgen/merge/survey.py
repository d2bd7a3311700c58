"""What threads find when they look at the pieces of a tensor before its values are made, and the pieces that wait for the next pass."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jpgen.merge.evaluation import passes
from jpgen.merge.plan import Job

ROOM, MORE = 64 << 20, 16 << 20
"""Bytes of pieces that are kept from one pass to the next, and more for each model; beyond, pieces are read again."""

PATIENCE = 0.1
"""Seconds after which a thread that waits for others looks whether work was stopped."""


class Survey:
    """One tensor's: `seen` is what looks have told so far, by places in the tree. Shares are summed in the order of the pieces, whoever is first."""

    def __init__(self, job: Job) -> None:
        self.passes, self.seen = passes(job.made), dict[str, Any]()
        self.kept: dict[int, list[Tensor]] = {}
        self._count, self._pieces, self._made = math.prod(job.shape), job.pieces, 0
        self._lock, self._over = threading.Lock(), [threading.Event() for _ in self.passes]
        self._waiting: dict[int, list[Tensor]] = {}
        self._total: list[Tensor] = []
        self._added = 0

    def add(self, step: int, piece: int, shares: list[Tensor]) -> None:
        """What the looks of this pass gave for a piece; with the last piece's the pass is over."""
        with self._lock:
            self._waiting[piece] = shares
            while self._added in self._waiting:
                found = self._waiting.pop(self._added)
                self._total = [total.add_(one) for total, one in zip(self._total, found, strict=True)] if self._added else found
                self._added += 1
            if self._added == self._pieces:
                for (node, number), total in zip(self.passes[step], self._total, strict=True):
                    told = node.method.looks[number].told
                    self.seen[node.place] = told(total, dict(node.values), self.seen.get(node.place), self._count)
                self._total, self._added = [], 0
                self._over[step].set()

    def wait(self, step: int, stop: threading.Event) -> bool:
        """Until all passes before `step` are over; False if work was stopped before.

        Jobs are taken in their order, so those waited for are being done, or wait for earlier ones: it ends.
        """
        while step and not self._over[step - 1].wait(PATIENCE):
            if stop.is_set():
                return False
        return True

    def made(self) -> bool:
        """Count a piece whose values are made; True for the last."""
        with self._lock:
            self._made += 1
            return self._made == self._pieces


class Surveys:
    """Those of the tensors that are worked at, and the room for their pieces: buffers that are used again."""

    def __init__(self, models: int) -> None:
        self._lock, self._open = threading.Lock(), dict[str, Survey]()
        self._room, self._idle = ROOM + MORE * models, list[Tensor]()

    def of(self, job: Job) -> Survey:
        """The survey of the job's tensor."""
        with self._lock:
            if job.target.name not in self._open:
                self._open[job.target.name] = Survey(job)
            return self._open[job.target.name]

    def take(self, sizes: Sequence[int]) -> list[Tensor] | None:
        """Buffers of so many bytes; None where there is no room for them."""
        with self._lock:
            if sum(sizes) > self._room:
                return None
            self._room -= sum(sizes)
            taken = []
            for size in sizes:
                at = next((n for n, one in enumerate(self._idle) if one.numel() == size), None)
                taken.append(torch.empty(size, dtype=torch.uint8) if at is None else self._idle.pop(at))
            while self._idle and sum(one.numel() for one in self._idle) > self._room:
                self._idle.pop(0)
            return taken

    def done(self, job: Job) -> None:
        """A piece is made: take back what was kept of it, and forget the tensor with its last one."""
        survey = self.of(job)
        kept, last = survey.kept.pop(job.piece, []), survey.made()
        with self._lock:
            self._room += sum(one.numel() for one in kept)
            self._idle += kept
            if last:
                del self._open[job.target.name]
