"""Searches: drawn points, halving, several scores, features and transforms as axes, going on after an interrupt."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, ParameterSampler, RandomizedSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from typer.testing import CliRunner

from cli import app
from embedcache.errors import UsageError
from heads import grid as grids
from heads import head_named, record
from heads.config import parse, to_yaml
from heads.fit import FittedRun, fit
from heads.grid import candidates, search
from heads.logistic import Logistic
from heads.metrics import rank_of_truth, row_log_loss
from heads.mlp import Mlp
from heads.preview import preview
from heads.searching import FOLDER, Journal, Outcome, part_of, points_of, rungs_of
from heads.torch_mlp import MLPHead
from heads.transforms import build
from tests.heads_helpers import CLASSES, captioned, fitted, prepared, separable, tagged
from tests.test_heads_grid import assert_equal, blobs, folds_of, searched

SEED = 7
SMALL = {"hidden_layer_sizes": [4], "batch_size": 16, "device": "cpu"}


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every estimator that a search fits from its beginning, and how many rows it is given."""
    counted: list[Any] = []
    real = grids.fit_once
    counting = lambda one, *rows: (counted.append((one, len(rows[0]))), real(one, *rows))[1]  # noqa: E731
    monkeypatch.setattr(grids, "fit_once", counting)
    return counted


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ------------------------------------------------------------------------------------------------ random search


def test_a_random_search_draws_what_scikit_learn_draws() -> None:
    ranges = parse({"search": "random", "grid": {"C": {"low": 1e-4, "high": 10.0, "log": True}, "tol": [1e-3, 1e-4]}})
    theirs = {"C": stats.loguniform(1e-4, 10.0), "tol": [1e-3, 1e-4]}
    assert points_of([ranges.grid], "random", 6, SEED) == list(ParameterSampler(theirs, 6, random_state=SEED))  # type: ignore[list-item]
    even = parse({"search": "random", "grid": {"C": {"low": 1.0, "high": 3.0}, "max_iter": {"low": 5, "high": 9}}})
    theirs = {"C": stats.uniform(1.0, 2.0), "max_iter": stats.randint(5, 10)}
    assert points_of([even.grid], "random", 6, SEED) == list(ParameterSampler(theirs, 6, random_state=SEED))  # type: ignore[list-item]


def test_a_random_search_equals_scikit_learns(quiet: None) -> None:
    grid = {"C": [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0], "fit_intercept": [True, False]}
    x, codes = blobs()
    parts = folds_of(codes, 3)
    pipeline = Pipeline([("scale", StandardScaler()), ("head", LogisticRegression(max_iter=1000, random_state=SEED))])
    prefixed = {f"head__{name}": values for name, values in grid.items()}
    theirs = RandomizedSearchCV(pipeline, prefixed, n_iter=5, cv=parts, scoring="accuracy", random_state=3)
    theirs.fit(x, codes)
    found = candidates(Logistic(), {}, grid, "random", 5, 3)
    own = search(Logistic(), found, {}, build(["standardize"], ("all",), (6,), 0), x, codes, parts, "accuracy",
                 seed=SEED, jobs=1, progress=False)  # fmt: skip
    assert_equal(own, theirs)


def test_whole_numbers_over_their_logarithms_stay_in_their_range_and_are_spread() -> None:
    grid = parse({"search": "random", "grid": {"epochs": {"low": 1, "high": 1000, "log": True}}}).grid
    drawn = [point["epochs"] for point in points_of([grid], "random", 3000, 0)]  # type: ignore[list-item]
    assert (min(drawn), max(drawn)) == (1, 1000)
    assert all(type(one) is int for one in drawn)
    assert 0.45 < np.mean([one < 22 for one in drawn]) < 0.55  # half of the logarithms


def test_more_draws_than_points_are_all_the_points() -> None:
    assert len(candidates(Logistic(), {}, {"C": [0.1, 1.0], "tol": [1e-3]}, "random", 50, 0).points) == 2


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"grid": {"C": {"low": 1, "high": 2}}}, "C is a range: 'search: random' draws from ranges"),
        ({"search": "random", "grid": {"C": {"low": 2, "high": 1}}}, "from a number to a greater one"),
        ({"search": "random", "grid": {"C": {"low": 0, "high": 1, "log": True}}}, "begins above zero"),
        ({"search": "random", "grid": {"features": {"low": 0, "high": 1}}}, "features is no number"),
        ({"score": ["accuracy", "accuracy"]}, "names of scores, each once"),
        ({"score": []}, "names of scores, each once"),
        ({"score": ["accuracy", "f1_macro"], "refit": "roc_auc"}, "refit names none of the scores"),
        ({"features": [["a"], ["b"]], "grid": {"features": ["a", "b"]}}, "compared at the top or searched"),
        ({"search": "grit"}, "'grid', 'random' or 'halving'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(document: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse(document)


def test_a_range_is_written_and_read_again() -> None:
    config = parse({"search": "random", "n_iter": 3, "grid": {"C": {"low": 0.1, "high": 1, "log": True}, "tol": [1.0]}})
    assert parse(json.loads(json.dumps(config.model_dump()))) == config
    from heads.config import plain_yaml

    assert parse(plain_yaml(to_yaml(config))) == config


# ---------------------------------------------------------------------------------------------- several scores


def test_several_scores_are_scikit_learns_and_refit_decides(quiet: None) -> None:
    grid = {"C": [1e-5, 1e-3, 0.1, 1.0]}
    x, codes = blobs()
    parts = folds_of(codes, 3)
    names = ["accuracy", "f1_macro", "neg_log_loss"]
    pipeline = Pipeline([("scale", StandardScaler()), ("head", LogisticRegression(max_iter=1000, random_state=SEED))])
    theirs = GridSearchCV(pipeline, {"head__C": grid["C"]}, cv=parts, scoring=names, refit="neg_log_loss")
    theirs.fit(x, codes)
    first = parse({"score": names, "refit": "neg_log_loss"}).scores
    assert first == ("neg_log_loss", "accuracy", "f1_macro")
    own = searched(Logistic(), grid, parts=parts, score=first)
    for name in names:
        for column in (f"mean_test_{name}", f"std_test_{name}", f"split2_test_{name}", f"rank_test_{name}"):
            assert [row[column] for row in own.rows] == pytest.approx(theirs.cv_results_[column].tolist()), column
    assert own.best == theirs.best_index_
    assert own.rows[0]["mean_test_score"] == own.rows[0]["mean_test_neg_log_loss"]


def test_several_scores_are_recorded_and_the_run_repeats(tmp_path: Path) -> None:
    separable(tmp_path)
    document = {"grid": {"C": [1e-6, 1.0]}, "score": ["f1_macro", "accuracy"], "cv": {"folds": 3}}
    task = prepared(tmp_path, **document)
    folder, _ = record.write(task, fit(task), tmp_path / "runs")
    header = (folder / record.CV_RESULTS).read_text().splitlines()[0]
    assert "mean_test_f1_macro" in header
    assert "mean_test_accuracy" in header
    assert record.read_metrics(folder)["search"]["scores"] == ["f1_macro", "accuracy"]
    assert record.resolved(task).score == ["f1_macro", "accuracy"]


# ---------------------------------------------------------------------------- features and transforms as axes


def test_features_and_transforms_are_axes_of_one_search(tmp_path: Path) -> None:
    captioned(tmp_path)
    axes = {"features": ["my-image", "my-text", ["my-image", "my-text"]], "transform": ["standardize", [], ["l2"]]}
    document = {"grid": {**axes, "C": [1.0, 0.01]}, "cv": {"folds": 3}}
    task = prepared(tmp_path, **document)
    (before,) = preview(task)
    assert (before.points, before.fits) == (18, 18 * 3 + 1)
    (run,) = fit(task)
    assert run.search is not None
    assert len(run.search.rows) == 18
    assert run.features.names == ("my-image", "my-text")  # only both together tell the four classes
    assert run.scored["test"].scores["accuracy"].value == 1.0
    alone = [row["mean_test_score"] for row in run.search.rows if row["param_features"] == "my-image"]
    assert max(alone) < 0.8
    assert {row["param_transform"] for row in run.search.rows} == {"standardize", "none", "l2"}
    assert set(run.parameters) == {"C"}


def test_each_choice_of_features_and_transforms_scores_as_scikit_learn_has_it(tmp_path: Path, quiet: None) -> None:
    captioned(tmp_path)
    steps = {"standardize": StandardScaler(), "l2": Normalizer()}
    names = ["my-image", "my-text"]
    task = prepared(tmp_path, grid={"features": names, "transform": list(steps), "C": [1.0, 0.01]}, cv={"folds": 3})
    (run,) = fit(task)
    assert run.search is not None
    train = task.splits.train
    parts = folds_of_task(task)
    for place, name in enumerate(names):
        x = task.sets[place].matrix(np.float32)[train]
        for step, made in steps.items():
            pipeline = Pipeline([("step", made), ("head", LogisticRegression(max_iter=1000, random_state=0))])
            theirs = GridSearchCV(pipeline, {"head__C": [1.0, 0.01]}, cv=parts).fit(x, task.codes[train])
            own = [
                row["mean_test_score"]
                for row in run.search.rows
                if (row["param_features"], row["param_transform"]) == (name, step)
            ]
            by_c = dict(zip(theirs.cv_results_["param_head__C"], theirs.cv_results_["mean_test_score"], strict=True))
            assert sorted(own) == pytest.approx(sorted(by_c.values()))


def folds_of_task(task: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold

    codes = task.codes[task.splits.train]
    return list(StratifiedKFold(3, shuffle=True, random_state=0).split(codes, codes))


def test_a_run_whose_search_chose_the_features_is_recorded_and_repeats(tmp_path: Path) -> None:
    captioned(tmp_path)
    document = {"grid": {"features": ["my-text", ["my-image", "my-text"]], "transform": [["l2"], []]}}
    task = prepared(tmp_path, **document)
    folder, comparison = record.write(task, fit(task), tmp_path / "runs")
    assert comparison is None
    found = record.read_metrics(folder)
    assert found["search"]["features"] == "my-image + my-text"
    from heads.config import read_grid

    again = prepared(tmp_path, **{**read_grid(folder / record.CONFIG), "jobs": 1})
    (run,) = fit(again)
    assert run.features.names == ("my-image", "my-text")
    assert {name: one.value for name, one in run.scored["test"].scores.items()} == {
        name: one["value"] for name, one in found["scores"]["test"].items()
    }


def test_searches_of_several_compared_features_stand_in_one_table_too(tmp_path: Path) -> None:
    captioned(tmp_path)
    task = prepared(tmp_path, features=[["my-image"], ["my-text"]], grid={"C": [0.1, 1.0]})
    folder, _ = record.write(task, fit(task), tmp_path / "runs")
    lines = (folder / record.CV_RESULTS).read_text().splitlines()
    assert len(lines) == 1 + 4
    assert sum(line.startswith("my-text") for line in lines) == 2


# ----------------------------------------------------------------------------------------------------- halving


@pytest.mark.parametrize(
    ("points", "epochs", "factor", "amounts", "keep"),
    [
        (9, 9, 3, (1, 3, 9), (9, 3, 1)),
        (4, 20, 3, (6, 20), (4, 2)),
        (8, 3, 2, (1, 3), (8, 4)),
        (1, 20, 3, (20,), (1,)),
        (27, 2, 3, (2,), (27,)),
    ],
)
def test_rungs_of_epochs(points: int, epochs: int, factor: int, amounts: tuple[int], keep: tuple[int]) -> None:
    parameters = [{**SMALL, "epochs": epochs, "dropout": point / 100} for point in range(points)]
    found = rungs_of(Mlp(), parameters, "halving", factor, 10_000, 3)
    assert (found.by, found.amounts, found.keep) == ("epochs", amounts, keep)


def test_rungs_of_rows_begin_with_two_of_each_class() -> None:
    parameters = [{"C": float(point)} for point in range(1, 28)]
    found = rungs_of(Logistic(), parameters, "halving", 3, 60, 3)  # 60 rows, of which 6 are the least
    assert (found.by, found.keep) == ("rows", (27, 9, 3))
    assert found.amounts == (1 / 9, 1 / 3, 1.0)
    assert found.fits(5) == 39 * 5
    assert found.work(5) == pytest.approx(5 * (27 / 9 + 9 / 3 + 3))


def test_halving_of_epochs_goes_on_training_the_same_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []
    real_fit, real_more = MLPHead.fit, MLPHead.continue_fit

    def fit_(self: MLPHead, *rows: Any, **named: Any) -> MLPHead:
        trained.append((id(self), self.epochs))
        return real_fit(self, *rows, **named)

    def more(self: MLPHead, x: Any, y: Any, epochs: int, *rest: Any, **named: Any) -> MLPHead:
        trained.append((id(self), epochs))
        found = real_more(self, x, y, epochs, *rest, **named)
        assert len(found.history_) == found.epochs + sum(own for one, own in trained if one == id(self)) - found.epochs
        return found

    monkeypatch.setattr(MLPHead, "fit", fit_)
    monkeypatch.setattr(MLPHead, "continue_fit", more)
    rates = [1e-6, 1e-5, 3e-2, 1e-4]
    fixed = {**SMALL, "epochs": 12}
    grid = {"learning_rate": rates}
    plan = rungs_of(Mlp(), [{**fixed, "learning_rate": rate} for rate in rates], "halving", 2, 60, 3)
    assert plan.amounts == (3, 6, 12)
    own = searched(Mlp(), grid, fixed, rungs=plan)
    assert sum(epochs for _, epochs in trained) == 3 * (4 * 3 + 2 * 3 + 1 * 6)  # 90, where a grid trains 144
    assert len({one for one, _ in trained}) == 4 * 3
    assert [row["n_epochs"] for row in own.rows] == [3, 3, 12, 6] or own.rows[2]["n_epochs"] == 12
    assert own.best == 2
    assert own.rows[2]["rank_test_score"] == 1
    assert sorted(row["rung"] for row in own.rows) == [0, 0, 1, 2]


def test_halving_of_rows_fits_on_nested_parts_of_the_training_rows(fits: list[Any]) -> None:
    grid = {"C": [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]}
    plan = rungs_of(Logistic(), [{"C": c} for c in grid["C"]], "halving", 3, 60, 3)
    own = searched(Logistic(), grid, rungs=plan)
    assert [rows for _, rows in fits] == [6] * 27 + [20] * 9 + [60] * 3
    assert sorted(row["rung"] for row in own.rows) == [0] * 6 + [1] * 2 + [2]
    last = own.rows[own.best]
    whole = searched(Logistic(), {"C": [last["param_C"]]})
    assert last["mean_test_score"] == whole.rows[0]["mean_test_score"]


def test_parts_are_nested_and_hold_the_classes_in_proportion() -> None:
    train = np.arange(100, 190)
    codes = np.arange(90) % 3
    small, large = (part_of(train, codes, share, 0) for share in (1 / 9, 1 / 3))
    assert set(small) < set(large) < set(train)
    assert np.bincount(codes[large - 100]).tolist() == [10, 10, 10]
    assert (part_of(train, codes, 1.0, 0) == train).all()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"grid": {"epochs": [2, 4]}, "fixed": SMALL}, "state one number of 'epochs' under 'fixed'"),
        ({"grid": {"dropout": [0.0, 0.1]}, "fixed": {**SMALL, "early_stopping": True}}, "use one of them"),
    ],
)
def test_halving_that_cannot_divide_epochs_is_refused(tmp_path: Path, document: dict[str, Any], expected: str) -> None:
    separable(tmp_path)
    with pytest.raises(UsageError, match=expected):
        preview(prepared(tmp_path, head="mlp", search="halving", **document))


@pytest.mark.parametrize("head", ["mlp", "logistic"])
def test_halving_from_the_configuration_to_the_report(tmp_path: Path, head: str) -> None:
    separable(tmp_path, n=180)
    own = {
        "mlp": {"fixed": {**SMALL, "epochs": 4}, "grid": {"learning_rate": [1e-6, 1e-5, 0.05, 1e-7]}},
        "logistic": {"grid": {"C": [1e-9, 1e-8, 1.0, 1e-7]}},
    }
    task = prepared(tmp_path, head=head, search="halving", factor=2, cv={"folds": 2}, **own[head])
    (before,) = preview(task)
    (run,) = fit(task)
    assert run.search is not None
    assert before.fits == run.search.fits + 1 == (4 + 2 + 1) * 2 + 1
    folder, _ = record.write(task, [run], tmp_path / "runs")
    assert record.read_metrics(folder)["search"]["search"] == "halving"
    assert run.scored["test"].scores["accuracy"].value > 0.9


def test_halving_of_several_labels_per_sample(tmp_path: Path) -> None:
    tagged(tmp_path)
    task = prepared(tmp_path, search="halving", factor=2, grid={"C": [1e-6, 1.0, 1e-5, 0.1]}, cv={"folds": 2})
    (run,) = fit(task)
    assert run.search is not None
    assert run.search.rows[run.search.best]["n_rows"] == 1.0


# -------------------------------------------------------------------------------------- going on where it was


class Stop(BaseException):
    """What interrupts a search in the tests."""


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, task: Any, folder: Path) -> None:
    """Fit with a search that is stopped in fit number ``after``."""
    real, count = grids._fit_and_score, []

    def stop(*arguments: Any) -> Outcome:
        count.append(1)
        if len(count) > after:
            raise Stop
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(grids, "_fit_and_score", stop)
        with pytest.raises(Stop):
            fit(task, searches=folder)


def same(one: FittedRun, other: FittedRun) -> bool:
    """Whether two searches have found the same, times aside."""
    assert one.search is not None
    assert other.search is not None
    times = ("mean_fit_time", "mean_score_time")
    left, right = (
        [{name: value for name, value in row.items() if name not in times} for row in run.search.rows]  # type: ignore[union-attr]
        for run in (one, other)
    )
    return left == right and one.search.best == other.search.best


SEARCHES = {
    "grid": {"grid": {"C": [1e-6, 1e-5, 0.1, 1.0]}, "cv": {"folds": 3}},
    "axes": {"grid": {"transform": ["l2", "standardize"], "C": [1e-6, 1.0]}, "cv": {"folds": 3}, "score": ["accuracy"]},
    "rows": {"search": "halving", "factor": 2, "grid": {"C": [1e-6, 1e-5, 0.1, 1.0]}, "cv": {"folds": 2}},
    "epochs": {
        "head": "mlp",
        "search": "halving",
        "factor": 2,
        "fixed": {**SMALL, "epochs": 4},
        "grid": {"learning_rate": [1e-6, 1e-5, 0.05, 1e-7]},
        "cv": {"folds": 2},
    },
}


@pytest.mark.parametrize("after", [1, 5, 9])
@pytest.mark.parametrize("kind", list(SEARCHES))
def test_an_interrupted_search_goes_on_without_repeating_finished_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, after: int
) -> None:
    separable(tmp_path, n=72, noise=2.0)
    task = prepared(tmp_path, **SEARCHES[kind])
    folder = tmp_path / "runs" / FOLDER
    interrupted(monkeypatch, after, task, folder)
    (journal,) = folder.iterdir()
    assert len(journal.read_text().splitlines()) == after
    calls: list[int] = []
    real = grids._fit_and_score
    monkeypatch.setattr(grids, "_fit_and_score", lambda *own: (calls.append(1), real(*own))[1])
    (run,) = fit(task, searches=folder)
    assert run.search is not None
    assert (run.search.resumed, len(calls)) == (after, run.search.fits - after)
    assert f"{after} of {run.search.fits} fits of the search were finished before" in " ".join(run.notes)
    (whole,) = fit(task)
    assert same(run, whole)
    record.write(task, [run], tmp_path / "runs")
    assert list(folder.iterdir()) == []


def test_another_search_or_other_data_does_not_go_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    separable(tmp_path / "a", n=72, noise=2.0)
    separable(tmp_path / "b", n=72, noise=2.1)
    folder = tmp_path / "runs" / FOLDER
    interrupted(monkeypatch, 3, prepared(tmp_path / "a", **SEARCHES["grid"]), folder)
    others = [
        prepared(tmp_path / "b", **SEARCHES["grid"]),
        prepared(tmp_path / "a", **SEARCHES["grid"], seed=1),
        prepared(tmp_path / "a", **SEARCHES["grid"], score="f1_macro"),
        prepared(tmp_path / "a", **SEARCHES["grid"], transform=["l2"]),
    ]
    for task in others:
        (run,) = fit(task, searches=folder)
        assert run.search is not None
        assert run.search.resumed == 0


def test_a_torn_line_of_the_journal_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "a.jsonl"
    own = Outcome((0.5, float("nan")), 1.0, 2.0, True, "reason")
    Journal(path).add("one", own)
    with open(path, "a") as file:
        file.write('{"key": "two", "scores": [0.')
    assert list(Journal(path).known) == ["one"]
    Journal(path).add("three", own)
    found = Journal(path).known
    assert list(found) == ["one", "three"]
    assert found["three"].scores[0] == 0.5
    assert np.isnan(found["three"].scores[1])
    assert (found["three"].unconverged, found["three"].error) == (True, "reason")


def test_the_command_says_what_was_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    separable(cache)
    document = {"grid": {"C": [0.1, 1.0]}, "head": "logistic"}
    interrupted(monkeypatch, 1, prepared(cache, **document), out / FOLDER)
    arguments = ["fit-head", "--cache", str(cache), "--out", str(out), "--head", "logistic"]
    found = CliRunner().invoke(app, [*arguments, "--set", "grid.C=[0.1, 1.0]", "--set", "jobs=1"])
    assert found.exit_code == 0, found.output
    assert "1 of 2 fits of the search were finished before" in found.output
    assert [path.name for path in (out / FOLDER).iterdir()] == []


# ------------------------------------------------------------------------- classes that training rows do not have


def rare_classes(cache: Path) -> None:
    """Three classes, and one row in seven of a class of its own; published validation and test rows."""
    labels = [CLASSES[row % 3] if row % 7 else f"rare {row}" for row in range(90)]
    split = ["train" if row % 9 < 5 else "validation" if row % 9 < 7 else "test" for row in range(90)]
    separable(cache, n=90, labels=labels, split=split, noise=1.0)


@pytest.mark.parametrize("document", [{}, {"head": "svm"}, {"head": "knn", "grid": {"n_neighbors": [3, 9]}}], ids=str)
def test_top_classes_are_searched_by_log_loss(tmp_path: Path, document: dict[str, Any]) -> None:
    """As the final head is scored on the same rows, clipped by the precision of the probabilities."""
    rare_classes(tmp_path)
    both = ["neg_log_loss", "accuracy", "top_k_accuracy"]
    own = {"select": {"top_classes": 3}, "grid": {"C": [0.01, 1.0]}, "score": both, "refit": "neg_log_loss", **document}
    (run,) = fitted(tmp_path, **own)
    assert run.search is not None
    best, held = run.search.rows[run.search.best], run.scored["validation"]
    known = held.truth < len(run.head.classes)
    assert 0 < known.sum() < len(known)
    loss = row_log_loss(held.truth[known], held.probabilities[known]).sum() / len(known)
    clipped = [-np.log(np.finfo(kind).eps) * (~known).mean() for kind in (np.float32, np.float64)]
    assert -best["mean_test_neg_log_loss"] in [pytest.approx(loss + more, rel=1e-4) for more in clipped]
    assert best["mean_test_accuracy"] == pytest.approx(held.scores["accuracy"].value)
    assert best["mean_test_top_k_accuracy"] == (rank_of_truth(held.truth, held.probabilities) <= 2).mean()
    assert (
        f"search: {(~known).sum()} of {len(known)} validation rows have a class that no training row has: wrong; "
        "in neg_log_loss each has probability 0, clipped"
    ) in run.notes


def test_a_score_that_cannot_have_other_classes_says_so(tmp_path: Path) -> None:
    rare_classes(tmp_path)
    for head, grid in (("logistic", {"C": [0.1, 1.0]}), ("ridge", {"alpha": [0.1, 1.0]})):
        with pytest.raises(UsageError, match="Not one candidate.*first reason: .*(Number of classes|predict_proba)"):
            fitted(tmp_path, head=head, select={"top_classes": 3}, grid=grid, score="roc_auc_ovr")


def test_log_loss_is_scikit_learns_where_folds_have_all_classes() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 3)), np.arange(90) % 3
    folds = list(StratifiedKFold(3).split(x, y))
    scores = ["neg_log_loss", "top_k_accuracy"]
    found = search(
        head_named("logistic"), candidates(head_named("logistic"), {}, {"C": [0.1, 1.0]}), {}, [], x, y, folds, scores,
        seed=0, jobs=1, progress=False,
    )  # fmt: skip
    theirs = GridSearchCV(LogisticRegression(max_iter=1000), {"C": [0.1, 1.0]}, cv=folds, scoring=scores, refit=False)
    theirs.fit(x, y)
    for name in scores:
        expected = theirs.cv_results_[f"mean_test_{name}"]
        assert [row[f"mean_test_{name}"] for row in found.rows] == pytest.approx(list(expected))
