"""Who trains, who validates, who tests: published splits, carved ones, folds. Groups are never torn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache.errors import UsageError
from embedcache.samples import combined
from embedcache.view import Features

Rows = npt.NDArray[np.int64]
MANY_GROUPS = 50_000
MOST_PARTS = 20


@dataclass(frozen=True)
class Splits:
    """Rows of a feature matrix by what they are for; a split that there is none of is empty.

    notes: what was carved, and how far published splits overlap.
    """

    train: Rows
    validation: Rows
    test: Rows
    notes: tuple[str, ...]


def make_splits(
    features: Features,
    codes: Rows,
    groups: Rows,
    *,
    validation: float | None,
    test: float,
    seed: int,
) -> Splits:
    """The published splits; a test split is carved only where none at all is published.

    codes: class of each row, -1 without a target: such rows are in no split. validation: share of the training rows to
    carve where no validation split is published, None to carve nothing.
    """
    labelled = codes >= 0
    published = {name: np.flatnonzero(labelled & (features.splits == name)) for name in ("train", "validation", "test")}
    notes = overlaps(features)
    unused = int(labelled.sum()) - sum(map(len, published.values()))
    if not any(len(rows) for rows in published.values()):
        everything = np.flatnonzero(labelled)
        if not len(everything):
            raise UsageError("No sample that has all features has a target.")
        kept, held = carve(codes, groups, everything, test, seed)
        published, unused = {"train": kept, "validation": everything[:0], "test": held}, 0
        notes.append(f"no split is published: {_share(held, everything)} carved for test, seed {seed}")
    if unused:
        notes.append(f"{unused} samples with a target are in none of the splits train, validation and test: not used")
    if not len(published["train"]):
        raise UsageError("There are no training rows: no sample of the split 'train' has all features and a target.")
    if validation is not None and not len(published["validation"]):
        train = published["train"]
        kept, held = carve(codes, groups, train, validation, seed)
        published |= {"train": kept, "validation": held}
        notes.append(f"no validation split is published: {_share(held, train)} of train carved, seed {seed}")
    return Splits(published["train"], published["validation"], published["test"], tuple(notes))


def _share(part: Rows, whole: Rows) -> str:
    return f"{len(part) / len(whole):.0%}"


def carve(codes: Rows, groups: Rows, rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """(kept, held out) of ``rows``: stratified where classes allow it, groups whole. Both sorted."""
    from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

    y, g = codes[rows], groups[rows]
    n_groups = len(np.unique(g))
    if n_groups < 2:
        raise UsageError(
            f"{len(rows)} rows in {n_groups} groups cannot be divided into a training and a held-out part."
        )
    counts = np.unique(y, return_counts=True)[1]
    held = max(1, round(share * len(rows)))
    enough = counts.min() >= 2 and min(held, len(rows) - held) >= len(counts)
    if enough and n_groups == len(g):
        kept, out = next(StratifiedShuffleSplit(1, test_size=held, random_state=seed).split(rows, y))
    elif enough and n_groups <= MANY_GROUPS:
        kept, out = _whole_folds(y, g, share, min(n_groups, int(counts.max()), MOST_PARTS), seed)
    else:
        size = min(max(1, round(share * n_groups)), n_groups - 1)
        kept, out = next(GroupShuffleSplit(1, test_size=size, random_state=seed).split(rows, y, g))
    return np.sort(rows[kept]), np.sort(rows[out])


def _whole_folds(y: Rows, groups: Rows, share: float, most: int, seed: int) -> tuple[Rows, Rows]:
    """(kept, held out): as many of at most ``most`` stratified folds of whole groups as come nearest to the share."""
    from sklearn.model_selection import StratifiedGroupKFold

    near = Fraction(share).limit_denominator(most)
    part = min(max(near, Fraction(1, most)), Fraction(most - 1, most))
    splitter = StratifiedGroupKFold(part.denominator, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # a class with fewer rows than folds is stratified as far as it goes
        held = [out for _, out in splitter.split(y, y, groups)][: part.numerator]
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(y)), out), out


def folds(codes: Rows, groups: Rows, n_folds: int, seed: int) -> tuple[list[tuple[Rows, Rows]], str]:
    """Cross-validation folds of rows 0 … n-1, and the name of the splitter that made them.

    StratifiedKFold where no group repeats, StratifiedGroupKFold where one does, GroupKFold above 50,000 groups.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    n_groups = len(np.unique(groups))
    if n_groups < n_folds:
        raise UsageError(f"{n_folds} folds need as many groups; there are {n_groups}.")
    repeated = n_groups < len(groups)
    kind: Any = StratifiedKFold
    if repeated:
        kind = GroupKFold if n_groups > MANY_GROUPS else StratifiedGroupKFold
    if kind is not GroupKFold:
        _refuse_rare(codes, n_folds)
    splitter = kind(n_folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(codes)), codes, groups if repeated else None)), kind.__name__


def _refuse_rare(codes: Rows, n_folds: int) -> None:
    """scikit-learn only warns where some classes have fewer rows than folds, and refuses where all have."""
    counts = np.bincount(codes)
    if counts.max(initial=0) < n_folds:
        raise UsageError(f"{n_folds} folds need {n_folds} rows in some class; the largest has {counts.max(initial=0)}.")


def overlaps(features: Features) -> list[str]:
    """How many samples of one published split use an item of an earlier one."""
    notes = []
    for earlier, later in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for column, what in (("image", "an image"), ("texts", "a text")):
            if column in features.table.samples.column_names:
                shared = _shared(features, column, earlier, later)
                if shared:
                    notes.append(f"{shared} samples of {later} have {what} that also occurs in {earlier}")
    return notes


def _shared(features: Features, column: str, earlier: str, later: str) -> int:
    values = combined(features.table.samples[column]).take(pa.array(features.sample_rows))
    seen = set(_items(values, features.splits == earlier))
    if not seen:
        return 0
    rows = np.flatnonzero(features.splits == later)
    return len({int(features.sample_rows[row]) for row in rows if not seen.isdisjoint(_row_items(values[int(row)]))})


def _items(values: pa.Array, mask: npt.NDArray[np.bool_]) -> Iterator[str]:
    for value in values.filter(pa.array(mask)):
        yield from _row_items(value)


def _row_items(value: pa.Scalar) -> Sequence[str]:
    found = value.as_py()
    if found is None:
        return ()
    return (found,) if isinstance(found, str) else tuple(found)
