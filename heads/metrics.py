"""Scores as pure functions on arrays, and how sure one can be of them.

Truth is class codes, int64 (n,); probabilities are float (n, classes). A code beyond the classes is a label that no
class has: such rows are wrong in every score. In ``log_loss`` they have probability 0, clipped as scikit-learn does;
for ``balanced_accuracy`` they are one more class, of recall 0, and for ``weighted_f1`` one of F1 0; ``macro_f1`` is the
mean over the known classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating]
Metric = Callable[[Codes, Probabilities], float]
RowScores = Mapping[str, npt.NDArray[np.float64]]

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
NOWHERE: Final = np.iinfo(np.int64).max
CALIBRATION_BINS: Final = 15
WORST_PAIRS: Final = 20


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap percentile interval."""

    value: float
    low: float
    high: float


def accuracy(truth: Codes, probabilities: Probabilities) -> float:
    """Share of rows whose most probable class is the truth; scikit-learn's ``accuracy_score``."""
    return float((probabilities.argmax(1) == truth).mean())


def top_k_accuracy(truth: Codes, probabilities: Probabilities, k: int = 5) -> float:
    """Share of rows whose truth is among the ``k`` most probable classes."""
    return float((rank_of_truth(truth, probabilities) <= k).mean())


def balanced_accuracy(truth: Codes, probabilities: Probabilities) -> float:
    """Mean recall of the classes that occur; scikit-learn's ``balanced_accuracy_score``."""
    return _balanced_accuracy(class_counts(truth, probabilities.argmax(1), probabilities.shape[1]))


def macro_f1(truth: Codes, probabilities: Probabilities) -> float:
    """Mean F1 of the classes that occur in truth or predictions; scikit-learn's ``f1_score(average="macro")``."""
    classes = probabilities.shape[1]
    return _macro_f1(class_counts(truth, probabilities.argmax(1), classes), classes)


def weighted_f1(truth: Codes, probabilities: Probabilities) -> float:
    """Mean F1 of the classes by how often each is the truth; scikit-learn's ``f1_score(average="weighted")``."""
    return _weighted_f1(class_counts(truth, probabilities.argmax(1), probabilities.shape[1]))


def log_loss(truth: Codes, probabilities: Probabilities) -> float:
    """Mean negative log probability of the truth, in nats; scikit-learn's ``log_loss``."""
    return float(row_log_loss(truth, probabilities).mean())


def expected_calibration_error(truth: Codes, probabilities: Probabilities) -> float:
    """How far confidence is from accuracy: mean over rows of |accuracy - mean confidence| of the row's bin.

    Confidence is the highest probability; 15 bins of equal width, (0, 1/15] and so on (Guo et al., ICML 2017).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    return _calibration_error(right - confidence, _bin_of(confidence), np.ones(len(truth)))


def _bin_of(confidence: Probabilities) -> Codes:
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, CALIBRATION_BINS - 1)


def _calibration_error(gaps: npt.NDArray[Any], bins: Codes, weights: npt.NDArray[Any]) -> float:
    """gaps: of each row, 1 if right else 0, less its confidence; weights: how often each row counts."""
    return float(np.abs(np.bincount(bins, weights * gaps)).sum() / weights.sum())


METRICS: Final[Mapping[str, Metric]] = {
    "accuracy": accuracy,
    "top_5_accuracy": top_k_accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "log_loss": log_loss,
    "expected_calibration_error": expected_calibration_error,
}


def row_log_loss(truth: Codes, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """Negative log probability of the truth for each row, (n,); probabilities are clipped as scikit-learn does."""
    wide = probabilities.astype(np.float64, copy=False)
    own = _of_truth(truth, wide) / wide.sum(1)
    return np.asarray(-np.log(np.clip(own, np.finfo(probabilities.dtype).eps, 1.0)))


def rank_of_truth(truth: Codes, probabilities: Probabilities) -> Codes:
    """1 where the truth is the most probable class, and so on; ties go to the lower code; int64 (n,).

    A label that no class has is ranked ``NOWHERE``.
    """
    own = _of_truth(truth, probabilities)[:, None]
    before = (probabilities > own) | ((probabilities == own) & (np.arange(probabilities.shape[1]) < truth[:, None]))
    return np.where(truth < probabilities.shape[1], 1 + before.sum(1), NOWHERE)


def _of_truth(truth: Codes, probabilities: Probabilities) -> Probabilities:
    """The probability that each row gives to its truth, 0 where no class is that, (n,)."""
    known = truth < probabilities.shape[1]
    return np.where(known, probabilities[np.arange(len(truth)), np.where(known, truth, 0)], 0)


def confusion(truth: Codes, predicted: Codes, classes: int) -> npt.NDArray[np.int64]:
    """Counts, (classes, classes): rows are the truth."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class ConfusedPair:
    """Rows of one class that are taken for another: how many, and the share of the class's rows."""

    truth: int
    predicted: int
    count: int
    share: float


def worst_pairs(truth: Codes, predicted: Codes, most: int = WORST_PAIRS) -> list[ConfusedPair]:
    """The most frequent confusions, most frequent first; ties in the order of the codes."""
    wrong = truth != predicted
    size = int(predicted.max(initial=0)) + 1
    pairs, counts = np.unique(truth[wrong] * size + predicted[wrong], return_counts=True)
    occurs = np.bincount(truth)
    worst = np.argsort(-counts, kind="stable")[:most]
    return [
        ConfusedPair(pair // size, pair % size, count, count / int(occurs[pair // size]))
        for pair, count in zip(pairs[worst].tolist(), counts[worst].tolist(), strict=True)
    ]


class ClassCounts(NamedTuple):
    """Rows by class, each (classes,): of that truth, predicted as it, and both."""

    truth: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    hits: npt.NDArray[Any]


def class_counts(
    truth: Codes, predicted: Codes, classes: int, weights: npt.NDArray[np.int64] | None = None
) -> ClassCounts:
    """The margins and the diagonal of ``confusion``, without its classes × classes cells; rows may be weighted.

    Labels that no class has are counted as one more class, after the others, where there are any.
    """
    right = truth == predicted
    truth = np.minimum(truth, classes)
    size = max(classes, int(truth.max(initial=-1)) + 1)
    return ClassCounts(
        np.bincount(truth, weights, size),
        np.bincount(predicted, weights, size),
        np.bincount(truth[right], None if weights is None else weights[right], size),
    )


def _balanced_accuracy(counts: ClassCounts) -> float:
    occurs = counts.truth > 0
    return float((counts.hits[occurs] / counts.truth[occurs]).mean())


def _macro_f1(counts: ClassCounts, classes: int) -> float:
    total = (counts.truth + counts.predicted)[:classes]
    return float((2 * counts.hits[:classes][total > 0] / total[total > 0]).mean())


def _weighted_f1(counts: ClassCounts) -> float:
    f1 = 2 * counts.hits / np.maximum(counts.truth + counts.predicted, 1)
    return float((f1 * counts.truth).sum() / counts.truth.sum())


def resample_count(n: int) -> int:
    """Bootstrap resamples for ``n`` rows: 2,000, fewer (at least 200) where that would draw over 2e8 rows."""
    return max(200, min(RESAMPLES, 200_000_000 // max(n, 1)))


def bootstrap(
    truth: Codes, probabilities: Probabilities, seed: int, own: RowScores | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Every metric on each bootstrap resample of the rows, (resamples,). own: more scores that are means over rows.

    The draws depend on the seed and the number of rows alone, so that two heads on the same rows are compared
    in pairs.
    """
    rng = np.random.default_rng(seed)
    n, classes = probabilities.shape
    predicted = probabilities.argmax(1)
    per_row = {
        "accuracy": (predicted == truth).astype(np.float64),
        "top_5_accuracy": (rank_of_truth(truth, probabilities) <= 5).astype(np.float64),
        "log_loss": row_log_loss(truth, probabilities),
        **(own or {}),
    }
    confidence = probabilities.max(1)
    gaps, bins = per_row["accuracy"] - confidence, _bin_of(confidence)
    found: dict[str, list[float]] = {name: [] for name in (*METRICS, *(own or {}))}
    for _ in range(resample_count(n)):
        weights = np.bincount(rng.integers(0, n, n), minlength=n)
        for name, values in per_row.items():
            found[name].append(float(weights @ values) / n)
        counts = class_counts(truth, predicted, classes, weights)
        found["balanced_accuracy"].append(_balanced_accuracy(counts))
        found["macro_f1"].append(_macro_f1(counts, classes))
        found["weighted_f1"].append(_weighted_f1(counts))
        found["expected_calibration_error"].append(_calibration_error(gaps, bins, weights))
    return {name: np.array(values) for name, values in found.items()}


def interval(value: float, draws: npt.NDArray[np.float64]) -> Interval:
    """The value with the middle 95 % of its bootstrap draws (Efron and Tibshirani, 1993, chapter 13)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def scores(truth: Codes, probabilities: Probabilities, seed: int, own: RowScores | None = None) -> dict[str, Interval]:
    """Every metric with its interval; first those of ``own``, which are means of one number a row, each (n,).

    Draws of the calibration error lie above it, since drawing adds noise to every bin, and noise only adds to it:
    their median is put on its value.
    """
    draws = bootstrap(truth, probabilities, seed, own)
    values = {name: float(rows.mean()) for name, rows in (own or {}).items()}
    values |= {name: metric(truth, probabilities) for name, metric in METRICS.items()}
    error = draws["expected_calibration_error"]
    draws["expected_calibration_error"] = np.maximum(
        error - np.median(error) + values["expected_calibration_error"], 0.0
    )
    return {name: interval(value, draws[name]) for name, value in values.items()}


@dataclass(frozen=True)
class Paired:
    """A score of two heads on the same rows. difference: the first less the second; test: what gave ``p``."""

    one: float
    other: float
    difference: Interval
    p: float
    test: str


def paired(one: npt.ArrayLike, other: npt.ArrayLike, seed: int) -> Paired:
    """Two heads compared on one number per row each, (n,): bootstrap interval of the difference, two-sided p-value.

    p: the exact McNemar test (McNemar, 1947; binomial) where the numbers are 0 and 1; else of the paired bootstrap,
    twice the share of draws on the rarer side of zero (Efron and Tibshirani, 1993, chapter 16).
    """
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    rng = np.random.default_rng(seed)
    n, gaps = len(a), a - b
    draws = np.array([gaps[rng.integers(0, n, n)].mean() for _ in range(resample_count(n))])
    found = interval(float(gaps.mean()), draws)
    if np.isin(gaps, (-1, 0, 1)).all() and np.isin(a, (0, 1)).all():
        return Paired(float(a.mean()), float(b.mean()), found, mcnemar(int((gaps > 0).sum()), int((gaps < 0).sum())),
                      "exact McNemar")  # fmt: skip
    tail = 1 + min((draws <= 0).sum(), (draws >= 0).sum())
    p = min(1.0, 2 * float(tail) / (len(draws) + 1))
    return Paired(float(a.mean()), float(b.mean()), found, p, "paired bootstrap")


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p-value that both heads err alike; counts of rows that only one of them has right."""
    from scipy.stats import binomtest

    both = only_one + only_other
    return float(binomtest(only_one, both).pvalue) if both else 1.0
