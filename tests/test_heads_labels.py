"""Several labels per sample, end to end: from a cache to thresholds, scores, a run's files and a page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from cli import app
from embedcache import samples
from embedcache.errors import DamagedFileError, UsageError
from heads import record, report
from heads.config import parse, read_grid
from heads.fit import fit
from heads.multilabel import label_table, strata
from heads.preview import preview
from heads.record import label_tables
from heads.saved import FittedHead
from heads.thresholds import best_threshold, decide
from tests.heads_helpers import LABELS, add_features, fitted, label_lists, prepared, save_table, tagged
from tests.test_heads_report import HOSTILE, Page

MLP = {"head": "sklearn-mlp", "fixed": {"hidden_layer_sizes": [16], "max_iter": 150, "learning_rate_init": 0.02}}
SETS = [["my-image"], ["my-text"], ["my-image", "my-text"]]


@pytest.mark.parametrize("document", [{}, MLP])
def test_separable_labels_are_learned_without_an_error(tmp_path: Path, document: dict[str, Any]) -> None:
    tagged(tmp_path)
    (run,) = fitted(tmp_path, **document)
    test = run.scored["test"].scores
    assert {name: score.value for name, score in test.items()} == {
        "f1_micro": 1.0, "f1_macro": 1.0, "f1_samples": 1.0, "mean_average_precision": 1.0, "exact_match": 1.0,
        "hamming_loss": 0.0,
    }  # fmt: skip
    assert (run.head.kind, run.head.classes, len(run.head.thresholds)) == ("multi", LABELS, 4)
    assert run.counts == {"train": 58, "validation": 6, "test": 32}
    x = run.features.matrix(np.float32)
    assert run.head.predict(x).tolist() == label_lists(96)
    assert run.notes[-1] == "4 thresholds rest on fewer than 5 positives each: one for all is steadier"


def test_image_text_and_both_are_compared_by_micro_f1(tmp_path: Path) -> None:
    tagged(tmp_path)
    task = prepared(tmp_path, features=SETS)
    comparison = record.compare(task, fit(task), ["a", "b", "c"])
    assert comparison is not None
    assert (comparison.metric, comparison.split, comparison.samples) == ("f1_micro", "test", 32)
    assert comparison.rows[0].label == "my-image + my-text"
    assert comparison.rows[0].score.value == 1.0
    assert all(row.difference is not None and row.difference.high < 0 for row in comparison.rows[1:])


def test_thresholds_are_tuned_on_validation_rows_and_never_on_test(tmp_path: Path) -> None:
    split = [["train", "train", "validation", "test"][row // 16 % 4] for row in range(96)]
    tagged(tmp_path, noise=1.5, split=split)
    (run,) = fitted(tmp_path)
    held = run.scored["validation"]
    expected = [best_threshold(held.truth[:, k] > 0, held.probabilities[:, k], "f1") for k in range(4)]
    assert run.head.thresholds == tuple(expected)
    assert any("one per label, on 16 validation samples: their own scores flatter" in note for note in run.notes)
    labels = [None if name == "test" else own for own, name in zip(label_lists(96), split, strict=True)]
    tagged(tmp_path / "no test", noise=1.5, split=split, labels=labels)
    (blind,) = fitted(tmp_path / "no test")
    assert blind.head.thresholds == run.head.thresholds
    assert blind.scored["unlabelled"].truth.max() == -1
    assert "test" not in blind.scored


def test_with_folds_thresholds_are_tuned_on_out_of_fold_probabilities(tmp_path: Path) -> None:
    tagged(tmp_path, noise=1.5)
    task = prepared(tmp_path, features="my-image", cv={"folds": 4}, threshold={"tune": "balance"})
    (run,) = fit(task)
    assert preview(task)[0].fits == 5
    x, y = task.sets[0].matrix(np.float32)[task.splits.train], task.codes[task.splits.train]
    parts = StratifiedKFold(4, shuffle=True, random_state=0).split(x, strata(y, 4))
    held_out = np.zeros(y.shape)
    for train, held in parts:
        own = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))
        held_out[held] = own.fit(x[train], y[train]).predict_proba(x[held])
    expected = [best_threshold(y[:, k] > 0, held_out[:, k], "balance") for k in range(4)]
    assert run.head.thresholds == pytest.approx(expected, abs=1e-6)
    assert any("out-of-fold probabilities of 64 training samples" in note for note in run.notes)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.3, {0.3}), ({"fixed": 1}, {1.0}), ({"per": "all"}, None), ({"per": "all", "tune": "balance"}, None)],
)
def test_a_threshold_may_be_fixed_or_one_for_all(tmp_path: Path, threshold: Any, expected: set[float] | None) -> None:
    tagged(tmp_path, noise=1.0)
    (run,) = fitted(tmp_path, threshold=threshold)
    assert len(set(run.head.thresholds)) == 1
    assert expected is None or set(run.head.thresholds) == expected


@pytest.mark.parametrize("document", [{}, MLP])
def test_labels_that_training_cannot_learn_are_said_and_not_tuned(tmp_path: Path, document: dict[str, Any]) -> None:
    split = [["train", "train", "validation", "test"][row // 16 % 4] for row in range(96)]
    always, never = LABELS[0], LABELS[3]
    labels = [
        sorted({*own, always} - {never}, key=int) if name == "train" else own
        for own, name in zip(label_lists(96), split, strict=True)
    ]
    tagged(tmp_path, labels=labels, split=split)
    (run,) = fitted(tmp_path, **document)
    assert f"labels that no training row has, threshold 0.5: {never}" in run.notes
    assert f"labels that all training rows have, threshold 0.5: {always}" in run.notes
    assert (run.head.thresholds[0], run.head.thresholds[3]) == (0.5, 0.5)
    assert (run.scored["test"].probabilities[:, 3] < 0.5).all()
    run.head.save(tmp_path / "head")
    x = run.features.matrix(np.float32)
    assert (FittedHead.load(tmp_path / "head").predict_proba(x) == run.head.predict_proba(x)).all()


def test_a_label_that_validation_lacks_keeps_the_default(tmp_path: Path) -> None:
    split = [["train", "train", "validation", "test"][row // 16 % 4] for row in range(96)]
    labels = [
        [one for one in own if name != "validation" or one != "2"]
        for own, name in zip(label_lists(96), split, strict=True)
    ]
    tagged(tmp_path, labels=labels, split=split, noise=1.0)
    (run,) = fitted(tmp_path)
    assert run.head.thresholds[1] == 0.5
    assert "threshold 0.5 for labels without a positive there: 2" in run.notes


@pytest.mark.filterwarnings("ignore:F-score is ill-defined")  # of plain scikit-learn, beside ours
@pytest.mark.parametrize("score", [None, "f1_macro", "f1_samples", "average_precision", "accuracy"])
def test_a_search_gives_the_scores_of_grid_search_cv(tmp_path: Path, score: str | None) -> None:
    tagged(tmp_path, noise=1.2)
    strengths = [0.01, 1.0]
    task = prepared(tmp_path, grid={"C": strengths}, cv={"folds": 3, "seed": 1}, score=score, features="my-text")
    (run,) = fit(task)
    x, y = task.sets[0].matrix(np.float32)[task.splits.train], task.codes[task.splits.train]
    parts = list(StratifiedKFold(3, shuffle=True, random_state=1).split(x, strata(y, 3)))
    own = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))
    grid = {"onevsrestclassifier__estimator__C": strengths}
    plain = GridSearchCV(own, grid, scoring=score or "f1_micro", cv=parts).fit(x, y)
    assert run.search is not None
    assert [row["mean_test_score"] for row in run.search.rows] == pytest.approx(plain.cv_results_["mean_test_score"])
    assert record.metrics_document(task, run)["search"]["score"] == (score or "f1_micro")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"score": "balanced_accuracy"}, "'balanced_accuracy' is not for several labels per sample.*f1_micro"),
        ({"score": "f1_mikro"}, "Unknown score 'f1_mikro'. Did you mean 'f1_micro'"),
        ({"threshold": 1.5}, "threshold.fixed"),
        ({"threshold": {"tume": "f1"}}, "unknown key 'threshold.tume'. Did you mean 'tune'"),
        ({"threshold": {"tune": "f2"}}, "threshold.tune"),
        ({"select": {"target": "kind"}, "threshold": 0.5}, "'threshold' is for several labels per sample"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_fitted(
    tmp_path: Path, document: dict[str, Any], words: str
) -> None:
    tagged(tmp_path)
    folder = tmp_path / "tiny"
    table = samples.load(folder)
    kinds = table.samples.append_column("target.kind", [[str(row % 2) for row in range(96)]])
    samples.save(samples.SampleTable(kinds, table.items), folder)
    with pytest.raises(UsageError, match=words):
        prepared(tmp_path, **{"select": {"target": "labels"}, **document})


def test_captions_are_averaged_and_stay_on_one_side(tmp_path: Path) -> None:
    names = [f"s{row}" for row in range(48)]
    texts = [[f"{name} {number}" for number in range(2)] for name in names]
    target = [[label for label in own if label in LABELS[:2]] for own in label_lists(48)]
    split = ["test" if row >= 32 else "train" for row in range(48)]
    folder = save_table(tmp_path, samples.build(names, split=split, texts=texts, targets={"labels": target}))
    rng = np.random.default_rng(0)
    rows = {
        text: 2 * np.array([row & 1, row >> 1 & 1]) + rng.normal(scale=0.1, size=2)
        for row, own in enumerate(texts)
        for text in own
    }
    add_features(folder, "text", rows)
    document = {"select": {"captions": "each"}, "cv": {"folds": 3}, "grid": {"C": [1.0, 10.0]}}
    (run,) = fitted(tmp_path, **document)
    assert run.splitter == "StratifiedGroupKFold"
    assert len(run.scored["test"].ids) == 16
    assert run.scored["test"].scores["exact_match"].value == 1.0


def test_the_run_folder_holds_truth_predictions_thresholds_and_tables(tmp_path: Path) -> None:
    labels = [None if row == 95 else own for row, own in enumerate(label_lists(96))]
    tagged(tmp_path, noise=1.5, labels=labels)
    task = prepared(tmp_path)
    runs = fit(task)
    folder, _ = record.write(task, runs, tmp_path / "runs")
    (run,) = runs
    found = json.loads((folder / "metrics.json").read_text())
    assert (found["kind"], found["labels"], found["thresholds"]) == ("multi", list(LABELS), list(run.head.thresholds))
    assert found["threshold"] == {"tune": "f1", "per": "label", "fixed": None}
    assert set(found["scores"]["test"]) == set(found["scores"]["validation"]) == set(run.scored["test"].scores)
    assert [row["label"] for row in found["by_label"]["test"]] == [row.label for row in label_tables(run)["test"]]
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert list(rows[0]) == ["id", "split", "truth", "predicted", "probabilities"]
    assert Counter(row["split"] for row in rows) == {"validation": 6, "test": 31, "unlabelled": 1}
    for row in rows:
        assert row["truth"] == labels[int(row["id"][:3])]
        at_least = zip(LABELS, row["probabilities"], found["thresholds"], strict=True)
        assert row["predicted"] == [label for label, share, threshold in at_least if share >= threshold]
    test = [row for row in rows if row["split"] == "test"]
    truth, predicted = ([[label in row[name] for label in LABELS] for row in test] for name in ("truth", "predicted"))
    assert found["scores"]["test"]["f1_micro"]["value"] == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert record.listed(tmp_path / "runs")[0]["metric"] == "f1_micro"
    (again,) = fit(prepared(tmp_path, **parse(read_grid(folder / "config.yaml")).model_dump()))
    assert again.head.thresholds == run.head.thresholds


def test_the_recorded_configuration_says_what_was_looked_up(tmp_path: Path) -> None:
    tagged(tmp_path)
    found = record.resolved(prepared(tmp_path, grid={"C": [1.0]}))
    assert (found.select.target, found.score) == ("labels", "f1_micro")
    assert found.threshold is not None
    assert found.threshold.model_dump() == {"tune": "f1", "per": "label", "fixed": None}


def test_a_limit_is_nested_with_label_lists_too(tmp_path: Path) -> None:
    tagged(tmp_path)
    small, large = (set(prepared(tmp_path, select={"limit": limit}).base.ids) for limit in (32, 64))
    assert small < large
    assert len(small) == 32


def test_a_run_without_anything_to_score_has_an_empty_table(tmp_path: Path) -> None:
    tagged(tmp_path, split=["train"] * 96)
    task = prepared(tmp_path, cv={"folds": 2})
    folder, _ = record.write(task, fit(task), tmp_path / "runs")
    assert pq.read_table(folder / "predictions.parquet").num_rows == 0


def test_the_page_has_a_table_of_labels_and_lets_none_speak_html(tmp_path: Path) -> None:
    labels = [[HOSTILE if label == "2" else label for label in own] for own in label_lists(96)]
    tagged(tmp_path, noise=1.5, labels=labels)
    task = prepared(tmp_path, features=["my-image"], select={"target": "labels"})
    runs = fit(task)
    folder, comparison = record.write(task, runs, tmp_path / "runs")
    text = report.write(folder, task, runs, comparison).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    start = page.rows.index(list(report.LABEL_COLUMNS))
    table = page.rows[start + 1 : start + 5]
    assert {row[0] for row in table} == {"1", HOSTILE, "3", "10"}
    scores = [float(row[6].removesuffix(" %")) for row in table]
    assert scores == sorted(scores)
    assert all(sum(map(int, row[2:6])) == 32 for row in table)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thresholds": [0.5]}, "1 thresholds for 4 classes"),
        ({"kind": "several"}, "kind 'several'"),
        ({"kind": "single"}, "4 thresholds for 4 classes of kind 'single'"),
        ({"prior": [1.0]}, "1 prior probabilities for 4 classes"),
        ({"mean": [1.0]}, "a mean of 1 numbers for 4"),
        ({"thresholds": 3}, "no head that can be read"),
    ],
)
def test_a_head_that_does_not_add_up_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    tagged(tmp_path)
    (run,) = fitted(tmp_path)
    run.head.save(tmp_path / "head")
    path = tmp_path / "head" / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DamagedFileError, match=words):
        FittedHead.load(tmp_path / "head")


def test_the_command_prints_scores_and_a_table_of_labels_in_80_columns(tmp_path: Path) -> None:
    tagged(tmp_path, noise=1.5)
    common = ["--cache", str(tmp_path), "--out", str(tmp_path / "runs")]
    environment = {"COLUMNS": "80"}
    done = CliRunner().invoke(app, ["fit-head", *common, "--set", "threshold.tune=balance"], env=environment)
    assert done.exit_code == 0, done.output
    *lines, _ = done.stdout.splitlines()  # the last names the run's folder, wherever that is
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("f1_micro") for line in lines)
    assert "labels on test, worst F1 first" in lines
    assert "as many false positives as false negatives" in " ".join(done.stdout.split())
    done = CliRunner().invoke(app, ["runs", "--out", str(tmp_path / "runs")], env=environment)
    assert "f1_micro" in done.stdout


def coco(cache: Path, folder: Path) -> list[list[str]]:
    """The 33 photos with their categories, seen as 4 × 4 coloured squares; a third is for test."""
    document = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    names = {one["id"]: one["name"] for one in document["categories"]}
    photos = sorted(document["images"], key=lambda one: one["id"])
    own = {one["id"]: set[str]() for one in photos}
    for one in document["annotations"]:
        own[one["image_id"]].add(names[one["category_id"]])
    files = [one["file_name"] for one in photos]
    lists = [sorted(own[one["id"]]) for one in photos]
    split = ["test" if row % 3 == 2 else "train" for row in range(len(files))]
    table = samples.build(files, split=split, images=files, targets={"labels": lists})
    vectors = {}
    for name in files:
        with Image.open(next(folder.rglob(name))) as photo:
            photo.draft("RGB", (64, 64))
            small = photo.convert("RGB").resize((4, 4), Image.Resampling.BOX)
        vectors[name] = np.asarray(small, np.float32).ravel() / 255
    add_features(save_table(cache, table, "coco", "coco"), "image", vectors)
    return lists


@pytest.mark.parametrize(
    "document", [{}, {"cv": {"folds": 3}, "grid": {"C": [0.01, 1.0]}, "threshold": {"per": "all"}}]
)
def test_photos_of_coco_run_with_more_labels_than_they_can_teach(
    tmp_path: Path, shared_data: Path, document: dict[str, Any]
) -> None:
    lists = coco(tmp_path, shared_data / "coco33")
    task = prepared(tmp_path, **document)
    (run,) = fit(task)
    assert set(run.head.classes) == set().union(*lists)
    assert any(note.startswith("labels that no training row has") for note in run.notes)
    test = run.scored["test"]
    assert len(test.ids) == 11
    rows = label_table(run.head.classes, test.truth > 0, test.probabilities, run.head.thresholds)
    predicted = decide(test.probabilities, run.head.thresholds)
    assert sum(row.tp + row.fp for row in rows) == predicted.sum()
    truth = [[label in lists[task.base.ids.tolist().index(name)] for label in run.head.classes] for name in test.ids]
    assert test.scores["f1_micro"].value == pytest.approx(f1_score(truth, predicted, average="micro"))
    folder, comparison = record.write(task, [run], tmp_path / "runs")
    report.write(folder, task, [run], comparison)
