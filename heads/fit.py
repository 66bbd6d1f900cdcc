"""Fit heads: from a configuration that was made ready to scored runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import UsageError
from embedcache.view import Features
from heads import vqa
from heads.config import Folds
from heads.fitting import continue_pipeline, fit_pipeline
from heads.fusion import Late, Union, stacked_weights, union_thresholds, weighted
from heads.grid import Choice, Data, SearchResult, search_choices
from heads.inputs import label_of
from heads.kinds import Truth
from heads.metrics import Interval, RowScores
from heads.probabilities import of_all
from heads.repeats import Repeats, gathered, seeds_of
from heads.saved import FittedHead, bindings
from heads.searching import data_digest, journal_path, of_head
from heads.sequences import vectors_of
from heads.splits import Rows
from heads.task import (
    SCORED_SPLITS,
    Ready,
    Task,
    choices_of,
    chosen,
    folds_for,
    load,
    n_folds,
    place_of,
    repeated,
    rungs_for,
    searched_rows,
    steps_of,
    unlabelled,
)
from heads.thresholds import DEFAULT, Per, tune
from heads.told import (
    listed,
    of_epochs,
    of_history,
    of_other_classes,
    of_oversampling,
    of_search,
    of_weights,
    without_effect,
)
from heads.transforms import for_sets

if TYPE_CHECKING:
    from heads.curves import CurvePoint

FEW = 5
"""Positives below which a label's own threshold is more chance than knowledge: that is said."""
_CHUNK = 8192


@dataclass(frozen=True)
class Scored:
    """A split's samples with their probabilities, and the scores.

    ids: (n,). truth: codes (n,) or indicators (n, labels). probabilities: (n, classes). scores: metric to interval;
    empty without truth. own: scores that are means of one number a row, each (n,). seconds: what the probabilities
    took. by_type: scores of parts of the rows, by what divides them.
    """

    ids: npt.NDArray[np.object_]
    truth: Truth
    probabilities: npt.NDArray[np.float64]
    scores: Mapping[str, Interval]
    own: RowScores = field(default_factory=dict)
    seconds: float = 0.0
    by_type: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """Samples that a head was not trained on, with its probabilities. where: which they are, for the notes."""

    scored: Scored
    where: str


@dataclass(frozen=True)
class FittedRun:
    """One head fitted on one choice of features, and all that is worth keeping of it.

    transform: the steps, those that the search chose where it did. curve: scores by number of training rows.
    held: probabilities of samples that it was not trained on, and what those are, where something was learned of them.
    fusion: how several feature sets became one answer.
    """

    features: Features
    head: FittedHead
    parameters: Mapping[str, Any]
    scored: Mapping[str, Scored]
    counts: Mapping[str, int]
    search: SearchResult | None
    splitter: str | None
    notes: tuple[str, ...]
    seconds: float
    transform: Any = None
    curve: tuple[CurvePoint, ...] = ()
    held: Held | None = None
    fusion: str = "concat"
    repeats: Repeats | None = None

    @property
    def label(self) -> str:
        """The feature sets, as the tables name them, and how they are fused where it is not side by side."""
        return label_of(self.features) + ("" if self.fusion == "concat" else f" ({self.fusion})")


def fit(
    task: Task, *, progress: bool = False, searches: Path | None = None, name: str | None = None
) -> list[FittedRun]:
    """Fit and score one head per choice of features, on the same samples and splits.

    progress: show bars on stderr, that of epochs with ``name`` before it, by default the head's. searches: folder where
    finished fits of a search are kept until the run is recorded, for one that is interrupted.
    """
    label = name or task.head.name if progress else None
    if not task.fuses_answers:
        return [_fit_one(task, sets, _shown(task, label, sets), searches) for sets in choices_of(task)]
    runs: list[FittedRun] = []
    alone: dict[str, FittedRun] = {}
    for features in task.sets:  # each set alone comes first
        if len(features.sets) == 1:
            run = alone[features.sets[0].file.fingerprint] = _fit_one(
                task, (features,), _shown(task, label, (features,)), searches
            )
        else:
            run = _fuse(task, load(task, features), [alone[one.file.fingerprint] for one in features.sets])
        runs.append(run)
    return runs


def _shown(task: Task, name: str | None, sets: Sequence[Features]) -> str | None:
    """What stands before the bar of a run: its features too, where others are fitted beside it."""
    return name if name is None or len(choices_of(task)) == 1 else f"{name}, {label_of(sets[0])}"


def _fit_one(task: Task, sets: Sequence[Features], shown: str | None, searches: Path | None) -> FittedRun:
    """shown: the name before its bars; None shows none."""
    began = time.perf_counter()
    held: dict[int, Ready] = {}

    def loaded(features: Features) -> Ready:
        """The matrix of one choice of features at a time."""
        if id(features) not in held:
            held.clear()
            held[id(features)] = load(task, features)
        return held[id(features)]

    found, splitter = _search(task, sets, loaded, shown is not None, searches) if task.config.searches else (None, None)
    point = task.found.points[found.best] if found is not None else {}
    features, transform = chosen(task, sets, point)
    ready = loaded(features)
    steps = steps_of(task, ready.features, transform)
    parameters = {**task.config.fixed, **of_head(point)}
    estimator = _fitted(task, ready, steps, parameters, ready.rows["train"], shown)
    run = replace(_scored_run(task, ready, steps, parameters, estimator, shown), transform=transform)
    repeats = _repeats(task, ready, parameters, run, shown)
    said = [*of_search(found), *of_other_classes(task), *((repeats.said,) if repeats is not None else ())]
    notes = (*run.notes, *said)
    seconds = time.perf_counter() - began
    return replace(run, search=found, splitter=splitter, repeats=repeats, notes=notes, seconds=seconds)


def _repeats(
    task: Task, ready: Ready, parameters: Mapping[str, Any], first: FittedRun, shown: str | None
) -> Repeats | None:
    """The final fit with each further seed, scored as the first was; None where one seed is all that is asked for."""
    seeds = seeds_of(task.config.seed, task.config.seeds)
    if len(seeds) == 1:
        return None
    scores = [_values(first)]
    for seed in seeds[1:]:
        again = replace(task, config=task.config.model_copy(update={"seed": seed}))
        steps = steps_of(again, ready.features, first.transform)
        own = None if shown is None else f"seed {seed}, {shown}"
        estimator = _fitted(again, ready, steps, parameters, ready.rows["train"], own)
        scores.append(_values(_scored_run(again, ready, steps, parameters, estimator, own)))
    return gathered(seeds, scores)


def _values(run: FittedRun) -> dict[str, dict[str, float]]:
    """Scores by split and metric, without their intervals."""
    return {
        split: {name: score.value for name, score in one.scores.items()}
        for split, one in run.scored.items()
        if one.scores
    }


def continued(task: Task, head: FittedHead, epochs: int, *, progress: bool = False) -> FittedRun:
    """``epochs`` epochs more of an iterative head on the training rows of ``task``, scored as ``fit`` scores.

    Its transforms stay as they were fitted. Raises UsageError for features of other fingerprints, and for other
    classes than it was fitted on.
    """
    began = time.perf_counter()
    ready = load(task, task.sets[0])
    head.check(ready.features)
    if head.classes != task.classes:
        raise UsageError(
            f"The head knows {len(head.classes)} classes, and the data set has {len(task.classes)} now, or others: "
            "its training cannot go on. Fit a head on these."
        )
    continue_pipeline(
        head.estimator,
        ready.x,
        ready.codes,
        repeated(task, ready, ready.rows["train"]),
        epochs,
        weights=ready.weights,
        held=ready.rows["validation"],
        shown=task.head.name if progress else None,
    )
    transform = for_sets(task.config.transform, ready.features.names)
    steps = steps_of(task, ready.features, transform)
    run = _scored_run(task, ready, steps, task.config.fixed, head.estimator)
    return replace(run, transform=transform, seconds=time.perf_counter() - began)


def _scored_run(
    task: Task,
    ready: Ready,
    steps: list[tuple[str, Any]],
    parameters: Mapping[str, Any],
    estimator: Any,
    shown: str | None = None,
) -> FittedRun:
    """A fitted pipeline with its thresholds, as a head with its scores."""
    began = time.perf_counter()
    held = _held_out(task, ready, estimator, steps, parameters, shown) if task.holds_out else None
    thresholds, said = _thresholds(task, held)
    said = [
        *of_epochs(estimator, parameters),
        *of_history(ready, estimator),
        *said,
        *of_weights(task, ready, parameters),
        *of_oversampling(task, ready),
    ]
    fusion = task.config.fusion.kind if len(ready.features.sets) > 1 else "concat"
    run = _run(task, ready, head_of(task, ready, estimator, thresholds), said, began)
    return replace(run, parameters=parameters, held=held, fusion=fusion)


def _fuse(task: Task, ready: Ready, members: Sequence[FittedRun]) -> FittedRun:
    """The members' answers made one. members: a run for each of the feature sets, in their order."""
    began = time.perf_counter()
    estimators = tuple(one.head.estimator for one in members)
    if task.config.fusion.kind == "late":
        weights, said = _late_weights(task, members)
        estimator: Any = Late(estimators, ready.features.dims, weights, task.targets.kind == "multi")
        thresholds, more = _thresholds(task, _held_together(members, lambda found: weighted(weights, found)))
        parameters = {"weights": dict(zip(ready.features.names, weights, strict=True))}
    else:
        table, said = _of_union(task, members)
        estimator, more = Union(estimators, ready.features.dims, table), []
        thresholds, parameters = (DEFAULT,) * len(task.classes), {}
    run = _run(task, ready, head_of(task, ready, estimator, thresholds), [*said, *more], began)
    return replace(run, parameters=parameters, fusion=task.config.fusion.kind)


def head_of(task: Task, ready: Ready, estimator: Any, thresholds: tuple[float, ...]) -> FittedHead:
    """A fitted pipeline with all that a head is kept with. thresholds: of each label; none where samples have one."""
    prior = task.kind.prior(task.codes[task.splits.train], len(task.classes))
    vectors = bool(ready.features.sets)
    return FittedHead(
        task.head.name,
        task.dataset.name,
        task.target,
        task.classes,
        bindings(ready.features),
        task.config.select.captions,
        estimator,
        task.targets.kind,
        thresholds,
        tuple(_mean(ready.x, ready.rows["train"]).tolist()) if vectors else (),
        tuple(prior.tolist()),
    )


def _run(task: Task, ready: Ready, head: FittedHead, said: Sequence[str], began: float) -> FittedRun:
    """The head scored on its splits; what else there is to say of it is for the caller."""
    scored = {name: _scored(task, ready, head, name) for name in task.scored if len(ready.rows[name])}
    others = unlabelled(task, ready)
    if len(others):
        scored["unlabelled"] = _averaged(task, ready, others, head.predict_proba(ready.x[others]))
    counts = {name: len(getattr(task.splits, name)) for name in ("train", *SCORED_SPLITS)}
    notes = (*task.splits.notes, *without_effect(task), *said)
    return FittedRun(ready.features, head, {}, scored, counts, None, None, notes, time.perf_counter() - began)


def _held_together(members: Sequence[FittedRun], fused: Callable[[Any], Any]) -> Held | None:
    """What the members hold out, fused: all of them hold out the same samples."""
    held = [one.held for one in members if one.held is not None]
    if len(held) < len(members):
        return None
    first = held[0]
    found = np.stack([one.scored.probabilities for one in held])
    return Held(replace(first.scored, probabilities=fused(found)), first.where)


def _late_weights(task: Task, members: Sequence[FittedRun]) -> tuple[tuple[float, ...], list[str]]:
    """The members' weights in the mean of probabilities, and what is to be said of them."""
    held = [one.held for one in members if one.held is not None]
    equal = (1 / len(members),) * len(members)
    if task.config.fusion.weights == "equal":
        return equal, ["late fusion: equal weights, as stated"]
    if not held:
        return equal, ["late fusion: equal weights, as there are no validation rows to learn them on"]
    weights = stacked_weights(held[0].scored.truth, np.stack([one.scored.probabilities for one in held]))
    shown = ", ".join(f"{one.label} {weight:.3f}" for one, weight in zip(members, weights, strict=True))
    return tuple(weights.tolist()), [f"late fusion: weights of least squared error on {held[0].where}: {shown}"]


def _of_union(task: Task, members: Sequence[FittedRun]) -> tuple[tuple[tuple[float, ...], ...], list[str]]:
    """Thresholds of each member by label, (members, labels), and what is to be said of them."""
    learned, notes = _learned(task)
    rule = task.threshold
    held = [one.held for one in members if one.held is not None]
    if rule.fixed is not None or not held:
        one = DEFAULT if rule.fixed is None else rule.fixed
        why = "not tuned" if rule.fixed is not None else "as there are no validation rows to tune on"
        return ((one,) * len(task.classes),) * len(members), [*notes, f"union: threshold {one:g} everywhere, {why}"]
    found = np.stack([one.scored.probabilities for one in held])
    table = union_thresholds(held[0].scored.truth > 0, found, rule.tune, rule.per, learned)
    many = {"label": "one per label and feature set", "modality": "one per feature set", "all": "one for all"}
    notes.append(f"union: thresholds tuned together, {many[rule.per]}, on {held[0].where}: their own scores flatter")
    if rule.per == "modality" and learned.any():
        first = int(np.flatnonzero(learned)[0])
        shown = (f"{one.label} {own[first]:.3f}" for one, own in zip(members, table, strict=True))
        notes.append(f"union: a label is predicted from {', '.join(shown)} on")
    return tuple(tuple(own) for own in table.tolist()), notes


def _search(
    task: Task, sets: Sequence[Features], loaded: Callable[[Features], Ready], progress: bool, searches: Path | None
) -> tuple[SearchResult, str]:
    """Score every candidate on folds of the training rows, or on the validation split."""
    splitters: list[str] = []

    def data(features: Features) -> Data:
        ready = loaded(features)
        used, parts, splitter = searched_rows(task, ready)
        splitters.append(splitter)
        weights = None if ready.weights is None else ready.weights[used]
        return Data(ready.x[used], ready.codes[used], parts, weights)

    made: dict[str, tuple[int, Choice]] = {}
    choice_of = []
    for index in task.found.unique:
        features, transform = chosen(task, sets, task.found.points[index])
        key = repr((place_of(task, task.found.points[index]), transform))
        if key not in made:
            steps = steps_of(task, features, transform)
            made[key] = len(made), Choice(steps, partial(data, features))
        choice_of.append(made[key][0])
    found = search_choices(
        task.head,
        task.found,
        task.config.fixed,
        [choice for _, choice in made.values()],
        choice_of,
        n_folds(task),
        task.scores,
        seed=task.config.seed,
        jobs=task.jobs,
        progress=progress,
        rungs=rungs_for(task),
        journal=journal_path(searches, _identity(task, sets)),
    )
    return found, splitters[0]


def _identity(task: Task, sets: Sequence[Features]) -> dict[str, Any]:
    """What makes a search the same one when it is started again; its numbers are in the journal's keys."""
    import sklearn

    return {
        "config": task.config.model_dump(exclude={"jobs"}),
        "target": task.target,
        "features": [[one.file.fingerprint for one in features.sets] for features in sets],
        "splits": data_digest([task.splits.train, task.splits.validation, task.splits.test], task.classes),
        "scikit-learn": sklearn.__version__,
    }


def _fitted(
    task: Task,
    ready: Ready,
    steps: list[tuple[str, Any]],
    parameters: Mapping[str, Any],
    rows: Rows,
    shown: str | None = None,
) -> Any:
    """The chosen candidate, fitted on these rows and made fit to save. shown: the name before its bar of epochs."""
    estimator = task.head.build(parameters, task.config.seed)
    held = ready.rows["validation"]
    rows = repeated(task, ready, rows)
    pipeline = fit_pipeline(
        task.head.name, steps, estimator, ready.x, ready.codes, rows, weights=ready.weights, held=held, shown=shown
    )
    pipeline.steps[-1] = "head", task.head.slim(pipeline[-1])
    return pipeline


def _mean(rows_in: Any, rows: Rows) -> npt.NDArray[np.float64]:
    """The mean vector of some rows, (dims,), without a copy of them all."""
    x = vectors_of(rows_in)
    total = np.zeros(x.shape[1])
    for start in range(0, len(rows), _CHUNK):
        total += x[rows[start : start + _CHUNK]].sum(0, dtype=np.float64)
    return total / len(rows)


def _held_out(
    task: Task,
    ready: Ready,
    estimator: Any,
    steps: list[tuple[str, Any]],
    parameters: Mapping[str, Any],
    shown: str | None,
) -> Held | None:
    """Samples that the head was not trained on: validation rows, or with ``cv`` and no such rows the training rows.

    Of those the probabilities are out of fold, by the chosen candidate. Never test rows. None where there is neither.
    """
    rows, cv = ready.rows["validation"], task.config.cv
    if len(rows):
        found = of_all(estimator, ready.x[rows], len(task.classes), several=task.targets.kind == "multi")
        held = _averaged(task, ready, rows, found)
        return Held(held, f"{len(held.ids):,} validation samples")
    if cv is None:
        return None
    held = _averaged(task, ready, ready.rows["train"], _out_of_fold(task, ready, steps, parameters, cv, shown))
    return Held(held, f"out-of-fold probabilities of {len(held.ids):,} training samples")


def _thresholds(task: Task, held: Held | None) -> tuple[tuple[float, ...], list[str]]:
    """A threshold for each label, and what is to be said of them; none where samples have one label.

    Tuned on samples that were held out; where there are none, they are 0.5.
    """
    if task.targets.kind == "single":
        return (), []
    learned, notes = _learned(task)
    rule = task.threshold
    if rule.fixed is not None:
        return (rule.fixed,) * len(task.classes), [*notes, f"threshold {rule.fixed:g} for every label, not tuned"]
    if held is None:
        return (DEFAULT,) * len(task.classes), [
            *notes,
            f"no validation rows to tune on: threshold {DEFAULT} for every label",
        ]
    truth = held.scored.truth > 0
    per: Per = "label" if rule.per == "label" else "all"  # of one modality, one per modality is one for all
    tuned = tune(truth, held.scored.probabilities, rule.tune, per, learned)
    aim = {"f1": "F1", "balance": "as many false positives as false negatives"}[rule.tune]
    many = {"label": "one per label", "all": "one for all"}[per]
    flatter = ": their own scores flatter" if "validation" in held.where else ""
    notes.append(f"thresholds tuned for {aim}, {many}, on {held.where}{flatter}")
    if unknown := [str(task.classes[code]) for code in np.flatnonzero(tuned.defaulted & learned)]:
        notes.append(f"threshold {DEFAULT} for labels without a positive there: {listed(unknown)}")
    few = ~tuned.defaulted & (truth.sum(0) < FEW)
    if per == "label" and few.any():
        notes.append(f"{few.sum()} thresholds rest on fewer than {FEW} positives each: one for all is steadier")
    return tuple(tuned.thresholds.tolist()), notes


def _learned(task: Task) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Labels that some training rows have and some have not, (labels,), and a note that names the others."""
    own = task.codes[task.splits.train] > 0
    never, always = ~own.any(0), own.all(0)
    notes = []
    for constant, what in ((never, "no training row has"), (always, "all training rows have")):
        if constant.any():
            names = [str(task.classes[code]) for code in np.flatnonzero(constant)]
            notes.append(f"labels that {what}, threshold {DEFAULT}: {listed(names)}")
    return np.asarray(~(never | always)), notes


def _out_of_fold(
    task: Task,
    ready: Ready,
    steps: list[tuple[str, Any]],
    parameters: Mapping[str, Any],
    cv: Folds,
    shown: str | None,
) -> npt.NDArray[np.float64]:
    """Probabilities (training rows, labels), each row's by a head that was fitted without its fold."""
    train = ready.rows["train"]
    parts, _ = folds_for(task, ready, cv)
    found = np.zeros((len(train), len(task.classes)))
    for number, (kept, held) in enumerate(parts, 1):
        own = None if shown is None else f"fold {number} of {len(parts)}, {shown}"
        estimator = _fitted(task, ready, steps, parameters, train[kept], own)
        several = task.targets.kind == "multi"
        found[held] = of_all(estimator, ready.x[train[held]], len(task.classes), several=several)
    return found


def _averaged(task: Task, ready: Ready, rows: Rows, probabilities: npt.NDArray[np.float64]) -> Scored:
    """Probabilities per sample: where a sample has several units (captions), their mean."""
    samples, inverse = np.unique(ready.base_row[rows], return_inverse=True)
    mean = np.zeros((len(samples), probabilities.shape[1]))
    np.add.at(mean, inverse, probabilities)
    mean /= np.bincount(inverse)[:, None]
    return Scored(task.base.ids[samples], task.codes[samples], mean, {})


def _scored(task: Task, ready: Ready, head: FittedHead, split: str) -> Scored:
    rows = ready.rows[split]
    began = time.perf_counter()
    found = _averaged(task, ready, rows, head.predict_proba(ready.x[rows]))
    seconds = time.perf_counter() - began
    own, by_type = {}, {}
    if task.targets.kind == "single":
        samples = task.base.take(np.unique(ready.base_row[rows]))
        own = vqa.row_scores(samples, task.target, head.classes, found.probabilities.argmax(1))
        by_type = vqa.by_type(samples, found.truth, found.probabilities, own[vqa.METRIC]) if own else {}
    scores = task.kind.scores(found.truth, found.probabilities, head.thresholds, task.config.seed, own)
    return replace(found, scores=scores, own=own, seconds=seconds, by_type=by_type)
