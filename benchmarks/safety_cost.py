"""What safety costs: syncs in an extraction, the checking of a file, the opening of a cache of a hundred.

Goals: with its syncs an extraction of photos takes at most 5 % longer than without; ``verify`` is at least half as fast
as reading the same bytes; a cache of a hundred feature files is opened and listed within half a second,
imports left out. The syncs are also measured where nothing else takes time (a stand-in backbone), without a goal.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import embedcache as ec
from benchmarks.extract_speed import Work, extract_photos, photos
from benchmarks.rounds import Figure, alternating, as_time, seconds, speed_figure
from benchmarks.stand_in import extract_texts, write_texts
from embedcache.verification import verify

ITEMS, DIM = 100_000, 1024
FILES, FILE_ITEMS, FILE_DIM = 100, 10_000, 16
PROMISED = 0.5
REPEATS = 7


def run(repeats: int | None = None) -> list[Figure]:
    turns = repeats or REPEATS
    with photos() as work:
        figures = [_syncs_of_photos(work, turns)]
    with TemporaryDirectory() as folder:
        write_texts(Path(folder) / "texts.csv", ITEMS)
        figures += [_syncs_alone(Path(folder), turns), *_verifying(Path(folder), turns)]
    with TemporaryDirectory() as folder:
        return [*figures, _opening(Path(folder), turns)]


def _syncs_of_photos(work: Work, repeats: int) -> Figure:
    extract_photos(work)
    with_syncs, without = (partial(extract_photos, work, sync=sync) for sync in (True, False))
    rounds = alternating(with_syncs, without, repeats)
    return speed_figure("sync: photos", "no syncs", rounds, as_time, 0.95, "the same extraction with sync=False")


def _syncs_alone(folder: Path, repeats: int) -> Figure:
    """Nothing but writing: what a device that is infinitely fast would see."""

    def extract(sync: bool) -> float:
        with TemporaryDirectory(dir=folder) as cache:
            return extract_texts(folder / "texts.csv", DIM, Path(cache), sync=sync).seconds

    rounds = alternating(partial(extract, True), partial(extract, False), repeats)
    note = f"{ITEMS:,} × {DIM} float16 from a backbone that costs next to nothing"
    return speed_figure("sync: writing alone", "no syncs", rounds, as_time, None, note)


def _verifying(folder: Path, repeats: int) -> list[Figure]:
    """From the disk, as a cache is verified that nobody has just read, and from memory."""
    extract_texts(folder / "texts.csv", DIM, folder / "cache", sync=True)
    dataset = ec.open(folder / "cache")["texts"]
    path = dataset.find("stand-in").path
    buffer = memoryview(bytearray(1 << 20))

    def read() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def check() -> None:
        [report] = verify(dataset)
        if report.damaged:
            raise RuntimeError(f"{path} is damaged: {report.findings}")

    def from_disk(call: Callable[[], None]) -> float:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return seconds(call)

    size = f"{path.stat().st_size / 1e6:.0f} MB, read a mebibyte at a time"
    cold = alternating(partial(from_disk, check), partial(from_disk, read), repeats)
    warm = alternating(partial(seconds, check), partial(seconds, read), repeats)
    return [
        speed_figure("verify from disk", "reading", cold, as_time, 0.5, size),
        speed_figure("verify from memory", "reading", warm, as_time, 0.5, size),
    ]


def _opening(folder: Path, repeats: int) -> Figure:
    """From a folder's name to every file's size and counts, held against the promise."""
    write_texts(folder / "texts.csv", FILE_ITEMS)
    for number in range(FILES):
        extract_texts(folder / "texts.csv", FILE_DIM, folder / "cache", weights=number)

    def listing() -> None:
        if len(ec.open(folder / "cache")["texts"].summaries()) != FILES:
            raise RuntimeError("not every file is listed")

    opened: Callable[[], float] = partial(seconds, listing)
    rounds = alternating(opened, lambda: PROMISED, repeats)
    note = f"{FILES} feature files of {FILE_ITEMS:,} rows listed, each one's digest checked"
    return speed_figure("opening 100 files", "promise", rounds, as_time, 1.0, note)
