"""A configuration made ready on a cache: features, targets, splits, candidates; and its rows, loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedcache.cache import CachedDataset, open_cache
from embedcache.errors import UsageError
from embedcache.samples import TARGET_PREFIX, combined
from embedcache.view import Features, shared_groups, target_name
from heads import HEADS, head_named, memory
from heads.base import TOKENS, Head, check_enough, innermost, reads
from heads.class_weights import ByClassName
from heads.config import Folds, HeadConfig, Selection, Threshold
from heads.fitting import Weights, weights_of
from heads.fusion import OF_ANSWERS
from heads.grid import Candidates, candidates
from heads.inputs import feature_sets, inputs_for, label_of, transforms_apply, with_each_alone
from heads.kinds import KINDS, Kind, SeveralLabels, Targets, Truth
from heads.multilabel import indicators, is_multilabel, strata
from heads.oversampling import oversampled
from heads.searching import Rungs, of_head, rungs_of
from heads.selection import Vocabulary, selected, with_top_classes
from heads.sequences import with_transform_inside
from heads.splits import Rows, Splits, folds, make_splits
from heads.transforms import build, check_components, for_sets, standardized_inside

SCORED_SPLITS = ("validation", "test")


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
class Ready:
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


def load(task: Task, features: Features) -> Ready:
    """Units of the common samples with what the head is fitted on."""
    found = units_of(task, features)
    stored = streams_on(task)
    _check_memory(task, found.features, stored)
    x = inputs_for(task.head, found.features, stored=stored)
    return replace(found, x=x, weights=weights_of(found.features))


def units_of(task: Task, features: Features) -> Ready:
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
    return Ready(features, None, task.codes[base_row], groups, base_row, rows, None)


def check_rows(task: Task) -> None:
    """Raise UsageError where the training rows are too few for the folds, the transforms or the head; reads nothing."""
    _refuse_one_class(task)
    for sets in choices_of(task):
        if task.fuses_answers and len(sets[0].sets) > 1:
            continue  # its members are checked, and it is not fitted
        found = {id(features): units_of(task, features) for features in sets}
        fewest = {place: _fewest(task, units) for place, units in found.items()}
        for index in task.found.unique:
            point = task.found.points[index]
            features, transform = chosen(task, sets, point)
            rows = fewest[id(features)]
            steps = steps_of(task, features, transform)
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


def _fewest(task: Task, units: Ready) -> int:
    """Rows of the smallest training part: of all folds that are fitted, and of halving its first rung."""
    fewest = len(repeated(task, units, units.rows["train"]))
    if task.config.searches:
        _, parts, _ = searched_rows(task, units)
        rungs = rungs_for(task)
        share = rungs.amounts[0] if rungs.by == "rows" else 1.0
        fewest = min(fewest, *(max(2, int(share * len(kept))) for kept, _ in parts))
    elif out_of_fold_fits(task) and task.config.cv is not None:
        train = units.rows["train"]
        folds_of, _ = folds_for(task, units, task.config.cv)
        fewest = min(fewest, *(len(repeated(task, units, train[kept])) for kept, _ in folds_of))
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


def choices_of(task: Task) -> list[tuple[Features, ...]]:
    """The feature sets of each run: one each, or all of them where the search chooses."""
    return [task.sets] if task.config.searches_features else [(one,) for one in task.sets]


def out_of_fold_fits(task: Task) -> int:
    """Trainings for probabilities of samples that the head was not trained on."""
    return task.config.cv.folds if task.config.cv and task.holds_out and not len(task.splits.validation) else 0


def n_folds(task: Task) -> int:
    """How often a search fits each candidate: folds, or once on the validation split."""
    return task.config.cv.folds if task.config.cv else 1


def rungs_for(task: Task) -> Rungs:
    """How much of the rows or epochs the candidates get, rung by rung; one rung unless the search halves."""
    parameters = [{**task.config.fixed, **of_head(task.found.points[index])} for index in task.found.unique]
    n = len(task.splits.train)
    rows = n - n // task.config.cv.folds if task.config.cv else n
    return rungs_of(task.head, parameters, task.config.search, task.config.factor, rows, len(task.classes))


def place_of(task: Task, point: Mapping[str, Any]) -> int:
    """Which of a run's feature sets a point of the grid chooses."""
    return task.config.axis("features").index(point["features"]) if "features" in point else 0


def chosen(task: Task, sets: Sequence[Features], point: Mapping[str, Any]) -> tuple[Features, Any]:
    """The features and the transform of a point of the grid."""
    place = place_of(task, point)
    return sets[place], for_sets(point.get("transform", task.config.transform), sets[place].names)


def steps_of(task: Task, features: Features, transform: Any) -> list[tuple[str, Any]]:
    """Unfitted steps of a transform for these features, where the head reads vectors."""
    return _steps(task.config, features, transform) if transforms_apply(task.head) else []


def repeated(task: Task, ready: Ready, rows: Rows) -> Rows:
    """Training rows, those with rare labels several times if the configuration says so."""
    return oversampled(rows, ready.codes[rows], task.config.oversample)


def searched_rows(task: Task, ready: Ready) -> tuple[Rows, list[tuple[Rows, Rows]], str]:
    """The units that a search uses, its folds among them, and what made the folds."""
    used = train = ready.rows["train"]
    if task.config.cv is not None:
        parts, splitter = folds_for(task, ready, task.config.cv)
    else:
        used = np.concatenate([train, ready.rows["validation"]])
        parts, splitter = [(np.arange(len(train)), np.arange(len(train), len(used)))], "the validation split"
    parts = [(oversampled(kept, ready.codes[used[kept]], task.config.oversample), held) for kept, held in parts]
    return used, parts, splitter


def folds_for(task: Task, ready: Ready, cv: Folds) -> tuple[list[tuple[Rows, Rows]], str]:
    """Folds of the training rows, and the name of their splitter."""
    train = ready.rows["train"]
    return folds(task.kind.strata(ready.codes[train], cv.folds), ready.groups[train], cv.folds, cv.seed)


def unlabelled(task: Task, ready: Ready) -> Rows:
    """Units of samples without a target: predicted, never scored."""
    return np.flatnonzero(task.targets.strata[ready.base_row] < 0)
