"""Whether a head fits into memory: an estimate before anything is loaded, and a refusal that says what would help."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedcache.errors import UsageError

FLOAT32: Final = 4
_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


@dataclass(frozen=True)
class Estimate:
    """Bytes that a fit needs for its features. matrix: all rows once; copies: how many of that are held at a time."""

    matrix: int
    copies: int

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return self.matrix * self.copies


def estimate(rows: int, dims: int, itemsize: int, *, streams: bool, transforms: bool, searches: bool) -> Estimate:
    """What rows × dims of features take.

    The matrix and its training rows; for transforms what comes out of them, and for a search a fold of all that. A
    head that streams reads the matrix where it lies, in its stored type: one copy, where rows have to be gathered.
    """
    if streams:
        return Estimate(rows * dims * itemsize, 1 + searches)
    return Estimate(rows * dims * FLOAT32, 2 + transforms + searches)


def available() -> int | None:
    """Bytes that this process can still take: of the machine, or of its control group; None where nobody says."""
    found = [number for number in (_of_machine(), _of_group()) if number is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _of_group() -> int | None:
    """What a control group (version 2) leaves, without the page cache that it would give back."""
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return None if limit == "max" else max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def check(head: str, label: str, found: Estimate, streaming: list[str]) -> None:
    """Raise UsageError where the features would not fit.

    streaming: names of the heads that read them as they lie; none where the head at hand does so already.
    """
    there = available()
    if there is None or found.needed <= there:
        return
    size, needed = _shown(found.matrix), _shown(found.needed)
    other = f", or a head that reads them as they are stored, with 'transform: []': {', '.join(streaming)}"
    raise UsageError(
        f"The head {head!r} on {label} needs about {needed} of memory ({size} of features, {found.copies} times), and "
        f"{_shown(there)} are available. Take fewer rows ('--set select.limit=1000') or narrower features"
        f"{other if streaming else ''}."
    )


def _shown(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"
