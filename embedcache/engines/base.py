"""The seam between extraction and the engines: blocks of items in, blocks of vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Work:
    """Items of one block that wait to be encoded.

    rows: their row numbers in the feature file, int64. read: row number to the item's bytes; raises ItemError.
    """

    block: int
    rows: npt.NDArray[np.int64]
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class Encoded:
    """What became of a ``Work``.

    vectors: float32, (rows, dim); failed rows are zeros. content: uint8, (rows, 16), xxh3-128 of the bytes
    that were read, zeros where nothing could be. failures: position in ``work.rows`` to reason.
    truncated: texts that were cut.
    """

    work: Work
    vectors: npt.NDArray[np.float32]
    content: npt.NDArray[np.uint8]
    failures: Mapping[int, str]
    truncated: int


Advance = Callable[[int], None]


def ignore(count: int) -> None:
    """Take no note of progress."""


class Engine(Protocol):
    """Runs an encoder over blocks, in order."""

    @property
    def summary(self) -> Mapping[str, object]:
        """What it ran on and how: device, batch size, workers; for the record."""

    def encode(self, works: Iterable[Work], advance: Advance = ignore) -> Iterator[Encoded]:
        """Encode block after block; looks at the next ``Work`` while one is on the device.

        advance: called with the number of items that are done with, batch by batch.
        """


def chunked(items: Sequence[int] | npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    """Consecutive runs of at most ``size`` items."""
    array = np.asarray(items, np.int64)
    return [array[start : start + size] for start in range(0, len(array), size)]
