"""What of a data set a head looks at: which rows, and which classes it knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcache.errors import UsageError, unknown_name
from embedcache.samples import META_PREFIX, TARGET_PREFIX, SampleTable, combined, nested_subset
from embedcache.view import Features, target_name
from heads.config import Selection
from heads.splits import Splits

Rows = npt.NDArray[np.int64]
_WHOLE = r"^-?(0|[1-9][0-9]*)$"
_DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"


def selected(table: SampleTable, rows: Rows, selection: Selection) -> Rows:
    """The rows that the filter keeps, and of those with a target (where there is one) as many as ``limit`` says."""
    rows = filtered(table, rows, selection.filter)
    if selection.limit is None:
        return rows
    if not table.targets:
        drawn: Rows = nested_subset(None, len(rows), selection.limit, selection.seed)
        return rows[drawn]
    labels = Features(table, (), rows, "mean", {}).target(target_name(table, selection.target))
    labelled = np.flatnonzero(np.array([label is not None and label == label for label in labels], bool))
    names = [str(label) for label in labels[labelled]]
    drawn = nested_subset(names, len(names), selection.limit, selection.seed)
    return rows[labelled[drawn]]


def filtered(table: SampleTable, rows: Rows, wanted: Mapping[str, Any]) -> Rows:
    """Samples whose columns have one of the wanted values, or a number in the wanted range."""
    samples = table.samples
    for name, value in wanted.items():
        column = next((c for c in (name, META_PREFIX + name, TARGET_PREFIX + name) if c in samples.column_names), None)
        if column is None:
            raise unknown_name("column in 'filter':", name, samples.column_names)
        values = combined(samples[column]).take(pa.array(rows))
        try:
            keep = _in_range(values, value) if isinstance(value, Mapping) else _among(values, value)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise UsageError(f"'filter': {name} is {values.type}, and cannot be {value!r}.") from error
        rows = rows[keep]
    return rows


def _among(values: pa.Array, wanted: Any) -> npt.NDArray[np.bool_]:
    """Whether each value is one of those; whole numbers are texts where the column holds texts."""
    listed = wanted if isinstance(wanted, list) else [wanted]
    if _is_text(values.type):
        listed = [str(item) if type(item) is int else item for item in listed]
    return np.asarray(pc.is_in(values, value_set=pa.array(listed, values.type)))


def _in_range(values: pa.Array, wanted: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Whether each value is a number from ``from`` to ``to``, both included."""
    low, high = wanted.get("from", -math.inf), wanted.get("to", math.inf)
    if not _is_text(values.type):
        return np.asarray(pc.fill_null(pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high)), False))
    whole = all(isinstance(bound, int) for bound in wanted.values())
    written = np.asarray(pc.fill_null(pc.match_substring_regex(values, _WHOLE if whole else _DECIMAL), False))
    keep = np.zeros(len(values), bool)
    numbers = np.array(values.filter(pa.array(written)).to_pylist(), object).astype(float)
    keep[written] = (numbers >= low) & (numbers <= high)
    return keep


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


@dataclass(frozen=True)
class Vocabulary:
    """The classes that a head knows, where they are fewer than the labels that occur.

    asked: ``top_classes``. n_training: training rows before those with other labels left; n_left: how many left.
    ceiling: by split, the share of scored rows whose label is among the classes: no accuracy can be higher.
    """

    asked: int
    classes: int
    n_training: int
    n_left: int
    ceiling: Mapping[str, float]

    @property
    def notes(self) -> tuple[str, ...]:
        """In words."""
        left = (
            f"top_classes {self.asked:,}: the {self.classes:,} most frequent classes of the training rows; "
            f"{self.n_left:,} of {self.n_training:,} training rows have another and leave training"
        )
        reach = ", ".join(f"{share:.1%} of {split}" for split, share in self.ceiling.items())
        return (left, *([f"ceiling: {reach} has one of these classes; the rest counts as wrong"] if reach else []))


def with_top_classes(
    classes: tuple[Any, ...], codes: Rows, splits: Splits, top: int
) -> tuple[tuple[Any, ...], Rows, Splits, Vocabulary]:
    """Labels and codes with the ``top`` most frequent classes of the training rows first; ties go to the lower code.

    Codes below the number of these classes are theirs, in the old order; those above are labels that no class has,
    which leave the training rows.
    """
    counts = np.bincount(codes[splits.train], minlength=len(classes))
    occurring = min(top, int((counts > 0).sum()))
    known = np.sort(np.argsort(-counts, kind="stable")[:occurring])
    if len(known) < 2:
        raise UsageError(
            f"The training rows have one class only, {classes[int(known[0])]!r}: there is nothing to learn."
        )
    order = np.concatenate([known, np.setdiff1d(np.arange(len(classes)), known)])
    place = np.empty(len(classes), np.int64)
    place[order] = np.arange(len(classes))
    recoded = np.where(codes >= 0, place[codes], -1)
    stays = recoded[splits.train] < len(known)
    scored = {name: rows for name in ("validation", "test") if len(rows := getattr(splits, name))}
    vocabulary = Vocabulary(
        top,
        len(known),
        len(stays),
        int((~stays).sum()),
        {name: float((recoded[rows] < len(known)).mean()) for name, rows in scored.items()},
    )
    splits = replace(splits, train=splits.train[stays], notes=(*splits.notes, *vocabulary.notes))
    return tuple(classes[code] for code in order), recoded, splits, vocabulary
