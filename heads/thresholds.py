"""From probabilities to label sets: a threshold per label or one for all, tuned by exact search.

A label is predicted where its probability is at least its threshold. Between two neighbouring probabilities every
threshold decides alike, so that n rows have at most n + 1 cut points: all of them are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Rule = Literal["f1", "balance"]
Per = Literal["label", "all"]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]

DEFAULT: Final = 0.5
"""The threshold of a label that there is nothing to tune on."""


class Cuts(NamedTuple):
    """Every way to cut n rows by probability, each (cuts,), highest threshold first.

    thresholds: midway between neighbouring probabilities. hits: true rows at or above. predicted: rows at or above.
    """

    thresholds: npt.NDArray[np.float64]
    hits: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tuned:
    """thresholds: float64 (labels,). defaulted: bool (labels,), where there was nothing to tune on."""

    thresholds: npt.NDArray[np.float64]
    defaulted: Flags


def decide(probabilities: Floats, thresholds: npt.ArrayLike) -> Flags:
    """The predicted labels, bool (n, labels)."""
    return np.asarray(probabilities >= np.asarray(thresholds))


def cuts(truth: Flags, probabilities: Floats) -> Cuts:
    """All cut points of one label, from none predicted to all; rows of equal probability are never parted.

    truth: bool (n,). probabilities: (n,), n at least 1. O(n log n).
    """
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order].astype(np.float64)
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    below = np.append(values[last[:-1] + 1], 0.0)
    thresholds = np.append(_above_all(values[0]), _between(below, values[last]))
    hits = np.append(0, np.cumsum(truth[order])[last])
    return Cuts(thresholds, hits.astype(np.int64), np.append(0, last + 1).astype(np.int64))


def _between(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Midway; where no number lies between, ``high``, which is still above ``low``."""
    middle = low + (high - low) / 2
    return np.where(middle > low, middle, high)


def _above_all(highest: float) -> float:
    return float((highest + 1) / 2) if highest < (highest + 1) / 2 else float(np.nextafter(max(highest, 1.0), 2.0))


def best_threshold(truth: Flags, probabilities: Floats, rule: Rule, given: tuple[int, int] = (0, 0)) -> float:
    """The threshold with the highest F1, or with the least difference of false positives and false negatives.

    Of equally good ones the one nearest to 0.5 (under ``balance``, of those with the highest F1); of two, the higher.
    given: true ones, and all, of other rows that are predicted whatever the threshold.
    """
    found = cuts(truth, probabilities)
    found = found._replace(hits=found.hits + given[0], predicted=found.predicted + given[1])
    positives = int(truth.sum()) + given[0]
    f1 = 2 * found.hits / np.maximum(found.predicted + positives, 1)
    distance = np.abs(found.thresholds - DEFAULT)
    # FP - FN = (predicted - hits) - (positives - hits)
    imbalance = np.abs(found.predicted - positives) if rule == "balance" else np.zeros(len(f1))
    return float(found.thresholds[np.lexsort((distance, -f1, imbalance))[0]])


def tune(truth: Flags, probabilities: Floats, rule: Rule, per: Per, learned: Flags | None = None) -> Tuned:
    """Thresholds (labels,) tuned on rows that were not trained on.

    truth: bool (n, labels). probabilities: (n, labels). per: ``label`` tunes each label alone (for F1 this is the best
    macro F1), ``all`` one threshold on all cells together (the best micro F1). learned: bool (labels,), False for a
    label that training could not learn. Labels that are not, or never are positive here, get 0.5; under ``all``
    only labels that were not learned do, and every label where nothing is positive.
    """
    usable = np.ones(truth.shape[1], bool) if learned is None else np.asarray(learned, bool)
    thresholds = np.full(truth.shape[1], DEFAULT)
    if per == "all":
        usable = usable & truth[:, usable].any()
        if usable.any():
            thresholds[usable] = best_threshold(truth[:, usable].ravel(), probabilities[:, usable].ravel(), rule)
        return Tuned(thresholds, ~usable)
    usable = usable & truth.any(0)
    for label in np.flatnonzero(usable):
        thresholds[label] = best_threshold(truth[:, label], probabilities[:, label], rule)
    return Tuned(thresholds, ~usable)
