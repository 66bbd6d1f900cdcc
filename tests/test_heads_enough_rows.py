"""Folds, neighbours and components that the training rows are too few for are refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import UsageError
from heads import curves
from heads import task as tasks
from tests.heads_helpers import add_features, fitted, image_name, prepared, separable, tagged

TRAIN = 38
"""Training rows of ``separable``, with a tenth of them carved for validation."""
FOLD = 28
"""Of its 42 training rows those of the smallest of three folds."""


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No feature is read: a refusal comes before."""
    monkeypatch.setattr(tasks, "inputs_for", lambda *_, **__: pytest.fail("features were read"))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"head": "knn", "fixed": {"n_neighbors": 39}}, f"n_neighbors is 39, and there are {TRAIN} .* at most {TRAIN}"),
        ({"head": "knn", "grid": {"n_neighbors": [1, 29]}, "cv": {"folds": 3}}, f"n_neighbors is 29.*{FOLD} training"),
        ({"transform": [{"pca": 5}]}, "5 principal components cannot be made of 4 numbers.*set pca to at most 4"),
        ({"grid": {"transform": [["l2"], ["standardize", {"pca": 5}]]}}, "set pca to at most 4"),
        ({"transform": [{"pca": 3}, {"pca": 4}]}, "4 principal components cannot be made of 3 numbers"),
        ({"grid": {"C": [1.0]}, "cv": {"folds": 50}}, "50 folds need"),
    ],
)
def test_what_the_training_rows_are_too_few_for(tmp_path: Path, document: dict[str, Any], words: str) -> None:
    separable(tmp_path)
    with pytest.raises(UsageError, match=words):
        prepared(tmp_path, **document)


def test_as_many_neighbours_as_rows_are_enough(tmp_path: Path) -> None:
    separable(tmp_path)
    prepared(tmp_path, head="knn", fixed={"n_neighbors": TRAIN})
    prepared(tmp_path, head="knn", grid={"n_neighbors": [FOLD]}, cv={"folds": 3})


def test_the_width_of_a_product_is_held_to_the_training_rows(tmp_path: Path) -> None:
    """The wider set is projected to the other one's width by components of the training rows."""
    folder = separable(tmp_path, dim=64)
    add_features(folder, "image", {image_name(row): [float(row)] * 50 for row in range(60)}, name="other")
    document = {"features": [["my-image", "other"]], "fusion": {"kind": "product"}}
    with pytest.raises(
        UsageError, match=rf"50 .* of 64 numbers on {TRAIN} training .* fusion.width to at most {TRAIN}"
    ):
        prepared(tmp_path, **document)
    prepared(tmp_path, **{**document, "fusion": {"kind": "product", "width": TRAIN}})


def test_training_rows_of_one_class_are_named(tmp_path: Path) -> None:
    separable(tmp_path, split=["train" if row % 3 == 1 else "test" for row in range(60)])
    with pytest.raises(UsageError, match="All 18 training rows are of the class 'heron': .*two classes"):
        prepared(tmp_path)


def test_folds_for_thresholds_count_too(tmp_path: Path) -> None:
    tagged(tmp_path)
    document = {"head": "knn", "cv": {"folds": 4}, "validation": 0}
    prepared(tmp_path, **document, fixed={"n_neighbors": 48})
    with pytest.raises(UsageError, match="n_neighbors is 64, and there are 48 training rows, folds counted"):
        prepared(tmp_path, **document, fixed={"n_neighbors": 64})


def test_the_sizes_of_a_learning_curve_are_held_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    separable(tmp_path)
    task = prepared(tmp_path, head="knn", fixed={"n_neighbors": 10})
    curves.check(task, (10, 20, 1000))
    with pytest.raises(UsageError, match="there are 9 training rows"):
        curves.check(task, (9, 20))
    monkeypatch.undo()
    (run,) = fitted(tmp_path, head="knn", fixed={"n_neighbors": 10})
    assert len(curves.learning_curve(task, run, (10, 20)).curve) == 3
