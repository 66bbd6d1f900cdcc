"""Class weights by the names of classes, in every head that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import UnknownNameError, UsageError
from heads import continuing
from heads.record import write
from heads.saved import FittedHead
from tests.heads_helpers import described, fitted, prepared, separable, tagged

QUICK = {"epochs": 5, "batch_size": 16, "learning_rate": 0.01}
HEADS: dict[str, dict[str, Any]] = {
    "logistic": {}, "ridge": {}, "svm": {}, "tfidf": {},
    "mlp": {**QUICK, "hidden_layer_sizes": [8]},
    "lstm": {**QUICK, "embedding_size": 4, "hidden_size": 4},
    "cnn": {**QUICK, "embedding_size": 4, "filters": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    described(folder)
    return folder


@pytest.mark.parametrize("head", HEADS)
def test_a_class_that_weighs_more_is_more_probable(cache: Path, head: str) -> None:
    """What is recorded are the names, in the run and in its grid file."""
    features = {"features": ["my-image"]} if head in ("logistic", "ridge", "svm", "mlp") else {}
    found = {}
    for weights in (None, {"class 2": 30}):
        fixed = {**HEADS[head], "class_weight": weights}
        (run,) = fitted(cache, head=head, fixed=fixed, **features)
        found[weights is not None] = run.scored["test"].probabilities[:, 2].mean()
        assert run.parameters["class_weight"] == weights
    assert found[True] > found[False] + 0.01


@pytest.mark.parametrize("head", ["logistic", "mlp"])
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"plower": 5}, "class in 'class_weight': 'plower'. Did you mean 'plover'"),
        ({1000: 5}, "class in 'class_weight': '1000'. Known: finch, heron, plover"),
        ({"plover": -1}, "not negative"),
        ({"plover": "much"}, "not negative"),
    ],
)
def test_names_that_are_no_class_and_weights_that_are_none_are_refused(
    tmp_path: Path, head: str, weights: Any, words: str
) -> None:
    separable(tmp_path)
    for document in ({"fixed": {"class_weight": weights}}, {"grid": {"class_weight": [None, weights]}}):
        with pytest.raises(UsageError, match=words):
            prepared(tmp_path, head=head, **document)


def test_classes_that_are_numbers_are_named_as_such_or_as_text(tmp_path: Path) -> None:
    separable(tmp_path, labels=[7 if row % 3 else 40 for row in range(60)], noise=3.0)
    found = [
        fitted(tmp_path, fixed={"class_weight": weights})[0].scored["test"].probabilities[:, 1].mean()
        for weights in (None, {40: 20}, {"40": 20})
    ]
    assert found[1] == found[2] > found[0]


def test_a_search_over_weights_tries_each(tmp_path: Path) -> None:
    separable(tmp_path, noise=3.0)
    grid = {"class_weight": [None, "balanced", {"finch": 9}]}
    (run,) = fitted(tmp_path, grid=grid, cv={"folds": 2})
    assert run.search is not None
    assert len({row["mean_test_score"] for row in run.search.rows}) > 1
    assert [row["param_class_weight"] for row in run.search.rows] == grid["class_weight"]


@pytest.mark.parametrize(
    "document",
    [
        {"head": "mlp", "fixed": {**HEADS["mlp"], "epochs": 40}},
        {"head": "logistic"},
        {"head": "logistic", "chain": True},
        {"head": "svm"},
        {"head": "ridge"},
    ],
    ids=str,
)
def test_a_labels_own_weight_raises_that_label_most(tmp_path: Path, document: dict[str, Any]) -> None:
    tagged(tmp_path, noise=3.0)
    plain, weighed = (
        fitted(tmp_path, **{**document, "fixed": {**document.get("fixed", {}), "class_weight": weights}}, threshold=0.5)
        [0].scored["test"]
        for weights in (None, {3: 30})
    )  # fmt: skip
    gained = (weighed.probabilities - plain.probabilities).mean(0)
    labels = fitted(tmp_path)[0].head.classes
    assert gained.argmax() == labels.index("3")
    assert gained.max() > 0.05
    with pytest.raises(UnknownNameError, match="'5'. Known: 1, 10, 2, 3"):
        prepared(tmp_path, head="mlp", fixed={"class_weight": {"5": 2}})


def test_weights_are_kept_with_the_head_and_go_on(tmp_path: Path) -> None:
    """The document of a network is JSON, in which codes would become texts."""
    cache = tmp_path / "cache"
    separable(cache, noise=3.0)
    document = {"head": "mlp", "fixed": {**HEADS["mlp"], "class_weight": {"heron": 25}}}
    task = prepared(cache, **document)
    from heads.fit import fit

    folder, _ = write(task, fit(task), tmp_path / "runs")
    assert FittedHead.load(folder / "head").last.class_weight == {0: 1.0, 1: 25.0, 2: 1.0}
    _, more = continuing.go_on(folder, 2, cache)
    assert more.head.last.class_weight == {0: 1.0, 1: 25.0, 2: 1.0}
    assert more.parameters["class_weight"] == {"heron": 25}
