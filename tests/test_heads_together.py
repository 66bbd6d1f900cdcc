"""Searches, curves and axes with fusion, texts, oversampling, several seeds and training that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import app
from embedcache.errors import UsageError
from heads import continuing, record
from heads.config import read_grid
from heads.curves import learning_curve
from heads.fit import fit
from heads.preview import preview
from heads.searching import data_digest
from tests.heads_helpers import captioned, prepared, separable, tagged
from tests.test_heads_classic import worded
from tests.test_heads_search import interrupted, same

BOTH = "my-image,my-text"
MLP: dict[str, Any] = {"head": "mlp", "fixed": {"hidden_layer_sizes": [4], "epochs": 9, "device": "cpu"}}


# ------------------------------------------------------------------------------------------------------ fusion


@pytest.mark.parametrize("fusion", ["late", "union"])
def test_members_of_a_fusion_are_searched_by_halving_and_by_transform(tmp_path: Path, fusion: str) -> None:
    tagged(tmp_path / "cache")
    grid = {"transform": [["l2"], []], "learning_rate": [0.01, 0.05]}
    task = prepared(tmp_path / "cache", features=BOTH, fusion=fusion, search="halving", grid=grid, factor=2, **MLP)
    searches = tmp_path / "searches"
    image, text, both = fit(task, searches=searches)
    for run, one in zip((image, text, both), preview(task), strict=True):
        assert one.fits == (run.search.fits + 1 if run.search is not None else 0)
    assert both.search is None
    assert both.fusion == fusion
    assert image.search is not None
    assert image.search.rows[0]["n_epochs"] < 9 or image.search.rows[0]["rung"] > 0
    assert len(list(searches.iterdir())) == 2
    folder, comparison = record.write(task, [image, text, both], tmp_path / "runs")
    assert comparison is not None
    assert not list(searches.iterdir())
    again = fit(prepared(tmp_path / "cache", **read_grid(folder / record.CONFIG)))
    for old, new in zip((image, text, both), again, strict=True):
        np.testing.assert_allclose(new.scored["test"].probabilities, old.scored["test"].probabilities, atol=1e-6)


def test_what_is_not_for_a_fusion_of_answers_is_refused(tmp_path: Path) -> None:
    captioned(tmp_path / "cache")
    axis = {"features": ["my-text", ["my-image", "my-text"]]}
    for fusion in ("late", "union", {"kind": "concat", "baselines": True}):
        with pytest.raises(UsageError, match="'features' under 'grid' chooses among sets that are fused before"):
            prepared(tmp_path / "cache", fusion=fusion, grid=axis)
    task = prepared(tmp_path / "cache", features=BOTH, fusion="late")
    with pytest.raises(UsageError, match="A learning curve is of one head, and 'fusion: late' is made of several"):
        learning_curve(task, fit(task)[0], (12,))
    where = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs")]
    chosen = ["--features", BOTH, "--set", "fusion=late", "--learning-curve", "12"]
    done = CliRunner().invoke(app, ["fit-head", *chosen, *where])
    assert done.exit_code == 2, done.output
    assert "A learning curve is of one head" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_product_is_a_choice_of_the_axis_and_has_a_curve(tmp_path: Path) -> None:
    captioned(tmp_path / "cache")
    grid = {"features": ["my-text", ["my-image", "my-text"]], "transform": [["l2"], []], "C": [0.1, 1.0]}
    task = prepared(tmp_path / "cache", fusion="product", grid=grid)
    assert [one.names for one in task.sets] == [("my-text",), ("my-image", "my-text")]
    (run,) = fit(task)
    assert run.search is not None
    assert len(run.search.rows) == 8
    folder, _ = record.write(task, [run], tmp_path / "runs")
    (again,) = fit(prepared(tmp_path / "cache", **read_grid(folder / record.CONFIG)))
    assert again.scored["test"].scores == run.scored["test"].scores
    assert (again.features.names, again.transform) == (run.features.names, run.transform)
    fixed = prepared(tmp_path / "cache", features=BOTH, fusion="product")
    assert [len(learning_curve(fixed, one, (12,)).curve) for one in fit(fixed)] == [2, 2, 2]


# ------------------------------------------------------------------------------------------------------- texts


def test_texts_are_searched_go_on_after_an_interrupt_and_have_a_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worded(tmp_path / "cache")
    grid = {"C": {"low": 0.1, "high": 10.0, "log": True}, "min_df": [1, 2]}
    document = {"head": "tfidf", "search": "random", "n_iter": 4, "grid": grid, "cv": {"folds": 2}, "jobs": 1}
    task = prepared(tmp_path / "cache", **document)
    (whole,) = fit(task)
    interrupted(monkeypatch, 3, task, tmp_path / "searches")
    (run,) = fit(task, searches=tmp_path / "searches")
    assert run.search is not None
    assert run.search.resumed == 3
    assert same(run, whole)
    assert [point.rows for point in learning_curve(task, run, (20,)).curve] == [20, len(task.splits.train)]


def test_the_digest_of_texts_is_of_the_texts() -> None:
    one, other = np.array(["a", "bc"], object), np.array(["ab", "c"], object)
    assert data_digest([one], "") == data_digest([one.copy()], "")
    assert data_digest([one], "") != data_digest([other], "")


def test_a_reader_of_texts_has_no_axes(tmp_path: Path) -> None:
    worded(tmp_path)
    for grid, expected in (({"features": ["a", "b"]}, "no feature sets"), ({"transform": [[], ["l2"]]}, "transforms")):
        with pytest.raises(UsageError, match=expected):
            prepared(tmp_path, head="tfidf", grid=grid)


# ------------------------------------------------------------------------- oversampling, seeds, going on with a run


def test_oversampled_rows_are_halved_and_seeds_keep_the_transform_that_was_chosen(tmp_path: Path) -> None:
    tagged(tmp_path)
    grid = {"transform": [["l2"], []], "C": [0.01, 0.1, 1.0, 10.0]}
    task = prepared(tmp_path, features="my-image", oversample=3, search="halving", factor=2, grid=grid, seeds=2)
    (run,) = fit(task)
    assert run.search is not None
    assert run.repeats is not None
    deviations = [one.deviation for own in run.repeats.scores.values() for one in own.values()]
    assert max(deviations) < 0.05  # the same solution, whatever the seed
    assert preview(task)[0].fits == run.search.fits + 2
    own = learning_curve(task, run, (24,))
    assert own.curve[-1].scores == run.scored["test"].scores


def test_a_run_whose_search_chose_its_features_goes_on(tmp_path: Path) -> None:
    captioned(tmp_path / "cache")
    grid = {"features": ["my-text", ["my-image", "my-text"]], "transform": [["l2"], ["standardize"]]}
    task = prepared(tmp_path / "cache", grid=grid, search="halving", factor=2, **MLP)
    (run,) = fit(task)
    folder, _ = record.write(task, [run], tmp_path / "runs")
    again, more = continuing.go_on(folder, 2, tmp_path / "cache")
    assert more.features.names == run.features.names
    assert more.transform == run.transform
    assert again.config.transform == run.transform
    assert more.parameters["epochs"] == 11
    assert more.head.estimator[-1].n_iter_ == 11


def test_an_oversampled_run_goes_on(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    task = prepared(tmp_path / "cache", oversample=2, **MLP)
    (run,) = fit(task)
    folder, _ = record.write(task, [run], tmp_path / "runs")
    _, more = continuing.go_on(folder, 1, tmp_path / "cache")
    assert more.transform == run.transform == []
    assert all(one.head.estimator[-1].standardize for one in (run, more))


def test_what_would_be_compared_with_itself_is_refused(tmp_path: Path) -> None:
    captioned(tmp_path / "cache")
    with pytest.raises(UsageError, match="The features my-image are named twice"):
        prepared(tmp_path / "cache", features=[["my-image"], ["my-text"], ["my-image"]])
    where = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs")]
    for options, expected in (
        (["--features", "my-image", "--features", "my-image"], "my-image are named twice"),
        (["--head", "knn", "--head", "ridge", "--head", "knn", "--features", "my-image"], "--head knn is given twice"),
    ):
        done = CliRunner().invoke(app, ["fit-head", *options, *where])
        assert (done.exit_code, expected in done.stderr) == (2, True), done.output
    assert not (tmp_path / "runs").exists()


def test_a_history_says_which_validation_rows_it_leaves_out(tmp_path: Path) -> None:
    labels = [f"rare {row}" if row % 10 == 0 else f"class {row % 2}" for row in range(60)]
    split = ["validation" if row % 3 == 0 else "train" for row in range(60)]
    separable(tmp_path, labels=labels, split=split, dim=30)
    (run,) = fit(prepared(tmp_path, select={"top_classes": 2}, **MLP))
    said = "validation losses and scores by epoch (history.csv) are without 2 of 20 validation rows, whose labels no"
    assert any(note.startswith(said) for note in run.notes)
    (known,) = fit(prepared(tmp_path, select={"filter": {"label": ["class 0", "class 1"]}}, **MLP))
    assert not any("history.csv" in note for note in known.notes)
