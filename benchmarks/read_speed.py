"""Reading: random rows through embedcache, beside the bare bytes and beside h5py.

Goals: at least 0.9 times as fast as ``np.take`` from an ``np.memmap`` of the same bytes, and 20 times as fast as
h5py's fancy indexing of the same sorted rows: a fifth of them all, where the memory's speed bounds both, and one
batch of 256. Opening is measured apart, beside h5py's, and has no goal: embedcache
also checks the file's digest and joins its rows to the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import numpy.typing as npt

import embedcache as ec
from benchmarks.rounds import Figure, Rounds, alternating, as_time, seconds, speed_figure
from benchmarks.stand_in import extract_texts, write_texts
from embedcache.view import Features

ITEMS, DIM, TAKEN = 100_000, 1024, 20_000
BATCH = 256
GATHERED = 100_000
"""Rows that one measurement gathers, in as many calls as that takes."""
REPEATS = 8

Rows = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float16]


def run(repeats: int | None = None) -> list[Figure]:
    with TemporaryDirectory() as folder:
        write_texts(Path(folder) / "texts.csv", ITEMS)
        extract_texts(Path(folder) / "texts.csv", DIM, Path(folder))
        features = _open(Path(folder))
        rows = np.random.default_rng(0).choice(ITEMS, TAKEN, replace=False)
        return [
            _beside_memmap(features, rows, repeats or REPEATS),
            _beside_h5py(features, np.sort(rows), repeats or REPEATS),
            _beside_h5py(features, np.sort(rows[:BATCH]), repeats or REPEATS),
            _opening(Path(folder), features.sets[0].file.path, repeats or REPEATS),
        ]


def _open(folder: Path) -> Features:
    return ec.open(folder)["texts"].features("stand-in")


def _beside_memmap(features: Features, rows: Rows, repeats: int) -> Figure:
    """Both mapped and warm; ours is ``take`` and ``matrix``, the peer's ``np.take``."""
    file = features.sets[0].file
    mapped = np.memmap(file.path, np.float16, "r", file.header.extents["features"].offset, (ITEMS, DIM))
    rounds = _gathering(features, rows, lambda: np.take(mapped, rows, axis=0), repeats)
    note = f"{TAKEN:,} random rows of {ITEMS:,} × {DIM} float16, warm"
    return speed_figure("read_speed", "memmap", rounds, as_time, 0.9, note)


def _beside_h5py(features: Features, rows: Rows, repeats: int) -> Figure:
    """The same sorted rows of the same file."""
    with h5py.File(features.sets[0].file.path, "r", locking=False) as file:
        dataset = file["features"]
        rounds = _gathering(features, rows, lambda: dataset[rows], repeats)
    return speed_figure(f"read_speed {len(rows)}", "h5py", rounds, as_time, 20.0, "sorted rows, warm")


def _gathering(features: Features, rows: Rows, peer: Callable[[], Matrix], repeats: int) -> Rounds:
    """Seconds of one gather. Raises RuntimeError where the two do not give the same rows."""
    if not np.array_equal(features.take(rows).matrix(), peer()):
        raise RuntimeError("embedcache and its peer do not give the same rows: their times cannot be compared.")
    calls = max(1, GATHERED // len(rows))
    return alternating(
        partial(seconds, lambda: features.take(rows).matrix(), calls), partial(seconds, peer, calls), repeats
    )


def _opening(folder: Path, path: Path, repeats: int) -> Figure:
    """From a folder's name to features, beside h5py opening the one file."""

    def peer() -> None:
        with h5py.File(path, "r", locking=False) as file:
            _ = file["features"].shape

    rounds = alternating(partial(seconds, lambda: _open(folder)), partial(seconds, peer), repeats)
    note = "opening checks every byte outside /features and joins rows to samples; h5py's does neither"
    return speed_figure("read_speed open", "h5py", rounds, as_time, None, note)
