"""What fitting a configuration will cost, found out on a few rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedcache.view import Features
from heads.estimating import mean_cost, seconds_of_scores
from heads.fit import head_of
from heads.fitting import fit_pipeline
from heads.inputs import label_of
from heads.saved import FittedHead
from heads.searching import of_head
from heads.splits import Rows
from heads.task import (
    SCORED_SPLITS,
    Ready,
    Task,
    choices_of,
    load,
    n_folds,
    out_of_fold_fits,
    place_of,
    rungs_for,
    steps_of,
    unlabelled,
)
from heads.thresholds import DEFAULT
from heads.transforms import for_sets


@dataclass(frozen=True)
class Preview:
    """What a configuration will do. fits: trainings, the final one included; seconds: about how long."""

    label: str
    samples: Mapping[str, int]
    dims: tuple[int, ...]
    points: int
    fits: int
    seconds: float
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


def preview(task: Task) -> list[Preview]:
    """What ``fit`` will do for each choice of features, timed on a few rows."""
    return [_preview(task, sets) for sets in choices_of(task)]


def _preview(task: Task, sets: Sequence[Features]) -> Preview:
    """Timed on the widest set where the search chooses; fusing the answers of heads takes no fit."""
    ready = load(task, max(sets, key=lambda one: sum(one.dims)))
    fused = task.fuses_answers and len(ready.features.sets) > 1
    fits = 0 if fused else _n_fits(task)
    samples = {name: len(getattr(task.splits, name)) for name in ("train", "validation", "test")}
    return Preview(
        " or ".join(label_of(one) for one in sets),
        samples,
        ready.features.dims,
        len(task.found.points),
        fits,
        _seconds(task, ready, fused),
        task.left_out,
        task.splits.notes,
    )


def _n_fits(task: Task) -> int:
    """Trainings, of the search, the final ones and for thresholds."""
    return _final_fits(task) + (rungs_for(task).fits(n_folds(task)) if task.config.searches else 0)


def _final_fits(task: Task) -> int:
    """Trainings after a search, or without one."""
    return (1 + out_of_fold_fits(task)) * task.config.seeds


def _seconds(task: Task, ready: Ready, fused: bool) -> float:
    """About how long it takes: the search in parallel, the final trainings, predictions and scores of all splits."""
    train, scored = ready.rows["train"], sum(len(ready.rows[name]) for name in SCORED_SPLITS)
    seconds = task.config.seeds * seconds_of_scores(task.kind, ready.codes[train], len(task.classes), scored)
    if fused:
        return seconds
    names = ready.features.names
    points = [task.found.points[index] for index in task.found.unique]
    chosen = [for_sets(point.get("transform", task.config.transform), names) for point in points]
    found = [
        ({**task.config.fixed, **of_head(point)}, steps_of(task, ready.features, transform))
        for point, transform in zip(points, chosen, strict=True)
    ]
    cost = mean_cost(task.head, found, ready.x[train], ready.codes[train], task.config.seed)
    predicted = task.config.seeds * (scored + len(unlabelled(task, ready)))
    seconds += _final_fits(task) * cost.fit + predicted * cost.row
    if task.config.searches:
        rungs, parts = rungs_for(task), n_folds(task)
        held = len(train) // parts if task.config.cv else len(ready.rows["validation"])
        fits = rungs.fits(parts)
        search = rungs.work(parts) * cost.fit + fits * held * len(task.scores) * cost.row
        seconds += search / min(task.jobs, fits)
    return seconds


def drafted(task: Task, features: Features, point: Mapping[str, Any], samples: Rows) -> FittedHead:
    """A candidate fitted on some samples of the base for one pass: it says nothing, and is as large as it will be."""
    targets = replace(task.targets, codes=task.codes[samples], strata=task.targets.strata[samples])
    none = np.zeros(0, np.int64)
    splits = replace(task.splits, train=np.arange(len(samples)), validation=none, test=none)
    few = replace(task, base=task.base.take(samples), targets=targets, splits=splits)
    ready = load(few, features)
    steps = steps_of(few, ready.features, for_sets(point.get("transform", task.config.transform), features.names))
    estimator = task.head.brief({**task.config.fixed, **of_head(point)}, task.config.seed, 1)
    pipeline = fit_pipeline(task.head.name, steps, estimator, ready.x, ready.codes, ready.rows["train"])
    pipeline.steps[-1] = "head", task.head.slim(pipeline[-1])
    return head_of(few, ready, pipeline, (DEFAULT,) * len(task.classes) if task.targets.kind == "multi" else ())


def chosen_by(task: Task, features: Features) -> list[dict[str, Any]]:
    """The candidates that a search fits on these features; each choice of features has all, unless one chooses."""
    points = [task.found.points[index] for index in task.found.unique]
    return [point for point in points if "features" not in point or task.sets[place_of(task, point)] is features]
