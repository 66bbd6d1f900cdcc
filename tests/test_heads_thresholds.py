"""Thresholds: the best of all cut points, by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from heads.thresholds import DEFAULT, Rule, best_threshold, cuts, decide, tune

TRUTH = np.array([1, 1, 0, 1, 0, 0], bool)
PROBABILITIES = np.array([0.9, 0.7, 0.6, 0.3, 0.2, 0.1])


def test_cut_points_lie_midway_from_none_to_all() -> None:
    found = cuts(TRUTH, PROBABILITIES)
    assert found.thresholds == pytest.approx([0.95, 0.8, 0.65, 0.45, 0.25, 0.15, 0.05])
    assert found.predicted.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found.hits.tolist() == [0, 1, 2, 2, 3, 3, 3]


def test_equal_probabilities_are_never_parted() -> None:
    found = cuts(np.array([1, 0, 1, 0], bool), np.array([0.4, 0.4, 0.4, 0.0]))
    assert found.predicted.tolist() == [0, 3, 4]
    assert found.hits.tolist() == [0, 2, 2]
    assert found.thresholds == pytest.approx([0.7, 0.2, 0.0])


@pytest.mark.parametrize(("rule", "expected"), [("f1", 0.25), ("balance", 0.45)])
def test_a_hand_made_case(rule: Rule, expected: float) -> None:
    # F1 of 1, 2, 3, 4 predicted: 2/4, 4/5, 4/6, 6/7; three are positive, so three predicted balance
    assert best_threshold(TRUTH, PROBABILITIES, rule) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([0.9, 0.8, 0.7, 0.4, 0.3, 0.1], 0.35), ([0.6, 0.5, 0.3, 0.05, 0.03, 0.01], 0.55)],
)
def test_of_equally_good_thresholds_the_nearest_to_a_half(probabilities: list[float], expected: float) -> None:
    truth = np.array([1, 0, 0, 1, 0, 0], bool)  # F1 of one predicted is 2/3, of four 4/6
    assert best_threshold(truth, np.array(probabilities), "f1") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "truth", "expected"),
    [([0.0, 0.0], [1, 1], [1, 1]), ([1.0, 1.0], [1, 1], [1, 1]), ([1.0, 0.0], [0, 1], [1, 1]), ([0.7], [1], [1])],
)
def test_the_ends_of_the_scale(values: list[float], truth: list[int], expected: list[int]) -> None:
    probabilities = np.array(values)
    threshold = best_threshold(np.array(truth, bool), probabilities, "f1")
    assert decide(probabilities, threshold).tolist() == [bool(one) for one in expected]
    none = cuts(np.array(truth, bool), probabilities).thresholds[0]
    assert not decide(probabilities, none).any()


def test_neighbouring_floats_are_told_apart() -> None:
    low = 0.3
    high = float(np.nextafter(low, 1))
    assert decide(
        np.array([low, high]), best_threshold(np.array([0, 1], bool), np.array([low, high]), "f1")
    ).tolist() == [
        False,
        True,
    ]


cells = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=24)


@settings(max_examples=150, deadline=None)
@given(cells, st.sampled_from(["f1", "balance"]))
def test_no_threshold_is_better(rows: list[tuple[bool, int]], rule: Rule) -> None:
    truth, probabilities = np.array([one for one, _ in rows]), np.array([p / 8 for _, p in rows])

    def value(threshold: float) -> float:
        predicted = probabilities >= threshold
        if rule == "balance":
            return -abs(int((predicted & ~truth).sum()) - int((truth & ~predicted).sum()))
        return 2 * int((truth & predicted).sum()) / max(int(truth.sum() + predicted.sum()), 1)

    found = value(best_threshold(truth, probabilities, rule))
    assert found == pytest.approx(max(value(number / 16) for number in range(18)))


def test_one_for_all_has_the_best_micro_f1_and_one_per_label_the_best_macro_f1() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((80, 3)) < [0.5, 0.2, 0.1]
    probabilities = np.clip(0.3 * truth + 0.5 * rng.random((80, 3)), 0, 1)
    scale = np.linspace(0, 1, 101)
    one = tune(truth, probabilities, "f1", "all").thresholds
    assert len(set(one)) == 1
    best = max(f1_score(truth, probabilities >= cut, average="micro") for cut in scale)
    assert f1_score(truth, decide(probabilities, one), average="micro") >= best
    own = tune(truth, probabilities, "f1", "label").thresholds
    best_each = [max(f1_score(truth[:, k], probabilities[:, k] >= cut) for cut in scale) for k in range(3)]
    assert f1_score(truth, decide(probabilities, own), average="macro") >= np.mean(best_each)


def test_balance_predicts_as_many_as_there_are() -> None:
    rng = np.random.default_rng(4)
    truth, probabilities = rng.random((50, 4)) < 0.3, rng.random((50, 4))
    found = decide(probabilities, tune(truth, probabilities, "balance", "label").thresholds)
    assert found.sum(0).tolist() == truth.sum(0).tolist()
    assert decide(probabilities, tune(truth, probabilities, "balance", "all").thresholds).sum() == truth.sum()


def test_labels_without_anything_to_tune_on_keep_a_half() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1]], bool)
    probabilities = np.array([[0.2, 0.4, 0.0], [0.1, 0.3, 0.0]])
    found = tune(truth, probabilities, "f1", "label", learned=np.array([True, True, False]))
    assert found.thresholds.tolist() == [pytest.approx(0.15), DEFAULT, DEFAULT]
    assert found.defaulted.tolist() == [False, True, True]
    both = tune(truth, probabilities, "f1", "all", learned=np.array([True, True, False]))
    assert both.defaulted.tolist() == [False, False, True]
    assert both.thresholds[0] == both.thresholds[1] != DEFAULT
    nothing = tune(np.zeros((2, 3), bool), probabilities, "f1", "all")
    assert nothing.thresholds.tolist() == [DEFAULT] * 3
    assert nothing.defaulted.all()
