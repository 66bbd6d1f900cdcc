"""Rows of word ids, of any length, with vectors beside them or not: what the heads ``lstm`` and ``cnn`` read.

Rows are chosen by number, as those of an array, and nothing is copied for it: folds and splits share one memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from embedcache.errors import CheckpointNotFoundError, UsageError
from embedcache.view import Features, WordSet
from embedcache.words.vectors import archive_of
from heads.config import HeadConfig

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]

INSIDE: Final = ("standardize", "l2")
"""Transforms that a head of words makes of the vectors beside them, inside its network."""

POOLED_BATCHES: Final = 64
"""Rows are shuffled, and within so many batches of them put side by side by length."""

EVALUATED_WORDS: Final = 1 << 17
"""Words, padding included, that are evaluated at once."""


@dataclass(frozen=True)
class Sequences:
    """n rows of word ids, and of numbers beside them.

    tokens: int32, flat; row ``i`` of all has ``tokens[offsets[i]:offsets[i + 1]]``. offsets: int64, (all + 1,).
    matrix: (all, dim); dim is 0 where there are no vectors. rows: int64 (n,), which of all these are. n_words: ids are
    below it. vocabulary: words by id; empty where they are not known. fingerprint: what the ids mean, if that is known.
    """

    tokens: npt.NDArray[np.int32]
    offsets: Rows
    matrix: npt.NDArray[Any]
    rows: Rows
    n_words: int
    vocabulary: tuple[str, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Sequences:
        """Some of the rows: numbers, a mask or a slice."""
        chosen = key[0] if isinstance(key, tuple) else key  # scikit-learn asks for [rows, ...]
        return replace(self, rows=np.atleast_1d(self.rows[chosen]))

    def __repr__(self) -> str:
        return f"Sequences({len(self):,} rows of {self.n_words:,} words, {self.dim} numbers beside)"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and numbers beside the words."""
        return len(self), self.dim

    @property
    def dim(self) -> int:
        """Numbers beside the words."""
        return int(self.matrix.shape[1])

    @property
    def lengths(self) -> Rows:
        """Words of each row, int64 (n,)."""
        return np.asarray(self.offsets[self.rows + 1] - self.offsets[self.rows])

    @cached_property
    def whole(self) -> bool:
        """Whether these are all rows, in order."""
        n = len(self.matrix)
        return len(self.rows) == n and bool((self.rows == np.arange(n)).all())

    def numbers(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """The vectors of some rows (all of them), (n, dim); of all rows in order, not copied."""
        if self.whole and isinstance(rows, slice):
            return np.asarray(self.matrix[rows])
        found: npt.NDArray[Any] = self.matrix[self.rows[rows]]
        return found

    @classmethod
    def from_padded(cls, padded: npt.ArrayLike, matrix: npt.NDArray[Any] | None = None) -> Sequences:
        """Of word ids in a matrix, (n, length), padded with 0 behind. matrix: (n, dim), vectors beside them.

        Raises UsageError for anything but whole numbers that are not negative.
        """
        ids = np.asarray(padded)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or (ids.size and ids.min() < 0):
            raise UsageError(
                f"Word ids are rows of whole numbers from 0 on, padded with 0 behind: got {ids.dtype}, {ids.shape}."
            )
        places = np.arange(1, ids.shape[1] + 1)
        lengths = (places * (ids > 0)).max(1, initial=0)
        tokens = ids[places <= lengths[:, None]].astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        beside = np.zeros((len(ids), 0), np.float32) if matrix is None else np.asarray(matrix)
        return cls.of(tokens, offsets, int(ids.max(initial=0)) + 1, beside)

    @classmethod
    def of(
        cls,
        tokens: npt.NDArray[np.int32],
        offsets: Rows,
        n_words: int,
        matrix: npt.NDArray[Any],
        vocabulary: tuple[str, ...] = (),
        fingerprint: str = "",
    ) -> Sequences:
        """All rows. Raises UsageError where words and vectors are not of the same rows."""
        n = len(offsets) - 1
        if matrix.ndim != 2 or len(matrix) != n:
            raise UsageError(f"{n} rows of word ids and vectors of shape {matrix.shape} are not of the same rows.")
        return cls(tokens, offsets, matrix, np.arange(n), n_words, vocabulary, fingerprint)


# ---------------------------------------------------------------------------------------------- from the cache


def rows_of(features: Features) -> Any:
    """What a head is fitted on: ``Sequences`` where word ids are among the feature sets, else a float32 matrix."""
    words = [one for one in features.sets if isinstance(one, WordSet)]
    if not words:
        return features.matrix(np.float32)
    beside = tuple(one for one in features.sets if not isinstance(one, WordSet))
    matrix = replace(features, sets=beside).matrix() if beside else np.zeros((len(features), 0), np.float32)
    tokens, offsets = words[0].ragged()
    vocabulary = tuple(words[0].tokens.words)
    return Sequences.of(tokens, offsets, len(vocabulary), matrix, vocabulary, words[0].tokens.fingerprint)


def vectors_of(x: Any) -> npt.NDArray[Any]:
    """The numbers of rows, (n, dim), whatever they are."""
    found: npt.NDArray[Any] = x.numbers() if isinstance(x, Sequences) else x
    return found


def check_words(head: str, features: Features) -> None:
    """Raise UsageError unless just one of the feature sets has word ids."""
    names = [one.name for one in features.sets if isinstance(one, WordSet)]
    if len(names) != 1:
        raise UsageError(
            f"The head {head!r} reads one set of word ids, and {' + '.join(features.names)} has "
            f"{len(names) or 'none'}: name one, alone or with vectors (--features words)."
        )


def check_vectors(config: HeadConfig) -> None:
    """Raise CheckpointNotFoundError for a file of word vectors that a head would begin with, and that is not there."""
    stated = [config.fixed.get("vectors"), *config.axis("vectors")]
    for path in (one for one in stated if isinstance(one, str)):
        try:
            archive_of(Path(path).expanduser())
        except CheckpointNotFoundError as error:
            raise CheckpointNotFoundError(f"{error} Another one is taken with --set fixed.vectors=FILE.") from error


def with_transform_inside(config: HeadConfig) -> HeadConfig:
    """The configuration of a head of words: transforms of the vectors beside them as parameters of the head.

    Raises UsageError for a transform that cannot be made inside the network.
    """
    steps = config.transform
    if config.fusion.kind != "concat":
        raise UsageError(f"The head {config.head!r} fuses words and vectors itself: set fixed.fusion, not 'fusion'.")
    if isinstance(steps, Mapping) or any(step not in INSIDE for step in steps) or len(steps) > 1:
        raise UsageError(
            f"'transform' is {steps!r}; the head {config.head!r} reads words as they are, and of the vectors beside "
            f"them all numbers alike, by one of: {', '.join(INSIDE)}, or by none ([])."
        )
    grids = config.grid if isinstance(config.grid, list) else [config.grid]
    stated = set(config.fixed).union(*grids)
    own = {} if stated & set(INSIDE) else {str(step): True for step in steps}
    return config.model_copy(update={"transform": [], "fixed": {**own, **config.fixed}})


# ---------------------------------------------------------------------------------------------- for training


class WordBatch(NamedTuple):
    """Some rows, padded to the longest of them.

    tokens: int32 (n, length), 0 behind. lengths: int64 (n,), at least 1: a row without words is one padding.
    host_lengths: the same on the host. numbers: float32 (n, dim), on the device as all but ``host_lengths``.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    host_lengths: torch.Tensor
    numbers: torch.Tensor


class SequenceInputs:
    """``Sequences`` as ``training.Inputs``: all words on the device, batches of rows of about one length.

    max_length: words of a row that are read; None reads all. Lengths are known on the host, so that no batch waits for
    the device.
    """

    def __init__(self, x: Sequences, device: torch.device, max_length: int | None = None) -> None:
        import torch

        from heads.training import Matrix

        self.device, self._n = device, len(x)
        real = x.lengths if max_length is None else np.minimum(x.lengths, max_length)
        self._tokens = torch.from_numpy(np.append(x.tokens, np.int32(0))).to(device)
        self._starts = torch.from_numpy(x.offsets[x.rows]).to(device)
        self._real = torch.from_numpy(real).to(device)
        self._lengths = self._real.clamp(min=1)
        self._host_lengths = torch.from_numpy(np.maximum(real, 1))
        self._matrix = Matrix(x.matrix, device) if x.dim else None
        self._places = torch.from_numpy(np.ascontiguousarray(x.rows))

    def __len__(self) -> int:
        return self._n

    @property
    def longest(self) -> int:
        """Words of the longest row."""
        return int(self._host_lengths.max())

    def batch(self, rows: torch.Tensor) -> WordBatch:
        """Some rows, in this order, cut and padded without a loop over them."""
        import torch

        from heads.training import moved

        host_lengths, chosen = self._host_lengths[rows], moved(rows, self.device)
        place = torch.arange(int(host_lengths.max()), device=self.device)
        source = self._starts[chosen][:, None] + place
        source.masked_fill_(place >= self._real[chosen][:, None], len(self._tokens) - 1)
        tokens = self._tokens.take(source)
        if self._matrix is None:
            numbers = torch.zeros((len(rows), 0), device=self.device)
        else:
            numbers = self._matrix.batch(self._places[rows])
        return WordBatch(tokens, self._lengths[chosen], host_lengths, numbers)

    def epoch(self, rows: torch.Tensor, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Shuffled; by pools of batches sorted by length, longest first, and the batches shuffled."""
        import torch

        order = rows[torch.randperm(len(rows), generator=generator)]
        batches: list[torch.Tensor] = []
        for pool in order.split(size * POOLED_BATCHES):  # type: ignore[no-untyped-call]
            by_length = self._host_lengths[pool].argsort(descending=True, stable=True)
            batches += pool[by_length].split(size)
        for turn in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[turn]

    def pieces(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Places in ``rows`` to evaluate at once, longest rows first: each of about EVALUATED_WORDS words."""
        lengths = self._host_lengths[rows]
        order = lengths.argsort(descending=True, stable=True)
        longest, found, start = lengths[order], [], 0
        while start < len(order):
            stop = start + max(1, EVALUATED_WORDS // int(longest[start]))
            found.append(order[start:stop])
            start = stop
        return found
