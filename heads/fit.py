"""Fit heads: the one path from a configuration and a cache to scored, recorded runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache.cache import CachedDataset, open_cache
from embedcache.errors import UsageError
from embedcache.samples import TARGET_PREFIX, combined
from embedcache.view import Features, shared_groups, target_name
from heads import HEADS, head_named, memory, vqa
from heads.base import TOKENS, Head, check_enough, innermost, reads, weight_parameter
from heads.class_weights import ByClassName
from heads.config import Folds, HeadConfig, Selection, Threshold
from heads.estimating import mean_cost, seconds_of_scores
from heads.fitting import Weights, continue_pipeline, fit_pipeline, history_of, trained, weights_of
from heads.fusion import OF_ANSWERS, Late, Union, stacked_weights, union_thresholds, weighted
from heads.grid import Candidates, Choice, Data, SearchResult, candidates, search_choices
from heads.inputs import feature_sets, inputs_for, label_of, transforms_apply, with_each_alone
from heads.kinds import KINDS, Kind, SeveralLabels, Targets, Truth
from heads.metrics import Interval, RowScores
from heads.multilabel import indicators, is_multilabel, strata
from heads.oversampling import oversampled
from heads.probabilities import of_all
from heads.repeats import Repeats, gathered, seeds_of
from heads.saved import FittedHead, bindings
from heads.searching import Rungs, data_digest, journal_path, of_head, rungs_of
from heads.selection import Vocabulary, selected, with_top_classes
from heads.sequences import vectors_of, with_transform_inside
from heads.splits import Rows, Splits, folds, make_splits
from heads.thresholds import DEFAULT, Per, tune
from heads.transforms import build, check_components, for_sets, standardized_inside

if TYPE_CHECKING:
    from heads.curves import CurvePoint

SCORED_SPLITS = ("validation", "test")
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

    base: the samples that all feature sets have, without vectors. targets: what is to be predicted of them; codes
    beyond the classes are labels that no class has, in the order of ``unseen``. scored: the splits that are scored.
    """

    config: HeadConfig
    dataset: CachedDataset
    head: Head
    sets: tuple[Features, ...]
    base: Features
    target: str
    targets: Targets
    splits: Splits
    found: Candidates
    jobs: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    unseen: tuple[Any, ...] = ()
    vocabulary: Vocabulary | None = None
    scored: tuple[str, ...] = SCORED_SPLITS

    @property
    def kind(self) -> Kind:
        """One label per sample, or several."""
        return KINDS[self.targets.kind]

    @property
    def classes(self) -> tuple[Any, ...]:
        """The classes or labels, in order."""
        return self.targets.classes

    @property
    def codes(self) -> Truth:
        """Codes (n,) or indicators (n, labels) of the base's samples; -1 without a target."""
        return self.targets.codes

    @property
    def score(self) -> str:
        """What the search maximises."""
        return self.scores[0]

    @property
    def scores(self) -> tuple[str, ...]:
        """What the search scores, what it maximises first."""
        return self.config.scores or (self.kind.default_score,)

    @property
    def threshold(self) -> Threshold:
        """Where labels begin to be predicted, if samples may have several."""
        return self.config.threshold or Threshold()

    @property
    def tunes(self) -> bool:
        """Whether thresholds are tuned."""
        return self.targets.kind == "multi" and self.threshold.fixed is None

    @property
    def fuses_answers(self) -> bool:
        """Whether several feature sets are fused by the answers of their own heads."""
        return self.config.fusion.kind in OF_ANSWERS

    @property
    def holds_out(self) -> bool:
        """Whether probabilities of samples that a head was not trained on are needed."""
        return self.tunes or (self.config.fusion.kind == "late" and self.config.fusion.weights == "learned")


def prepare(config: HeadConfig, cache: str | Path = "cache", *, within: Rows | None = None) -> Task:
    """Open features, make the selection and the splits; fits nothing.

    within: samples, rows of the data set's table, beyond which none is used: those that other heads have as well.
    Raises MissingFeaturesError with the command that extracts what is missing, UsageError for what cannot be.
    """
    head = head_named(config.head)
    if reads(head) == TOKENS:
        config = with_transform_inside(config)
    elif streams(head):
        config = standardized_inside(config)
    found = candidates(head, config.fixed, config.grid, config.search, config.n_iter, config.seed)
    opened = open_cache(cache)
    dataset = opened[config.dataset] if config.dataset else opened.only()
    sets = feature_sets(head, dataset, config)
    sets = with_each_alone(dataset, sets, config.fusion, searched=config.searches_features)
    _check_transform(config, sets)
    base, left_out = _common(dataset, sets, config.select, within)
    target = target_name(dataset.table, config.select.target)
    targets = _targets(base, target, config)
    kind = KINDS[targets.kind]
    for score in config.scores:
        kind.check_score(score)
    if targets.kind == "single" and config.fusion.kind == "union":
        raise UsageError(f"'fusion: union' is for several labels per sample; the target {target!r} has one.")
    splits = make_splits(
        base,
        targets.strata,
        shared_groups(base),
        validation=None if config.cv else config.validation,
        test=config.test,
        seed=config.seed,
        published=config.splits == "published",
    )
    vocabulary, unseen = None, ()
    if config.select.top_classes is not None:
        targets, unseen, splits, vocabulary = _most_frequent(targets, splits, config.select.top_classes)
    task = Task(
        config=config,
        dataset=dataset,
        head=_for_kind(head, config, found, targets, splits),
        sets=sets,
        base=base,
        target=target,
        targets=targets,
        splits=splits,
        found=found,
        jobs=config.jobs or _cores(),
        left_out=left_out,
        unseen=unseen,
        vocabulary=vocabulary,
    )
    check_rows(task)
    return task


def _for_kind(head: Head, config: HeadConfig, found: Candidates, targets: Targets, splits: Splits) -> Head:
    """The head as the kind of task needs it, class weights by name; of a chain, in the order of the training labels."""
    named = ByClassName(head, targets.classes, several=targets.kind == "multi")
    for point in found.points:
        named.coded({**config.fixed, **of_head(point)})
    if not config.chain:
        return KINDS[targets.kind].head(named)
    if targets.kind == "single" or not hasattr(head, "chained"):
        raise UsageError("'chain' is for several labels per sample, and for the heads 'logistic' and 'tfidf'.")
    from heads.chain import by_frequency

    return SeveralLabels(named, by_frequency(targets.codes[splits.train]))


def _most_frequent(targets: Targets, splits: Splits, most: int) -> tuple[Targets, tuple[Any, ...], Splits, Vocabulary]:
    """The targets with the most frequent classes of the training rows alone, and the labels that are no class then."""
    if targets.kind == "multi":
        raise UsageError("'select.top_classes' is for one label per sample; this target has several.")
    classes, codes, splits, vocabulary = with_top_classes(targets.classes, targets.codes, splits, most)
    known = vocabulary.classes
    return Targets("single", classes[:known], codes, codes), classes[known:], splits, vocabulary


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())


def _check_transform(config: HeadConfig, sets: Sequence[Features]) -> None:
    """Refuse what no fit could use, and a feature set that no choice of features has, before anything is fitted."""
    width = {name: dim for one in sets for name, dim in zip(one.names, one.dims, strict=True)}
    for transform in config.axis("transform") or [config.transform]:
        build(transform, list(width), list(width.values()), config.seed)
        for one in sets:
            _steps(config, one, for_sets(transform, one.names))


def _steps(config: HeadConfig, features: Features, transform: Any) -> list[tuple[str, Any]]:
    """Unfitted scikit-learn steps before the head, for one choice of features and its own transform."""
    names, dims = features.names, features.dims
    if config.fusion.kind != "product" or len(names) < 2:
        return build(transform, names, dims, config.seed)
    from heads.product import product_steps

    return product_steps(transform, names, dims, config.fusion, config.seed)


def shared_rows(sets: Sequence[Features]) -> Rows:
    """The samples that all choices of features have: rows of the data set's table, sorted."""
    rows = np.unique(sets[0].sample_rows)
    for one in sets[1:]:
        rows = np.intersect1d(rows, one.sample_rows)
    return rows


def _common(
    dataset: CachedDataset, sets: Sequence[Features], selection: Selection, within: Rows | None
) -> tuple[Features, dict[str, int]]:
    """The selected samples that all sets have, and how many were left out by reason."""
    rows = shared_rows(sets)
    left_out: dict[str, int] = {}
    for one in sets:
        for reason, count in one.left_out.items():
            left_out[reason] = max(count, left_out.get(reason, 0))
    if within is not None and len(others := np.setdiff1d(rows, within)):
        left_out["other heads lack features"] = len(others)
        rows = np.intersect1d(rows, within)
    rows = selected(dataset.table, rows, selection)
    if not len(rows):
        raise UsageError(f"No sample of {dataset.name} is left: {left_out or 'the filter keeps none'}.")
    return Features(dataset.table, (), rows, "mean", {}), left_out


def _targets(base: Features, target: str, config: HeadConfig) -> Targets:
    """What is to be predicted: lists of labels make a multi-label task."""
    column = base.table.samples[TARGET_PREFIX + target]
    if is_multilabel(column):
        labels, flags = indicators(combined(column).take(pa.array(base.sample_rows)), target)
        return Targets("multi", labels, flags, strata(flags, 2))
    if config.threshold is not None:
        raise UsageError(f"'threshold' is for several labels per sample; the target {target!r} has one.")
    classes, codes = _codes(base, target)
    return Targets("single", classes, codes, codes)


def _codes(base: Features, target: str) -> tuple[tuple[Any, ...], Rows]:
    """Sorted classes and the code of each sample, -1 without a target."""
    labels = base.target(target)
    labelled = np.array([label is not None and label == label for label in labels])  # NaN is no label
    for label in labels[labelled]:
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
    """One choice of features with its rows; unit rows by split. x: as ``inputs_for`` gives them.

    codes: as in ``Targets``, of the units. weights: of the units, None where the data set states none.
    """

    features: Features
    x: Any
    codes: Truth
    groups: Rows
    base_row: Rows
    rows: Mapping[str, Rows]
    weights: Weights | None


def _ready(task: Task, features: Features) -> _Ready:
    """Units of the common samples with what the head is fitted on."""
    found = _units(task, features)
    stored = streams_on(task)
    _check_memory(task, found.features, stored)
    x = inputs_for(task.head, found.features, stored=stored)
    return replace(found, x=x, weights=weights_of(found.features))


def _units(task: Task, features: Features) -> _Ready:
    """Units of the common samples, in the order of the base, unread; units of one sample share its split."""
    place = np.full(task.dataset.table.samples.num_rows, -1, np.int64)
    place[task.base.sample_rows] = np.arange(len(task.base))
    features = features.take(place[features.sample_rows] >= 0)
    base_row = place[features.sample_rows]
    of_split = np.full(len(task.base), "", object)
    for name in ("train", "validation", "test"):
        of_split[getattr(task.splits, name)] = name
    rows = {name: np.flatnonzero(of_split[base_row] == name) for name in ("train", "validation", "test")}
    groups = shared_groups(features) if task.config.cv is not None else np.arange(len(features))
    return _Ready(features, None, task.codes[base_row], groups, base_row, rows, None)


def check_rows(task: Task) -> None:
    """Raise UsageError where the training rows are too few for the folds, the transforms or the head; reads nothing."""
    _refuse_one_class(task)
    for sets in _runs(task):
        if task.fuses_answers and len(sets[0].sets) > 1:
            continue  # its members are checked, and it is not fitted
        found = {id(features): _units(task, features) for features in sets}
        fewest = {place: _fewest(task, units) for place, units in found.items()}
        for index in task.found.unique:
            point = task.found.points[index]
            features, transform = _chosen(task, sets, point)
            rows = fewest[id(features)]
            steps = _own_steps(task, features, transform)
            hint = "fusion.width" if any(name == "product" for name, _ in steps) else "pca"
            check_components(steps, sum(features.dims), rows, hint)
            check_enough(head_named(task.head.name), {**task.config.fixed, **of_head(point)}, rows)


def _refuse_one_class(task: Task) -> None:
    """A class alone is nothing to learn from; that training rows have no other is said with its name."""
    there = np.unique(task.codes[task.splits.train])
    if task.targets.kind == "single" and len(there) < 2:
        raise UsageError(
            f"All {len(task.splits.train):,} training rows are of the class {task.classes[there[0]]!r}: a head "
            "needs at least two classes to learn from. Select more or other rows, or divide them by 'splits: carve'."
        )


def _fewest(task: Task, units: _Ready) -> int:
    """Rows of the smallest training part: of all folds that are fitted, and of halving its first rung."""
    fewest = len(_repeated(task, units, units.rows["train"]))
    if task.config.searches:
        _, parts, _ = _searched_rows(task, units)
        rungs = _rungs(task)
        share = rungs.amounts[0] if rungs.by == "rows" else 1.0
        fewest = min(fewest, *(max(2, int(share * len(kept))) for kept, _ in parts))
    elif _out_of_fold_fits(task) and task.config.cv is not None:
        train = units.rows["train"]
        folds_of, _ = _folds(task, units, task.config.cv)
        fewest = min(fewest, *(len(_repeated(task, units, train[kept])) for kept, _ in folds_of))
    return fewest


def streams_on(task: Task) -> bool:
    """Whether the head reads the features as they are stored: it can, and no transform makes another matrix."""
    return streams(task.head) and not _transforms(task)


def _transforms(task: Task) -> bool:
    """Whether some candidate is fitted on another matrix than that of the features; a product is one."""
    return any(task.config.axis("transform") or [task.config.transform]) or task.config.fusion.kind == "product"


def streams(head: Head) -> bool:
    """Whether a kind of head can read features in their stored type; others get float32."""
    return bool(getattr(innermost(head), "streams", False))


def _check_memory(task: Task, features: Features, stored: bool) -> None:
    """Refuse what would not fit, before anything is loaded."""
    vectors = [one for one in features.sets if one.dim]  # word ids are small, and shared by all rows
    half = all(one.single and one.file.layout.stored == "float16" for one in vectors)
    transforms = _transforms(task)
    found = memory.estimate(
        len(features),
        sum(features.dims),
        2 if half else memory.FLOAT32,
        streams=stored,
        transforms=transforms,
        searches=task.config.searches,
    )
    streaming = [] if stored else [name for name, head in HEADS.items() if streams(head)]
    memory.check(task.head.name, label_of(features), found, streaming)


def preview(task: Task) -> list[Preview]:
    """What ``fit`` will do for each choice of features, timed on a few rows."""
    return [_preview(task, sets) for sets in _runs(task)]


def _runs(task: Task) -> list[tuple[Features, ...]]:
    """The feature sets of each run: one each, or all of them where the search chooses."""
    return [task.sets] if task.config.searches_features else [(one,) for one in task.sets]


def _preview(task: Task, sets: Sequence[Features]) -> Preview:
    """Timed on the widest set where the search chooses; fusing the answers of heads takes no fit."""
    ready = _ready(task, max(sets, key=lambda one: sum(one.dims)))
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
    return _final_fits(task) + (_rungs(task).fits(_n_folds(task)) if task.config.searches else 0)


def _final_fits(task: Task) -> int:
    """Trainings after a search, or without one."""
    return (1 + _out_of_fold_fits(task)) * task.config.seeds


def _seconds(task: Task, ready: _Ready, fused: bool) -> float:
    """About how long it takes: the search in parallel, the final trainings, predictions and scores of all splits."""
    train, scored = ready.rows["train"], sum(len(ready.rows[name]) for name in SCORED_SPLITS)
    seconds = task.config.seeds * seconds_of_scores(task.kind, ready.codes[train], len(task.classes), scored)
    if fused:
        return seconds
    names = ready.features.names
    points = [task.found.points[index] for index in task.found.unique]
    chosen = [for_sets(point.get("transform", task.config.transform), names) for point in points]
    found = [
        ({**task.config.fixed, **of_head(point)}, _own_steps(task, ready.features, transform))
        for point, transform in zip(points, chosen, strict=True)
    ]
    cost = mean_cost(task.head, found, ready.x[train], ready.codes[train], task.config.seed)
    predicted = task.config.seeds * (scored + len(_unlabelled(task, ready)))
    seconds += _final_fits(task) * cost.fit + predicted * cost.row
    if task.config.searches:
        rungs, parts = _rungs(task), _n_folds(task)
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
    ready = _ready(few, features)
    steps = _own_steps(few, ready.features, for_sets(point.get("transform", task.config.transform), features.names))
    estimator = task.head.brief({**task.config.fixed, **of_head(point)}, task.config.seed, 1)
    pipeline = fit_pipeline(task.head.name, steps, estimator, ready.x, ready.codes, ready.rows["train"])
    pipeline.steps[-1] = "head", task.head.slim(pipeline[-1])
    return _head(few, ready, pipeline, (DEFAULT,) * len(task.classes) if task.targets.kind == "multi" else ())


def chosen_by(task: Task, features: Features) -> list[dict[str, Any]]:
    """The candidates that a search fits on these features; each choice of features has all, unless one chooses."""
    points = [task.found.points[index] for index in task.found.unique]
    return [point for point in points if "features" not in point or task.sets[_place(task, point)] is features]


def _out_of_fold_fits(task: Task) -> int:
    """Trainings for probabilities of samples that the head was not trained on."""
    return task.config.cv.folds if task.config.cv and task.holds_out and not len(task.splits.validation) else 0


def _n_folds(task: Task) -> int:
    """How often a search fits each candidate: folds, or once on the validation split."""
    return task.config.cv.folds if task.config.cv else 1


def _rungs(task: Task) -> Rungs:
    parameters = [{**task.config.fixed, **of_head(task.found.points[index])} for index in task.found.unique]
    n = len(task.splits.train)
    rows = n - n // task.config.cv.folds if task.config.cv else n
    return rungs_of(task.head, parameters, task.config.search, task.config.factor, rows, len(task.classes))


def fit(
    task: Task, *, progress: bool = False, searches: Path | None = None, name: str | None = None
) -> list[FittedRun]:
    """Fit and score one head per choice of features, on the same samples and splits.

    progress: show bars on stderr, that of epochs with ``name`` before it, by default the head's. searches: folder where
    finished fits of a search are kept until the run is recorded, for one that is interrupted.
    """
    label = name or task.head.name if progress else None
    if not task.fuses_answers:
        return [_fit_one(task, sets, _shown(task, label, sets), searches) for sets in _runs(task)]
    runs: list[FittedRun] = []
    alone: dict[str, FittedRun] = {}
    for features in task.sets:  # each set alone comes first
        if len(features.sets) == 1:
            run = alone[features.sets[0].file.fingerprint] = _fit_one(
                task, (features,), _shown(task, label, (features,)), searches
            )
        else:
            run = _fuse(task, _ready(task, features), [alone[one.file.fingerprint] for one in features.sets])
        runs.append(run)
    return runs


def _shown(task: Task, name: str | None, sets: Sequence[Features]) -> str | None:
    """What stands before the bar of a run: its features too, where others are fitted beside it."""
    return name if name is None or len(_runs(task)) == 1 else f"{name}, {label_of(sets[0])}"


def _place(task: Task, point: Mapping[str, Any]) -> int:
    """Which of a run's feature sets a point of the grid chooses."""
    return task.config.axis("features").index(point["features"]) if "features" in point else 0


def _chosen(task: Task, sets: Sequence[Features], point: Mapping[str, Any]) -> tuple[Features, Any]:
    """The features and the transform of a point of the grid."""
    place = _place(task, point)
    return sets[place], for_sets(point.get("transform", task.config.transform), sets[place].names)


def _fit_one(task: Task, sets: Sequence[Features], shown: str | None, searches: Path | None) -> FittedRun:
    """shown: the name before its bars; None shows none."""
    began = time.perf_counter()
    held: dict[int, _Ready] = {}

    def load(features: Features) -> _Ready:
        """The matrix of one choice of features at a time."""
        if id(features) not in held:
            held.clear()
            held[id(features)] = _ready(task, features)
        return held[id(features)]

    found, splitter = _search(task, sets, load, shown is not None, searches) if task.config.searches else (None, None)
    point = task.found.points[found.best] if found is not None else {}
    features, transform = _chosen(task, sets, point)
    ready = load(features)
    steps = _own_steps(task, ready.features, transform)
    parameters = {**task.config.fixed, **of_head(point)}
    estimator = _fitted(task, ready, steps, parameters, ready.rows["train"], shown)
    run = replace(_scored_run(task, ready, steps, parameters, estimator, shown), transform=transform)
    repeats = _repeats(task, ready, parameters, run, shown)
    said = [*_convergence(found), *_of_other_classes(task), *((repeats.said,) if repeats is not None else ())]
    notes = (*run.notes, *said)
    seconds = time.perf_counter() - began
    return replace(run, search=found, splitter=splitter, repeats=repeats, notes=notes, seconds=seconds)


def _own_steps(task: Task, features: Features, transform: Any) -> list[tuple[str, Any]]:
    """Unfitted steps of a transform for these features, where the head reads vectors."""
    return _steps(task.config, features, transform) if transforms_apply(task.head) else []


def _repeats(
    task: Task, ready: _Ready, parameters: Mapping[str, Any], first: FittedRun, shown: str | None
) -> Repeats | None:
    """The final fit with each further seed, scored as the first was; None where one seed is all that is asked for."""
    seeds = seeds_of(task.config.seed, task.config.seeds)
    if len(seeds) == 1:
        return None
    scores = [_values(first)]
    for seed in seeds[1:]:
        again = replace(task, config=task.config.model_copy(update={"seed": seed}))
        steps = _own_steps(again, ready.features, first.transform)
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
    ready = _ready(task, task.sets[0])
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
        _repeated(task, ready, ready.rows["train"]),
        epochs,
        weights=ready.weights,
        held=ready.rows["validation"],
        shown=task.head.name if progress else None,
    )
    transform = for_sets(task.config.transform, ready.features.names)
    steps = _own_steps(task, ready.features, transform)
    run = _scored_run(task, ready, steps, task.config.fixed, head.estimator)
    return replace(run, transform=transform, seconds=time.perf_counter() - began)


def _scored_run(
    task: Task,
    ready: _Ready,
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
        *_of_epochs(estimator, parameters),
        *_of_history(ready, estimator),
        *said,
        *_of_weights(task, ready, parameters),
        *_of_oversampling(task, ready),
    ]
    fusion = task.config.fusion.kind if len(ready.features.sets) > 1 else "concat"
    run = _run(task, ready, _head(task, ready, estimator, thresholds), said, began)
    return replace(run, parameters=parameters, held=held, fusion=fusion)


def _fuse(task: Task, ready: _Ready, members: Sequence[FittedRun]) -> FittedRun:
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
    run = _run(task, ready, _head(task, ready, estimator, thresholds), [*said, *more], began)
    return replace(run, parameters=parameters, fusion=task.config.fusion.kind)


def _head(task: Task, ready: _Ready, estimator: Any, thresholds: tuple[float, ...]) -> FittedHead:
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


def _run(task: Task, ready: _Ready, head: FittedHead, said: Sequence[str], began: float) -> FittedRun:
    """The head scored on its splits; what else there is to say of it is for the caller."""
    scored = {name: _scored(task, ready, head, name) for name in task.scored if len(ready.rows[name])}
    unlabelled = _unlabelled(task, ready)
    if len(unlabelled):
        scored["unlabelled"] = _averaged(task, ready, unlabelled, head.predict_proba(ready.x[unlabelled]))
    counts = {name: len(getattr(task.splits, name)) for name in ("train", *SCORED_SPLITS)}
    notes = (*task.splits.notes, *_without_effect(task), *said)
    return FittedRun(ready.features, head, {}, scored, counts, None, None, notes, time.perf_counter() - began)


def _without_effect(task: Task) -> list[str]:
    """What the configuration states and nothing reads: of a search where there is none, and parameters of the head."""
    config, notes = task.config, []
    for_search = {"search": config.search != "grid", "score": bool(config.scores), "refit": config.refit is not None}
    if not config.searches and any(for_search.values()):
        stated = ", ".join(f"'{name}'" for name, so in for_search.items() if so)
        notes.append(f"without effect, as there is no 'grid' to search: {stated}")
    read = set().union(*(task.head.canonical({**config.fixed, **of_head(point)}) for point in task.found.points))
    if unread := sorted(set(config.fixed) - read):
        notes.append(f"parameters without effect on the result here: {', '.join(unread)}")
    return notes


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


def _convergence(found: SearchResult | None) -> list[str]:
    """What is to be said of a search: the best scores, what it did not repeat, did not converge or failed, and why."""
    if found is None:
        return []
    means = (f"{name} {mean}" for name, mean in found.means(found.rows[found.best]).items())
    best = f"mean score of the best candidate in the search: {', '.join(means)}"
    resumed = f"{found.resumed} of {found.fits} fits of the search were finished before and are not repeated"
    ended = f"{found.unconverged} fits of the search ended at max_iter before they converged"
    failed = f"{len(found.failed)} of {len(found.rows)} candidates could not be fitted: {_first(found.failed, 3, '; ')}"
    told = ((found.resumed, resumed), (found.unconverged, ended), (found.failed, failed))
    return [best, *(note for so, note in told if so)]


def _of_other_classes(task: Task) -> list[str]:
    """Of a search that is scored on validation rows some of which no candidate can get right."""
    if not task.config.searches or task.config.cv is not None or task.targets.kind == "multi":
        return []
    held = task.codes[task.splits.validation]
    other = int((~np.isin(held, task.codes[task.splits.train])).sum())
    if not other:
        return []
    loss = "; in neg_log_loss each has probability 0, clipped" if "neg_log_loss" in task.scores else ""
    return [f"search: {other:,} of {len(held):,} validation rows have a class that no training row has: wrong{loss}"]


def _of_epochs(estimator: Any, parameters: Mapping[str, Any]) -> list[str]:
    """Where early stopping, or convergence, ended the training, and which weights are kept."""
    found = trained(estimator[-1], parameters)
    ended = found is not None and (found.epochs < found.asked or found.kept != found.epochs)
    return [found.said] if found is not None and ended else []


def _of_history(ready: _Ready, estimator: Any) -> list[str]:
    """Validation rows that a history leaves out: the head cannot predict their label."""
    lines, codes = history_of(estimator), ready.codes[ready.rows["validation"]]
    if not lines or "validation_score" not in lines[-1] or codes.ndim != 1:
        return []
    unknown = int((~np.isin(codes, estimator[-1].classes_)).sum())
    without = f"without {unknown:,} of {len(codes):,} validation rows, whose labels no training row has"
    return [f"validation losses and scores by epoch (history.csv) are {without}"] if 0 < unknown < len(codes) else []


def _of_weights(task: Task, ready: _Ready, parameters: Mapping[str, Any]) -> list[str]:
    if ready.weights is None:
        return []
    used = weight_parameter(task.head.build(parameters, task.config.seed)) is not None
    return [
        "training samples are weighted" if used else "the data set's sample weights are not used: the head has none"
    ]


def _of_oversampling(task: Task, ready: _Ready) -> list[str]:
    most, train = task.config.oversample, ready.rows["train"]
    if most == 1:
        return []
    return [f"{len(train):,} training rows, {len(_repeated(task, ready, train)):,} with those of rare labels repeated"]


def _repeated(task: Task, ready: _Ready, rows: Rows) -> Rows:
    """Training rows, those with rare labels several times if the configuration says so."""
    return oversampled(rows, ready.codes[rows], task.config.oversample)


def _search(
    task: Task, sets: Sequence[Features], load: Callable[[Features], _Ready], progress: bool, searches: Path | None
) -> tuple[SearchResult, str]:
    """Score every candidate on folds of the training rows, or on the validation split."""
    splitters: list[str] = []

    def data(features: Features) -> Data:
        ready = load(features)
        used, parts, splitter = _searched_rows(task, ready)
        splitters.append(splitter)
        weights = None if ready.weights is None else ready.weights[used]
        return Data(ready.x[used], ready.codes[used], parts, weights)

    made: dict[str, tuple[int, Choice]] = {}
    choice_of = []
    for index in task.found.unique:
        features, transform = _chosen(task, sets, task.found.points[index])
        key = repr((_place(task, task.found.points[index]), transform))
        if key not in made:
            steps = _own_steps(task, features, transform)
            made[key] = len(made), Choice(steps, partial(data, features))
        choice_of.append(made[key][0])
    found = search_choices(
        task.head,
        task.found,
        task.config.fixed,
        [choice for _, choice in made.values()],
        choice_of,
        _n_folds(task),
        task.scores,
        seed=task.config.seed,
        jobs=task.jobs,
        progress=progress,
        rungs=_rungs(task),
        journal=journal_path(searches, _identity(task, sets)),
    )
    return found, splitters[0]


def _searched_rows(task: Task, ready: _Ready) -> tuple[Rows, list[tuple[Rows, Rows]], str]:
    """The units that a search uses, its folds among them, and what made the folds."""
    used = train = ready.rows["train"]
    if task.config.cv is not None:
        parts, splitter = _folds(task, ready, task.config.cv)
    else:
        used = np.concatenate([train, ready.rows["validation"]])
        parts, splitter = [(np.arange(len(train)), np.arange(len(train), len(used)))], "the validation split"
    parts = [(oversampled(kept, ready.codes[used[kept]], task.config.oversample), held) for kept, held in parts]
    return used, parts, splitter


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


def _folds(task: Task, ready: _Ready, cv: Folds) -> tuple[list[tuple[Rows, Rows]], str]:
    """Folds of the training rows, and the name of their splitter."""
    train = ready.rows["train"]
    return folds(task.kind.strata(ready.codes[train], cv.folds), ready.groups[train], cv.folds, cv.seed)


def _fitted(
    task: Task,
    ready: _Ready,
    steps: list[tuple[str, Any]],
    parameters: Mapping[str, Any],
    rows: Rows,
    shown: str | None = None,
) -> Any:
    """The chosen candidate, fitted on these rows and made fit to save. shown: the name before its bar of epochs."""
    estimator = task.head.build(parameters, task.config.seed)
    held = ready.rows["validation"]
    rows = _repeated(task, ready, rows)
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
    ready: _Ready,
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
        notes.append(f"threshold {DEFAULT} for labels without a positive there: {_first(unknown)}")
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
            notes.append(f"labels that {what}, threshold {DEFAULT}: {_first(names)}")
    return np.asarray(~(never | always)), notes


def _first(names: Sequence[str], most: int = 8, between: str = ", ") -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def _out_of_fold(
    task: Task,
    ready: _Ready,
    steps: list[tuple[str, Any]],
    parameters: Mapping[str, Any],
    cv: Folds,
    shown: str | None,
) -> npt.NDArray[np.float64]:
    """Probabilities (training rows, labels), each row's by a head that was fitted without its fold."""
    train = ready.rows["train"]
    parts, _ = _folds(task, ready, cv)
    found = np.zeros((len(train), len(task.classes)))
    for number, (kept, held) in enumerate(parts, 1):
        own = None if shown is None else f"fold {number} of {len(parts)}, {shown}"
        estimator = _fitted(task, ready, steps, parameters, train[kept], own)
        several = task.targets.kind == "multi"
        found[held] = of_all(estimator, ready.x[train[held]], len(task.classes), several=several)
    return found


def _unlabelled(task: Task, ready: _Ready) -> Rows:
    """Units of samples without a target: predicted, never scored."""
    return np.flatnonzero(task.targets.strata[ready.base_row] < 0)


def _averaged(task: Task, ready: _Ready, rows: Rows, probabilities: npt.NDArray[np.float64]) -> Scored:
    """Probabilities per sample: where a sample has several units (captions), their mean."""
    samples, inverse = np.unique(ready.base_row[rows], return_inverse=True)
    mean = np.zeros((len(samples), probabilities.shape[1]))
    np.add.at(mean, inverse, probabilities)
    mean /= np.bincount(inverse)[:, None]
    return Scored(task.base.ids[samples], task.codes[samples], mean, {})


def _scored(task: Task, ready: _Ready, head: FittedHead, split: str) -> Scored:
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
