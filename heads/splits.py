"""Who trains, who validates, who tests: published splits, carved ones, folds. Groups are never torn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcache.errors import UsageError
from embedcache.samples import combined, nested_order
from embedcache.view import Features

Rows = npt.NDArray[np.int64]
Part = int | float
PARTS = ("train", "validation", "test")
SHARE_OF_TEST = 0.2
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
    validation: Part | None,
    test: Part | None,
    seed: int,
    published: bool = True,
) -> Splits:
    """The published splits, with what they lack carved out of them.

    codes: class of each row, -1 without a target: such rows are in no split. A part is a share or a count of rows, 0
    for none. validation: carved from train where no validation split is published; None carves nothing. test: carved
    where no split at all is published (a fifth unless stated), or where it is stated and no row of a published test
    split has a target: then from train. published: false puts published splits aside, as if there were none.
    """
    labelled = codes >= 0
    found = {name: np.flatnonzero(labelled & (features.splits == name)) for name in PARTS}
    notes = overlaps(features) if published else []
    if not published and any(map(len, found.values())):
        notes.append("published splits are put aside: all selected rows are divided anew")
    none = not published or not any(map(len, found.values()))
    if none:
        found = {"train": np.flatnonzero(labelled), "validation": codes[:0], "test": codes[:0]}
        if not len(found["train"]):
            raise UsageError("No sample that has all features has a target.")
    if unused := int(labelled.sum()) - sum(map(len, found.values())):
        notes.append(f"{unused} samples with a target are in none of the splits train, validation and test: not used")
    _refuse_no_training(found)
    part = SHARE_OF_TEST if none and test is None else test
    if part and len(found["test"]):
        notes.append(f"test: {part} is not used: a test split with targets is published")
    elif part:
        size = _carve_into(found, "test", part, codes, groups, seed)
        where = "no split is published: {} carved" if none else "no test row has a target: {} of train carved"
        notes.append(f"{where.format(size) if published else f'{size} carved'} for test, seed {seed}")
    if validation and not len(found["validation"]):
        size = _carve_into(found, "validation", validation, codes, groups, seed)
        what = (
            f"no validation split is published: {size} of train carved"
            if published
            else f"{size} carved for validation"
        )
        notes.append(f"{what}, seed {seed}")
    return Splits(found["train"], found["validation"], found["test"], tuple(notes))


def _refuse_no_training(found: Mapping[str, Rows]) -> None:
    if len(found["train"]):
        return
    there = " and ".join(f"{len(rows):,} of {name}" for name, rows in found.items() if len(rows))
    hint = f" There are {there}: 'splits: carve' divides all rows anew." if there else ""
    raise UsageError(f"There are no training rows: no sample of the split 'train' has all features and a target.{hint}")


def _carve_into(found: dict[str, Rows], name: str, part: Part, codes: Rows, groups: Rows, seed: int) -> str:
    """Move a part of the training rows to another split; how much of them that is, in words."""
    train = found["train"]
    found["train"], found[name] = carve(codes, groups, train, part, seed)
    held = len(found[name])
    return f"{held:,} rows" if isinstance(part, int) else f"{held / len(train):.0%}"


def carve(codes: Rows, groups: Rows, rows: Rows, share: Part, seed: int) -> tuple[Rows, Rows]:
    """(kept, held out) of ``rows``: stratified where classes allow it, groups whole. Both sorted.

    share: of the rows; an int is how many of them, met exactly where whole groups can make it up.
    """
    from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

    y, g = codes[rows], groups[rows]
    n_groups = len(np.unique(g))
    if n_groups < 2:
        raise UsageError(
            f"{len(rows)} rows in {n_groups} groups cannot be divided into a training and a held-out part."
        )
    if isinstance(share, int):
        return _counted(y, g, rows, share, seed)
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


def _counted(y: Rows, groups: Rows, rows: Rows, count: int, seed: int) -> tuple[Rows, Rows]:
    """(kept, held out): ``count`` rows in whole groups, in an order that holds the classes in proportion.

    A group counts as its first row's class; one that would be too much is passed over. Raises UsageError where nothing
    would be left on a side.
    """
    if count >= len(rows):
        raise UsageError(f"{count:,} rows cannot be held out of {len(rows):,}: none would be left to train on.")
    _, one_of, of_group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    taken, left = np.zeros(len(sizes), bool), count
    for group in nested_order(y[one_of], len(sizes), seed).tolist():
        if sizes[group] <= left:
            taken[group], left = True, left - sizes[group]
        if not left:
            break
    if not taken.any():
        raise UsageError(f"No group of rows that belong together is as small as {count:,} rows.")
    out = taken[of_group]
    return np.sort(rows[~out]), np.sort(rows[out])


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
    items, sample = _items_of(features, column, later)
    seen, _ = _items_of(features, column, earlier)
    return len(np.unique(sample[np.asarray(pc.is_in(items, value_set=seen))])) if len(items) and len(seen) else 0


def _items_of(features: Features, column: str, split: str) -> tuple[pa.Array, Rows]:
    """The items that samples of a split refer to, and the sample of each."""
    rows = features.sample_rows[features.splits == split]
    values = combined(features.table.samples[column]).take(pa.array(rows))
    if column == "image":
        return values.drop_null(), rows[np.asarray(values.is_valid())]
    lengths = np.asarray(pc.fill_null(pc.list_value_length(values), 0))
    return values.flatten(), np.repeat(rows, lengths)
