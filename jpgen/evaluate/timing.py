"""Two ways to do a thing, timed side by side in turns: CPU seconds, so that other load on the machine counts for little, and the clock's beside."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

PSNR = {torch.float32: 40.0, torch.bfloat16: 20.0, torch.float16: 20.0}
"""How near, in dB, pictures of two arms must be that are to be the same up to rounding."""


@dataclass(frozen=True)
class Probe:
    """The machine as it is now: threads, TFLOP/s of a matrix product in fp32 and bf16, other load (processes that wanted a core this minute)."""

    threads: int
    fp32: float
    bf16: float
    load: float

    def __str__(self) -> str:
        return (
            f"torch {torch.__version__}, {self.threads} thread(s) of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
            f"matmul fp32 {self.fp32:.3f} / bf16 {self.bf16:.3f} TFLOP/s, load average {self.load:.2f}"
        )


@dataclass(frozen=True)
class Compared:
    """One row of the table: CPU seconds of either arm a round, and how far apart what they made is (dB; None: not meant to be the same).

    `clock`: seconds of the clock of either arm a round, which other load on the machine makes longer; () where they were not taken.
    """

    name: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    psnr: float | None
    clock: tuple[tuple[float, ...], ...] = ()

    @property
    def ratios(self) -> list[float]:
        """Ours ÷ theirs, round by round."""
        return [one / other for one, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        near = "" if self.psnr is None else "  同じ絵 / the same picture" if np.isinf(self.psnr) else f"  {self.psnr:.0f} dB"
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        spread = f"{min(self.ratios):.2f}–{max(self.ratios):.2f}"
        clock = "  clock {:.2f} ÷ {:.2f} s".format(*map(statistics.median, self.clock)) if self.clock else ""
        return f"{self.ratio:6.2f} ({spread})  {ours:8.3f} s ÷ {theirs:8.3f} s  {self.name}{near}{clock}"


class UnlikeError(RuntimeError):
    """Two arms that should make the same made different things: there is no ratio."""


def probe(size: int = 1536) -> Probe:
    """What the machine does at this moment with torch's present number of threads."""
    return Probe(torch.get_num_threads(), _rate(size, torch.float32), _rate(size // 2, torch.bfloat16), os.getloadavg()[0])


def _rate(size: int, dtype: torch.dtype) -> float:
    one = torch.randn(size, size).to(dtype)
    seconds = min(_timed(lambda: one @ one).clock for _ in range(3))
    return 2 * size**3 / seconds / 1e12


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads, and of those it has waited for; threads that wait for one another may count too."""
    children = os.times()  # counts hundredths: enough for whole processes
    return time.process_time() + children.children_user + children.children_system


@dataclass(frozen=True)
class _Timed:
    cpu: float
    clock: float
    made: object


def _timed(arm: Callable[[], object]) -> _Timed:
    cpu, clock = cpu_seconds(), time.perf_counter()
    made = arm()
    return _Timed(max(cpu_seconds() - cpu, 1e-6), max(time.perf_counter() - clock, 1e-6), made)


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int, least: float | None, warm: int = 1) -> Compared:
    """Both in turns: ours, theirs, ours … Raises UnlikeError if what they make first is farther apart than `least` dB.

    `least` None: what they make is not compared. `warm`: turns before those that count.
    """
    runs: list[tuple[_Timed, _Timed]] = []
    psnr = None
    for turn in range(warm + rounds):
        pair = _timed(ours), _timed(theirs)
        if not turn and least is not None:
            psnr = nearness(pair[0].made, pair[1].made)
            if psnr < least:
                raise UnlikeError(f"{name}: 絵が違います / the pictures differ: {psnr:.1f} dB, wanted {least:.0f}")
        if turn >= warm:
            runs.append(pair)
    mine, rivals = zip(*runs, strict=True)
    clock = tuple(tuple(run.clock for run in arm) for arm in (mine, rivals))
    return Compared(name, tuple(run.cpu for run in mine), tuple(run.cpu for run in rivals), psnr, clock)


def nearness(one: object, other: object) -> float:
    """Peak signal-to-noise ratio in dB of two arrays, the peak being the larger one's range; raises UnlikeError for unlike shapes or no numbers."""
    a, b = (np.asarray(value, np.float64) for value in (one, other))
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UnlikeError(f"{a.shape} と {b.shape} / shapes {a.shape} and {b.shape}, or numbers that are not finite")
    error = float(np.mean((a - b) ** 2))
    peak = float(max(np.ptp(a), np.ptp(b))) or 1.0
    return float("inf") if error == 0 else 10 * float(np.log10(peak**2 / error))
