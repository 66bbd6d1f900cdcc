"""Grid search: ``heads/grids/mlp.yaml`` beside scikit-learn's ``GridSearchCV``.

The peer searches ``Pipeline([StandardScaler, MLPClassifier])`` over the same candidates, folds, seeds and number of
jobs on the same float32 array in memory; both must give the same mean scores. Goal: at least as fast, on the file
as it is (half of whose candidates repeat the others under Adam, and are fitted once here) and on its distinct
candidates alone. Widths are smaller than the file's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline

from benchmarks.rounds import Figure, Rounds, as_time, speed_figure
from embedcache.options import usable_cores
from heads import head_named
from heads.config import find_grid, read_grid
from heads.grid import candidates, search
from heads.transforms import build

ROWS, DIMS, CLASSES = 1500, 256, 10
WIDTHS = [[128, 64], [64]]
EPOCHS = 20
FOLDS = 5
SEED = 0
REPEATS = 5

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Candidates and data. x: float32 (n, dims); codes: int64 (n,)."""

    head: str
    transform: list[Any]
    fixed: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    x: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int64]
    folds: list[tuple[Any, Any]]
    jobs: int


def run(repeats: int | None = None) -> list[Figure]:
    task = _task()
    distinct = {name: values for name, values in task.grid.items() if name != "learning_rate"}
    alone = Task(**{**vars(task), "grid": distinct})
    n = repeats or REPEATS
    return [_figure("grid_speed", task, n), _figure("grid_speed distinct", alone, n)]


def _task() -> Task:
    """``mlp.yaml`` with smaller networks, on drawn data."""
    document = read_grid(find_grid("mlp.yaml"))
    x, codes = make_classification(
        ROWS, DIMS, n_informative=32, n_classes=CLASSES, class_sep=2.0, random_state=SEED, shuffle=True
    )
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(x, codes))
    grid = {**document["grid"], "hidden_layer_sizes": WIDTHS}
    fixed = {**document["fixed"], "max_iter": EPOCHS}
    steps = build(document["transform"], ["drawn"], [DIMS], SEED)
    return Task(document["head"], steps, fixed, grid, x.astype(np.float32), codes, folds, usable_cores())


def _figure(name: str, task: Task, repeats: int) -> Figure:
    """Alternating searches; the workers are started before the first round."""
    _ours(task), _peer(task)
    pairs = [_round(task, ours_first=number % 2 == 0) for number in range(repeats)]
    rounds = Rounds(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))
    found = candidates(head_named(task.head), task.fixed, dict(task.grid))
    note = (
        f"{len(found.points)} candidates ({len(found.unique)} distinct) × {FOLDS} folds, {ROWS:,} × {DIMS} rows, "
        f"{task.jobs} jobs; mean scores equal"
    )
    return speed_figure(name, "GridSearchCV", rounds, as_time, 1.0, note)


def _round(task: Task, *, ours_first: bool) -> tuple[float, float]:
    """Seconds of ours and of the peer's. Raises RuntimeError where their mean scores differ."""
    found = {search_with: search_with(task) for search_with in ((_ours, _peer) if ours_first else (_peer, _ours))}
    (ours, our_scores), (peer, peer_scores) = found[_ours], found[_peer]
    if not np.allclose(our_scores, peer_scores, rtol=0, atol=1e-12):
        raise RuntimeError(f"The mean scores differ by up to {np.abs(our_scores - peer_scores).max():.3g}.")
    return ours, peer


def _ours(task: Task) -> tuple[float, Scores]:
    head = head_named(task.head)
    began = time.perf_counter()
    found = candidates(head, task.fixed, dict(task.grid))
    result = search(
        head,
        found,
        task.fixed,
        task.transform,
        task.x,
        task.codes,
        task.folds,
        "accuracy",
        seed=SEED,
        jobs=task.jobs,
        progress=False,
    )
    return time.perf_counter() - began, np.array([row["mean_test_score"] for row in result.rows])


def _peer(task: Task) -> tuple[float, Scores]:
    pipeline = Pipeline([*task.transform, ("head", head_named(task.head).build(task.fixed, SEED))])
    grid = {f"head__{name}": values for name, values in task.grid.items()}
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = GridSearchCV(pipeline, grid, cv=task.folds, scoring="accuracy", n_jobs=task.jobs, refit=False)
        found.fit(task.x, task.codes)
    return time.perf_counter() - began, np.asarray(found.cv_results_["mean_test_score"])
