"""Who trains, who validates, who tests: published splits, carved ones, folds. Groups are never torn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache.errors import UsageError
from embedcache.samples import combined
from embedcache.view import Features

Rows = npt.NDArray[np.int64]
MANY_GROUPS = 50_000


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
    if not any(len(rows) for rows in published.values()):
        everything = np.flatnonzero(labelled)
        if not len(everything):
            raise UsageError("No sample that has all features has a target.")
        kept, held = carve(codes, groups, everything, test, seed)
        published = {"train": kept, "validation": everything[:0], "test": held}
        notes.append(f"no split is published: {test:.0%} carved for test, seed {seed}")
    if not len(published["train"]):
        raise UsageError("There are no training rows: no sample of the split 'train' has all features and a target.")
    if validation is not None and not len(published["validation"]):
        kept, held = carve(codes, groups, published["train"], validation, seed)
        published |= {"train": kept, "validation": held}
        notes.append(f"no validation split is published: {validation:.0%} of train carved, seed {seed}")
    return Splits(published["train"], published["validation"], published["test"], tuple(notes))


def carve(codes: Rows, groups: Rows, rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """(kept, held out) of ``rows``: stratified where classes allow it, groups whole. Both sorted."""
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, StratifiedShuffleSplit

    if len(rows) < 2:
        raise UsageError(f"{len(rows)} rows cannot be divided into a training and a held-out part.")
    y, g = codes[rows], groups[rows]
    repeated = len(np.unique(g)) < len(g)
    counts = np.bincount(y)
    held = max(1, round(share * len(rows)))
    enough = counts[counts > 0].min() >= 2 and min(held, len(rows) - held) >= (counts > 0).sum()
    if repeated and enough and share <= 0.5:
        splitter = StratifiedGroupKFold(n_splits=round(1 / share), shuffle=True, random_state=seed)
        kept, out = next(splitter.split(rows, y, g))
    elif repeated or not enough:
        kept, out = next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(rows, y, g))
    else:
        kept, out = next(StratifiedShuffleSplit(1, test_size=held, random_state=seed).split(rows, y))
    return np.sort(rows[kept]), np.sort(rows[out])


def folds(codes: Rows, groups: Rows, n_folds: int, seed: int) -> tuple[list[tuple[Rows, Rows]], str]:
    """Cross-validation folds of rows 0 … n-1, and the name of the splitter that made them.

    StratifiedKFold where no group repeats, StratifiedGroupKFold where one does, GroupKFold above 50,000 groups.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    n_groups = len(np.unique(groups))
    if n_groups < n_folds:
        raise UsageError(f"{n_folds} folds need as many groups; there are {n_groups}.")
    rows = np.zeros(len(codes))
    if n_groups == len(groups):
        _refuse_rare(codes, n_folds)
        parts = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, codes)
        return list(parts), "StratifiedKFold"
    kind = GroupKFold if n_groups > MANY_GROUPS else StratifiedGroupKFold
    return list(kind(n_folds, shuffle=True, random_state=seed).split(rows, codes, groups)), kind.__name__


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
