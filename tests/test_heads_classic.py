"""Neighbours, ridge, linear SVM and the text baseline, from a cache to a saved head; chains and oversampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifier
from sklearn.multioutput import ClassifierChain
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from typer.testing import CliRunner

from cli import app
from embedcache import samples
from embedcache.cache import open_cache
from embedcache.datasets.table import Table
from embedcache.errors import UnknownNameError, UsageError
from heads.chain import by_frequency
from heads.fit import FittedRun, fit
from heads.oversampling import oversampled
from heads.predict import predict_dataset, predict_items
from heads.probabilities import of_margins
from heads.record import listed, read_seen, write
from heads.saved import FittedHead
from tests.heads_helpers import LABELS, fitted, label_lists, prepared, save_table, separable, tagged
from tests.test_heads_saved import assert_no_pickle

CLASSIC: dict[str, Any] = {"knn": KNeighborsClassifier, "ridge": RidgeClassifier, "svm": LinearSVC}


def same_after_loading(run: FittedRun, folder: Path, x: Any) -> FittedHead:
    run.head.save(folder)
    assert_no_pickle(folder)
    again = FittedHead.load(folder)
    np.testing.assert_array_equal(again.predict_proba(x), run.head.predict_proba(x))
    return again


@pytest.mark.parametrize("head", CLASSIC)
def test_it_is_scikit_learns_own_class_and_is_kept_without_pickle(tmp_path: Path, head: str) -> None:
    separable(tmp_path, noise=2.0)
    (run,) = fitted(tmp_path, head=head, validation=0)
    own = run.head.estimator[-1]
    assert type(own) is CLASSIC[head]
    x = run.features.matrix(np.float32)
    train = run.features.splits == "train"
    codes = np.array([run.head.classes.index(label) for label in run.features.target()])
    transformed = run.head.estimator[:-1].transform(x)
    alone = clone(own).fit(transformed[train], codes[train])
    assert (alone.predict(transformed) == run.head.predict_proba(x).argmax(1)).all()
    found = run.head.predict_proba(x)
    assert found.sum(1) == pytest.approx(1)
    assert (found >= 0).all()
    same_after_loading(run, tmp_path / "head", x)


@pytest.mark.parametrize(
    ("head", "grid"),
    [
        ("knn", {"n_neighbors": [1, 5], "weights": ["uniform", "distance"], "metric": ["cosine"], "p": [1, 2]}),
        ("ridge", {"alpha": [0.1, 10.0], "class_weight": [None, "balanced"]}),
        ("svm", {"C": [0.1, 1.0], "class_weight": [None, "balanced"]}),
    ],
)
def test_its_parameters_are_searched_by_scikit_learns_names(tmp_path: Path, head: str, grid: dict[str, Any]) -> None:
    separable(tmp_path)
    (run,) = fitted(tmp_path, head=head, grid=grid, cv={"folds": 2})
    assert run.search is not None
    assert sum(row["same_fit_as"] == "" for row in run.search.rows) == 4  # p does nothing to cosines
    assert run.scored["test"].scores["accuracy"].value == 1.0


def test_two_classes_have_two_probabilities(tmp_path: Path) -> None:
    for head in CLASSIC:
        separable(tmp_path / head, labels=["a", "b"] * 30)
        (run,) = fitted(tmp_path / head, head=head)
        assert run.scored["test"].scores["accuracy"].value == 1.0
        assert run.scored["test"].probabilities.shape[1] == 2


@pytest.mark.parametrize("name", ["algorithm", "leaf_size"])
def test_trees_are_no_choice_for_neighbours(tmp_path: Path, name: str) -> None:
    separable(tmp_path)
    with pytest.raises(UnknownNameError, match=name):
        prepared(tmp_path, head="knn", fixed={name: "kd_tree"})


def test_probabilities_of_margins() -> None:
    assert of_margins(np.array([0.0, 40.0]), several=False) == pytest.approx(np.array([[0.5, 0.5], [0, 1]]))
    assert of_margins(np.log([[1.0, 2.0, 1.0]]), several=False) == pytest.approx(np.array([[0.25, 0.5, 0.25]]))
    assert of_margins(np.zeros((1, 3)), several=True) == pytest.approx(np.full((1, 3), 0.5))


# ------------------------------------------------------------------------------------------ several labels


@pytest.mark.parametrize("head", CLASSIC)
@pytest.mark.parametrize("balanced", [False, True])
def test_several_labels(tmp_path: Path, head: str, balanced: bool) -> None:
    if balanced and head == "knn":
        return
    rows = [[*own, "always"] for own in label_lists(96)]
    rows = [[*own, "never"] if row // 16 % 3 == 2 else own for row, own in enumerate(rows)]
    tagged(tmp_path, labels=rows, noise=0.2)
    fixed = {"class_weight": "balanced"} if balanced else {}
    (run,) = fitted(tmp_path, head=head, fixed=fixed)
    assert run.head.classes == (*sorted(LABELS), "always", "never")
    found = run.scored["test"].probabilities
    assert found.shape == (32, 6)
    assert (found[:, 4] > 0.5).all()
    assert (found[:, 5] < 0.5).all()
    known = [label.f1 for label in _by_label(run) if label.label not in ("always", "never")]
    assert min(known) > 0.9
    same_after_loading(run, tmp_path / "head", run.features.matrix(np.float32))


def _by_label(run: FittedRun) -> Any:
    from heads.record import label_tables

    return label_tables(run)["test"]


def test_balanced_weights_raise_rare_labels(tmp_path: Path) -> None:
    """With noise, a rare label's probability is below one half for nearly all rows unless it is weighed."""
    rare = [[*("rare" for _ in range(row % 12 == 0)), "1" if row % 2 else "2"] for row in range(96)]
    tagged(tmp_path, labels=rare, noise=3.0)
    for head in ("logistic", "ridge", "svm", "mlp"):
        fixed: dict[str, Any] = {"epochs": 10, "hidden_layer_sizes": [8]} if head == "mlp" else {}
        found = {}
        for weight in (None, "balanced"):
            (run,) = fitted(tmp_path, head=head, fixed={**fixed, "class_weight": weight}, threshold=0.5)
            found[weight] = run.scored["test"].probabilities[:, run.head.classes.index("rare")].mean()
        assert found["balanced"] > found[None], head


def test_a_chain_sees_the_labels_before_it(tmp_path: Path) -> None:
    """The k-th regression has as many more columns as there are labels before it."""
    tagged(tmp_path, noise=0.2)
    (run,) = fitted(tmp_path, chain=True, validation=0)
    chain = run.head.estimator[-1]
    assert type(chain) is ClassifierChain
    codes = prepared(tmp_path).targets.codes
    train = [row for row in range(96) if row // 16 % 3 != 2]
    assert list(chain.order_) == by_frequency(codes[train]).tolist()
    widths = [len(one.coef_[0]) for one in chain.estimators_]
    assert widths == [4, 5, 6, 7]
    assert run.scored["test"].scores["f1_micro"].value > 0.95
    same_after_loading(run, tmp_path / "head", run.features.matrix(np.float32))


def test_a_chain_with_labels_that_training_cannot_learn(tmp_path: Path) -> None:
    rows = [[*own, "always"] for own in label_lists(96)]
    rows = [[*own, "never"] if row // 16 % 3 == 2 else own for row, own in enumerate(rows)]
    tagged(tmp_path, labels=rows)
    (run,) = fitted(tmp_path, chain=True, grid={"C": [0.1, 1.0]}, cv={"folds": 2})
    found = run.scored["test"].probabilities
    assert (found[:, run.head.classes.index("always")] > 0.99).all()
    assert (found[:, run.head.classes.index("never")] < 0.01).all()
    same_after_loading(run, tmp_path / "head", run.features.matrix(np.float32))


@pytest.mark.parametrize("document", [{"chain": True}, {"chain": True, "head": "knn"}])
def test_a_chain_is_for_several_labels_and_regressions(tmp_path: Path, document: dict[str, Any]) -> None:
    if "head" in document:
        tagged(tmp_path)
    else:
        separable(tmp_path)
    with pytest.raises(UsageError, match="'chain' is for several labels"):
        prepared(tmp_path, **document)


def test_rows_with_rare_labels_are_repeated() -> None:
    flags = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [1, 0], [1, 0], [1, 0], [1, 0]])  # mean of 8 and 1 is 4.5
    assert oversampled(np.arange(8), flags, 3).tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]
    assert oversampled(np.arange(8), flags, 9).tolist().count(3) == 4  # 4.5 to the even
    assert oversampled(np.arange(8), flags, 1).tolist() == list(range(8))
    codes = np.array([5, 5, 5, 7])
    assert oversampled(np.array([3, 4, 8, 9]), codes, 4).tolist() == [3, 4, 8, 9, 9]
    assert oversampled(np.arange(3), np.zeros((3, 2)), 4).tolist() == [0, 1, 2]


def test_oversampling_repeats_training_rows_and_no_others(tmp_path: Path) -> None:
    rare = [[*("rare" for _ in range(row % 12 == 0)), "1" if row % 2 else "2"] for row in range(96)]
    tagged(tmp_path, labels=rare, noise=3.0)
    (plain,) = fitted(tmp_path, threshold=0.5)
    (more,) = fitted(tmp_path, threshold=0.5, oversample=4)
    assert more.counts == plain.counts
    assert any("rare labels repeated" in note for note in more.notes)
    column = plain.head.classes.index("rare")
    assert more.scored["test"].probabilities[:, column].mean() > plain.scored["test"].probabilities[:, column].mean()
    (searched,) = fitted(tmp_path, oversample=4, grid={"C": [0.1, 1.0]}, cv={"folds": 2})
    assert searched.search is not None


# -------------------------------------------------------------------------------------------------- texts

WORDS = {"bird": "wing feather beak", "fish": "fin scale gill", "tree": "leaf bark root"}


def worded(cache: Path, *, several: bool = False, n: int = 60) -> None:
    """Texts of three kinds with words of their own, and noise words; two captions each; one row without a text."""
    kinds = list(WORDS)
    rng = np.random.default_rng(0)
    texts, targets = [], []
    for row in range(n):
        own = [kinds[row % 3], *([kinds[(row + 1) % 3]] if several and row % 2 else [])]
        words = [rng.choice(WORDS[kind].split()) for kind in own] + [f"noise{rng.integers(9)}"]
        texts.append([" ".join(words), f"noise{rng.integers(9)}"])
        targets.append(own if several else own[0])
    texts[-1] = []
    split = ["train" if row % 9 < 6 else "test" for row in range(n)]
    table = samples.build([f"t{row}" for row in range(n)], split=split, texts=texts, targets={"kind": targets})
    save_table(cache, table)


def test_the_text_baseline_needs_no_feature_file(tmp_path: Path) -> None:
    worded(tmp_path / "cache")
    task = prepared(tmp_path / "cache", head="tfidf")
    (run,) = fit(task)
    assert run.label == "texts"
    assert run.scored["test"].scores["accuracy"].value == 1.0
    assert task.left_out == {"no text": 1}
    folder, _ = write(task, [run], tmp_path / "runs")
    again = FittedHead.load(folder / "head")
    assert_no_pickle(folder / "head")
    texts = np.array(["a wing", "gill and fin", "what leaf?"], object)
    np.testing.assert_array_equal(again.predict_proba(texts), run.head.predict_proba(texts))
    assert list(predict_items(again, texts=list(texts)).labels()) == [["bird"], ["fish"], ["tree"]]
    assert [row["features"] for row in listed(tmp_path / "runs")] == ["texts"]
    with pytest.raises(UsageError, match="takes no images"):
        predict_items(again, images=[Path("a.jpg")], texts=["a"])


def test_a_split_is_predicted_and_what_has_changed_is_known(tmp_path: Path) -> None:
    worded(tmp_path / "cache")
    task = prepared(tmp_path / "cache", head="tfidf")
    (run,) = fit(task)
    folder, _ = write(task, [run], tmp_path / "runs")
    dataset = open_cache(tmp_path / "cache")["tiny"]
    found = predict_dataset(run.head, dataset, "test")
    assert found.ids == tuple(run.scored["test"].ids)
    np.testing.assert_array_equal(found.probabilities, run.scored["test"].probabilities)
    assert not len(predict_dataset(run.head, dataset, seen=read_seen(folder)).ids)
    whole = predict_dataset(run.head, dataset, fill=True)
    assert len(whole.ids) == 60
    assert whole.filled == {"t59": "the training labels' shares"}


@pytest.mark.parametrize("captions", ["first", "mean", "each"])
def test_captions_are_joined_or_taken_alone(tmp_path: Path, captions: str) -> None:
    worded(tmp_path)
    (run,) = fitted(tmp_path, head="tfidf", select={"captions": captions}, fixed={"ngram_range": [1, 1]})
    words = set(run.head.estimator[-1][0].vocabulary_)
    assert {"wing", "gill", "bark"} <= words
    assert ("noise3" in words) or captions == "first"
    assert len(run.features) == {"first": 59, "mean": 59, "each": 118}[captions]
    assert run.scored["test"].scores["accuracy"].value > 0.9


def test_texts_with_several_labels_a_chain_and_a_search(tmp_path: Path) -> None:
    worded(tmp_path, several=True, n=90)
    for document in ({}, {"chain": True}, {"grid": {"min_df": [1, 2], "C": [1.0, 10.0]}, "cv": {"folds": 2}}):
        (run,) = fitted(tmp_path, head="tfidf", **document)  # type: ignore[arg-type]
        assert run.scored["test"].scores["f1_micro"].value > 0.8
        same_after_loading(run, tmp_path / "head", np.array(["a wing", "gill"], object))


def test_a_reader_of_texts_takes_no_feature_sets(tmp_path: Path) -> None:
    worded(tmp_path / "texts")
    with pytest.raises(UsageError, match="reads the texts themselves"):
        prepared(tmp_path / "texts", head="tfidf", features="my-text")
    separable(tmp_path / "images")
    with pytest.raises(UsageError, match="has no texts"):
        prepared(tmp_path / "images", head="tfidf")


def test_the_commands_work_on_texts(tmp_path: Path) -> None:
    worded(tmp_path / "cache")
    where = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs")]
    run = CliRunner()
    done = run.invoke(app, ["fit-head", "--head", "tfidf", *where])
    assert done.exit_code == 0, done.output
    done = run.invoke(app, ["predict", "--text", "a gill", "--json", "--out", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["predictions"][0]["label"] == "fish"


def test_real_questions(shared_data: Path, tmp_path: Path) -> None:
    """A fifth of the bank's questions; all of them give 0.89 (docs/heads.md)."""
    table = Table.open(shared_data / "banking77", text="text", label="category").read()
    save_table(tmp_path, table)
    (run,) = fitted(tmp_path, head="tfidf", select={"limit": 2500}, fixed={"ngram_range": [1, 1], "max_iter": 50})
    assert run.scored["test"].scores["accuracy"].value > 0.7
