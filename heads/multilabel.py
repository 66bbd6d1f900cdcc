"""Several labels per sample: indicators, strata, and scores as pure functions on arrays.

Truth and predictions are indicators, bool (n, labels); probabilities are float (n, labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcache.errors import UsageError
from heads.metrics import Interval, interval, resample_count
from heads.thresholds import Flags, Floats, cuts, decide

_CHUNK_CELLS: Final = 4_000_000


def is_multilabel(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether a target's column holds lists of labels."""
    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))


def indicators(column: pa.Array, target: str) -> tuple[tuple[Any, ...], npt.NDArray[np.int8]]:
    """The labels in order, and who has them: int8 (n, labels), rows of -1 where the list is null.

    Labels that are all whole numbers, as numbers or as texts, are in the order of the numbers. A label that a row
    repeats counts once. Raises UsageError where nothing could be learned.
    """
    kind = column.type.value_type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UsageError(f"The target {target!r} holds lists of {kind}; a label is a text or a whole number.")
    known = np.asarray(pc.is_valid(column))
    if not known.any():
        raise UsageError(f"No sample that has all features has a target {target!r}.")
    flat, parents = pc.list_flatten(column), pc.list_parent_indices(column)
    labels = _ordered(pc.unique(flat.drop_null()).to_pylist())
    if len(labels) < 2:
        found = f"one label only, {labels[0]!r}" if labels else "no label at all"
        raise UsageError(f"The target {target!r} has {found}: several labels per sample need two.")
    codes = np.asarray(pc.fill_null(pc.index_in(flat, value_set=pa.array(labels, kind)), -1))
    out = np.where(known[:, None], 0, -1).astype(np.int8).repeat(len(labels), axis=1)
    out[np.asarray(parents)[codes >= 0], codes[codes >= 0]] = 1
    if (out[known] == out[known][0]).all():
        raise UsageError(f"Every sample has the same labels in the target {target!r}: there is nothing to learn.")
    return labels, out


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _ordered(labels: Sequence[Any]) -> tuple[Any, ...]:
    numbers = all(isinstance(label, str) and label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label)) if numbers else sorted(labels))


def strata(codes: npt.NDArray[np.int8], least: int) -> npt.NDArray[np.int64]:
    """What stratified splits and folds keep in proportion: each row's rarest label, int64 (n,), -1 without a target.

    Rows without any label are a stratum of their own. Strata of fewer than ``least`` rows are put together, and with
    the largest of the others where they are still too few. This keeps rare labels spread; it is not the iterative
    stratification of Sechidis et al. (2011), which balances every label.
    """
    known = (codes >= 0).all(1)
    own = codes[known] > 0
    rarest = np.where(own, own.sum(0), len(own) + 1).argmin(1)
    rarest[~own.any(1)] = own.shape[1]
    sizes = np.bincount(rarest, minlength=own.shape[1] + 2)
    small = (sizes > 0) & (sizes < least)
    rest = own.shape[1] + 1
    left = np.flatnonzero((sizes > 0) & ~small)
    if 0 < sizes[small].sum() < least and len(left):
        small[left[sizes[left].argmax()]] = True
    out = np.full(len(codes), -1, np.int64)
    out[known] = np.unique(np.where(small[rarest], rest, rarest), return_inverse=True)[1]
    return out


class Counts(NamedTuple):
    """A 2 × 2 table per label, each (labels,): true and false positives, false and true negatives."""

    tp: npt.NDArray[Any]
    fp: npt.NDArray[Any]
    fn: npt.NDArray[Any]
    tn: npt.NDArray[Any]


def label_counts(truth: Flags, predicted: Flags) -> Counts:
    """The 2 × 2 table of each label; scikit-learn's ``multilabel_confusion_matrix``."""
    tp = (truth & predicted).sum(0)
    fp, fn = predicted.sum(0) - tp, truth.sum(0) - tp
    return Counts(tp, fp, fn, len(truth) - tp - fp - fn)


def _f1(tp: npt.NDArray[Any], fp: npt.NDArray[Any], fn: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """2 TP / (2 TP + FP + FN); NaN where nothing is true and nothing predicted."""
    total = 2 * tp + fp + fn
    return np.asarray(np.where(total > 0, 2 * tp / np.maximum(total, 1), np.nan))


def f1_micro(truth: Flags, predicted: Flags) -> float:
    """F1 over all cells; 1 where nothing is true and nothing predicted.

    scikit-learn's ``f1_score(average="micro", zero_division=1)``.
    """
    counts = label_counts(truth, predicted)
    return float(np.nan_to_num(_f1(counts.tp.sum(), counts.fp.sum(), counts.fn.sum()), nan=1.0))


def f1_macro(truth: Flags, predicted: Flags) -> float:
    """Mean F1 of the labels that occur in truth or predictions; 0 where none does.

    scikit-learn's ``f1_score(average="macro", zero_division=np.nan)``.
    """
    return _mean(label_f1(truth, predicted))


def f1_samples(truth: Flags, predicted: Flags) -> float:
    """Mean over rows of each row's F1; a row without labels that gets none counts 1.

    scikit-learn's ``f1_score(average="samples", zero_division=1)``.
    """
    return float(_row_f1(truth, predicted).mean())


def exact_match(truth: Flags, predicted: Flags) -> float:
    """Share of rows with exactly the true labels; scikit-learn's ``accuracy_score``."""
    return float((truth == predicted).all(1).mean())


def hamming_loss(truth: Flags, predicted: Flags) -> float:
    """Share of wrong cells; scikit-learn's ``hamming_loss``. Less is better."""
    return float((truth != predicted).mean())


def mean_average_precision(truth: Flags, probabilities: Floats) -> float:
    """Mean average precision of the labels that occur in truth; 0 where none does.

    scikit-learn's ``average_precision_score(average="macro")`` on those labels' columns.
    """
    return _mean(average_precisions(truth, probabilities))


def label_f1(truth: Flags, predicted: Flags) -> npt.NDArray[np.float64]:
    """F1 of each label, (labels,); NaN for one that neither occurs nor is predicted."""
    counts = label_counts(truth, predicted)
    return _f1(counts.tp, counts.fp, counts.fn)


def average_precisions(truth: Flags, probabilities: Floats) -> npt.NDArray[np.float64]:
    """Sum of precision times gain in recall over all cut points of each label, (labels,); NaN for one never true.

    scikit-learn's ``average_precision_score`` of each column.
    """
    found = np.full(truth.shape[1], np.nan)
    for label in np.flatnonzero(truth.any(0)):
        one = cuts(truth[:, label], probabilities[:, label])
        found[label] = (np.diff(one.hits) * one.hits[1:] / one.predicted[1:]).sum() / one.hits[-1]
    return found


def _row_f1(truth: Flags, predicted: Flags) -> npt.NDArray[np.float64]:
    both = (truth & predicted).sum(1)
    return np.nan_to_num(_f1(both, predicted.sum(1) - both, truth.sum(1) - both), nan=1.0)


def _mean(values: npt.NDArray[np.float64]) -> float:
    there = ~np.isnan(values)
    return float(values[there].mean()) if there.any() else 0.0


METRICS: Final = ("f1_micro", "f1_macro", "f1_samples", "mean_average_precision", "exact_match", "hamming_loss")


def values(truth: Flags, probabilities: Floats, thresholds: npt.ArrayLike) -> dict[str, float]:
    """Every metric at the thresholds."""
    predicted = decide(probabilities, thresholds)
    return {
        "f1_micro": f1_micro(truth, predicted),
        "f1_macro": f1_macro(truth, predicted),
        "f1_samples": f1_samples(truth, predicted),
        "mean_average_precision": mean_average_precision(truth, probabilities),
        "exact_match": exact_match(truth, predicted),
        "hamming_loss": hamming_loss(truth, predicted),
    }


def bootstrap(
    truth: Flags, probabilities: Floats, thresholds: npt.ArrayLike, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Every metric on each bootstrap resample of the rows, (resamples,), at the same thresholds.

    The draws depend on the seed and the shape alone, so that two heads on the same rows are compared in pairs.
    """
    rng = np.random.default_rng(seed)
    n, left = len(truth), resample_count(truth.size)
    predicted = decide(probabilities, thresholds)
    cells = [part.astype(np.float64) for part in (truth & predicted, predicted & ~truth, truth & ~predicted)]
    per_row = np.stack([_row_f1(truth, predicted), (truth == predicted).all(1), (truth != predicted).mean(1)], axis=1)
    ranked = [_Ranked.of(truth[:, label], probabilities[:, label]) for label in np.flatnonzero(truth.any(0))]
    parts: list[npt.NDArray[np.float64]] = []
    while left:
        size = min(left, max(1, _CHUNK_CELLS // n))
        left -= size
        weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)]).astype(np.float64)
        tp, fp, fn = (weights @ part for part in cells)
        micro = np.nan_to_num(_f1(tp.sum(1), fp.sum(1), fn.sum(1)), nan=1.0)
        precisions = np.stack([one.average_precision(weights) for one in ranked] or [np.full(size, np.nan)], axis=1)
        rows = weights @ per_row / n
        parts.append(np.column_stack([micro, _means(_f1(tp, fp, fn)), rows[:, 0], _means(precisions), rows[:, 1:]]))
    return dict(zip(METRICS, np.concatenate(parts).T, strict=True))


def _means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``_mean`` of each row of (n, labels)."""
    there = ~np.isnan(values)
    return np.asarray(np.where(there, values, 0).sum(1) / np.maximum(there.sum(1), 1))


@dataclass(frozen=True)
class _Ranked:
    """One label's rows by falling probability.

    order: rows, (n,). positives: places of the true rows. ends: for each of them the place of the last row of equal
    probability, and how many of the positives stand up to there.
    """

    order: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    upto: npt.NDArray[np.int64]

    @classmethod
    def of(cls, truth: Flags, probabilities: Floats) -> _Ranked:
        order = np.argsort(-probabilities, kind="stable")
        values, positives = probabilities[order], np.flatnonzero(truth[order])
        last = np.flatnonzero(np.append(values[1:] != values[:-1], True))
        ends = last[np.searchsorted(last, positives)]
        return cls(order, positives, ends, np.searchsorted(positives, ends, side="right"))

    def average_precision(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Of rows that count ``weights`` (resamples, n) times each: (resamples,), NaN where no true row counts."""
        ranked = weights[:, self.order]
        gains = ranked[:, self.positives]
        hits = np.cumsum(gains, axis=1)
        precision = hits[:, self.upto - 1] / np.maximum(np.cumsum(ranked, axis=1)[:, self.ends], 1)
        total = hits[:, -1]
        return np.asarray(np.where(total > 0, (gains * precision).sum(1) / np.maximum(total, 1), np.nan))


def scores(truth: Flags, probabilities: Floats, thresholds: npt.ArrayLike, seed: int) -> dict[str, Interval]:
    """Every metric with its interval."""
    draws = bootstrap(truth, probabilities, thresholds, seed)
    return {name: interval(value, draws[name]) for name, value in values(truth, probabilities, thresholds).items()}


@dataclass(frozen=True)
class LabelRow:
    """One label: its threshold, its 2 × 2 table, F1 and average precision; None where there is nothing to divide."""

    label: Any
    threshold: float
    tp: int
    fp: int
    fn: int
    tn: int
    f1: float | None
    average_precision: float | None


def label_table(
    labels: Sequence[Any], truth: Flags, probabilities: Floats, thresholds: Sequence[float]
) -> list[LabelRow]:
    """A row per label, worst F1 first, those without one last."""
    predicted = decide(probabilities, thresholds)
    counts = np.stack(label_counts(truth, predicted), axis=1).tolist()
    f1, precisions = label_f1(truth, predicted), average_precisions(truth, probabilities)
    rows = [
        LabelRow(label, float(threshold), tp, fp, fn, tn, _or_none(one), _or_none(precision))
        for label, threshold, (tp, fp, fn, tn), one, precision in zip(
            labels, thresholds, counts, f1, precisions, strict=True
        )
    ]
    return sorted(rows, key=lambda row: 2.0 if row.f1 is None else row.f1)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
