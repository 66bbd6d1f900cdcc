"""About how long fits and their scores take: a little of the work is done and timed, the rest is in proportion."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from heads.base import Head, keeps_rows
from heads.grid import UNFIT, fit_once
from heads.kinds import Kind
from heads.metrics import resample_count
from heads.probabilities import probabilities
from heads.sequences import Sequences

FEW: Final = 64
PROBED: Final = 8
ENOUGH: Final = 0.4
"""Seconds after which a timed piece of work stands for the rest, shared by the candidates that are probed."""

Codes = npt.NDArray[Any]
Candidate = tuple[Mapping[str, Any], Sequence[tuple[str, Any]]]
"""Parameters, and the unfitted transforms before the head."""


@dataclass(frozen=True)
class Cost:
    """Seconds of one fit on all the rows, its transforms included, and of one row that is predicted then."""

    fit: float
    row: float


def mean_cost(head: Head, candidates: Sequence[Candidate], x: Any, codes: Codes, seed: int) -> Cost:
    """The mean of some of the candidates on all rows of ``x``. codes: classes (n,), or indicators (n, labels)."""
    probed = list(candidates)[:: max(1, len(candidates) // PROBED)][:PROBED]
    found = [cost(head, one, x, codes, seed, ENOUGH / len(probed)) for one in probed]
    return Cost(float(np.mean([one.fit for one in found])), float(np.mean([one.row for one in found])))


def cost(head: Head, candidate: Candidate, x: Any, codes: Codes, seed: int, enough: float = ENOUGH) -> Cost:
    """What one candidate costs on all n rows.

    It is fitted on few rows for one pass, unmeasured: imports do not count. Then rows and passes are doubled until a
    fit takes ``enough`` seconds or is the whole of it; passes first where a fit ends when it converges, rows first
    where it makes all of them. Time is in proportion to both. A fit that has not ended makes all the passes there may
    be, but twice its own where fewer rows had ended. What cannot be fitted takes what it took to find out.
    """
    order = _in_turn(x, len(codes), seed)
    most = _most_passes(head, candidate[0])
    rows, passes = min(FEW, len(codes)), 1
    _trial(head, candidate, x, codes, order[:rows], passes, seed)
    ended = False
    while True:
        one = _trial(head, candidate, x, codes, order[:rows], passes, seed)
        whole = passes == most or one.ended
        ended = ended or one.ended
        if one.seconds > enough or (whole and rows == len(codes)):
            break
        if whole or (one.counted and rows < len(codes)):
            rows = min(2 * rows, len(codes))
        else:
            passes = min(2 * passes, most)
    share = len(codes) / rows
    left = 1 if whole else min(most / passes, 2 if ended else most)
    return Cost(one.seconds * share * left, one.row * (share if keeps_rows(head) else 1))


def _in_turn(x: Any, n: int, seed: int) -> npt.NDArray[np.int64]:
    """Rows by chance; of texts those of about the mean length first, as batches hold texts of like length."""
    order = np.random.default_rng(seed).permutation(n)
    if not isinstance(x, Sequences):
        return order
    away = np.abs(x.lengths - x.lengths.mean())
    return np.asarray(order[np.argsort(away[order], kind="stable")])


def seconds_of_scores(kind: Kind, codes: Codes, classes: int, rows: int) -> float:
    """Of scoring so many rows with bootstrap intervals; it grows with the rows from what each resample costs."""
    less, more = min(FEW, rows, len(codes)), min(4 * FEW, rows, len(codes))
    if not less:
        return 0.0
    began = time.perf_counter()
    _score(kind, codes[:less], classes)
    between = time.perf_counter()
    _score(kind, codes[:more], classes)
    first, second = between - began, time.perf_counter() - between
    slope = max(0.0, second - first) / max(1, more - less)
    cells = 1 if codes.ndim == 1 else classes
    return (second + slope * (rows - more)) * resample_count(rows * cells) / resample_count(more * cells)


def _score(kind: Kind, codes: Codes, classes: int) -> None:
    """Scores of probabilities that say nothing."""
    found = np.random.default_rng(0).random((len(codes), classes))
    kind.scores(codes, found / found.sum(1, keepdims=True), (0.5,) * classes, 0, {})


@dataclass(frozen=True)
class _Trial:
    """One timed fit. row: seconds of a predicted row. ended: before its last pass. counted: it makes all its passes."""

    seconds: float
    row: float
    ended: bool
    counted: bool


def _most_passes(head: Head, parameters: Mapping[str, Any]) -> int:
    try:
        return max(1, head.passes(parameters))
    except UNFIT:
        return 1


def _trial(head: Head, candidate: Candidate, x: Any, codes: Codes, rows: Any, passes: int, seed: int) -> _Trial:
    """A fit on these rows for so many passes, and the first of them predicted."""
    from sklearn.base import clone
    from sklearn.pipeline import Pipeline

    parameters, steps = candidate
    began = time.perf_counter()
    try:
        transforms = clone(Pipeline(list(steps))) if steps else None
        own = x[rows] if transforms is None else transforms.fit_transform(x[rows], codes[rows])
        estimator = head.brief(parameters, seed, passes)
        unconverged = fit_once(estimator, own, codes[rows])
        seconds = time.perf_counter() - began
        counted = hasattr(estimator, "continue_fit")
        probabilities(estimator, own[:FEW], several=codes.ndim == 2)
    except UNFIT:
        return _Trial(time.perf_counter() - began, 0.0, ended=True, counted=False)
    row = (time.perf_counter() - began - seconds) / len(own[:FEW])
    return _Trial(seconds, row, ended=not (counted or unconverged), counted=counted)
