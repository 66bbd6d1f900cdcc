"""Some rows of a matrix, without a copy of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RowsOf:
    """Rows of a matrix (m, dim) that stay where they are. rows: int64 (n,), in any order.

    What is asked of it is copied then: ``rows_of[3:5]`` is an array (2, dim).
    """

    matrix: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim)."""
        return len(self.rows), self.matrix.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the matrix."""
        return self.matrix.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return np.asarray(self.matrix[self.rows[which]])
