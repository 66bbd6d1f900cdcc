"""What a run leaves behind: a folder with its configuration, scores, predictions and fitted head."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedcache.cache import file_name
from embedcache.errors import DataNotFoundError, UsageError
from embedcache.files import replacing, write_json
from embedcache.samples import read_parquet, write_parquet
from embedcache.view import Features
from heads import curves, training_state
from heads.base import TEXTS
from heads.config import AXES, Fusion, HeadConfig, plain, to_yaml
from heads.fit import FittedRun, Scored
from heads.fitting import history_of, trained
from heads.inputs import seen
from heads.kinds import KINDS, KindName
from heads.metrics import NOWHERE, Interval, interval, rank_of_truth, worst_pairs
from heads.multilabel import LabelRow, label_table
from heads.saved import label_sets
from heads.task import Task
from heads.thresholds import decide
from heads.transforms import for_sets

TOP = 5
COMPARISON = "comparison.json"
CURVE, CURVE_PLOT = "learning_curve.csv", "learning_curve.png"
CONFIG, METRICS_FILE, CV_RESULTS, HISTORY, PREDICTIONS, SEEN, HEAD = (
    "config.yaml",
    "metrics.json",
    "cv_results.csv",
    "history.csv",
    "predictions.parquet",
    "seen.parquet",
    "head",
)


@dataclass(frozen=True)
class ComparisonRow:
    """One choice of features in a comparison. dims: numbers that the head sees.

    difference: score less the best's, paired on the same samples.
    """

    label: str
    dims: int
    score: Interval
    difference: Interval | None
    folder: str


@dataclass(frozen=True)
class Comparison:
    """Choices of features on the same samples, best first."""

    split: str
    metric: str
    samples: int
    rows: tuple[ComparisonRow, ...]


def new_folder(out: Path, dataset: str, what: str) -> Path:
    """A fresh folder ``<time>-<data set>-<what>`` below ``out``; what: the head, or the name of a table."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{dataset}-{what}"
    number = 1
    while True:
        folder = out / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        return folder


def write(task: Task, runs: Sequence[FittedRun], out: Path) -> tuple[Path, Comparison | None]:
    """Record fitted runs below ``out``: one folder, with a folder per choice of features where there are several."""
    folder = new_folder(out, task.dataset.name, task.config.head)
    config = resolved(task)
    write_config(folder, config)
    if len(runs) == 1:
        write_run(folder, task, runs[0])
        comparison = None
    else:
        folders = [f"{index:02d}-{slug(run.label)}" for index, run in enumerate(runs, 1)]
        for run, name in zip(runs, folders, strict=True):
            write_run(folder / name, task, run)
            write_config(folder / name, of_one(config, run.features))
        comparison = compare(task, runs, folders)
        if comparison is not None:
            write_json(folder / COMPARISON, asdict(comparison))
        if searched := [row for run in runs if run.search for row in _named(run)]:
            _write_rows(folder / CV_RESULTS, searched)
    point_latest(out, folder)
    for run in runs:
        drop_journal(run)
    return folder, comparison


def drop_journal(run: FittedRun) -> None:
    """Remove what was kept of a search in case it was interrupted: the run is recorded."""
    if run.search is not None and run.search.journal is not None:
        run.search.journal.unlink(missing_ok=True)


def _named(run: FittedRun) -> list[dict[str, Any]]:
    """The rows of a run's search, with its features, for one table of all."""
    assert run.search is not None
    return [{"param_features": run.label, **row} for row in run.search.rows]


def resolved(task: Task) -> HeadConfig:
    """The configuration with what was looked up written out: data set, target, feature sets by fingerprint."""
    select = task.config.select.model_copy(update={"target": task.target})
    config, features = _with_fingerprints(task)
    threshold = task.threshold if task.targets.kind == "multi" else None
    found = {"dataset": task.dataset.name, "features": features, "select": select}
    score = None if not task.config.searches else list(task.scores) if len(task.scores) > 1 else task.score
    return config.model_copy(update={**found, "score": score, "threshold": threshold})


def _with_fingerprints(task: Task) -> tuple[HeadConfig, list[list[str]] | None]:
    """The configuration and its features by fingerprint; where the search chooses among them, in the grid."""
    names = [_names(one) for one in task.sets]
    if not task.config.searches_features:
        return task.config, [one for one in names if one] or None
    axis = task.config.axis("features")
    grids = task.config.grid if isinstance(task.config.grid, list) else [task.config.grid]
    named = [
        {**one, "features": [names[axis.index(item)] for item in one["features"]]} if "features" in one else one
        for one in grids
    ]
    grid = named if isinstance(task.config.grid, list) else named[0]
    return task.config.model_copy(update={"grid": grid}), None


def of_one(config: HeadConfig, features: Features) -> HeadConfig:
    """The configuration of one choice of features out of a comparison."""
    found: dict[str, Any] = {"features": [_names(features)], "transform": for_sets(config.transform, features.names)}
    if len(features.sets) == 1 and config.fusion.kind != "concat":
        found["fusion"] = Fusion()
        if config.threshold is not None and config.threshold.per == "modality":
            found["threshold"] = config.threshold.model_copy(update={"per": "all"})
    return config.model_copy(update=found)


def _names(features: Features) -> list[str]:
    return [f"{file_name(one.file)}@{one.file.fingerprint}" for one in features.sets]


def slug(label: str) -> str:
    """A label as part of a folder's name."""
    words = "".join(char if char.isalnum() or char == "_" else " " for char in label).split()
    return "-".join(words)[:60].strip("-") or "row"


def point_latest(out: Path, folder: Path) -> None:
    """``latest`` names the newest run: a link where the file system has them."""
    latest = out / "latest"
    beside = out / f".latest.{os.getpid()}"
    try:
        beside.symlink_to(folder.name)
        os.replace(beside, latest)
    except OSError:
        beside.unlink(missing_ok=True)


def write_config(folder: Path, config: HeadConfig) -> None:
    """The resolved configuration, as a grid file that repeats the run."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CONFIG) as beside:
        beside.write_text(to_yaml(config), encoding="utf-8")


def write_run(folder: Path, task: Task, run: FittedRun) -> None:
    """All files of one fitted head."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / METRICS_FILE, metrics_document(task, run))
    if run.search is not None:
        _write_rows(folder / CV_RESULTS, run.search.rows)
    if epochs := history_of(run.head.estimator):
        _write_rows(folder / HISTORY, epochs)
    if run.curve:
        _write_rows(folder / CURVE, curves.rows_of(run.curve))
        with replacing(folder / CURVE_PLOT) as beside:
            curves.plot(run.curve).savefig(beside, format="png", dpi=110)
    write_parquet(folder / PREDICTIONS, predictions(run, task.unseen))
    whole = next(one for one in task.sets if one.names == run.features.names)
    write_parquet(folder / SEEN, seen(whole))
    run.head.save(folder / HEAD)
    training_state.keep(run.head.last, folder)


def metrics_document(task: Task, run: FittedRun) -> dict[str, Any]:
    """``metrics.json``: scores with intervals, and what they are scores of."""
    return {
        "dataset": task.dataset.name,
        "target": task.target,
        "kind": run.head.kind,
        "features": [asdict(one) for one in run.head.features],
        "fusion": run.fusion,
        "captions": run.head.captions,
        "head": run.head.head,
        "parameters": plain(run.parameters),
        **({"training": asdict(epochs)} if (epochs := trained(run.head.last, run.parameters)) is not None else {}),
        "transform": plain(run.transform),
        "classes": len(run.head.classes),
        **({"vocabulary": asdict(task.vocabulary)} if task.vocabulary is not None else {}),
        "samples": dict(run.counts),
        "left_out": dict(task.left_out),
        "scores": {
            split: {name: asdict(score) for name, score in scored.scores.items()}
            for split, scored in run.scored.items()
            if scored.scores
        },
        **({"repeats": run.repeats.document()} if run.repeats is not None else {}),
        **_multilabel_document(run, task),
        **(
            {"by_type": parts}
            if (parts := {name: one.by_type for name, one in run.scored.items() if one.by_type})
            else {}
        ),
        **({"confusions": pairs} if (pairs := confusions(run, task.unseen)) else {}),
        **({"learning_curve": curves.rows_of(run.curve)} if run.curve else {}),
        "search": _search_document(run, task),
        "notes": list(run.notes),
        "seconds": round(run.seconds, 3),
    }


def confusions(run: FittedRun, unseen: Sequence[Any] = ()) -> dict[str, list[dict[str, Any]]]:
    """Of each scored split the most frequent confusions of one class with another; none for several labels per sample.

    unseen: labels that no class has, by the codes beyond the classes.
    """
    if run.head.kind != "single":
        return {}
    names = [*run.head.classes, *unseen]
    return {
        split: [
            {**asdict(pair), "truth": names[pair.truth], "predicted": names[pair.predicted]}
            for pair in worst_pairs(scored.truth, scored.probabilities.argmax(1))
        ]
        for split, scored in run.scored.items()
        if scored.scores
    }


def label_tables(run: FittedRun) -> dict[str, list[LabelRow]]:
    """For several labels per sample: of each scored split a row per label, worst F1 first."""
    head = run.head
    return {
        split: label_table(head.classes, scored.truth > 0, scored.probabilities, head.thresholds)
        for split, scored in run.scored.items()
        if scored.scores and head.kind == "multi"
    }


def _multilabel_document(run: FittedRun, task: Task) -> dict[str, Any]:
    """Labels and thresholds: in the order of the probabilities in ``predictions.parquet``."""
    if run.head.kind == "single":
        return {}
    return {
        "labels": list(run.head.classes),
        "thresholds": list(run.head.thresholds),
        "threshold": task.threshold.model_dump(),
        "by_label": {split: [asdict(row) for row in rows] for split, rows in label_tables(run).items()},
    }


def _search_document(run: FittedRun, task: Task) -> dict[str, Any] | None:
    if run.search is None:
        return None
    best = run.search.rows[run.search.best]
    return {
        "candidates": len(task.found.points),
        "fitted": len(task.found.unique),
        "splitter": run.splitter,
        "score": task.score,
        **({"scores": list(task.scores)} if len(task.scores) > 1 else {}),
        **({"search": task.config.search} if task.config.search != "grid" else {}),
        **{name: best[f"param_{name}"] for name in AXES if f"param_{name}" in best},
        "best": plain({key.removeprefix("param_"): value for key, value in best.items() if key.startswith("param_")}),
        "best_mean_test_score": best["mean_test_score"],
        "best_std_test_score": best["std_test_score"],
        "seconds": round(run.search.seconds, 3),
    }


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def predictions(run: FittedRun, unseen: Sequence[Any] = ()) -> pa.Table:
    """One row per scored or unlabelled sample.

    The five most probable classes and the rank of the truth; for several labels per sample the true and the predicted
    ones, and the probability of each label. unseen: labels that no class has, by the codes beyond the classes; they
    have no rank.
    """
    classes = len(run.head.classes)
    truth = np.zeros((0, classes), np.int8) if run.head.kind == "multi" else np.zeros(0, np.int64)
    found = run.scored or {"": Scored(np.zeros(0, object), truth, np.zeros((0, classes)), {})}
    rows = {"single": _class_rows, "multi": _label_rows}[run.head.kind]
    return pa.concat_tables([rows(run, split, scored, unseen) for split, scored in found.items()])


def _label_rows(run: FittedRun, split: str, scored: Scored, _: Sequence[Any]) -> pa.Table:
    names = [str(label) for label in run.head.classes]
    known = (scored.truth >= 0).all(1)
    predicted = decide(scored.probabilities, run.head.thresholds)
    return pa.table({
        "id": pa.array(scored.ids, pa.string()),
        "split": pa.repeat(pa.scalar(split), len(scored.ids)),
        "truth": pa.array(label_sets(names, scored.truth > 0), pa.list_(pa.string()), mask=~known),
        "predicted": pa.array(label_sets(names, predicted), pa.list_(pa.string())),
        "probabilities": pa.array(list(scored.probabilities), pa.list_(pa.float64())),
    })  # fmt: skip


def _class_rows(run: FittedRun, split: str, scored: Scored, unseen: Sequence[Any]) -> pa.Table:
    names = np.array([str(label) for label in (*run.head.classes, *unseen)], object)
    top = np.argsort(-scored.probabilities, axis=1, kind="stable")[:, :TOP]
    known = scored.truth >= 0
    ranks = np.zeros(len(scored.truth), np.int64)
    if known.any():
        ranks[known] = rank_of_truth(scored.truth[known], scored.probabilities[known])
    return pa.table({
        "id": pa.array(scored.ids, pa.string()),
        "split": pa.repeat(pa.scalar(split), len(scored.ids)),
        "truth": pa.array(names[scored.truth], pa.string(), mask=~known),
        "predicted": pa.array(names[top[:, 0]], pa.string()),
        "top_classes": pa.array([list(row) for row in names[top]], pa.list_(pa.string())),
        "top_probabilities": pa.array(list(np.take_along_axis(scored.probabilities, top, 1)), pa.list_(pa.float64())),
        "rank_of_truth": pa.array(ranks, pa.int64(), mask=~known | (ranks == NOWHERE)),
    })  # fmt: skip


def compare(task: Task, runs: Sequence[FittedRun], folders: Sequence[str]) -> Comparison | None:
    """Best first by accuracy on the test split (validation where there is none), with paired differences.

    By F1 micro where samples have several labels; where the runs have a score of their own (``vqa_accuracy``), by that.
    """
    split = next((name for name in ("test", "validation") if all(name in run.scored for run in runs)), None)
    if split is None:
        return None
    scored = [run.scored[split] for run in runs]
    metric = next((name for name in scored[0].own if all(name in one.own for one in scored)), task.kind.headline)
    draws = [
        task.kind.draws(one.truth, one.probabilities, run.head.thresholds, task.config.seed, one.own)[metric]
        for run, one in zip(runs, scored, strict=True)
    ]
    values = [one.scores[metric].value for one in scored]
    order = sorted(range(len(runs)), key=lambda index: -values[index])
    best = order[0]
    rows = tuple(
        ComparisonRow(
            runs[index].label,
            width(runs[index]),
            interval(values[index], draws[index]),
            None if index == best else interval(values[index] - values[best], draws[index] - draws[best]),
            folders[index],
        )
        for index in order
    )
    return Comparison(split, metric, len(scored[0].truth), rows)


def width(run: FittedRun) -> int:
    """Numbers that the head sees of a sample: behind transforms and a product, not those that are cached.

    Where the answers of several heads are fused, what they see in all.
    """
    return int(getattr(run.head.last, "n_features_in_", sum(run.features.dims)))


def resolve_run(run: str | Path, out: Path = Path("runs")) -> Path:
    """A run's folder, by path or by name below ``out``. Raises DataNotFoundError."""
    for candidate in (Path(run), out / str(run)):
        if (candidate / CONFIG).is_file():
            return candidate
    raise DataNotFoundError(f"There is no run {run}: expected a folder with {CONFIG}.")


def head_folder(run: str | Path, out: Path = Path("runs")) -> Path:
    """The fitted head of a run. Raises UsageError for a comparison of several, with their names."""
    folder = resolve_run(run, out)
    several = sorted(path.parent.name for path in folder.glob(f"*/{HEAD}"))
    if several and not (folder / HEAD).is_dir():
        names = ", ".join(f"{run}/{one}" for one in several)
        raise UsageError(f"{run} compares several heads: name one of them with --run: {names}.")
    return folder / HEAD


def listed(out: Path) -> list[dict[str, Any]]:
    """Recorded runs below ``out``, newest first: name, features and headline score on test of each."""
    rows = []
    for folder in sorted(
        (path.parent for path in out.glob(f"*/{CONFIG}") if path.parent.name != "latest"), reverse=True
    ):
        for file in sorted([*folder.glob(METRICS_FILE), *folder.glob(f"*/{METRICS_FILE}")]):
            found = read_metrics(file.parent)
            metric = KINDS[_kind_of(found)].headline
            score = found["scores"].get("test", {}).get(metric)
            shown = f"{100 * score['value']:.1f} %" if score else "-"
            names = " + ".join(one["name"] for one in found["features"]) or TEXTS
            if found.get("fusion", "concat") != "concat":
                names += f" ({found['fusion']})"
            name = file.parent.relative_to(out).as_posix()
            rows.append({"run": name, "features": names, "metric": metric, "score": shown})
    return rows


def _kind_of(document: Mapping[str, Any]) -> KindName:
    """Runs of earlier releases have one label per sample and do not say so."""
    return "multi" if document.get("kind") == "multi" else "single"


def read_seen(folder: Path) -> pa.Table:
    """What a run saw of its data set: ``id`` and ``content`` of every sample that had features."""
    return read_parquet(folder / SEEN)


def read_metrics(folder: Path) -> dict[str, Any]:
    """``metrics.json`` of a run."""
    found: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    return found
