"""Search over candidates, with scikit-learn's semantics.

Folds, scores, means, ranks and the choice of the best are those of ``GridSearchCV``. Two things are done once
instead of many times: a fold's transforms are fitted once for all candidates, and candidates that differ only in
parameters without effect are fitted once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import UsageError
from embedcache.provenance import canonical_json
from heads.base import Head, check_parameters, weight_parameter

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.integer[Any]]
Matrix = npt.NDArray[np.float32]
PROBE_ROWS = 1000
PROBED = 8
UNFIT = (ValueError, TypeError, ArithmeticError)
"""What estimators raise on parameters or rows that they cannot be fitted with."""


@dataclass(frozen=True)
class Candidates:
    """The points of a grid. unique: which of them are fitted; same_as: for each point the index in ``unique``."""

    points: tuple[dict[str, Any], ...]
    unique: tuple[int, ...]
    same_as: tuple[int, ...]


@dataclass(frozen=True)
class SearchResult:
    """rows: one per point, the columns of scikit-learn's ``cv_results_``. best: index of the best point."""

    rows: tuple[dict[str, Any], ...]
    best: int
    seconds: float
    unconverged: int


def candidates(head: Head, fixed: Mapping[str, Any], grid: Any) -> Candidates:
    """Every point of the grid, in ``ParameterGrid``'s order, with repetitions found."""
    from sklearn.model_selection import ParameterGrid

    grids = (grid if isinstance(grid, list) else [grid]) or [{}]
    check_parameters(head, {*fixed, *(name for one in grids for name in one)})
    points = tuple(dict(point) for point in ParameterGrid([dict(one) for one in grids]))
    first: dict[str, int] = {}
    unique: list[int] = []
    same_as: list[int] = []
    for index, point in enumerate(points):
        key = canonical_json(_plain(head.canonical({**fixed, **point})))
        if key not in first:
            first[key] = len(unique)
            unique.append(index)
        same_as.append(first[key])
    return Candidates(points, tuple(unique), tuple(same_as))


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | str | None) else [repr(value)]  # JSON has no infinite floats
        for name, value in parameters.items()
    }


def estimate_seconds(
    head: Head,
    parameters: Sequence[Mapping[str, Any]],
    x: Matrix,
    codes: Codes,
    fits: int,
    rows: int,
    jobs: int,
    seed: int,
) -> float:
    """About how long ``fits`` fits on ``rows`` rows take: some candidates are fitted for one pass on a few rows.

    What cannot be fitted takes no longer than it took to find that out.
    """
    probed = list(parameters)[:: max(1, len(parameters) // PROBED)][:PROBED]
    chosen = np.random.default_rng(seed).permutation(len(codes))[:PROBE_ROWS]
    seconds = 0.0
    for one in probed:
        began = time.perf_counter()
        try:
            _fit(head.brief(one, seed), x[chosen], codes[chosen])
            passes = head.passes(one)
        except UNFIT:
            passes = 1
        seconds += (time.perf_counter() - began) * passes
    return seconds / len(probed) / len(chosen) * rows * fits / jobs


def search(
    head: Head,
    found: Candidates,
    fixed: Mapping[str, Any],
    transform: Sequence[tuple[str, Any]],
    x: Matrix,
    codes: Codes,
    folds: Sequence[tuple[Rows, Rows]],
    score: str,
    *,
    seed: int,
    jobs: int,
    progress: bool,
    weights: npt.NDArray[np.float32] | None = None,
) -> SearchResult:
    """Fit every unique candidate on every fold. x: float32 (n, dims) of the training rows.

    codes: classes, int64 (n,), or indicators, int8 (n, labels).

    Raises UsageError where a transform or not one candidate could be fitted and scored on all folds.
    """
    from joblib import delayed

    began = time.perf_counter()
    parameters = [{**fixed, **found.points[index]} for index in found.unique]
    fits = len(parameters) * len(folds)
    calls = (  # of all folds in one stream: no worker waits for the last candidate of a fold
        delayed(_fit_and_score)(head.build(one, seed), fold, score)
        for fold in _transformed(transform, x, codes, folds, weights)
        for one in parameters
    )
    done: list[_Outcome] = []
    with _bar(fits, progress) as bar, _parallel(jobs, max(1, jobs // min(jobs, fits))) as parallel:
        for outcome in parallel(calls):
            done.append(outcome)
            bar.update()
    outcomes = [done[start : start + len(parameters)] for start in range(0, fits, len(parameters))]
    rows = _rows(found, fixed, outcomes)
    if not any(np.isfinite(row["mean_test_score"]) for row in rows):
        reasons = (outcome.error for row in outcomes for outcome in row if outcome.error)
        reason = next(reasons, f"{score} is not a number")
        raise UsageError(f"Not one candidate could be fitted and scored on every fold. The first reason: {reason}")
    best = min(range(len(rows)), key=lambda index: rows[index]["rank_test_score"])
    unconverged = sum(outcome.unconverged for row in outcomes for outcome in row)
    return SearchResult(tuple(rows), best, time.perf_counter() - began, unconverged)


@dataclass(frozen=True)
class _Fold:
    x_train: Matrix
    y_train: Codes
    x_test: Matrix
    y_test: Codes
    weights: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class _Outcome:
    score: float
    fit_seconds: float
    score_seconds: float
    unconverged: bool
    error: str = ""


def _transformed(
    transform: Sequence[tuple[str, Any]],
    x: Matrix,
    codes: Codes,
    folds: Sequence[tuple[Rows, Rows]],
    weights: npt.NDArray[np.float32] | None,
) -> Iterator[_Fold]:
    """Each fold with its transforms fitted on its training rows, made when its first candidate is due."""
    from sklearn.base import clone
    from sklearn.pipeline import Pipeline

    for train, held in folds:
        if transform:
            pipeline = clone(Pipeline(list(transform)))
            try:
                x_train, x_test = pipeline.fit_transform(x[train], codes[train]), pipeline.transform(x[held])
            except UNFIT as error:
                raise UsageError(f"The transform cannot be fitted on {len(train)} rows: {error}") from error
        else:
            x_train, x_test = x[train], x[held]
        yield _Fold(x_train, codes[train], x_test, codes[held], None if weights is None else weights[train])


def _fit(estimator: Any, x: Matrix, codes: Codes, weights: npt.NDArray[np.float32] | None = None) -> bool:
    """Fit; whether the iterations ran out before convergence, which a short search does on purpose."""
    from sklearn.exceptions import ConvergenceWarning

    name = None if weights is None else weight_parameter(estimator)
    own = {} if name is None else {name: weights}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(x, codes, **own)
    return any(issubclass(item.category, ConvergenceWarning) for item in caught)


def _fit_and_score(estimator: Any, fold: _Fold, score: str) -> _Outcome:
    """One candidate on one fold; one that cannot be fitted or scored gets NaN, as in scikit-learn."""
    from sklearn.metrics import get_scorer

    began = time.perf_counter()
    try:
        unconverged = _fit(estimator, fold.x_train, fold.y_train, fold.weights)
        fitted = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a label that a fold lacks is 0 for every candidate
            value = float(get_scorer(score)(estimator, fold.x_test, fold.y_test))
    except UNFIT as error:
        return _Outcome(float("nan"), time.perf_counter() - began, 0.0, False, str(error))
    return _Outcome(value, fitted - began, time.perf_counter() - fitted, unconverged)


@contextmanager
def _parallel(jobs: int, threads: int) -> Iterator[Any]:
    """Worker processes that stay for the whole search, each with its share of the cores."""
    from joblib import Parallel, parallel_config

    with (
        parallel_config(backend="loky", inner_max_num_threads=threads),
        Parallel(n_jobs=jobs, return_as="generator") as parallel,
    ):
        yield parallel


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=" fits", desc="search", disable=not progress, dynamic_ncols=True)


def _rows(found: Candidates, fixed: Mapping[str, Any], outcomes: Sequence[Sequence[_Outcome]]) -> list[dict[str, Any]]:
    """``cv_results_`` by rows, every point of the grid included."""
    from scipy.stats import rankdata

    scores = np.array([[row[unique].score for row in outcomes] for unique in range(len(found.unique))])
    means = scores.mean(1)[list(found.same_as)]
    worst_first = np.where(np.isnan(means), -np.inf, means)
    ranks = rankdata(-worst_first, method="min").astype(int)
    rows = []
    for index, point in enumerate(found.points):
        unique = found.same_as[index]
        own = [row[unique] for row in outcomes]
        row = {f"param_{name}": value for name, value in point.items()}
        row |= {f"split{fold}_test_score": outcome.score for fold, outcome in enumerate(own)}
        row |= {
            "mean_test_score": float(means[index]),
            "std_test_score": float(scores[unique].std()),
            "rank_test_score": int(ranks[index]),
            "mean_fit_time": float(np.mean([outcome.fit_seconds for outcome in own])),
            "mean_score_time": float(np.mean([outcome.score_seconds for outcome in own])),
            "same_fit_as": "" if found.unique[unique] == index else f"candidate {found.unique[unique]}",
        }
        rows.append(row)
    return rows
