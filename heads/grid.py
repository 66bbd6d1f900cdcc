"""Search over candidates, with scikit-learn's semantics.

Folds, scores, means, ranks and the choice of the best are those of ``GridSearchCV``. Two things are done once
instead of many times: a fold's transforms are fitted once for all candidates, and candidates that differ only in
parameters without effect are fitted once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import UsageError
from embedcache.provenance import canonical_json, digest_json
from heads.base import Head, check_parameters, check_values, weight_parameter
from heads.metrics import rank_of_truth
from heads.multilabel import strata
from heads.probabilities import probabilities
from heads.searching import Journal, Outcome, Rungs, data_digest, of_head, part_of, plain_keys, points_of

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.integer[Any]]
Matrix = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float32]
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
    """rows: one per point, the columns of scikit-learn's ``cv_results_``. best: index of the best point.

    fits: that the search is made of, ``resumed`` of them finished by an earlier, interrupted search. journal: where
    finished fits are written until the run is recorded. scores: their names, that which decides first. The row of a
    candidate that could not be fitted or scored on every fold has the first ``error``.
    """

    rows: tuple[dict[str, Any], ...]
    best: int
    seconds: float
    unconverged: int
    fits: int = 0
    resumed: int = 0
    journal: Path | None = None
    scores: tuple[str, ...] = ("score",)

    def means(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Of each score, that which decides first, its mean in a row, with the deviation where there are folds."""
        found = {}
        for name in self.scores:
            column = "score" if len(self.scores) == 1 else name
            several = f"split1_test_{column}" in row
            found[name] = f"{row[f'mean_test_{column}']:.4f}" + (f" ± {row[f'std_test_{column}']:.4f}" * several)
        return found

    @property
    def failed(self) -> tuple[str, ...]:
        """Of each point without a mean score, its parameters and the reason."""
        return tuple(
            f"{', '.join(f'{name[6:]} {value}' for name, value in row.items() if name.startswith('param_'))}: "
            f"{row['error'] or 'the score is not a number'}"
            for row in self.rows
            if np.isnan(row["mean_test_score"])
        )


def candidates(
    head: Head, fixed: Mapping[str, Any], grid: Any, how: str = "grid", n_iter: int = 10, seed: int = 0
) -> Candidates:
    """Every point of the grid (``random``: ``n_iter`` drawn points), with repetitions found.

    Raises UnknownNameError for a parameter that the head lacks, UsageError for a value that it refuses unfitted.
    """
    grids = (grid if isinstance(grid, list) else [grid]) or [{}]
    check_parameters(head, {*fixed, *(name for one in grids for name in of_head(one))})
    points = tuple(points_of(grids, how, n_iter, seed))
    first: dict[str, int] = {}
    unique: list[int] = []
    same_as: list[int] = []
    for index, point in enumerate(points):
        own = of_head(point)
        check_values(head, {**fixed, **own})
        axes = {name: value for name, value in point.items() if name not in own}
        key = canonical_json([_plain(head.canonical({**fixed, **own})), plain_keys(axes)])
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


@dataclass(frozen=True)
class Data:
    """What candidates are fitted and scored on.

    x: (n, dims) of the training rows. codes: classes, int64 (n,), or indicators, int8 (n, labels). folds: rows to fit
    and rows to score. weights: (n,) or None.
    """

    x: Matrix
    codes: Codes
    folds: Sequence[tuple[Rows, Rows]]
    weights: Weights | None = None


@dataclass(frozen=True)
class Choice:
    """Features and transforms that some candidates share. load: makes the data, when the first of these is due."""

    transform: Sequence[tuple[str, Any]]
    load: Callable[[], Data]


def search(
    head: Head,
    found: Candidates,
    fixed: Mapping[str, Any],
    transform: Sequence[tuple[str, Any]],
    x: Matrix,
    codes: Codes,
    folds: Sequence[tuple[Rows, Rows]],
    score: str | Sequence[str],
    *,
    weights: Weights | None = None,
    **options: Any,
) -> SearchResult:
    """``search_choices`` where all candidates share features and transforms."""
    data = Data(x, codes, folds, weights)
    choices = [Choice(transform, lambda: data)]
    return search_choices(head, found, fixed, choices, [0] * len(found.unique), len(folds), score, **options)


def search_choices(
    head: Head,
    found: Candidates,
    fixed: Mapping[str, Any],
    choices: Sequence[Choice],
    choice_of: Sequence[int],
    folds: int,
    score: str | Sequence[str],
    *,
    seed: int,
    jobs: int,
    progress: bool,
    rungs: Rungs | None = None,
    journal: Path | None = None,
) -> SearchResult:
    """Fit every unique candidate on every fold. choice_of: of each unique candidate. folds: how many there are.

    score: scorers of scikit-learn; the first decides. rungs: of halving; None gives every candidate everything.
    journal: finished fits are written to and read from it. Raises UsageError where a transform or not one candidate
    could be fitted and scored on all folds.
    """
    began = time.perf_counter()
    parameters = [{**fixed, **of_head(found.points[index])} for index in found.unique]
    plan = rungs or Rungs(keep=(len(parameters),))
    scores = (score,) if isinstance(score, str) else tuple(score)
    record = Journal(journal)
    fits = plan.fits(folds)
    alive = list(range(len(parameters)))
    last: dict[int, tuple[int, list[Outcome]]] = {}
    all_done: list[Outcome] = []
    resumed = 0
    with _bar(fits, progress) as bar, _parallel(jobs, max(1, jobs // min(jobs, fits))) as parallel:
        for number in range(len(plan.amounts)):
            rung = _Rung(head, parameters, choices, choice_of, alive, scores, seed, plan, number, record, last)
            for place, outcome in parallel(rung.calls()):
                rung.done[place] = outcome
                record.add(rung.keys.get(place, ""), outcome)
                bar.update()
            resumed += rung.resumed
            bar.update(rung.resumed)
            for unique in alive:
                own = [rung.done[unique, fold] for fold in range(folds)]
                last[unique] = number, own
                all_done += [replace(outcome, estimator=None) for outcome in own]
            if number + 1 < len(plan.amounts):
                alive = _best(alive, last, plan.keep[number + 1])
                for unique in set(last).difference(alive):  # their networks are not needed any more
                    last[unique] = last[unique][0], [replace(outcome, estimator=None) for outcome in last[unique][1]]
    rows = _rows(found, scores, plan, last)
    if not any(np.isfinite(row["mean_test_score"]) for row in rows):
        reason = next((outcome.error for outcome in all_done if outcome.error), f"{scores[0]} is not a number")
        raise UsageError(f"Not one candidate could be fitted and scored on every fold. The first reason: {reason}")
    best = min(range(len(rows)), key=lambda index: rows[index]["rank_test_score"])
    unconverged = sum(outcome.unconverged for outcome in all_done)
    return SearchResult(tuple(rows), best, time.perf_counter() - began, unconverged, fits, resumed, record.path, scores)


def _best(alive: Sequence[int], last: Mapping[int, tuple[int, list[Outcome]]], keep: int) -> list[int]:
    """The candidates with the highest means, in their old order; ties go to the earlier one."""
    means = np.nan_to_num([np.mean([one.scores[0] for one in last[unique][1]]) for unique in alive], nan=-np.inf)
    return sorted(alive[place] for place in np.argsort(-means, kind="stable")[:keep])


@dataclass
class _Rung:
    """The fits of one rung: those that the journal knows, and the calls that make the others.

    last: of each candidate the rung before and its outcomes, by fold. done, keys: by candidate and fold.
    """

    head: Head
    parameters: Sequence[Mapping[str, Any]]
    choices: Sequence[Choice]
    choice_of: Sequence[int]
    alive: Sequence[int]
    scores: tuple[str, ...]
    seed: int
    plan: Rungs
    number: int
    journal: Journal
    last: Mapping[int, tuple[int, list[Outcome]]]
    done: dict[tuple[int, int], Outcome] = field(default_factory=dict)
    keys: dict[tuple[int, int], str] = field(default_factory=dict)
    resumed: int = 0

    def calls(self) -> Iterator[Any]:
        """Of all folds in one stream: no worker waits for the last candidate of a fold."""
        from joblib import delayed

        keep = self.plan.by == "epochs" and self.number + 1 < len(self.plan.amounts)
        for index, choice in enumerate(self.choices):
            own = [unique for unique in self.alive if self.choice_of[unique] == index]
            if not own:
                continue
            data = choice.load()
            folds = self._parts(data)
            digest = self._digest(choice, data) if self.journal.path is not None else ""
            for number, fold in enumerate(folds):
                due = [unique for unique in own if not self._known(unique, number, digest)]
                if due:
                    made = _transformed(choice.transform, data, fold)
                    for unique in due:
                        start, more = self._start(unique, number)
                        yield delayed(_placed)((unique, number), start, made, self.scores, more, keep)

    def _parts(self, data: Data) -> list[tuple[Rows, Rows]]:
        """The folds, of which this rung fits a part of the rows."""
        share = self.plan.amounts[self.number]
        if self.plan.by != "rows" or share >= 1:
            return list(data.folds)
        levels = data.codes.astype(np.int64) if data.codes.ndim == 1 else strata(data.codes.astype(np.int8), 2)
        return [(part_of(train, levels[train], share, self.seed), held) for train, held in data.folds]

    def _start(self, unique: int, fold: int) -> tuple[Any, tuple[int, ...]]:
        """What is fitted, and the epochs that it is trained on with."""
        parameters = dict(self.parameters[unique])
        if self.plan.by != "epochs":
            return self.head.build(parameters, self.seed), ()
        epochs = [int(amount) for amount in self.plan.amounts[: self.number + 1]]
        more = tuple(int(step) for step in np.diff(epochs))
        fitted = self.last[unique][1][fold].estimator if self.number else None
        if fitted is not None:
            return fitted, more[-1:]
        return self.head.build({**parameters, "epochs": epochs[0]}, self.seed), more

    def _digest(self, choice: Choice, data: Data) -> str:
        parts = [data.x, data.codes, data.weights, *(part for fold in data.folds for part in fold)]
        return data_digest(parts, [repr(step) for step in choice.transform])

    def _known(self, unique: int, fold: int, digest: str) -> bool:
        """Whether the journal has this fit; then it is done."""
        if self.journal.path is None:
            return False
        made = {
            "data": digest,
            "head": [self.head.name, _plain(self.head.canonical(self.parameters[unique]))],
            "by": [self.plan.by, list(map(str, self.plan.amounts[: self.number + 1]))],
            "fold": fold,
            "scores": list(self.scores),
            "seed": self.seed,
        }
        key = self.keys[unique, fold] = digest_json(made)
        if key not in self.journal.known:
            return False
        self.done[unique, fold] = self.journal.known[key]
        self.resumed += 1
        return True


@dataclass(frozen=True)
class _Fold:
    x_train: Matrix
    y_train: Codes
    x_test: Matrix
    y_test: Codes
    weights: Weights | None


def _transformed(transform: Sequence[tuple[str, Any]], data: Data, fold: tuple[Rows, Rows]) -> _Fold:
    """A fold with its transforms fitted on its training rows, made when its first candidate is due."""
    from sklearn.base import clone
    from sklearn.pipeline import Pipeline

    (train, held), x, codes = fold, data.x, data.codes
    if transform:
        pipeline = clone(Pipeline(list(transform)))
        try:
            x_train, x_test = pipeline.fit_transform(x[train], codes[train]), pipeline.transform(x[held])
        except UNFIT as error:
            raise UsageError(f"The transform cannot be fitted on {len(train)} rows: {error}") from error
    else:
        x_train, x_test = x[train], x[held]
    return _Fold(x_train, codes[train], x_test, codes[held], None if data.weights is None else data.weights[train])


def _weighted(estimator: Any, weights: Weights | None) -> dict[str, Weights]:
    """The sample weights as an argument, for an estimator that takes them."""
    name = None if weights is None else weight_parameter(estimator)
    return {} if name is None or weights is None else {name: weights}


def fit_once(estimator: Any, x: Matrix, codes: Codes, weights: Weights | None = None) -> bool:
    """Fit; whether the iterations ran out before convergence, which a short search does on purpose."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(x, codes, **_weighted(estimator, weights))
    return any(issubclass(item.category, ConvergenceWarning) for item in caught)


def _placed(place: tuple[int, int], *arguments: Any) -> tuple[tuple[int, int], Outcome]:
    """``_fit_and_score``, and which fit it is: they come back in the order in which they are finished."""
    return place, _fit_and_score(*arguments)


def _fit_and_score(
    estimator: Any, fold: _Fold, scores: Sequence[str], more: Sequence[int] = (), keep: bool = False
) -> Outcome:
    """One candidate on one fold; one that cannot be fitted or scored gets NaN, as in scikit-learn.

    more: epochs to go on with, step by step; an estimator that was fitted before does nothing else. keep: a later rung
    goes on with the estimator.
    """
    began = time.perf_counter()
    try:
        unconverged = not _was_fitted(estimator) and fit_once(estimator, fold.x_train, fold.y_train, fold.weights)
        for epochs in more:
            estimator.continue_fit(fold.x_train, fold.y_train, epochs, **_weighted(estimator, fold.weights))
    except UNFIT as error:
        nothing = (float("nan"),) * len(scores)
        return Outcome(nothing, time.perf_counter() - began, 0.0, False, str(error))
    fitted = time.perf_counter()
    values, errors = zip(*(_score(estimator, fold, name) for name in scores), strict=True)
    seconds = fitted - began, time.perf_counter() - fitted
    return Outcome(values, *seconds, unconverged, next(filter(None, errors), ""), estimator if keep else None)


def _was_fitted(estimator: Any) -> bool:
    return hasattr(estimator, "continue_fit") and hasattr(estimator, "classes_")


def _score(estimator: Any, fold: _Fold, name: str) -> tuple[float, str]:
    """A score, or NaN and why."""
    from sklearn.metrics import get_scorer

    try:
        if name in OF_PROBABILITIES:
            return OF_PROBABILITIES[name](*_answers(estimator, fold)), ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a label that a fold lacks is 0 for every candidate
            return float(get_scorer(name)(estimator, fold.x_test, fold.y_test)), ""
    except (*UNFIT, AttributeError) as error:  # the last where a score needs probabilities and there are none
        return float("nan"), str(error)


def _neg_log_loss(truth: Rows, found: npt.NDArray[Any]) -> float:
    from sklearn.metrics import log_loss

    known = truth < found.shape[1]
    own = log_loss(truth[known], found[known], labels=np.arange(found.shape[1])) if known.any() else 0.0
    return -float(own * known.mean() - np.log(np.finfo(found.dtype).eps) * (~known).mean())


def _top_2_accuracy(truth: Rows, found: npt.NDArray[Any]) -> float:
    return float((rank_of_truth(truth, found) <= 2).mean())


OF_PROBABILITIES: Final = {"neg_log_loss": _neg_log_loss, "top_k_accuracy": _top_2_accuracy}
"""scikit-learn's scores by these names, where it gives one; it gives none where training and held-out rows have other
classes. A row of a class that was not trained on has probability 0, clipped as scikit-learn does."""


def _answers(estimator: Any, fold: _Fold) -> tuple[Rows, npt.NDArray[Any]]:
    """Truth as columns of the probabilities, (n,), one beyond them for a class that was not trained on; and these."""
    classes = np.asarray(estimator.classes_)
    own = hasattr(estimator, "predict_proba")
    found = estimator.predict_proba(fold.x_test) if own else probabilities(estimator, fold.x_test, several=False)
    place = np.minimum(np.searchsorted(classes, fold.y_test), len(classes) - 1)
    return np.where(classes[place] == fold.y_test, place, len(classes)), np.asarray(found)


@contextmanager
def _parallel(jobs: int, threads: int) -> Iterator[Any]:
    """Worker processes that stay for the whole search, each with its share of the cores."""
    from joblib import Parallel, parallel_config

    with (
        parallel_config(backend="loky", inner_max_num_threads=threads),
        Parallel(n_jobs=jobs, return_as="generator_unordered") as parallel,
    ):
        yield parallel


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=" fits", desc="search", disable=not progress, dynamic_ncols=True)


def _rows(
    found: Candidates, scores: Sequence[str], plan: Rungs, last: Mapping[int, tuple[int, list[Outcome]]]
) -> list[dict[str, Any]]:
    """``cv_results_`` by rows, every point of the grid included.

    Of several scores the columns bear their names, as in scikit-learn; ``mean_test_score`` and its like are those of
    the one that decides. After halving, what got further ranks first.
    """
    table = np.array([[one.scores for one in last[unique][1]] for unique in range(len(found.unique))])
    reached = np.array([last[unique][0] for unique in range(len(found.unique))])
    named = {} if len(scores) == 1 else dict(enumerate(scores))
    ranks = {number: _ranks(table[:, :, number], reached, found.same_as) for number in range(len(scores))}
    rows = []
    for index, point in enumerate(found.points):
        unique = found.same_as[index]
        number, own = last[unique]
        row = {f"param_{name}": value if name in of_head(point) else _shown(value) for name, value in point.items()}
        for score, name in {**named, 0: named.get(0, "score")}.items():
            row |= _columns(name, table[unique, :, score], ranks[score][index])
        if named:
            row |= {f"{what}_test_score": row[f"{what}_test_{scores[0]}"] for what in ("mean", "std", "rank")}
        if len(plan.amounts) > 1:
            row |= {"rung": number, f"n_{plan.by}": plan.amounts[number]}
        row |= {
            "mean_fit_time": float(np.mean([outcome.fit_seconds for outcome in own])),
            "mean_score_time": float(np.mean([outcome.score_seconds for outcome in own])),
            "same_fit_as": "" if found.unique[unique] == index else f"candidate {found.unique[unique]}",
            "error": next((" ".join(outcome.error.split()) for outcome in own if outcome.error), ""),
        }
        rows.append(row)
    return rows


def _columns(name: str, by_fold: npt.NDArray[np.float64], rank: int) -> dict[str, Any]:
    """The columns of one score."""
    return {f"split{fold}_test_{name}": float(value) for fold, value in enumerate(by_fold)} | {
        f"mean_test_{name}": float(by_fold.mean()),
        f"std_test_{name}": float(by_fold.std()),
        f"rank_test_{name}": int(rank),
    }


def _ranks(by_fold: npt.NDArray[np.float64], reached: npt.NDArray[np.int64], same_as: Sequence[int]) -> Rows:
    """1 for the highest mean, ties share the better rank; NaN last; what reached a later rung comes first."""
    means = by_fold.mean(1)[list(same_as)]
    means = np.where(np.isnan(means), -np.inf, means)
    rung = reached[list(same_as)]
    return np.array(
        [1 + ((rung > rung[i]) | ((rung == rung[i]) & (means > means[i]))).sum() for i in range(len(means))]
    )


def _shown(value: Any) -> str:
    """A choice of features or of transforms in a table."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_shown(steps)}" for name, steps in value.items())
    return " + ".join(map(str, value)) or "none"
