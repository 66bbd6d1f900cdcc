"""The head ``mlp`` on the way from a cache to a recorded run, and sample weights for every head that takes them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.catalog import DatasetFolder
from embedcache.errors import DamagedFileError
from heads.config import parse
from heads.fit import FittedRun, fit
from heads.record import write
from heads.saved import FittedHead
from heads.task import prepare
from tests.heads_helpers import separable, tagged

MLP = {"head": "mlp", "fixed": {"hidden_layer_sizes": [16], "epochs": 60, "batch_size": 16, "learning_rate": 0.02}}


def fitted(cache: Path, **changes: Any) -> FittedRun:
    [run] = fit(prepare(parse({**MLP, "jobs": 1, **changes}), cache))
    return run


def test_a_run_is_kept_with_its_history_and_gives_the_same_numbers(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    task = prepare(parse({**MLP, "jobs": 1}), tmp_path / "cache")
    [run] = fit(task)
    assert run.scored["test"].scores["accuracy"].value == 1.0
    folder, _ = write(task, [run], tmp_path / "runs")
    assert {"estimator.skops", "head.json", "network.json", "network.safetensors"} == {
        path.name for path in (folder / "head").iterdir()
    }
    x = np.random.default_rng(0).normal(size=(7, 4))
    np.testing.assert_array_equal(FittedHead.load(folder / "head").predict_proba(x), run.head.predict_proba(x))
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 61))
    assert set(rows[0]) == {
        "epoch", "learning_rate", "seconds", "train_loss", "train_score", "validation_loss", "validation_score"
    }  # fmt: skip


def test_it_stops_early_by_the_validation_split(tmp_path: Path) -> None:
    separable(tmp_path, noise=3.0, n=120)
    stopped = fitted(tmp_path, fixed={**MLP["fixed"], "early_stopping": True, "patience": 2, "epochs": 500})  # type: ignore[dict-item]
    head = stopped.head.estimator[-1]
    assert head.n_iter_ < 500
    assert min(line["validation_loss"] for line in head.history_) == head.history_[-3]["validation_loss"]


def test_several_labels_and_a_search(tmp_path: Path) -> None:
    tagged(tmp_path)
    run = fitted(tmp_path, grid={"activation": ["relu", "tanh"], "momentum": [0.5, 0.9]}, cv={"folds": 2})
    assert run.search is not None
    assert len(run.search.rows) == 4
    assert sum(row["same_fit_as"] == "" for row in run.search.rows) == 2  # adam has no momentum
    assert run.scored["test"].scores["f1_micro"].value > 0.8
    run.head.save(tmp_path / "head")
    x = np.random.default_rng(0).normal(size=(5, sum(run.features.dims)))
    again = FittedHead.load(tmp_path / "head")
    assert list(map(list, again.predict(x))) == list(map(list, run.head.predict(x)))


@pytest.mark.parametrize("wrong", ["network.json", "network.safetensors"])
def test_a_damaged_network_is_refused(tmp_path: Path, wrong: str) -> None:
    separable(tmp_path)
    fitted(tmp_path).head.save(tmp_path / "head")
    path = tmp_path / "head" / wrong
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"", b"{}"):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError):
            FittedHead.load(tmp_path / "head")


def test_a_network_under_another_heads_name_is_refused(tmp_path: Path) -> None:
    separable(tmp_path)
    fitted(tmp_path).head.save(tmp_path / "head")
    path = tmp_path / "head" / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "head": "logistic"}))
    with pytest.raises(DamagedFileError, match="no network"):
        FittedHead.load(tmp_path / "head")


@pytest.mark.parametrize("head", ["logistic", "mlp", "sklearn-mlp"])
def test_sample_weights_count(tmp_path: Path, head: str) -> None:
    """Two thirds of the rows say what is wrong, and weigh next to nothing."""
    n = 90
    labels = ["right" if (row % 2 == 0) == (row % 3 == 0) else "wrong" for row in range(n)]
    vectors = ["right" if row % 2 == 0 else "wrong" for row in range(n)]
    weight = [1.0 if row % 3 == 0 else 0.001 for row in range(n)]
    for cache, weights in (("weighted", weight), ("plain", None)):
        separable(tmp_path / cache, n=n, labels=vectors, split=["train"] * 72 + ["test"] * 18, weight=weights)
    scores = {}
    for cache in ("weighted", "plain"):
        folder = DatasetFolder(tmp_path / cache, "tiny")
        table = folder.table()
        column = table.samples.column_names.index("target.label")
        train = [label if row < 72 else vectors[row] for row, label in enumerate(labels)]
        changed = table.samples.set_column(column, "target.label", [train])
        folder.save(folder.record(), replace(table, samples=changed))
        fixed = MLP["fixed"] if head == "mlp" else {}
        [run] = fit(prepare(parse({"head": head, "fixed": fixed, "jobs": 1}), tmp_path / cache))
        scores[cache] = run.scored["test"].scores["accuracy"].value
        assert ("training samples are weighted" in run.notes) == (cache == "weighted")
    assert scores["weighted"] == 1.0
    assert scores["plain"] < 0.5


def test_standardizing_inside_the_network_is_standardizing_before_it(tmp_path: Path) -> None:
    separable(tmp_path, noise=1.5)
    few = {**MLP["fixed"], "epochs": 5}  # type: ignore[dict-item]
    inside, before = fitted(tmp_path, fixed=few), fitted(tmp_path, fixed={**few, "standardize": False})
    assert [len(run.head.estimator.steps) for run in (inside, before)] == [1, 2]
    x = inside.features.matrix(np.float32)
    np.testing.assert_allclose(inside.head.predict_proba(x), before.head.predict_proba(x), atol=1e-4)
