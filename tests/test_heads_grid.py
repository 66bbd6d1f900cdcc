"""The search gives what GridSearchCV gives, and fits less often."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from embedcache.errors import UnknownNameError, UsageError
from heads import config
from heads import grid as grids
from heads.config import parse, read_grid
from heads.fit import fit
from heads.grid import SearchResult, candidates, search
from heads.logistic import Logistic
from heads.preview import preview
from heads.sklearn_mlp import SklearnMlp
from heads.transforms import build
from tests.heads_helpers import prepared, separable

SEED = 7
EPOCHS = {"max_iter": 8, "solver": "adam"}
Parts = list[tuple[np.ndarray, np.ndarray]]


def blobs(noise: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """90 rows of three classes that overlap."""
    codes = np.arange(90) % 3
    centres = 3 * np.eye(6)[codes]
    return (centres + np.random.default_rng(0).normal(scale=noise, size=(90, 6))).astype(np.float32), codes


def folds_of(codes: np.ndarray, number: int) -> Parts:
    return list(StratifiedKFold(number, shuffle=True, random_state=1).split(codes, codes))


def searched(
    head: Any, grid: Any, fixed: dict[str, Any] | None = None, *, parts: Parts | None = None, **options: Any
) -> SearchResult:
    """Our search on ``blobs``."""
    x, codes = blobs()
    steps = build(["standardize"], ("all",), (6,), 0)
    found = candidates(head, fixed or {}, grid)
    stated: dict[str, Any] = {"seed": SEED, "jobs": 1, "progress": False, "score": "accuracy", **options}
    return search(head, found, fixed or {}, steps, x, codes, parts or folds_of(codes, 3), **stated)


def reference(estimator: Any, grid: Any, parts: Parts, score: str = "accuracy") -> GridSearchCV:
    """scikit-learn's search on ``blobs``."""
    prefixed = [{f"head__{name}": values for name, values in one.items()} for one in grid]
    pipeline = Pipeline([("scale", StandardScaler()), ("head", estimator)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GridSearchCV(pipeline, prefixed, cv=parts, scoring=score).fit(*blobs())


def point_of(row: dict[str, Any]) -> dict[str, Any]:
    return {f"head__{name[6:]}": value for name, value in row.items() if name.startswith("param_")}


def assert_equal(own: SearchResult, theirs: GridSearchCV) -> None:
    results = theirs.cv_results_
    assert [point_of(row) for row in own.rows] == results["params"]
    scores = [name for name in results if name.endswith("test_score") and not name.startswith("rank")]
    assert len(scores) == theirs.n_splits_ + 2
    for name in scores:
        assert [row[name] for row in own.rows] == pytest.approx(results[name].tolist(), abs=1e-12, nan_ok=True)
    assert [row["rank_test_score"] for row in own.rows] == results["rank_test_score"].tolist()
    assert point_of(own.rows[own.best]) == theirs.best_params_


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every estimator that is fitted by the search or the probe."""
    counted: list[Any] = []
    real = grids.fit_once
    monkeypatch.setattr(grids, "fit_once", lambda one, *rows: (counted.append(one), real(one, *rows))[1])
    return counted


@pytest.mark.parametrize("score", ["accuracy", "f1_macro", "neg_log_loss"])
def test_an_mlp_search_equals_scikit_learns(score: str) -> None:
    grid = {"activation": ["tanh", "relu"], "alpha": [0.05, 5.0], "hidden_layer_sizes": [(6, 4), (5,)]}
    parts = folds_of(blobs()[1], 4)
    own = searched(SklearnMlp(), grid, EPOCHS, parts=parts, score=score)
    assert_equal(own, reference(MLPClassifier(random_state=SEED, **EPOCHS), [grid], parts, score))
    assert own.unconverged == 8 * 4


def test_a_logistic_search_with_ties_and_failures_equals_scikit_learns() -> None:
    grid = {"C": [1.0, 1.0001, -1.0, 1e-4], "solver": ["lbfgs", "newton-cg"]}
    parts = folds_of(blobs()[1], 10)
    own = searched(Logistic(), grid, parts=parts)
    assert_equal(own, reference(LogisticRegression(max_iter=1000, random_state=SEED), [grid], parts))
    failed = [row for row in own.rows if row["param_C"] == -1.0]
    assert all(np.isnan(row["mean_test_score"]) for row in failed)
    assert {row["rank_test_score"] for row in failed} == {7}


def test_a_list_of_grids_equals_scikit_learns() -> None:
    grid = [{"C": [1.0, 0.1]}, {"C": [1.0], "fit_intercept": [False]}]
    parts = folds_of(blobs()[1], 3)
    own = searched(Logistic(), grid, parts=parts)
    assert_equal(own, reference(LogisticRegression(max_iter=1000, random_state=SEED), grid, parts))


def test_a_class_that_a_fold_does_not_train_on_equals_scikit_learns() -> None:
    codes = blobs()[1]
    parts = [(np.flatnonzero(codes != held), np.flatnonzero(codes == held)) for held in range(3)]
    own = searched(Logistic(), {"C": [1.0, 0.1]}, parts=parts)
    assert_equal(own, reference(LogisticRegression(max_iter=1000, random_state=SEED), [{"C": [1.0, 0.1]}], parts))
    assert own.rows[0]["mean_test_score"] == 0.0


def test_worker_processes_change_no_score() -> None:
    grid = {"C": [1.0, 0.01]}
    scores = [[row["mean_test_score"] for row in searched(Logistic(), grid, jobs=jobs).rows] for jobs in (1, 2)]
    assert scores[0] == scores[1]


def test_candidates_that_differ_in_nothing_that_is_read_are_fitted_once(fits: list[Any]) -> None:
    grid = {"learning_rate": ["constant", "adaptive"], "momentum": [0.9, 0.5], "alpha": [0.05, 5.0]}
    own = searched(SklearnMlp(), grid, EPOCHS)
    assert len(own.rows) == 8
    assert len(fits) == 2 * 3
    for alpha in (0.05, 5.0):
        same = [row for row in own.rows if row["param_alpha"] == alpha]
        assert len({row["mean_test_score"] for row in same}) == 1
        assert len({row["rank_test_score"] for row in same}) == 1
        first = own.rows.index(same[0])
        assert [row["same_fit_as"] for row in same] == ["", *[f"candidate {first}"] * 3]


def test_adaptive_under_adam_really_is_constant() -> None:
    x, codes = blobs()
    one, other = (
        SklearnMlp().build({**EPOCHS, "learning_rate": rate}, SEED).set_params(tol=0.5)
        for rate in ("constant", "adaptive")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (one.fit(x, codes).predict_proba(x) == other.fit(x, codes).predict_proba(x)).all()


@pytest.mark.parametrize(
    ("head", "fixed", "grid", "unique"),
    [
        (SklearnMlp(), {"solver": "adam"}, {"learning_rate": ["constant", "adaptive", "invscaling"]}, 1),
        (SklearnMlp(), {"solver": "sgd"}, {"learning_rate": ["constant", "adaptive", "invscaling"]}, 3),
        (SklearnMlp(), {"solver": "lbfgs"}, {"batch_size": [8, 16], "learning_rate_init": [0.1, 0.2]}, 1),
        (SklearnMlp(), {}, {"batch_size": [8, 16]}, 2),
        (SklearnMlp(), {}, {"validation_fraction": [0.1, 0.2]}, 1),
        (SklearnMlp(), {"early_stopping": True}, {"validation_fraction": [0.1, 0.2]}, 2),
        (SklearnMlp(), {}, {"hidden_layer_sizes": [5, [5], (5,)]}, 1),
        (SklearnMlp(), {}, {"alpha": [0.0001, "0.0001"]}, 2),
        (Logistic(), {}, {"C": [float("inf"), 1.0]}, 2),
        (Logistic(), {}, {"class_weight": [None, "balanced", {0: 1.0, 1: 2.0}]}, 3),
        (Logistic(), {}, {"max_iter": [1000, 500]}, 2),
        (Logistic(), {}, [{"C": [1.0, 2.0]}, {"C": [2.0, 3.0]}], 3),
        (Logistic(), {}, [], 1),
        (Logistic(), {}, {}, 1),
    ],
)
def test_how_many_candidates_are_different(head: Any, fixed: Any, grid: Any, unique: int) -> None:
    found = candidates(head, fixed, grid)
    assert len(found.unique) == unique
    assert len(found.same_as) == len(found.points)
    assert set(found.same_as) == set(range(unique))


def test_the_ready_mlp_grid_fits_half_of_its_points() -> None:
    stated = parse(read_grid(config.GRIDS / "mlp.yaml"))
    found = candidates(SklearnMlp(), stated.fixed, stated.grid)
    assert (len(found.points), len(found.unique)) == (16, 8)


@pytest.mark.parametrize("where", ["fixed", "grid"])
def test_a_parameter_that_the_head_lacks_is_refused_with_the_nearest(where: str) -> None:
    fixed, grid = ({"alfa": 1}, {}) if where == "fixed" else ({}, {"alfa": [1]})
    with pytest.raises(UnknownNameError, match="'sklearn-mlp': 'alfa'. Did you mean 'alpha'"):
        candidates(SklearnMlp(), fixed, grid)
    with pytest.raises(UnknownNameError, match="'random_state'"):
        candidates(SklearnMlp(), {"random_state": 3}, {})


@pytest.mark.parametrize(
    ("head", "grid"),
    [
        (Logistic(), {"C": [-1.0, 1.0]}),
        (Logistic(), {"max_iter": ["many", 50]}),
        (SklearnMlp(), {"hidden_layer_sizes": [None, [4]], "max_iter": [3]}),
        (SklearnMlp(), {"hidden_layer_sizes": [["a"], [4]], "max_iter": [3]}),
        (SklearnMlp(), {"activation": ["nonsense", "relu"], "max_iter": [3]}),
    ],
)
def test_what_cannot_be_fitted_scores_nan_and_ranks_last(head: Any, grid: Any) -> None:
    own = searched(head, grid)
    assert np.isnan(own.rows[0]["mean_test_score"])
    assert [row["rank_test_score"] for row in own.rows] == [2, 1]
    assert own.best == 1
    (reason,) = own.failed
    assert reason.endswith(f": {own.rows[0]['error']}")
    assert [bool(row["error"]) for row in own.rows] == [True, False]


def test_a_run_says_which_candidates_failed_and_why(tmp_path: Path) -> None:
    separable(tmp_path)
    (run,) = fit(prepared(tmp_path, grid={"C": [0.1, -2, -3], "tol": [0.01]}, cv={"folds": 2}))
    (note,) = [note for note in run.notes if "could not be fitted" in note]
    assert note.startswith("2 of 3 candidates could not be fitted: C -2, tol 0.01: The 'C' parameter")
    assert "; C -3, tol 0.01: The 'C' parameter" in note


def test_where_nothing_can_be_fitted_the_first_reason_is_said() -> None:
    with pytest.raises(UsageError, match="Not one candidate could be fitted and scored.*'C' parameter.*-1"):
        searched(Logistic(), {"C": [-1.0, -2.0]})


def test_a_score_that_does_not_apply_is_said() -> None:
    with pytest.raises(UsageError, match="Not one candidate could be fitted and scored.*multi_class"):
        searched(Logistic(), {"C": [1.0]}, score="roc_auc")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, 1),
        ({"grid": {"C": [1.0, 0.1, 0.01]}, "cv": {"folds": 4}}, 3 * 4 + 1),
        ({"grid": {"C": [1.0, 0.1, 1.0]}}, 2 + 1),
        ({"grid": []}, 1),
    ],
)
def test_the_preview_counts_what_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: dict[str, Any], expected: int
) -> None:
    separable(tmp_path)
    task = prepared(tmp_path, **document)
    (before,) = preview(task)
    assert before.fits == expected
    assert before.seconds > 0
    assert before.points == len(task.found.points)
    counted = []
    real = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, *rows: (counted.append(1), real(self, *rows))[1])
    fit(task)
    assert len(counted) == expected


def test_the_preview_survives_a_candidate_that_cannot_be_fitted(tmp_path: Path) -> None:
    separable(tmp_path)
    task = prepared(tmp_path, grid={"C": [-1.0, 1.0]}, cv={"folds": 2})
    assert preview(task)[0].fits == 5
    (run,) = fit(task)
    assert run.parameters == {"C": 1.0}


def test_a_search_without_folds_scores_on_the_validation_split(tmp_path: Path) -> None:
    separable(tmp_path)
    (run,) = fit(prepared(tmp_path, grid={"C": [1e-4, 1.0]}))
    assert run.search is not None
    assert run.splitter == "the validation split"
    assert [name for name in run.search.rows[0] if name.startswith("split")] == ["split0_test_score"]
    best = run.search.rows[run.search.best]["mean_test_score"]
    assert best == run.scored["validation"].scores["accuracy"].value
