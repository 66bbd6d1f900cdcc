"""Scores: those of scikit-learn, with intervals that mean what they say."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn import metrics as reference

from heads import metrics
from heads.metrics import METRICS, Interval, bootstrap, interval, rank_of_truth, scores


def random_case(seed: int, n: int = 60, classes: int = 7, present: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Truth among the first ``present`` classes, and probabilities of all classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, present or classes, n)
    probabilities = rng.dirichlet(np.ones(classes), n)
    probabilities[np.arange(n), truth] += 0.3
    return truth, probabilities / probabilities.sum(1, keepdims=True)


def calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Equation 3 of Guo et al. (2017), bin by bin: the bin m holds confidences in ((m - 1) / M, m / M]."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            total += inside.sum() / len(truth) * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


@pytest.mark.parametrize("present", [7, 3, 1])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_scikit_learns(seed: int, present: int) -> None:
    truth, probabilities = random_case(seed, present=present)
    predicted = probabilities.argmax(1)
    labels = np.arange(probabilities.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # predictions of classes that truth lacks
        expected = {
            "accuracy": reference.accuracy_score(truth, predicted),
            "top_5_accuracy": reference.top_k_accuracy_score(truth, probabilities, k=5, labels=labels),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted),
            "macro_f1": reference.f1_score(truth, predicted, average="macro"),
            "weighted_f1": reference.f1_score(truth, predicted, average="weighted"),
            "log_loss": reference.log_loss(truth, probabilities, labels=labels),
            "expected_calibration_error": calibration_error(truth, probabilities),
        }
    found = {name: metric(truth, probabilities) for name, metric in METRICS.items()}
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_class_that_is_never_predicted_counts() -> None:
    truth = np.array([0, 1, 2, 2])
    probabilities = np.eye(3)[[0, 0, 0, 0]]
    assert metrics.accuracy(truth, probabilities) == 0.25
    assert metrics.balanced_accuracy(truth, probabilities) == pytest.approx(1 / 3)
    assert metrics.macro_f1(truth, probabilities) == pytest.approx(0.4 / 3)


def test_log_loss_of_certainty_in_the_wrong_class_is_finite_and_scikit_learns() -> None:
    truth, probabilities = np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert metrics.log_loss(truth, probabilities) == pytest.approx(
        reference.log_loss(truth, probabilities, labels=[0, 1])
    )


def test_log_loss_in_single_precision_is_scikit_learns() -> None:
    truth, probabilities = random_case(5)
    single = probabilities.astype(np.float32)
    single /= single.sum(1, keepdims=True)
    labels = np.arange(7)
    assert metrics.log_loss(truth, single) == pytest.approx(reference.log_loss(truth, single, labels=labels), rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_top_k_equals_scikit_learns(k: int) -> None:
    truth, probabilities = random_case(11)
    expected = reference.top_k_accuracy_score(truth, probabilities, k=k, labels=np.arange(7))
    assert metrics.top_k_accuracy(truth, probabilities, k) == expected


def test_everything_is_among_as_many_as_there_are_classes() -> None:
    truth, probabilities = random_case(2, classes=3)
    assert metrics.top_k_accuracy(truth, probabilities, 5) == 1.0


def test_ties_in_the_rank_of_the_truth_go_to_the_lower_code() -> None:
    tied = np.array([[0.25, 0.25, 0.25, 0.25]] * 4)
    assert rank_of_truth(np.arange(4), tied).tolist() == [1, 2, 3, 4]
    mixed = np.array([[0.2, 0.4, 0.4]] * 3)
    assert rank_of_truth(np.arange(3), mixed).tolist() == [3, 1, 2]


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
@settings(deadline=None, max_examples=40)
def test_rank_one_is_the_prediction_and_ranks_are_a_permutation(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(0, 3, (5, classes)) / 4  # many ties
    ranks = np.stack([rank_of_truth(np.full(5, code), probabilities) for code in range(classes)], 1)
    assert (ranks.argmin(1) == probabilities.argmax(1)).all()
    assert (np.sort(ranks, 1) == np.arange(1, classes + 1)).all()


def test_confusion_and_its_margins_agree_with_scikit_learn() -> None:
    truth, probabilities = random_case(3, present=4)
    predicted = probabilities.argmax(1)
    matrix = metrics.confusion(truth, predicted, 7)
    assert (matrix == reference.confusion_matrix(truth, predicted, labels=np.arange(7))).all()
    counts = metrics.class_counts(truth, predicted, 7)
    assert (counts.truth == matrix.sum(1)).all()
    assert (counts.predicted == matrix.sum(0)).all()
    assert (counts.hits == np.diagonal(matrix)).all()


def test_the_worst_pairs_are_the_largest_cells_beside_the_diagonal() -> None:
    truth, probabilities = random_case(8, n=400)
    predicted = probabilities.argmax(1)
    matrix = reference.confusion_matrix(truth, predicted, labels=np.arange(7))
    cells = [(int(matrix[i, j]), i, j) for i in range(7) for j in range(7) if i != j and matrix[i, j]]
    cells.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    found = metrics.worst_pairs(truth, predicted)
    assert [(one.count, one.truth, one.predicted) for one in found] == cells[:20]
    assert found[0].share == pytest.approx(cells[0][0] / matrix[cells[0][1]].sum())
    assert metrics.worst_pairs(truth, truth) == []


def test_labels_that_no_class_has_are_confused_too() -> None:
    found = metrics.worst_pairs(np.array([5, 5, 0]), np.array([1, 1, 0]))
    assert [(one.truth, one.predicted, one.count, one.share) for one in found] == [(5, 1, 2, 1.0)]


@pytest.mark.parametrize("sure", [0.5, 0.75, 1.0])
def test_calibration_of_hand_made_confidence(sure: float) -> None:
    truth, probabilities = np.array([0, 0, 0, 1]), np.tile([sure, 1 - sure], (4, 1))
    assert metrics.expected_calibration_error(truth, probabilities) == pytest.approx(abs(0.75 - sure))


def test_each_draw_is_the_metric_of_the_drawn_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 200)
    truth, probabilities = random_case(4, n=30)
    draws = bootstrap(truth, probabilities, seed=9)
    rng = np.random.default_rng(9)
    for number in range(5):
        rows = rng.integers(0, 30, 30)
        for name, metric in METRICS.items():
            assert draws[name][number] == pytest.approx(metric(truth[rows], probabilities[rows]))


def test_draws_depend_on_rows_and_seed_alone_so_differences_are_paired() -> None:
    truth, probabilities = random_case(6)
    worse = np.roll(probabilities, 1, axis=1)
    first, again = bootstrap(truth, probabilities, 1), bootstrap(truth, probabilities, 1)
    other = bootstrap(truth, probabilities, 2)
    assert all((first[name] == again[name]).all() for name in METRICS)
    assert (first["accuracy"] != other["accuracy"]).any()
    both = metrics.accuracy(truth, probabilities) - metrics.accuracy(truth, worse)
    paired = first["accuracy"] - bootstrap(truth, worse, 1)["accuracy"]
    right = (probabilities.argmax(1) == truth).astype(float) - (worse.argmax(1) == truth)
    assert paired.mean() == pytest.approx(both, abs=0.01)
    assert paired.std() == pytest.approx(right.std() / np.sqrt(len(truth)), rel=0.1)


def test_a_copy_of_a_head_differs_by_nothing() -> None:
    truth, probabilities = random_case(7)
    difference = bootstrap(truth, probabilities, 0)["accuracy"] - bootstrap(truth, probabilities.copy(), 0)["accuracy"]
    assert interval(0.0, difference) == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(("predicted", "value"), [([0, 1, 2], 1.0), ([1, 2, 0], 0.0)])
def test_all_right_and_all_wrong_have_no_width(predicted: list[int], value: float) -> None:
    truth = np.tile([0, 1, 2], 20)
    found = scores(truth, np.eye(3)[np.tile(predicted, 20)], 0)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found[name] == Interval(value, value, value)


def test_one_row_has_an_interval() -> None:
    found = scores(np.array([1]), np.array([[0.3, 0.7]]), 0)
    assert found["accuracy"] == Interval(1.0, 1.0, 1.0)
    assert found["log_loss"].low == found["log_loss"].high == pytest.approx(-np.log(0.7))


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_accuracy_interval_is_close_to_the_binomial_one(share: float) -> None:
    n = 400
    right = np.arange(n) < share * n
    probabilities = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    found = scores(np.zeros(n, np.int64), probabilities, 0)["accuracy"]
    low, high = binom.ppf([0.025, 0.975], n, share) / n
    assert found.value == pytest.approx(share)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)


def test_intervals_cover_the_truth_about_as_often_as_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    covered = 0
    for repeat in range(200):
        right = rng.random(100) < 0.7
        probabilities = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        found = scores(np.zeros(100, np.int64), probabilities, repeat)["accuracy"]
        covered += found.low <= 0.7 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_score_lies_in_its_interval_and_the_middle_is_95_per_cent() -> None:
    draws = np.arange(1001) / 1000
    assert interval(0.5, draws) == Interval(0.5, pytest.approx(0.025), pytest.approx(0.975))


def test_many_rows_are_resampled_less_often_but_never_under_200_times() -> None:
    assert metrics.resample_count(1000) == 2000
    assert metrics.resample_count(400_000) == 500
    assert metrics.resample_count(10**9) == 200


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_labels_that_no_class_has_are_wrong_everywhere(seed: int, classes: int) -> None:
    """As scikit-learn scores them with a column of zeros more for each such label."""
    _, probabilities = random_case(seed, classes=classes)
    truth = np.random.default_rng(seed).integers(0, classes + 3, len(probabilities))
    known = truth < classes
    predicted, labels = probabilities.argmax(1), np.arange(classes + 3)
    wide = np.hstack([probabilities, np.zeros((len(truth), 3))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert metrics.accuracy(truth, probabilities) == pytest.approx(reference.accuracy_score(truth, predicted))
        assert metrics.balanced_accuracy(truth, probabilities) == pytest.approx(
            reference.balanced_accuracy_score(np.minimum(truth, classes), predicted)
        )
        occurring = np.union1d(truth[known], predicted)
        assert metrics.macro_f1(truth, probabilities) == pytest.approx(
            reference.f1_score(truth, predicted, average="macro", labels=occurring)
        )
        assert metrics.weighted_f1(truth, probabilities) == pytest.approx(
            reference.f1_score(truth, predicted, average="weighted")
        )
        assert metrics.log_loss(truth, probabilities) == pytest.approx(reference.log_loss(truth, wide, labels=labels))
    assert (rank_of_truth(truth, probabilities)[~known] == metrics.NOWHERE).all()
    assert metrics.top_k_accuracy(truth, probabilities, k=classes) == pytest.approx(known.mean())
    found = scores(truth, probabilities, 0)
    assert all(one.low <= one.value <= one.high for one in found.values())


def test_scores_of_rows_have_intervals_from_the_same_draws() -> None:
    truth, probabilities = random_case(0)
    right = (probabilities.argmax(1) == truth).astype(float)
    found = scores(truth, probabilities, 0, {"mine": right})
    assert next(iter(found)) == "mine"
    assert found["mine"] == found["accuracy"]
