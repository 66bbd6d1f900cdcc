"""A uniform random choice of rows that come as a stream, by a key of each: seeded, nested, in bounded memory."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

Keys = npt.NDArray[np.uint64]

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio, odd: SplitMix64's step."""


def keys_of(rows: npt.NDArray[np.int64], seed: int, stem: str) -> Keys:
    """A random key a row, uint64: mixed from the seed and the file's name.

    The rows with the smallest keys are a uniform sample, whatever the blocks are, and smaller samples are parts of it.
    """
    return mixed(rows.astype(np.uint64) * GOLDEN + np.uint64(xxhash.xxh3_64_intdigest(f"{seed}:{stem}".encode())))


def mixed(z: Keys) -> Keys:
    """Each number scattered over all of uint64: the finaliser of SplitMix64 (Steele et al., 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Drawn:
    """Rows as they come; with a limit, those with the smallest keys, and never more than about twice the limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._tables: list[pa.Table] = []
        self._keys: list[Keys] = []
        self._held = 0
        self.bound = np.uint64(2**64 - 1)
        """No row with a larger key can be among those that are left."""
        self.n_seen = 0

    def add(self, table: pa.Table, keys: Keys, n_seen: int) -> None:
        """Take rows with their keys, of so many that there were to take."""
        self.n_seen += n_seen
        if not table.num_rows:
            return
        self._tables.append(table)
        if self._limit is not None:
            self._keys.append(keys)
            self._held += len(keys)
            if self._held > 2 * self._limit + 65_536:
                self._prune(self._limit)

    def tables(self) -> list[pa.Table]:
        """What is left, in order."""
        if self._limit is not None and self._held > self._limit:
            self._prune(self._limit)
        return self._tables

    def _prune(self, limit: int) -> None:
        keys = np.concatenate(self._keys)
        kept = np.zeros(len(keys), bool)
        kept[np.argpartition(keys, limit - 1)[:limit]] = True
        self._tables = [pa.concat_tables(self._tables).filter(pa.array(kept)).combine_chunks()]
        self._keys, self._held = [keys[kept]], limit
        self.bound = self._keys[0].max()
