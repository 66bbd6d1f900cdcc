"""Several labels per sample: scores are scikit-learn's, strata keep rare labels spread, lists become indicators."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as reference

from heads import multilabel
from heads.multilabel import average_precisions, bootstrap, indicators, label_counts, label_table, strata, values
from heads.splits import folds
from heads.thresholds import decide


def random_case(seed: int, n: int = 40, labels: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, probabilities with ties, thresholds; the last label never occurs, some rows have no label."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, labels)) < rng.uniform(0.1, 0.5, labels)
    truth[:, -1] = False
    truth[0] = False
    probabilities = np.round(np.clip(0.3 * truth + 0.6 * rng.random((n, labels)), 0, 1), 1)
    return truth, probabilities, rng.uniform(0.3, 0.9, labels)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(seed: int) -> None:
    truth, probabilities, thresholds = random_case(seed)
    predicted, occurs = decide(probabilities, thresholds), truth.any(0)
    assert values(truth, probabilities, thresholds) == pytest.approx({
        "f1_micro": reference.f1_score(truth, predicted, average="micro", zero_division=1),
        "f1_macro": reference.f1_score(truth, predicted, average="macro", zero_division=np.nan),
        "f1_samples": reference.f1_score(truth, predicted, average="samples", zero_division=1),
        "mean_average_precision": reference.average_precision_score(truth[:, occurs], probabilities[:, occurs]),
        "exact_match": reference.accuracy_score(truth, predicted),
        "hamming_loss": reference.hamming_loss(truth, predicted),
    })  # fmt: skip
    tables = reference.multilabel_confusion_matrix(truth, predicted)
    assert np.stack(label_counts(truth, predicted)).tolist() == [
        tables[:, 1, 1].tolist(), tables[:, 0, 1].tolist(), tables[:, 1, 0].tolist(), tables[:, 0, 0].tolist(),
    ]  # fmt: skip
    each = [reference.average_precision_score(truth[:, k], probabilities[:, k]) for k in np.flatnonzero(occurs)]
    assert average_precisions(truth, probabilities)[occurs] == pytest.approx(each)


def test_nothing_true_and_nothing_predicted() -> None:
    nothing, probabilities = np.zeros((3, 2), bool), np.full((3, 2), 0.2)
    found = values(nothing, probabilities, [0.5, 0.5])
    assert found == {
        "f1_micro": 1.0, "f1_macro": 0.0, "f1_samples": 1.0, "mean_average_precision": 0.0, "exact_match": 1.0,
        "hamming_loss": 0.0,
    }  # fmt: skip
    assert all(np.isfinite(draws).all() for draws in bootstrap(nothing, probabilities, [0.5, 0.5], 0).values())


def test_a_hand_made_table_of_labels_is_sorted_worst_first() -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    probabilities = np.array([[0.9, 0.2, 0.1], [0.3, 0.8, 0.1], [0.6, 0.7, 0.1], [0.1, 0.1, 0.1]])
    rows = label_table(("cat", "dog", "owl"), truth, probabilities, [0.5, 0.5, 0.5])
    assert [(row.label, row.tp, row.fp, row.fn, row.tn, row.f1) for row in rows] == [
        ("cat", 1, 1, 1, 1, 0.5),
        ("dog", 2, 0, 0, 2, 1.0),
        ("owl", 0, 0, 0, 4, None),
    ]
    assert [row.average_precision for row in rows] == [pytest.approx((1 + 2 / 3) / 2), 1.0, None]


@pytest.mark.parametrize("seed", range(3))
def test_each_draw_is_the_score_of_a_resample(seed: int) -> None:
    truth, probabilities, thresholds = random_case(seed, n=25)
    found = bootstrap(truth, probabilities, thresholds, seed)
    rng = np.random.default_rng(seed)
    for draw in range(20):
        rows = rng.integers(0, 25, 25)
        expected = values(truth[rows], probabilities[rows], thresholds)
        assert {name: draws[draw] for name, draws in found.items()} == pytest.approx(expected)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, probabilities, thresholds = random_case(1)
    whole = bootstrap(truth, probabilities, thresholds, 3)
    monkeypatch.setattr(multilabel, "_CHUNK_CELLS", 7 * len(truth))
    parts = bootstrap(truth, probabilities, thresholds, 3)
    assert all(np.allclose(whole[name], parts[name], rtol=1e-12) for name in whole)


def test_lists_become_indicators_in_the_order_of_the_numbers() -> None:
    lists = pa.array([["10", "2"], None, [], ["2", "2"], ["1", None]], pa.list_(pa.string()))
    labels, codes = indicators(lists, "labels")
    assert labels == ("1", "2", "10")
    assert codes.tolist() == [[0, 1, 1], [-1, -1, -1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]
    part, sliced = indicators(lists.slice(2), "labels")
    assert part == ("1", "2")
    assert sliced.tolist() == [[0, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("lists", "labels"),
    [
        (pa.array([["b"], ["a", "b"]]), ("a", "b")),
        (pa.array([[3, 20], [3]]), (3, 20)),
        (pa.array([["b"], ["a", "10"]], pa.large_list(pa.large_string())), ("10", "a", "b")),
    ],
)
def test_labels_keep_their_types(lists: pa.Array, labels: tuple[object, ...]) -> None:
    assert indicators(lists, "labels")[0] == labels


def test_strata_are_the_rarest_labels_and_small_ones_are_put_together() -> None:
    codes = np.array([[1, 0, 0]] * 6 + [[1, 1, 0]] * 3 + [[1, 0, 1]] + [[0, 0, 0]] * 2 + [[-1, -1, -1]], np.int8)
    found = strata(codes, 2)
    assert found[-1] == -1
    assert len(set(found[:6])) == len(set(found[6:9])) == 1
    sizes = np.bincount(found[:-1])
    assert sorted(sizes.tolist()) == [2, 3, 7]  # the one row of the third label is with the largest stratum
    assert found[9] == found[0]


def test_every_fold_has_the_rare_label_and_no_warning() -> None:
    rng = np.random.default_rng(0)
    codes = (rng.random((60, 4)) < [0.7, 0.5, 0.3, 0.0]).astype(np.int8)
    codes[::12, 3] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts, splitter = folds(strata(codes, 5), np.arange(60), 5, 0)
    assert splitter == "StratifiedKFold"
    assert [int(codes[held, 3].sum()) for _, held in parts] == [1] * 5


def test_few_rows_of_many_labels_can_still_be_folded() -> None:
    codes = np.eye(9, dtype=np.int8)
    parts, _ = folds(strata(codes, 3), np.arange(9), 3, 0)
    assert sorted(len(held) for _, held in parts) == [3, 3, 3]
