"""What a run leaves behind, file by file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedcache.errors import DataNotFoundError
from heads import record
from heads.config import parse, read_grid
from heads.fit import FittedRun, fit
from heads.metrics import METRICS, rank_of_truth, scores
from heads.saved import FittedHead
from heads.task import Task, prepare
from tests.heads_helpers import add_features, captioned, image_name, prepared, separable

SETS = [["my-image"], ["my-text"], ["my-image", "my-text"]]


def written(cache: Path, **document: Any) -> tuple[Path, Task, list[FittedRun]]:
    """A recorded run below ``cache/runs``."""
    task = prepared(cache, **document)
    runs = fit(task)
    return record.write(task, runs, cache / "runs")[0], task, runs


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_has_the_promised_files(tmp_path: Path) -> None:
    separable(tmp_path)
    folder, _, _ = written(tmp_path, grid={"C": [1.0, 0.1]}, cv={"folds": 2})
    head = ["head/estimator.skops", "head/head.json"]
    assert files(folder) == [
        "config.yaml",
        "cv_results.csv",
        *head,
        "metrics.json",
        "predictions.parquet",
        "seen.parquet",
    ]
    assert folder.name.endswith("-tiny-logistic")


def test_a_comparison_has_a_folder_for_each_choice_of_features(tmp_path: Path) -> None:
    captioned(tmp_path)
    folder, _, runs = written(tmp_path, features=SETS)
    names = ["01-my-image", "02-my-text", "03-my-image-my-text"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "comparison.json", "config.yaml"]
    for name, run in zip(names, runs, strict=True):
        own = [
            "config.yaml",
            "head/estimator.skops",
            "head/head.json",
            "metrics.json",
            "predictions.parquet",
            "seen.parquet",
        ]
        assert files(folder / name) == own
        assert record.read_metrics(folder / name)["scores"]["test"]["accuracy"]["value"] == accuracy(run)


def accuracy(run: FittedRun) -> float:
    return run.scored["test"].scores["accuracy"].value


def test_comparison_json_is_best_first_with_paired_intervals(tmp_path: Path) -> None:
    captioned(tmp_path)
    folder, task, runs = written(tmp_path, features=SETS)
    found = json.loads((folder / "comparison.json").read_text())
    assert (found["split"], found["metric"], found["samples"]) == ("test", "accuracy", len(task.splits.test))
    values = [row["score"]["value"] for row in found["rows"]]
    assert values == sorted((accuracy(run) for run in runs), reverse=True)
    assert found["rows"][0]["difference"] is None
    assert found["rows"][0]["folder"] == "03-my-image-my-text"
    assert all((folder / row["folder"] / "metrics.json").is_file() for row in found["rows"])
    assert all(row["difference"]["high"] < 0 for row in found["rows"][1:])


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"head": "sklearn-mlp", "fixed": {"max_iter": 3}, "grid": {"hidden_layer_sizes": [[4, 3], [2]]}, "seed": 4},
        {"grid": [{"C": [1.0]}, {"C": [0.1], "class_weight": [None, "balanced"]}], "cv": {"folds": 2, "seed": 3}},
        {"features": SETS, "transform": {"my-image": [{"pca": 1}], "my-text": ["l2"]}},
        {"select": {"captions": "each", "limit": 40, "filter": {"place": [None, "sea"]}}},
        {"select": {"filter": {"place": None}}, "fixed": {"class_weight": None}},
    ],
)
def test_the_recorded_configuration_repeats_the_run(tmp_path: Path, document: dict[str, Any]) -> None:
    folder = captioned(tmp_path, meta={"place": ["sea" if row % 2 else None for row in range(72)]})
    first, _, runs = written(tmp_path, **document)
    add_features(folder, "image", {image_name(row): [0.0] for row in range(72)}, name="later")
    add_features(folder, "image", {image_name(row): [0.0] for row in range(72)}, name="my-image", weights="b")
    again = fit(prepare(parse(read_grid(first / record.CONFIG)), tmp_path))
    assert len(again) == len(runs)
    for old, new in zip(runs, again, strict=True):
        assert old.parameters == new.parameters
        assert old.scored.keys() == new.scored.keys()
        for split, scored in old.scored.items():
            assert scored.ids.tolist() == new.scored[split].ids.tolist()
            assert (scored.probabilities == new.scored[split].probabilities).all()


def test_the_recorded_configuration_says_what_was_looked_up(tmp_path: Path) -> None:
    separable(tmp_path)
    folder, task, runs = written(tmp_path)
    found = parse(read_grid(folder / record.CONFIG))
    assert (found.dataset, found.select.target) == ("tiny", "label")
    assert found.features == [[f"my-image@{runs[0].head.features[0].fingerprint}"]]
    assert found == record.resolved(task)


def test_each_part_of_a_comparison_can_be_repeated_alone(tmp_path: Path) -> None:
    captioned(tmp_path)
    transform = {"my-image": ["standardize"], "my-text": ["l2"]}
    folder, _, runs = written(tmp_path, features=SETS, transform=transform)
    (again,) = fit(prepare(parse(read_grid(folder / "02-my-text" / record.CONFIG)), tmp_path))
    assert accuracy(again) == accuracy(runs[1])
    assert again.label == "my-text"


def test_two_encoders_of_one_name_are_recorded_apart(tmp_path: Path) -> None:
    folder = separable(tmp_path)
    add_features(folder, "image", {image_name(row): [float(row)] for row in range(60)}, weights="b")
    first, _, runs = written(tmp_path)
    (again,) = fit(prepare(parse(read_grid(first / record.CONFIG)), tmp_path))
    assert again.head.features == runs[0].head.features


def test_cv_results_has_a_row_per_point_and_scikit_learns_columns(tmp_path: Path) -> None:
    separable(tmp_path, noise=2.0)
    grid = {"learning_rate": ["constant", "adaptive"], "alpha": [0.01, 1.0]}
    folder, _, runs = written(tmp_path, head="sklearn-mlp", fixed={"max_iter": 3}, grid=grid, cv={"folds": 2})
    with open(folder / record.CV_RESULTS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "param_alpha", "param_learning_rate", "split0_test_score", "split1_test_score", "mean_test_score",
        "std_test_score", "rank_test_score", "mean_fit_time", "mean_score_time", "same_fit_as", "error",
    ]  # fmt: skip
    search = runs[0].search
    assert search is not None
    assert [float(row["mean_test_score"]) for row in rows] == [row["mean_test_score"] for row in search.rows]
    assert [row["same_fit_as"] for row in rows] == ["", "candidate 0", "", "candidate 2"]
    assert rows[search.best]["rank_test_score"] == "1"


def test_cv_results_of_several_grids_has_all_their_columns(tmp_path: Path) -> None:
    separable(tmp_path)
    folder, _, _ = written(tmp_path, grid=[{"C": [1.0]}, {"tol": [0.1]}], cv={"folds": 2})
    with open(folder / record.CV_RESULTS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["param_C"], row["param_tol"]) for row in rows] == [("1.0", ""), ("", "0.1")]


def test_metrics_json_holds_every_score_with_its_interval(tmp_path: Path) -> None:
    folder = captioned(tmp_path, n=48)
    images = {image_name(row): [float(row)] for row in range(1, 48)}
    add_features(folder, "image", images, name="holes", failed=[image_name(0)])
    grid = {"C": [1.0, 0.1]}
    first, task, (run,) = written(tmp_path, features="holes,my-text", grid=grid, cv={"folds": 3})
    found = record.read_metrics(first)
    test = run.scored["test"]
    expected = scores(test.truth, test.probabilities, 0)
    assert found["scores"] == {
        "test": {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in expected.items()}
    }
    assert set(expected) == set(METRICS)
    assert all(one.low <= one.value <= one.high for one in expected.values())
    assert (found["dataset"], found["target"], found["head"], found["captions"]) == (
        "tiny",
        "label",
        "logistic",
        "mean",
    )
    assert found["left_out"] == {"its image failed in holes": 1}
    assert found["samples"] == {"train": len(task.splits.train), "validation": 0, "test": len(test.truth)}
    assert [(one["name"], one["modality"], one["dim"]) for one in found["features"]] == [
        ("holes", "image", 1),
        ("my-text", "text", 2),
    ]
    assert [one["fingerprint"] for one in found["features"]] == list(run.features.fingerprints.values())
    assert found["parameters"] == run.parameters
    assert (found["search"]["candidates"], found["search"]["fitted"]) == (2, 2)
    assert found["search"]["splitter"] == "StratifiedKFold"
    assert found["search"]["best_mean_test_score"] == max(row["mean_test_score"] for row in run.search.rows)


def test_parameters_are_recorded_in_plain_types(tmp_path: Path) -> None:
    separable(tmp_path)
    folder, _, _ = written(
        tmp_path,
        head="sklearn-mlp",
        fixed={"hidden_layer_sizes": (3, 2), "max_iter": np.int64(2), "alpha": np.float64(1)},
    )
    assert record.read_metrics(folder)["parameters"] == {"hidden_layer_sizes": [3, 2], "max_iter": 2, "alpha": 1.0}
    assert parse(read_grid(folder / record.CONFIG)).fixed["max_iter"] == 2


def test_predictions_hold_the_five_most_probable_classes_and_the_rank_of_the_truth(tmp_path: Path) -> None:
    labels = [None if row % 10 == 0 else f"kind {row % 7}" for row in range(60)]
    separable(tmp_path, labels=labels, dim=8, noise=3.0)
    folder, _, (run,) = written(tmp_path)
    rows = pq.read_table(folder / record.PREDICTIONS).to_pylist()
    assert list(rows[0]) == [
        "id", "split", "truth", "predicted", "top_classes", "top_probabilities", "rank_of_truth",
    ]  # fmt: skip
    assert {row["split"] for row in rows} == {"validation", "test", "unlabelled"}
    published = {f"s{row:03d}": label for row, label in enumerate(labels)}
    for split, scored in run.scored.items():
        own = {row["id"]: row for row in rows if row["split"] == split}
        assert list(own) == scored.ids.tolist()
        ranks = rank_of_truth(np.maximum(scored.truth, 0), scored.probabilities)
        for position, (key, row) in enumerate(own.items()):
            probabilities = scored.probabilities[position]
            assert row["truth"] == published[key]
            assert row["top_probabilities"] == sorted(probabilities, reverse=True)[:5]
            assert [probabilities[run.head.classes.index(name)] for name in row["top_classes"]] == row[
                "top_probabilities"
            ]
            assert row["predicted"] == row["top_classes"][0]
            assert row["rank_of_truth"] == (None if row["truth"] is None else ranks[position])
            if row["truth"] in row["top_classes"]:
                assert row["top_classes"].index(row["truth"]) == row["rank_of_truth"] - 1


def test_with_two_classes_there_are_two_most_probable(tmp_path: Path) -> None:
    separable(tmp_path, labels=[bool(row % 2) for row in range(60)])
    folder, _, _ = written(tmp_path)
    row = pq.read_table(folder / record.PREDICTIONS).to_pylist()[0]
    assert sorted(row["top_classes"]) == ["False", "True"]


def test_a_run_without_anything_to_score_has_an_empty_table_of_predictions(tmp_path: Path) -> None:
    separable(tmp_path, split=["train"] * 60)
    folder, _, _ = written(tmp_path, cv={"folds": 2})
    table = pq.read_table(folder / record.PREDICTIONS)
    assert table.num_rows == 0
    assert "top_classes" in table.column_names
    assert record.read_metrics(folder)["scores"] == {}


def test_the_recorded_head_is_the_fitted_one(tmp_path: Path) -> None:
    separable(tmp_path, noise=2.0)
    folder, _, (run,) = written(tmp_path)
    x = run.features.matrix(np.float32)
    assert (FittedHead.load(folder / record.HEAD).predict_proba(x) == run.head.predict_proba(x)).all()


def test_latest_names_the_newest_run_and_no_run_is_overwritten(tmp_path: Path) -> None:
    separable(tmp_path)
    folders = [written(tmp_path)[0] for _ in range(3)]
    assert len(set(folders)) == 3
    latest = tmp_path / "runs" / "latest"
    assert latest.is_symlink()
    assert latest.resolve() == folders[-1].resolve()
    assert not latest.readlink().is_absolute()


def test_a_folder_that_is_called_latest_is_left_alone(tmp_path: Path) -> None:
    separable(tmp_path)
    mine = tmp_path / "runs" / "latest" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    folder, _, _ = written(tmp_path)
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(["latest", folder.name])


def test_runs_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    separable(tmp_path)
    folder, _, _ = written(tmp_path)
    out = tmp_path / "runs"
    assert record.resolve_run(folder, out) == folder
    assert record.resolve_run(folder.name, out) == folder
    assert record.resolve_run("latest", out).resolve() == folder.resolve()
    with pytest.raises(DataNotFoundError, match=r"no run nothing: expected a folder with config\.yaml"):
        record.resolve_run("nothing", out)


def test_runs_are_listed_newest_first_each_once(tmp_path: Path) -> None:
    captioned(tmp_path)
    first, _, _ = written(tmp_path, features="my-image")
    second, _, runs = written(tmp_path, features=SETS)
    rows = record.listed(tmp_path / "runs")
    parts = ["01-my-image", "02-my-text", "03-my-image-my-text"]
    assert [row["run"] for row in rows] == [*(f"{second.name}/{part}" for part in parts), first.name]
    assert [row["features"] for row in rows] == ["my-image", "my-text", "my-image + my-text", "my-image"]
    assert rows[2]["score"] == f"{100 * accuracy(runs[2]):.1f} %"
    assert record.listed(tmp_path / "nowhere") == []
