"""What a run says of its own configuration: what had no effect, what is not random, what a search scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.errors import UsageError
from heads import memory, record, report
from heads.config import parse, read_grid
from heads.fit import fit
from heads.preview import preview
from heads.torch_mlp import MLPHead
from tests.heads_helpers import fitted, prepared, separable

SMALL = {"hidden_layer_sizes": [4], "epochs": 2, "device": "cpu"}


@pytest.mark.parametrize(
    ("document", "note"),
    [
        (
            {"head": "mlp", "fixed": {**SMALL, "schedule": "one-cycle", "warmup_epochs": 1, "momentum": 0.5}},
            "parameters without effect on the result here: momentum, warmup_epochs",
        ),
        ({"head": "knn", "fixed": {"metric": "cosine", "p": 1}}, "parameters without effect on the result here: p"),
        ({"search": "halving"}, "without effect, as there is no 'grid' to search: 'search'"),
        (
            {"score": "f1_macro", "refit": "f1_macro"},
            "without effect, as there is no 'grid' to search: 'score', 'refit'",
        ),
    ],
)
def test_what_is_stated_and_not_read_is_said(tmp_path: Path, document: dict[str, Any], note: str) -> None:
    separable(tmp_path)
    (run,) = fitted(tmp_path, **document)
    assert [one for one in run.notes if "without effect" in one] == [note]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"head": "mlp", "fixed": {**SMALL, "schedule": "cosine", "warmup_epochs": 1}},
        {
            "head": "mlp",
            "fixed": {**SMALL, "momentum": 0.5},
            "grid": {"optimizer": ["adam", "sgd"]},
            "score": "f1_macro",
        },
    ],
)
def test_what_some_candidate_reads_has_an_effect(tmp_path: Path, document: dict[str, Any]) -> None:
    separable(tmp_path)
    (run,) = fitted(tmp_path, **document)
    assert not [one for one in run.notes if "without effect" in one]


def test_a_recorded_configuration_states_no_score_where_nothing_is_searched(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    for grid, score in (({}, None), ({"C": [1.0]}, "accuracy")):
        task = prepared(tmp_path / "cache", grid=grid)
        folder, _ = record.write(task, fit(task), tmp_path / "runs")
        assert parse(read_grid(folder / record.CONFIG)).score == score


def test_seeds_of_a_head_without_dice_are_said_to_be_the_same(tmp_path: Path) -> None:
    separable(tmp_path, noise=3.0)
    said = {}
    for head in ("logistic", "mlp"):
        (run,) = fitted(tmp_path, head=head, fixed=SMALL if head == "mlp" else {}, seeds=2)
        said[head] = next(note for note in run.notes if "2 seeds" in note)
    assert said["logistic"].endswith("all gave the same scores: nothing random is left in this head")
    assert said["mlp"].endswith("that of seed 0")


def test_every_score_of_a_search_is_named(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=2.0)
    document = {"grid": {"C": [0.01, 1.0]}, "score": ["neg_log_loss", "accuracy"], "cv": {"folds": 2}}
    task = prepared(tmp_path / "cache", **document)
    (run,) = runs = fit(task)
    assert run.search is not None
    row = run.search.rows[run.search.best]
    log_loss, accuracy = (f"{row[f'mean_test_{name}']:.4f}" for name in ("neg_log_loss", "accuracy"))
    (note,) = [one for one in run.notes if one.startswith("mean score of the best candidate in the search: ")]
    assert f"neg_log_loss {log_loss} ± " in note
    assert f", accuracy {accuracy} ± " in note
    folder, comparison = record.write(task, runs, tmp_path / "runs")
    report.write(folder, task, runs, comparison)
    page = (folder / report.PAGE).read_text(encoding="utf-8")
    assert "mean neg_log_loss" in page
    assert "mean accuracy" in page
    assert b"\r" not in (folder / record.CV_RESULTS).read_bytes()


def test_a_head_that_streams_is_not_told_to_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    separable(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 500)
    with pytest.raises(UsageError, match=r"'mlp' .* or narrower features\.$"):
        preview(prepared(tmp_path, head="mlp", fixed=SMALL, transform=[]))


def test_negative_sample_weights_are_refused() -> None:
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="[Nn]egative"):
        MLPHead(**SMALL).fit(x, y, sample_weight=[1, 1, -1, 1])
