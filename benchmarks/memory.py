"""Peak memory of an extraction by the number of items: the promise is at most 300 bytes for each, whatever ``dim``.

A text ``table`` of 100,000 and of 1,000,000 rows goes through ``embedcache.extract`` with a stand-in backbone, each
in a process of its own; the growth of the peak (``VmHWM``) over the 900,000 additional items is held against the
promise. The peer is that promise: a ratio of at most 1 keeps it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.rounds import Figure, own_peak
from benchmarks.stand_in import extract_texts, write_texts

FEW, MANY = 100_000, 1_000_000
DIMS = (16, 512)
PROMISED = 300
REPEATS = 3


def run(repeats: int | None = None) -> list[Figure]:
    with TemporaryDirectory() as folder:
        for rows in (FEW, MANY):
            write_texts(Path(folder) / f"{rows}.csv", rows)
        return [_figure(Path(folder), dim, repeats or REPEATS) for dim in DIMS]


def _figure(folder: Path, dim: int, repeats: int) -> Figure:
    """Bytes for each additional item, beside the promised ones."""
    growth = [(_peak(folder, MANY, dim) - _peak(folder, FEW, dim)) / (MANY - FEW) for _ in range(repeats)]
    ratios = [each / PROMISED for each in growth]
    return Figure(
        f"memory dim {dim}",
        f"{statistics.median(growth):.0f} B",
        "promise",
        f"{PROMISED} B",
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        1.0,
        wanted="at most",
        note=f"peak memory for each item more, from {FEW:,} to {MANY:,} texts of 40 characters",
    )


def _peak(folder: Path, rows: int, dim: int) -> int:
    """Peak memory in bytes of a process that extracts ``rows`` texts."""
    command = [sys.executable, "-m", "benchmarks.memory", str(folder / f"{rows}.csv"), str(dim)]
    root = Path(__file__).parents[1]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


if __name__ == "__main__":
    with TemporaryDirectory() as cache:
        extract_texts(Path(sys.argv[1]), int(sys.argv[2]), Path(cache))
    print(own_peak())
