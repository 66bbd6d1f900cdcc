"""Transforms: what they compute, on which columns, and that only training rows decide it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import Pipeline

from embedcache.errors import UnknownNameError, UsageError
from heads import grid as grids
from heads.grid import Data, _transformed
from heads.transforms import build, for_sets
from tests.heads_helpers import add_features, captioned, fitted, image_name, prepared, separable

X = np.array([[1.0, 10, 0], [3, 10, 4], [5, 40, 8], [7, 40, 12]], np.float32)


def made(transform: Any, names: tuple[str, ...] = ("all",), dims: tuple[int, ...] = (3,)) -> Pipeline:
    return Pipeline(build(transform, names, dims, seed=0))


def test_standardize_gives_zero_mean_and_unit_variance() -> None:
    out = made(["standardize"]).fit_transform(X)
    assert out.mean(0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert out.std(0) == pytest.approx([1, 1, 1], abs=1e-6)


def test_l2_gives_rows_of_unit_length() -> None:
    out = made(["l2"]).fit_transform(X)
    assert np.linalg.norm(out, axis=1) == pytest.approx([1] * 4)
    assert out[0] == pytest.approx(X[0] / np.linalg.norm(X[0]))


@pytest.mark.parametrize(("size", "expected"), [(2, 2), (1, 1), (0.5, 1), (0.9999, 2), (None, 3)])
def test_pca_keeps_a_number_or_a_share(size: Any, expected: int) -> None:
    assert made([{"pca": size}]).fit_transform(X).shape == (4, expected)


def test_steps_follow_each_other() -> None:
    out = made(["standardize", {"pca": 2}, "l2"]).fit_transform(X)
    assert out.shape == (4, 2)
    assert np.linalg.norm(out, axis=1) == pytest.approx([1] * 4)


def test_no_transform_is_no_step() -> None:
    assert build([], ("all",), (3,), 0) == []


def test_each_feature_set_has_its_own_steps_and_the_rest_stay_as_they_are() -> None:
    out = made({"b": ["standardize"], "a": ["l2"]}, ("a", "b", "c"), (1, 1, 1)).fit_transform(X)
    assert out[:, 0] == pytest.approx([1, 1, 1, 1])
    assert out[:, 1] == pytest.approx([-1, -1, 1, 1])
    assert out[:, 2] == pytest.approx(X[:, 2])


def test_names_of_feature_sets_may_be_anything_and_repeat() -> None:
    out = made({"a__b": ["standardize"]}, ("a__b", "a__b"), (2, 1)).fit_transform(X)
    assert out == pytest.approx(made(["standardize"]).fit_transform(X))


@pytest.mark.parametrize(
    ("transform", "kind", "words"),
    [
        (["standardise"], UnknownNameError, "Unknown transform 'standardise'. Did you mean 'standardize'"),
        ({"b": ["l2"]}, UnknownNameError, "feature set in 'transform': 'b'.*Known: all"),
        ({"all": ["zca"]}, UnknownNameError, "Unknown transform 'zca'"),
        ([{"l2": 3}], UsageError, "'l2' takes no argument, got 3"),
        ([{"pca": 2, "l2": None}], UsageError, "one 'name: argument'"),
        ([{}], UsageError, "one 'name: argument'"),
    ],
)
def test_what_is_no_transform_is_refused(transform: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        build(transform, ("all",), (3,), 0)


def test_the_part_of_some_feature_sets() -> None:
    assert for_sets({"a": ["l2"], "b": []}, ("b", "c")) == {"b": []}
    assert for_sets(["l2"], ("b",)) == ["l2"]


def test_held_out_rows_change_nothing_that_a_fold_learns() -> None:
    steps = build(["standardize", {"pca": 2}], ("all",), (3,), 0)
    train, held = np.arange(3), np.array([3])
    far = X.copy()
    far[3] = 1e6
    fold = (train, held)
    near_fold, far_fold = (_transformed(steps, Data(x, np.zeros(4, np.int64), [fold]), fold) for x in (X, far))
    assert (near_fold.x_train == far_fold.x_train).all()
    assert np.abs(far_fold.x_test).max() > 1e5
    assert not hasattr(steps[0][1], "mean_")


def test_a_far_test_row_does_not_move_the_training_statistics(tmp_path: Path) -> None:
    folder = separable(tmp_path)
    task = prepared(tmp_path)
    train = task.splits.train
    vectors = {image_name(row): [row, 1.0] for row in range(60)}
    vectors |= {image_name(row): [1e6, 1e6] for row in (*task.splits.test, *task.splits.validation)}
    add_features(folder, "image", vectors, name="mine")
    (run,) = fitted(tmp_path, features="mine")
    scaler = run.head.estimator[0]
    assert scaler.mean_ == pytest.approx([train.mean(), 1.0])
    assert scaler.scale_ == pytest.approx([train.std(), 1.0])


def test_a_mapping_serves_every_choice_of_features_of_a_comparison(tmp_path: Path) -> None:
    captioned(tmp_path)
    sets = [["my-image"], ["my-text"], ["my-image", "my-text"]]
    runs = fitted(tmp_path, features=sets, transform={"my-image": [{"pca": 1}], "my-text": ["standardize"]})
    assert [run.head.estimator[-1].n_features_in_ for run in runs] == [1, 2, 3]


def test_a_transform_that_no_choice_of_features_has_is_refused_before_any_fit(tmp_path: Path) -> None:
    captioned(tmp_path)
    with pytest.raises(UnknownNameError, match="'my-imag'. Did you mean 'my-image'"):
        prepared(tmp_path, transform={"my-imag": ["l2"]})


@pytest.mark.parametrize("search", [{}, {"grid": {"C": [1.0]}, "cv": {"folds": 2}}])
def test_a_transform_that_cannot_be_fitted_is_wrong_use(tmp_path: Path, search: dict[str, Any]) -> None:
    separable(tmp_path)
    with pytest.raises(UsageError, match="100 principal components cannot be made of 4 numbers .*set pca to at most 4"):
        fitted(tmp_path, transform=[{"pca": 100}], **search)


def test_transforms_of_a_fold_are_fitted_once_for_all_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    separable(tmp_path)
    fits = []
    real = grids._transformed

    def counting(*args: Any) -> Any:
        fits.append(real(*args))
        return fits[-1]

    monkeypatch.setattr(grids, "_transformed", counting)
    fitted(tmp_path, grid={"C": [0.1, 1.0, 10.0]}, cv={"folds": 2})
    assert len(fits) == 2
