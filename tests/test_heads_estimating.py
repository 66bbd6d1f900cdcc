"""The estimate of time: exact where time is in proportion to rows and passes, by a clock that the fits set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from heads import HEADS, estimating, head_named
from heads.estimating import cost, mean_cost, seconds_of_scores
from heads.kinds import KINDS, SeveralLabels
from heads.preview import preview
from heads.sequences import Sequences
from tests.heads_helpers import described, prepared, tagged

IMPORTS = 100.0


@dataclass
class Clock:
    """What time it is; fits and predictions set it forward."""

    now: float = 0.0
    fits: list[tuple[int, int]] = field(default_factory=list)

    def perf_counter(self) -> float:
        return self.now


class Worker:
    """An estimator that takes a millisecond for each row and pass; predicted, ``per_row`` for each row."""

    def __init__(self, clock: Clock, passes: int, ends_after: int, per_row: float) -> None:
        self.clock, self.passes, self.ends_after, self.per_row = clock, passes, ends_after, per_row

    def fit(self, x: Any, y: Any) -> Worker:
        self.clock.now += 0.0 if self.clock.fits else IMPORTS
        done = min(self.passes, self.ends_after)
        if self.passes < self.ends_after and not hasattr(self, "continue_fit"):
            warnings.warn("not there yet", ConvergenceWarning, stacklevel=2)
        self.clock.now += 1e-3 * len(x) * done
        self.clock.fits.append((len(x), done))
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x: Any) -> Any:
        self.clock.now += self.per_row * len(x)
        return np.full((len(x), 2), 0.5)


class Counted(Worker):
    """One that makes all its passes."""

    def continue_fit(self) -> None: ...


@dataclass
class FakeHead:
    clock: Clock
    most: int = 40
    ends_after: int = 10**6
    kind: type[Worker] = Worker
    per_row: float = 0.0
    keeps_rows: bool = False

    def passes(self, parameters: Mapping[str, Any]) -> int:
        return self.most

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        return self.kind(self.clock, passes, self.ends_after, self.per_row)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(estimating, "time", made)
    return made


X, CODES = np.zeros((10_000, 3)), np.arange(10_000) % 2


@pytest.mark.parametrize("head", [{"kind": Counted}, {"ends_after": 3}, {"most": 3}, {"most": 1}, {}], ids=str)
def test_time_in_proportion_to_rows_and_passes_is_found_from_little_work(clock: Clock, head: dict[str, Any]) -> None:
    """100 s of imports are not counted, and the work that was done is about a second of the clock."""
    fake = FakeHead(clock, **head)
    found = cost(fake, ({}, []), X, CODES, 0)  # type: ignore[arg-type]
    assert found.fit == pytest.approx(10.0 * min(fake.most, fake.ends_after))
    assert clock.now < IMPORTS + 2.5


def test_little_work_is_done_whole(clock: Clock) -> None:
    found = cost(FakeHead(clock, most=2), ({}, []), X[:70], CODES[:70], 0)  # type: ignore[arg-type]
    assert found.fit == pytest.approx(0.14)
    assert clock.fits[-1] == (70, 2)


@pytest.mark.parametrize("keeps", [False, True])
def test_predictions_grow_with_the_rows_that_a_head_keeps(clock: Clock, keeps: bool) -> None:
    found = cost(FakeHead(clock, per_row=0.5, keeps_rows=keeps), ({}, []), X, CODES, 0)  # type: ignore[arg-type]
    last, _ = clock.fits[-1]
    assert found.row == pytest.approx(0.5 * (len(X) / last if keeps else 1))


def test_many_candidates_share_the_time_of_one(clock: Clock) -> None:
    mean_cost(FakeHead(clock), [({}, [])] * 100, X, CODES, 0)  # type: ignore[arg-type]
    assert clock.now < IMPORTS + 8 * 0.064 * 5


def test_what_cannot_be_fitted_costs_the_time_to_find_out() -> None:
    x = np.random.default_rng(0).normal(size=(90, 4))
    for name, parameters in (
        ("logistic", {"C": -1.0}),
        ("svm", {"C": "x"}),
        ("sklearn-mlp", {"hidden_layer_sizes": [-1]}),
    ):
        found = cost(head_named(name), (parameters, []), x, CODES[:90], 0)
        assert 0 <= found.fit < 60
        assert found.row == 0


def test_texts_of_about_the_mean_length_stand_for_all(clock: Clock) -> None:
    lengths = np.concatenate([np.full(400, 10), [200, 200, 1]])
    offsets = np.append(0, np.cumsum(lengths))
    x = Sequences(np.zeros(offsets[-1], np.int32), offsets, np.zeros((403, 0), np.float32), np.arange(403), 5)
    turn = estimating._in_turn(x, len(x), 0)
    assert set(lengths[turn[:400]]) == {10}
    assert sorted(turn) == list(range(403))


def test_scores_grow_with_the_rows_from_what_a_resample_costs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(kind: Any, codes: Any, classes: int) -> None:
        clock.now += 0.1 + 1e-4 * len(codes)

    monkeypatch.setattr(estimating, "_score", score)
    single, multi = KINDS["single"], KINDS["multi"]
    assert seconds_of_scores(single, CODES, 2, 5000) == pytest.approx(0.1 + 0.5)
    assert seconds_of_scores(single, CODES, 2, 0) == 0
    flags = np.zeros((1000, 100), np.int8)  # 5e5 cells are resampled 400 times, not 2,000 times
    assert seconds_of_scores(multi, flags, 100, 5000) == pytest.approx((0.1 + 0.5) / 5)


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"tfidf", "lstm", "cnn"}))
@pytest.mark.parametrize("several", [False, True])
def test_every_head_of_vectors_is_estimated(name: str, several: bool) -> None:
    rng = np.random.default_rng(0)
    codes: Any = rng.integers(0, 2, (80, 3)).astype(np.int8) if several else rng.integers(0, 3, 80)
    fixed = {"hidden_layer_sizes": [4]} if "mlp" in name else {}
    head = SeveralLabels(head_named(name)) if several else head_named(name)
    found = cost(head, (fixed, []), rng.normal(size=(80, 4)), codes, 0, enough=0.01)
    assert found.fit > 0
    assert found.row > 0


@pytest.mark.parametrize(
    "document",
    [
        {"head": "cnn", "fixed": {"filters": 4, "embedding_size": 8, "epochs": 2}, "select": {"captions": "first"}},
        {"head": "tfidf"},
        {"features": "my-image", "transform": [{"pca": 2}], "grid": {"C": [1.0, 2.0]}, "search": "halving"},
    ],
    ids=str,
)
def test_the_preview_of_texts_and_of_transforms_has_a_time(tmp_path: Path, document: dict[str, Any]) -> None:
    described(tmp_path)
    assert 0 < preview(prepared(tmp_path, **document))[0].seconds < 60


def test_a_fusion_of_answers_takes_its_scores_alone(tmp_path: Path) -> None:
    tagged(tmp_path)
    *alone, both = preview(prepared(tmp_path, fusion="late", features="my-image,my-text"))
    assert both.fits == 0
    assert all(one.fits > 0 and one.seconds > 0 for one in alone)
