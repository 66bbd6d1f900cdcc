"""Rows with rare labels, repeated: training rows only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def oversampled(rows: Rows, codes: npt.NDArray[Any], most: int) -> Rows:
    """The rows in their order, those with a rare label or class up to ``most`` times.

    codes: of ``rows``, classes (n,) or indicators (n, labels). A label as frequent as the mean of all that occur, or
    more so, asks for its rows once; one half as frequent twice; and so on, rounded. A row is repeated as its rarest
    label asks.
    """
    if most <= 1 or not len(rows):
        return rows
    flags = codes > 0 if codes.ndim == 2 else codes[:, None] == np.unique(codes)
    counts = flags.sum(0)
    if not counts.any():
        return rows
    asked = np.clip(np.rint(counts[counts > 0].mean() / np.maximum(counts, 1)), 1, most).astype(np.int64)
    return np.repeat(rows, np.where(flags, asked, 1).max(1))
