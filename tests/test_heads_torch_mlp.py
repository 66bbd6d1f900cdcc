"""``MLPHead``: a gradient step by hand, and what training promises."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from embedcache.errors import UsageError
from heads import training
from heads.fit import _fitted
from heads.rows import RowsOf
from heads.task import load
from heads.torch_mlp import MLPHead
from heads.training import Matrix, TrainingOptions
from tests.heads_helpers import prepared, separable


def head(**changes: Any) -> MLPHead:
    chosen = {"hidden_layer_sizes": (16,), "epochs": 30, "batch_size": 16, "learning_rate": 0.01}
    return MLPHead(**{**chosen, "random_state": 0, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    x, y = make_classification(300, 12, n_informative=8, n_classes=3, random_state=0)
    return x.astype(np.float32), np.array(["a", "b", "c"])[y]


def test_full_batch_descent_is_that_of_a_gradient_by_hand() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)).astype(np.float32), np.arange(20) % 3
    rate, epochs = 0.1, 6
    own = head(hidden_layer_sizes=(4,), activation="tanh", optimizer="sgd", momentum=0.0, learning_rate=rate,
               batch_size=20, epochs=epochs)  # fmt: skip
    before = clone(own).set_params(epochs=0).fit(x, y).state()[1]
    w1, b1, w2, b2 = (before[name].numpy().astype(np.float64) for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    for _ in range(epochs):
        hidden = np.tanh(x @ w1.T + b1)
        scores = hidden @ w2.T + b2
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        d2 = (p - np.eye(3)[y]) / len(x)
        d1 = (d2 @ w2) * (1 - hidden**2)
        w2, b2, w1, b1 = w2 - rate * d2.T @ hidden, b2 - rate * d2.sum(0), w1 - rate * d1.T @ x, b1 - rate * d1.sum(0)
    after = own.fit(x, y).state()[1]
    for name, right in (("0.weight", w1), ("0.bias", b1), ("2.weight", w2), ("2.bias", b2)):
        np.testing.assert_allclose(after[name].numpy(), right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "float32", "memmap", "torch"])
def test_what_is_cached_is_read_as_it_lies(tmp_path: Path, data: Any, kind: str) -> None:
    x, y = data[0].astype("f2"), data[1]
    given: Any = {"float32": x.astype("f4"), "torch": torch.from_numpy(x)}.get(kind, x)
    if kind == "memmap":
        x.tofile(tmp_path / "x")
        given = np.memmap(tmp_path / "x", "f2", "r", shape=x.shape)
    np.testing.assert_array_equal(head().fit(given, y).predict_proba(given), head().fit(x, y).predict_proba(x))
    if kind in ("float16", "memmap"):
        assert Matrix(given, torch.device("cpu"))._host.data_ptr() == given.__array_interface__["data"][0]


def test_the_same_seed_gives_the_same_head_and_leaves_other_dice_alone(data: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = head(dropout=0.3).fit(*data).predict_proba(data[0])
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, head(dropout=0.3).fit(*data).predict_proba(data[0]))
    assert not np.array_equal(first, head(dropout=0.3, random_state=1).fit(*data).predict_proba(data[0]))


def test_early_stopping_restores_the_best_weights(data: Any) -> None:
    x, y = data
    stopped = head(early_stopping=True, epochs=400, patience=3, learning_rate=0.05)
    stopped.fit(x[:200], y[:200], validation=(x[200:], y[200:]))
    losses = [line["validation_loss"] for line in stopped.history_]
    assert len(losses) < 400
    assert np.argmin(losses) == len(losses) - 1 - 3
    probabilities = stopped.predict_proba(x[200:])
    truth = np.searchsorted(stopped.classes_, y[200:])
    assert -np.log(probabilities[np.arange(len(truth)), truth]).mean() == pytest.approx(min(losses), rel=1e-4)
    carved = head(early_stopping=True, epochs=400).fit(x, y)
    assert "validation_loss" in carved.history_[0]


def test_history_is_of_evaluation_mode(data: Any) -> None:
    fitted = head(dropout=0.5, batch_norm=True, epochs=3).fit(*data)
    assert [line["epoch"] for line in fitted.history_] == [1, 2, 3]
    assert fitted.history_[-1]["train_score"] == pytest.approx(fitted.score(*data))
    assert not fitted.module_.training


def test_going_on_is_training_longer(data: Any) -> None:
    x, y = data
    whole = head(epochs=6, batch_size=300).fit(x, y)
    parts = head(epochs=4, batch_size=300).fit(x, y).continue_fit(x, y, 2)
    np.testing.assert_allclose(parts.predict_proba(x), whole.predict_proba(x), atol=1e-5)
    assert [line["epoch"] for line in parts.history_] == list(range(1, 7))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one-cycle", "adaptive"])
def test_schedules(data: Any, schedule: str) -> None:
    fitted = head(schedule=schedule, epochs=40, step_size=10, warmup_epochs=2 if schedule == "cosine" else 0).fit(*data)
    rates = [line["learning_rate"] for line in fitted.history_]
    assert fitted.score(*data) > 0.8
    expected = {
        "constant": rates == [0.01] * 40,
        "cosine": rates[0] < 0.002 and max(rates) == pytest.approx(0.01, rel=0.02) and rates[-1] < 0.001,
        "step": np.allclose(rates[::10], [0.01, 0.001, 0.0001, 0.00001]),
        "one-cycle": rates[0] < 0.001 and 9 <= int(np.argmax(rates)) <= 15 and rates[-1] < 0.001,
        "adaptive": sorted(rates, reverse=True) == rates,
    }
    assert expected[schedule]


def test_inverse_frequency_brings_rare_classes_in() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.06).astype(int)
    x = (rng.standard_normal((400, 4)) + y[:, None] * 0.7).astype(np.float32)
    plain, balanced = (head(class_weight=weight).fit(x, y).predict(x) for weight in (None, "balanced"))
    stated = head(class_weight={0: 1.0, 1: 19.0}).fit(x, y).predict(x)
    assert balanced[y == 1].mean() > plain[y == 1].mean() + 0.2
    assert stated[y == 1].mean() > plain[y == 1].mean() + 0.2
    weighted = head().fit(x, y, sample_weight=np.where(y, 19.0, 1.0)).predict(x)
    np.testing.assert_array_equal(weighted, stated)


def test_several_labels() -> None:
    x, y = make_multilabel_classification(400, 20, n_classes=5, random_state=0)
    fitted = head(standardize=True, epochs=40).fit(x, y)
    assert fitted.predict_proba(x).shape == (400, 5)
    assert (fitted.predict(x) == y).mean() > 0.85
    balanced = head(standardize=True, class_weight="balanced").fit(x, y)
    assert balanced.predict(x).sum() > head(standardize=True).fit(x, y).predict(x).sum()


def test_standardizing_inside_is_standardizing_before(data: Any) -> None:
    x, y = data[0] * 50 + 300, data[1]
    inside = head(standardize=True).fit(x, y).predict_proba(x)
    before = make_pipeline(StandardScaler(), head()).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(inside, before, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"standardize": True}, {"standardize": True, "early_stopping": True}], ids=str)
def test_no_second_matrix_is_made(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """Of what numpy allocates; torch reads batches only."""
    monkeypatch.setattr(training, "LOOKED_AT_BYTES", 1 << 18)
    x = np.random.default_rng(0).standard_normal((2000, 1024), np.float32).astype(np.float16)
    own, y = head(epochs=1, **changes), np.arange(len(x)) % 3
    tracemalloc.start()
    try:
        own.fit(x, y).predict_proba(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 2


@pytest.mark.parametrize("changes", [{}, {"standardize": True}, {"early_stopping": True}], ids=str)
def test_rows_that_lie_apart_are_trained_on_where_they_lie(data: Any, changes: dict[str, Any]) -> None:
    x, y = data
    rows, held = np.arange(0, len(x), 2)[::-1].copy(), np.arange(1, len(x), 8)
    copied = head(**changes).fit(x[rows], y[rows], validation=(x[held], y[held]))
    lent = head(**changes).fit(RowsOf(x, rows), y[rows], validation=(RowsOf(x, held), y[held]))
    np.testing.assert_array_equal(lent.predict_proba(x), copied.predict_proba(x))
    copied.continue_fit(x[rows], y[rows], 2)
    lent.continue_fit(RowsOf(x, rows), y[rows], 2)
    np.testing.assert_array_equal(lent.predict_proba(RowsOf(x, held)), copied.predict_proba(x[held]))
    with pytest.raises(ValueError, match="are expected"):
        lent.predict_proba(RowsOf(x[:, :3], held))


def test_of_rows_that_lie_apart_no_matrix_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run of ``fit-head``: train and test lie in turns."""
    monkeypatch.setattr(training, "LOOKED_AT_BYTES", 1 << 18)
    n, dim = 3000, 512
    labels = [f"class {row % 3}" for row in range(n)]
    separable(tmp_path, n=n, dim=dim, labels=labels, split=["train" if row % 2 else "test" for row in range(n)])
    task = prepared(tmp_path, head="mlp", fixed={"hidden_layer_sizes": [8], "epochs": 1}, validation=0)
    ready = load(task, task.sets[0])
    tracemalloc.start()
    try:
        _fitted(task, ready, [], dict(task.config.fixed), ready.rows["train"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < n * dim * 4 / 4


def test_a_head_is_kept_as_json_and_tensors(data: Any) -> None:
    fitted = head(standardize=True, batch_norm=True).fit(*data)
    document, tensors = fitted.state()
    again = MLPHead.from_state(json.loads(json.dumps(document)), tensors)
    np.testing.assert_array_equal(again.predict_proba(data[0]), fitted.predict_proba(data[0]))
    with pytest.raises(ValueError, match="not of this head"):
        MLPHead.from_state(document, {})


@pytest.mark.parametrize(
    "wrong",
    [{"optimizer": "adams"}, {"schedule": "x"}, {"learning_rate": 0}, {"activation": "swish"}, {"dropout": 1.0},
     {"hidden_layer_sizes": (0,)}, {"label_smoothing": 1.0}, {"device": "abacus"}, {"learning_rate": 1e30}],
)  # fmt: skip
def test_what_cannot_be_is_said(data: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        head(**wrong).fit(*data)


def test_options_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="adamw"):
        TrainingOptions(optimizer="adamx")


def test_validation_rows_of_a_class_that_training_lacks_are_left_out(data: Any) -> None:
    x, y = data
    known = y != "c"
    with_more = head(epochs=3).fit(x[known], y[known], validation=(x, y))
    alone = head(epochs=3).fit(x[known], y[known], validation=(x[known], y[known]))
    shown = [[line["validation_loss"] for line in one.history_] for one in (with_more, alone)]
    assert shown[0] == pytest.approx(shown[1])
    assert (
        "validation_loss" not in head(epochs=1).fit(x[known], y[known], validation=(x[~known], y[~known])).history_[0]
    )
