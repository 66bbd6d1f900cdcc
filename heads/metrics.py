"""Scores as pure functions on arrays, and how sure one can be of them.

Truth is class codes, int64 (n,); probabilities are float (n, classes).
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

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000


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
    return _macro_f1(class_counts(truth, probabilities.argmax(1), probabilities.shape[1]))


def log_loss(truth: Codes, probabilities: Probabilities) -> float:
    """Mean negative log probability of the truth, in nats; scikit-learn's ``log_loss``."""
    return float(row_log_loss(truth, probabilities).mean())


METRICS: Final[Mapping[str, Metric]] = {
    "accuracy": accuracy,
    "top_5_accuracy": top_k_accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "log_loss": log_loss,
}


def row_log_loss(truth: Codes, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """Negative log probability of the truth for each row, (n,); probabilities are clipped as scikit-learn does."""
    wide = probabilities.astype(np.float64)
    own = wide[np.arange(len(truth)), truth] / wide.sum(1)
    return np.asarray(-np.log(np.clip(own, np.finfo(probabilities.dtype).eps, 1.0)))


def rank_of_truth(truth: Codes, probabilities: Probabilities) -> Codes:
    """1 where the truth is the most probable class, and so on; ties go to the lower code; int64 (n,)."""
    own = probabilities[np.arange(len(truth)), truth][:, None]
    before = (probabilities > own) | ((probabilities == own) & (np.arange(probabilities.shape[1]) < truth[:, None]))
    return np.asarray(1 + before.sum(1), np.int64)


def confusion(truth: Codes, predicted: Codes, classes: int) -> npt.NDArray[np.int64]:
    """Counts, (classes, classes): rows are the truth."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


class ClassCounts(NamedTuple):
    """Rows by class, each (classes,): of that truth, predicted as it, and both."""

    truth: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    hits: npt.NDArray[Any]


def class_counts(
    truth: Codes, predicted: Codes, classes: int, weights: npt.NDArray[np.int64] | None = None
) -> ClassCounts:
    """The margins and the diagonal of ``confusion``, without its classes × classes cells; rows may be weighted."""
    right = truth == predicted
    return ClassCounts(
        np.bincount(truth, weights, classes),
        np.bincount(predicted, weights, classes),
        np.bincount(truth[right], None if weights is None else weights[right], classes),
    )


def _balanced_accuracy(counts: ClassCounts) -> float:
    occurs = counts.truth > 0
    return float((counts.hits[occurs] / counts.truth[occurs]).mean())


def _macro_f1(counts: ClassCounts) -> float:
    total = counts.truth + counts.predicted
    return float((2 * counts.hits[total > 0] / total[total > 0]).mean())


def resample_count(n: int) -> int:
    """Bootstrap resamples for ``n`` rows: 2,000, fewer (at least 200) where that would draw over 2e8 rows."""
    return max(200, min(RESAMPLES, 200_000_000 // max(n, 1)))


def bootstrap(truth: Codes, probabilities: Probabilities, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Every metric on each bootstrap resample of the rows, (resamples,).

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
    }
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(resample_count(n)):
        weights = np.bincount(rng.integers(0, n, n), minlength=n)
        for name, values in per_row.items():
            found[name].append(float(weights @ values) / n)
        counts = class_counts(truth, predicted, classes, weights)
        found["balanced_accuracy"].append(_balanced_accuracy(counts))
        found["macro_f1"].append(_macro_f1(counts))
    return {name: np.array(values) for name, values in found.items()}


def interval(value: float, draws: npt.NDArray[np.float64]) -> Interval:
    """The value with the middle 95 % of its bootstrap draws (Efron and Tibshirani, 1993, chapter 13)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def scores(truth: Codes, probabilities: Probabilities, seed: int) -> dict[str, Interval]:
    """Every metric with its interval."""
    draws = bootstrap(truth, probabilities, seed)
    return {name: interval(metric(truth, probabilities), draws[name]) for name, metric in METRICS.items()}
