"""Fit heads: the one path from a configuration and a cache to scored, recorded runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.cache import CachedDataset, open_cache
from embedcache.errors import UsageError, unknown_name
from embedcache.view import Features, shared_groups, target_name
from heads import head_named, vqa
from heads.base import Head, check_parameters
from heads.config import HeadConfig, Selection
from heads.grid import UNFIT, Candidates, SearchResult, candidates, estimate_seconds, search
from heads.metrics import Interval, RowScores, scores
from heads.saved import FittedHead, bindings
from heads.selection import Vocabulary, selected, with_top_classes
from heads.splits import Rows, Splits, folds, make_splits
from heads.transforms import build, for_sets

SCORED_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Scored:
    """A split's samples with their probabilities, and the scores.

    ids: (n,). truth: codes (n,). probabilities: (n, classes). scores: metric to interval; empty without truth.
    own: scores that are means of one number a row, each (n,). by_type: scores of parts of the rows, by what divides
    them.
    """

    ids: npt.NDArray[np.object_]
    truth: Rows
    probabilities: npt.NDArray[np.float64]
    scores: Mapping[str, Interval]
    own: RowScores = field(default_factory=dict)
    by_type: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedRun:
    """One head fitted on one choice of features, and all that is worth keeping of it."""

    features: Features
    head: FittedHead
    parameters: Mapping[str, Any]
    scored: Mapping[str, Scored]
    counts: Mapping[str, int]
    search: SearchResult | None
    splitter: str | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def label(self) -> str:
        """The feature sets, as the tables name them."""
        return " + ".join(self.features.names)


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


@dataclass(frozen=True)
class Task:
    """A configuration made ready on a cache: what ``fit`` runs and ``preview`` describes.

    base: the samples that all feature sets have, without vectors. codes: class of each, -1 without a target; codes
    beyond the classes are labels that no class has, in the order of ``unseen``.
    """

    config: HeadConfig
    dataset: CachedDataset
    head: Head
    sets: tuple[Features, ...]
    base: Features
    target: str
    classes: tuple[Any, ...]
    codes: Rows
    splits: Splits
    found: Candidates
    jobs: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    unseen: tuple[Any, ...] = ()
    vocabulary: Vocabulary | None = None


def prepare(config: HeadConfig, cache: str | Path = "cache") -> Task:
    """Open features, make the selection and the splits; fits nothing.

    Raises MissingFeaturesError with the command that extracts what is missing, UsageError for what cannot be.
    """
    head = head_named(config.head)
    check_parameters(head, set(config.fixed))
    _check_score(config.score)
    opened = open_cache(cache)
    dataset = opened[config.dataset] if config.dataset else opened.only()
    sets = _feature_sets(dataset, config)
    _check_transform(config, sets)
    base, left_out = _common(dataset, sets, config.select)
    target = target_name(dataset.table, config.select.target)
    classes, codes = _codes(base, target)
    groups = shared_groups(base)
    splits = make_splits(
        base,
        codes,
        groups,
        validation=None if config.cv else config.validation,
        test=config.test,
        seed=config.seed,
        published=config.splits == "published",
    )
    vocabulary = None
    if config.select.top_classes is not None:
        classes, codes, splits, vocabulary = with_top_classes(classes, codes, splits, config.select.top_classes)
    known = vocabulary.classes if vocabulary is not None else len(classes)
    return Task(
        config=config,
        dataset=dataset,
        head=head,
        sets=sets,
        base=base,
        target=target,
        classes=classes[:known],
        codes=codes,
        splits=splits,
        found=candidates(head, config.fixed, config.grid),
        jobs=config.jobs or _cores(),
        left_out=left_out,
        unseen=classes[known:],
        vocabulary=vocabulary,
    )


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())


def _check_score(name: str) -> None:
    from sklearn.metrics import get_scorer_names

    if name not in get_scorer_names():
        raise unknown_name("score", name, get_scorer_names())


def _check_transform(config: HeadConfig, sets: Sequence[Features]) -> None:
    """Refuse what no fit could use, and a feature set that no choice of features has, before anything is fitted."""
    width = {name: dim for one in sets for name, dim in zip(one.names, one.dims, strict=True)}
    build(config.transform, list(width), list(width.values()), config.seed)


def _feature_sets(dataset: CachedDataset, config: HeadConfig) -> tuple[Features, ...]:
    if config.features is None:
        return (dataset.features(captions=config.select.captions),)
    return tuple(dataset.features(*names, captions=config.select.captions) for names in config.features)


def _common(dataset: CachedDataset, sets: Sequence[Features], selection: Selection) -> tuple[Features, dict[str, int]]:
    """The selected samples that all sets have, and how many were left out by reason."""
    rows = np.unique(sets[0].sample_rows)
    left_out: dict[str, int] = {}
    for one in sets:
        rows = np.intersect1d(rows, one.sample_rows)
        for reason, count in one.left_out.items():
            left_out[reason] = max(count, left_out.get(reason, 0))
    rows = selected(dataset.table, rows, selection)
    if not len(rows):
        raise UsageError(f"No sample of {dataset.name} is left: {left_out or 'the filter keeps none'}.")
    return Features(dataset.table, (), rows, "mean", {}), left_out


def _codes(base: Features, target: str) -> tuple[tuple[Any, ...], Rows]:
    """Sorted classes and the code of each sample, -1 without a target."""
    labels = base.target(target)
    labelled = np.array([label is not None and label == label for label in labels])  # NaN is no label
    for label in labels[labelled]:
        if isinstance(label, list):
            raise UsageError(f"The target {target!r} has several labels per sample; this head takes one.")
        if not isinstance(label, str | int | float):
            raise UsageError(f"The target {target!r} holds a {type(label).__name__}; a label is a text or a number.")
    if not labelled.any():
        raise UsageError(f"No sample that has all features has a target {target!r}.")
    classes, inverse = np.unique(labels[labelled], return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"The target {target!r} has one class only, {classes[0]!r}: there is nothing to learn.")
    codes = np.full(len(labels), -1, np.int64)
    codes[labelled] = inverse
    return tuple(classes.tolist()), codes


@dataclass(frozen=True)
class _Ready:
    """One choice of features with its matrix; unit rows by split."""

    features: Features
    x: npt.NDArray[np.float32]
    codes: Rows
    groups: Rows
    base_row: Rows
    rows: Mapping[str, Rows]


def _ready(task: Task, features: Features) -> _Ready:
    """Units of the common samples, in the order of the base; units of one sample share its split."""
    place = np.full(task.dataset.table.samples.num_rows, -1, np.int64)
    place[task.base.sample_rows] = np.arange(len(task.base))
    features = features.take(place[features.sample_rows] >= 0)
    base_row = place[features.sample_rows]
    of_split = np.full(len(task.base), "", object)
    for name in ("train", "validation", "test"):
        of_split[getattr(task.splits, name)] = name
    rows = {name: np.flatnonzero(of_split[base_row] == name) for name in ("train", "validation", "test")}
    x = features.matrix(np.float32)
    return _Ready(features, x, task.codes[base_row], shared_groups(features), base_row, rows)


def preview(task: Task) -> list[Preview]:
    """What ``fit`` will do for each choice of features, timed on a few rows."""
    return [_preview(task, _ready(task, features)) for features in task.sets]


def _preview(task: Task, ready: _Ready) -> Preview:
    fits = _n_fits(task)
    train = ready.rows["train"]
    parameters = [{**task.config.fixed, **task.found.points[index]} for index in task.found.unique]
    seconds = estimate_seconds(
        task.head,
        parameters,
        ready.x[train],
        ready.codes[train],
        fits,
        len(train),
        min(task.jobs, max(1, fits - 1)),
        task.config.seed,
    )
    samples = {name: len(getattr(task.splits, name)) for name in ("train", "validation", "test")}
    return Preview(
        " + ".join(ready.features.names),
        samples,
        ready.features.dims,
        len(task.found.points),
        fits,
        seconds,
        task.left_out,
        task.splits.notes,
    )


def _n_fits(task: Task) -> int:
    """Trainings: unique candidates times folds (or once on the validation split), and the final one."""
    if not task.config.searches:
        return 1
    per_candidate = task.config.cv.folds if task.config.cv else 1
    return len(task.found.unique) * per_candidate + 1


def fit(task: Task, *, progress: bool = False) -> list[FittedRun]:
    """Fit and score one head per choice of features, on the same samples and splits."""
    return [_fit_one(task, _ready(task, features), progress) for features in task.sets]


def _fit_one(task: Task, ready: _Ready, progress: bool) -> FittedRun:
    began = time.perf_counter()
    names, dims = ready.features.names, ready.features.dims
    steps = build(for_sets(task.config.transform, names), names, dims, task.config.seed)
    found, splitter = _search(task, ready, steps, progress) if task.config.searches else (None, None)
    point = task.found.points[found.best] if found is not None else {}
    parameters = {**task.config.fixed, **point}
    estimator = _final(task, ready, steps, parameters)
    head = FittedHead(
        task.head.name,
        task.dataset.name,
        task.target,
        task.classes,
        bindings(ready.features),
        task.config.select.captions,
        estimator,
    )
    scored = {name: _scored(task, ready, head, name) for name in SCORED_SPLITS if len(ready.rows[name])}
    unlabelled = _unlabelled(task, ready)
    if len(unlabelled):
        scored["unlabelled"] = _averaged(task, ready, head, unlabelled)
    counts = {name: len(getattr(task.splits, name)) for name in ("train", *SCORED_SPLITS)}
    notes = (*task.splits.notes, *_convergence(found))
    return FittedRun(
        ready.features, head, parameters, scored, counts, found, splitter, notes, time.perf_counter() - began
    )


def _convergence(found: SearchResult | None) -> list[str]:
    if found is None or not found.unconverged:
        return []
    return [f"{found.unconverged} fits of the search ended at max_iter before they converged"]


def _search(task: Task, ready: _Ready, steps: list[tuple[str, Any]], progress: bool) -> tuple[SearchResult, str]:
    """Score every candidate on folds of the training rows, or on the validation split."""
    train = ready.rows["train"]
    if task.config.cv is not None:
        x, codes = ready.x[train], ready.codes[train]
        parts, splitter = folds(codes, ready.groups[train], task.config.cv.folds, task.config.cv.seed)
    else:
        both = np.concatenate([train, ready.rows["validation"]])
        x, codes = ready.x[both], ready.codes[both]
        parts = [(np.arange(len(train)), np.arange(len(train), len(both)))]
        splitter = "the validation split"
    found = search(
        task.head,
        task.found,
        task.config.fixed,
        steps,
        x,
        codes,
        parts,
        task.config.score,
        seed=task.config.seed,
        jobs=task.jobs,
        progress=progress,
    )
    return found, splitter


def _final(task: Task, ready: _Ready, steps: list[tuple[str, Any]], parameters: Mapping[str, Any]) -> Any:
    """The chosen candidate, fitted on all training rows and made fit to save."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline([*steps, ("head", task.head.build(parameters, task.config.seed))])
    train = ready.rows["train"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            pipeline.fit(ready.x[train], ready.codes[train])
        except UNFIT as error:
            raise UsageError(f"scikit-learn cannot fit the head {task.head.name!r}: {error}") from error
    task.head.slim(pipeline[-1])
    return pipeline


def _unlabelled(task: Task, ready: _Ready) -> Rows:
    """Units of samples without a target: predicted, never scored."""
    return np.flatnonzero(task.codes[ready.base_row] < 0)


def _averaged(task: Task, ready: _Ready, head: FittedHead, rows: Rows) -> Scored:
    """Probabilities per sample: where a sample has several units (captions), their mean."""
    probabilities = head.predict_proba(ready.x[rows])
    samples, inverse = np.unique(ready.base_row[rows], return_inverse=True)
    mean = np.zeros((len(samples), probabilities.shape[1]))
    np.add.at(mean, inverse, probabilities)
    mean /= np.bincount(inverse)[:, None]
    return Scored(task.base.ids[samples], task.codes[samples], mean, {})


def _scored(task: Task, ready: _Ready, head: FittedHead, split: str) -> Scored:
    found = _averaged(task, ready, head, ready.rows[split])
    samples = task.base.take(np.unique(ready.base_row[ready.rows[split]]))
    own = vqa.row_scores(samples, task.target, head.classes, found.probabilities.argmax(1))
    by_type = vqa.by_type(samples, found.truth, found.probabilities, own[vqa.METRIC]) if own else {}
    return replace(
        found, scores=scores(found.truth, found.probabilities, task.config.seed, own), own=own, by_type=by_type
    )
