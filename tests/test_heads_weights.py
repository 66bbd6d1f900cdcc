"""Sample weights of several labels: weight 0 is a row left out, weight 2 a row twice, in a fit and in a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain

from heads import head_named
from heads.fitting import fit_pipeline
from heads.kinds import SeveralLabels
from heads.per_label import PerLabel
from heads.probabilities import probabilities
from tests.heads_helpers import fitted, label_lists, tagged

N = 96
EXACT = {"tol": 1e-9}
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("logistic", {**EXACT, "solver": "newton-cholesky"}, False),
    ("logistic", {**EXACT, "class_weight": "balanced"}, False),
    ("logistic", EXACT, True),
    ("svm", {**EXACT, "dual": False}, False),
    ("svm", {**EXACT, "dual": False, "class_weight": "balanced"}, False),
    ("ridge", {}, False),
    ("ridge", {"class_weight": {0: 1.0, 1: 3.0}}, False),
    ("tfidf", {**EXACT, "use_idf": False}, False),
    ("tfidf", {**EXACT, "use_idf": False}, True),
]


def data(head: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Noisy rows or texts, indicators, and rows of which something is said by their weight."""
    rng = np.random.default_rng(0)
    y = np.array([[row >> place & 1 for place in range(3)] for row in range(N)], np.int8)
    x = 2.0 * y + rng.normal(scale=2, size=y.shape)
    if head == "tfidf":
        x = np.array([" ".join(f"word{place}{int(number > 1)}" for place, number in enumerate(row)) for row in x])
    return x, y, rng.permutation(N)[:30]


def answers(case: tuple[str, dict[str, Any], bool], rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    name, parameters, chained = case
    x, y, _ = data(name)
    estimator = SeveralLabels(head_named(name), np.arange(3) if chained else None).build(parameters, 0)
    return probabilities(fit_pipeline(name, [], estimator, x, y, rows, weights=weights), x, several=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_0_is_a_row_left_out_and_weight_2_a_row_twice(case: tuple[str, dict[str, Any], bool]) -> None:
    every, chosen = np.arange(N), data(case[0])[2]
    plain = answers(case, every, None)
    for weight, rows in ((0.0, np.setdiff1d(every, chosen)), (2.0, np.concatenate([every, chosen]))):
        weights = np.where(np.isin(every, chosen), weight, 1.0).astype(np.float32)
        expected = answers(case, rows, None)
        np.testing.assert_allclose(answers(case, every, weights), expected, atol=2e-5)
        assert np.abs(expected - plain).max() > 1e-3  # it makes a difference


@pytest.mark.parametrize("document", [{}, {"chain": True}, {"head": "svm"}], ids=str)
def test_in_a_search_too(tmp_path: Path, document: dict[str, Any]) -> None:
    """Rows of weight 0 and the same rows without a target give the same search and the same head."""
    split = [["train", "train", "validation", "test"][row // 16 % 4] for row in range(N)]
    labels = label_lists(N)
    out = [name == "train" and row % 3 == 0 for row, name in enumerate(split)]
    weight = [0.0 if leaves else 1.0 for leaves in out]
    tagged(tmp_path / "weighted", labels=labels, split=split, weight=weight, noise=1.5)
    without = [None if leaves else own for own, leaves in zip(labels, out, strict=True)]
    tagged(tmp_path / "without", labels=without, split=split, noise=1.5)
    tagged(tmp_path / "plain", labels=labels, split=split, noise=1.5)
    found = {}
    for cache in ("weighted", "without", "plain"):
        (run,) = fitted(tmp_path / cache, transform=[], grid={"C": [0.01, 0.1, 1.0]}, score="f1_macro", **document)
        found[cache] = run
        assert ("training samples are weighted" in run.notes) == (cache == "weighted")
    rows = {cache: [row["mean_test_score"] for row in run.search.rows] for cache, run in found.items() if run.search}
    assert rows["weighted"] == pytest.approx(rows["without"])
    assert rows["weighted"] != pytest.approx(rows["plain"])
    test = {cache: run.scored["test"].probabilities for cache, run in found.items()}
    np.testing.assert_allclose(test["weighted"], test["without"], atol=2e-3)
    assert np.abs(test["weighted"] - test["plain"]).max() > 0.01


def test_a_label_that_only_rows_of_weight_0_have_is_never_predicted() -> None:
    x, y, _ = data("logistic")
    found = PerLabel(LogisticRegression()).fit(x, y, sample_weight=1.0 - y[:, 0])
    assert found.predict_proba(x)[:, 0].max() < 1e-9
    assert (found.predict(x)[:, 0] == 0).all()


def test_without_weights_it_is_scikit_learns_own() -> None:
    x, y, _ = data("logistic")
    ours, theirs = PerLabel(LogisticRegression()).fit(x, y), OneVsRestClassifier(LogisticRegression()).fit(x, y)
    np.testing.assert_array_equal(ours.predict_proba(x), theirs.predict_proba(x))
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    order = [2, 0, 1]
    chain = ClassifierChain(LogisticRegression(), order=order).fit(x, y)
    own = SeveralLabels(head_named("logistic"), np.array(order)).build({"max_iter": 100}, 0).fit(x, y)
    np.testing.assert_allclose(own.predict_proba(x), chain.predict_proba(x), atol=1e-6)
