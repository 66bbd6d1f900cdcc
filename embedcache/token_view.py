"""Word ids seen from the samples, ragged: what a head with an embedding of its own is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import DamagedFileError, UsageError, unknown_name
from embedcache.ragged import TokenFile, take_rows
from embedcache.samples import SampleTable
from embedcache.view import Captions, Features, Rows, text_units
from embedcache.words import PADDING_ID

POLICIES: Final[tuple[Captions, ...]] = ("first", "each")


@dataclass(frozen=True)
class Tokens:
    """Word ids of the samples that have any.

    references: the file's row of each unit, int64, (units,). A unit is a sample, or with ``captions="each"`` a sample
    and one of its texts. units: the samples behind them, as features without a matrix.
    """

    name: str
    file: TokenFile
    references: Rows
    units: Features

    def __len__(self) -> int:
        return len(self.references)

    def __repr__(self) -> str:
        left_out = f", {sum(self.left_out.values()):,} samples left out" if self.left_out else ""
        return f"Tokens({self.name!r}: {len(self):,} texts of {self.file.n_words:,} words{left_out})"

    @cached_property
    def _ragged(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        return take_rows(self.file.tokens, self.file.offsets, self.references)

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Ids of all units, flat; a view of the file where they are consecutive rows of it."""
        return self._ragged[0]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Unit ``i`` has ``tokens[offsets[i]:offsets[i + 1]]``; int64, (units + 1,)."""
        return self._ragged[1]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Words of each unit, int64, (units,)."""
        return np.diff(self.offsets)

    @property
    def vocabulary(self) -> list[str]:
        """Words by id; 0 is padding, and of a vocabulary of ours 1 is every word without an id."""
        return self.file.words

    @property
    def fingerprint(self) -> str:
        """What the ids mean: rule, limits and vocabulary."""
        return self.file.fingerprint

    @property
    def table(self) -> SampleTable:
        """The samples and items."""
        return self.units.table

    @property
    def sample_rows(self) -> Rows:
        """The sample of each unit, rows of ``table.samples``."""
        return self.units.sample_rows

    @property
    def captions(self) -> Captions:
        """``first`` or ``each``."""
        return self.units.captions

    @property
    def left_out(self) -> Mapping[str, int]:
        """Samples by the reason why they are not here."""
        return self.units.left_out

    @property
    def ids(self) -> npt.NDArray[np.object_]:
        """Sample ids, (units,)."""
        return self.units.ids

    @property
    def splits(self) -> npt.NDArray[np.object_]:
        """Published split of each unit, None where there is none."""
        return self.units.splits

    def target(self, name: str | None = None) -> npt.NDArray[np.object_]:
        """A published target for each unit, None where there is none. Default: the only one."""
        return self.units.target(name)

    def take(self, units: npt.ArrayLike) -> Tokens:
        """The same for some of the units (row numbers or a mask)."""
        chosen = np.asarray(units)
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64, copy=False)
        return replace(self, references=self.references[rows], units=self.units.take(rows))

    def split(self, name: str, target: str | None = None) -> tuple[Tokens, npt.NDArray[np.object_]]:
        """``(tokens, y)`` of one published split, units without a target left out."""
        known = sorted({str(value) for value in self.splits if value is not None})
        if name not in known:
            raise unknown_name("split", name, known)
        labels = self.target(target)
        here = self.take((self.splits == name) & np.array([label is not None for label in labels], bool))
        return here, here.target(target)

    def padded(self, rows: npt.ArrayLike | None = None, length: int | None = None) -> npt.NDArray[np.int64]:
        """Some units (all, by default) as one matrix, int64, (n, length): cut at ``length``, padded with 0 behind.

        length: by default that of the longest of them. Raises DamagedFileError for an id outside the vocabulary.
        """
        chosen = self.take(np.arange(len(self)) if rows is None else rows)
        lengths = chosen.lengths
        width = int(lengths.max(initial=0)) if length is None else length
        if width < 0:
            raise UsageError(f"length must not be negative, got {width}.")
        out = np.full((len(chosen), width), PADDING_ID, np.int64)
        kept = np.arange(width)[None, :] < lengths[:, None]
        starts = np.repeat(chosen.offsets[:-1], np.minimum(lengths, width))
        out[kept] = chosen.tokens[starts + np.nonzero(kept)[1]]
        if out.size and not 0 <= out.min() <= out.max() < self.file.n_words:
            raise DamagedFileError(f"{self.file.path} has an id outside its vocabulary: run verify.")
        return out


def tokens_of(table: SampleTable, name: str, file: TokenFile, captions: Captions = "first") -> Tokens:
    """Word ids of a data set's samples. Raises UsageError for a policy that word ids cannot follow."""
    if captions not in POLICIES:
        raise UsageError(f"Word ids cannot be averaged, and captions={captions!r} asks for it: first or each.")
    if "text" not in table.modalities:
        raise UsageError(f"{name} has word ids of texts, and the data set has none.")
    references, sample_rows, left_out = text_units(table, name, file, captions)
    return Tokens(name, file, references, Features(table, (), sample_rows, captions, left_out))


def about(tokens: Tokens) -> dict[str, Any]:
    """Where they came from: name, fingerprint, provenance; for exports."""
    return {"name": tokens.name, "fingerprint": tokens.fingerprint, "provenance": tokens.file.provenance}
