"""Alternating repeats of two ways to do the same work, and the figure that comes of them."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Measured = Callable[[], float]


@dataclass(frozen=True)
class Rounds:
    """What one run of ours and one of the peer's took, round by round, in one unit (seconds, bytes)."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The peer's over ours within each round: above 1, ours is the faster or the smaller."""
        return tuple(peer / ours for ours, peer in zip(self.ours, self.peer, strict=True))


@dataclass(frozen=True)
class Figure:
    """One line of the table. ours, peer: medians, in words. named: the peer's name. goal: None where none is set.

    ratio: that of the medians; spread: the lowest and the highest within one round.
    """

    benchmark: str
    ours: str
    named: str
    peer: str
    ratio: float
    spread: tuple[float, float]
    goal: float | None
    wanted: Literal["at least", "at most"] = "at least"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.wanted == "at least" else self.ratio <= self.goal


def alternating(ours: Measured, peer: Measured, repeats: int) -> Rounds:
    """Ours and the peer's in turns: a machine that slows down slows both.

    Who is first changes from round to round, because the second may find warmer caches or freed memory.
    """
    measured: dict[Measured, list[float]] = {ours: [], peer: []}
    for number in range(repeats):
        for one in (ours, peer) if number % 2 == 0 else (peer, ours):
            measured[one].append(one())
    return Rounds(tuple(measured[ours]), tuple(measured[peer]))


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """What one call takes, the mean of several; what it returns is let go of within the time."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def speed_figure(
    benchmark: str, named: str, rounds: Rounds, in_words: Callable[[float], str], goal: float | None, note: str = ""
) -> Figure:
    """How many times as fast as the peer. in_words: a median number of seconds as the table shows it."""
    ours, peer = statistics.median(rounds.ours), statistics.median(rounds.peer)
    spread = min(rounds.ratios), max(rounds.ratios)
    return Figure(benchmark, in_words(ours), named, in_words(peer), peer / ours, spread, goal, note=note)


def own_peak() -> int:
    """This process's peak memory in bytes; ``ru_maxrss`` may include what came before ``exec``."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def as_time(measured: float) -> str:
    """Seconds as ``12.3 ms``, in the unit that fits."""
    unit, factor = next(pair for pair in _UNITS if measured * pair[1] >= 1 or pair is _UNITS[-1])
    return f"{measured * factor:.3g} {unit}"


_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
