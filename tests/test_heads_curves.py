"""Learning curves, and heads that would not fit into memory."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import app
from embedcache.errors import UsageError
from heads import memory, record, report
from heads.curves import learning_curve, read_sizes, rows_of, smaller
from heads.fit import fit
from heads.fitting import taken
from heads.memory import Estimate, available, estimate
from heads.preview import preview
from heads.task import streams_on
from tests.heads_helpers import captioned, prepared, separable, tagged

MLP = {"hidden_layer_sizes": [4], "epochs": 2, "device": "cpu"}

# ----------------------------------------------------------------------------------------------------- curves


def test_smaller_tasks_are_nested_hold_the_classes_and_score_the_same_rows(tmp_path: Path) -> None:
    separable(tmp_path, n=180)
    task = prepared(tmp_path)
    few, more = smaller(task, 12).splits, smaller(task, 48).splits
    assert (len(few.train), len(more.train)) == (12, 48)
    assert set(few.train) < set(more.train) < set(task.splits.train)
    assert np.bincount(task.codes[few.train]).tolist() == [4, 4, 4]
    for part in (few, more):
        assert (part.test == task.splits.test).all()
        assert (part.validation == task.splits.validation).all()


def test_a_curve_ends_with_all_rows_and_the_run_itself(tmp_path: Path) -> None:
    separable(tmp_path, n=180, noise=3.0)
    task = prepared(tmp_path)
    (run,) = fit(task)
    own = learning_curve(task, run, (6, 30, 5000))
    assert [point.rows for point in own.curve] == [6, 30, len(task.splits.train)]
    assert {point.split for point in own.curve} == {"test"}
    assert own.curve[-1].scores == run.scored["test"].scores
    (alone,) = fit(smaller(task, 30))
    assert own.curve[1].scores == alone.scored["test"].scores
    assert own.curve[0].scores["accuracy"].value < own.curve[-1].scores["accuracy"].value
    assert any("learning curve: there are 108 training rows, not 5,000" in note for note in own.notes)
    table = rows_of(own.curve)
    assert table[0]["accuracy_low"] <= table[0]["accuracy"] <= table[0]["accuracy_high"]


def test_a_search_is_not_repeated_on_fewer_rows(tmp_path: Path) -> None:
    captioned(tmp_path)
    grid = {"features": ["my-text", ["my-image", "my-text"]], "transform": [["l2"], []], "C": [1e-6, 1.0]}
    task = prepared(tmp_path, grid=grid)
    (run,) = fit(task)
    own = learning_curve(task, run, (12,))
    assert own.curve[-1].scores == run.scored["test"].scores
    assert own.parameters == run.parameters


def test_a_curve_of_several_labels_per_sample(tmp_path: Path) -> None:
    tagged(tmp_path)
    task = prepared(tmp_path)
    (run,) = fit(task)
    own = learning_curve(task, run, (24,))
    assert next(iter(own.curve[0].scores)) == "f1_micro"


def test_a_curve_needs_fewer_rows_than_there_are_and_something_to_score(tmp_path: Path) -> None:
    separable(tmp_path / "a")
    task = prepared(tmp_path / "a")
    (run,) = fit(task)
    with pytest.raises(UsageError, match=r"There are \d+ training rows: a learning curve needs a number below that"):
        learning_curve(task, run, (1000,))
    separable(tmp_path / "b", split=["train"] * 60)
    task = prepared(tmp_path / "b", validation=0)
    (run,) = fit(task)
    with pytest.raises(UsageError, match="needs a test or a validation split"):
        learning_curve(task, run, (10,))


@pytest.mark.parametrize(
    ("text", "expected"), [("100,1000", (100, 1000)), ("50, 20,50", (20, 50)), ("ten", None), ("1,9", None), ("", None)]
)
def test_sizes_are_whole_numbers(text: str, expected: tuple[int, ...] | None) -> None:
    if expected is not None:
        assert read_sizes(text) == expected
        return
    with pytest.raises(UsageError, match="--learning-curve"):
        read_sizes(text)


def test_the_command_leaves_a_table_and_a_picture(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    separable(cache, n=90)
    arguments = ["fit-head", "--cache", str(cache), "--out", str(out), "--learning-curve", "9,30"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "training rows" in found.stdout
    assert "test accuracy" in found.stdout
    assert max(map(len, found.stdout.splitlines()[:-1])) <= 80
    folder = out / "latest"
    with open(folder / record.CURVE, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rows"] for row in rows] == ["9", "30", "54"]
    assert (folder / record.CURVE_PLOT).read_bytes().startswith(b"\x89PNG")
    assert [row["rows"] for row in record.read_metrics(folder)["learning_curve"]] == [9, 30, 54]
    page = (folder / report.PAGE).read_text()
    assert "Learning curve" in page
    assert "score by number of training rows" in page


def test_a_curve_of_each_of_several_choices_of_features(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    captioned(cache)
    features = ["--features", "my-image", "--features", "my-text"]
    arguments = ["fit-head", "--cache", str(cache), "--out", str(out), *features, "--learning-curve", "12"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "learning curve of my-image" in found.stdout
    assert "learning curve of my-text" in found.stdout
    assert len(list((out / "latest").glob(f"*/{record.CURVE}"))) == 2


# ----------------------------------------------------------------------------------------------------- memory


def test_the_estimate_counts_what_is_held_at_a_time() -> None:
    options = {"transforms": True, "searches": True}
    assert estimate(1000, 100, 2, streams=False, **options) == Estimate(400_000, 4)
    assert estimate(1000, 100, 4, streams=False, transforms=False, searches=False).needed == 800_000
    assert estimate(1000, 100, 2, streams=True, transforms=False, searches=False).needed == 200_000


def test_what_is_available_is_a_positive_number_here() -> None:
    found = available()
    assert found is not None
    assert found > 1 << 20


def test_a_control_group_limits_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("max", "5000"), ("current", "4000"), ("stat", "anon 10\ninactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available() == 1500
    (tmp_path / "memory.max").write_text("max")
    assert (available() or 0) > 1 << 20


def test_a_head_that_would_not_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    separable(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 2000)
    refused = r"head 'logistic' on my-image needs about 0\.0 MB .*3 times.*are available.*transform: \[\]': .*mlp"
    with pytest.raises(UsageError, match=refused):
        preview(prepared(tmp_path))
    with pytest.raises(UsageError, match="would|needs about"):
        fit(prepared(tmp_path))
    assert fit(prepared(tmp_path, head="mlp", fixed=MLP, transform=[]))  # 60 rows of 4 numbers of 4 bytes


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"head": "mlp", "transform": []}, True),
        ({"head": "mlp"}, True),  # standardizes inside the network
        ({"head": "mlp", "grid": {"learning_rate": [0.1, 0.2]}, "cv": {"folds": 2}}, True),
        ({"head": "mlp", "transform": ["l2"]}, False),
        ({"head": "mlp", "fixed": {"standardize": False}}, False),
        ({"head": "mlp", "grid": {"standardize": [True, False]}}, False),
        ({"head": "logistic", "transform": []}, False),
        ({"head": "mlp", "grid": {"transform": [[], ["l2"]]}}, False),
    ],
)
def test_a_torch_head_without_transforms_reads_the_features_as_they_lie(
    tmp_path: Path, document: dict[str, Any], expected: bool
) -> None:
    separable(tmp_path)
    assert streams_on(prepared(tmp_path, **document)) is expected


def test_rows_that_lie_together_are_not_copied() -> None:
    x = np.arange(40, dtype=np.float16).reshape(10, 4)
    assert np.shares_memory(taken(x, np.arange(2, 7)), x)
    assert (taken(x, np.array([2, 4])) == x[[2, 4]]).all()
    assert not np.shares_memory(taken(x, np.array([3, 2])), x)
    assert len(taken(x, np.array([], np.int64))) == 0
