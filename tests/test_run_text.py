"""What is printed of runs: the same by ``fit-head`` and, later, by ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import app
from heads import record
from heads.fit import fit
from heads.report import PAGE
from tests.heads_helpers import captioned, prepared, separable, tagged

BOTH = "my-image,my-text"


def shown(*arguments: Any, code: int = 0) -> list[str]:
    """The lines on stdout."""
    done = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "80"})
    assert done.exit_code == code, done.output
    return [line for line in done.stdout.splitlines() if line.strip()]


@pytest.fixture
def where(tmp_path: Path) -> tuple[Any, ...]:
    return ("--cache", tmp_path / "cache", "--out", tmp_path / "runs")


def both(where: tuple[Any, ...], *options: str) -> list[str]:
    """The lines of ``fit-head``, which ``report`` has all, between what the run is and where its page is."""
    *fitted, path = shown("fit-head", *options, *where)
    heading, *reported, page = shown("report", "latest", "--out", where[-1])
    assert heading.startswith("tiny, target label")
    assert (path.split()[0], page.endswith(PAGE)) == (str((where[-1] / "latest").resolve()), True)
    assert [line for line in fitted if line not in reported] == []
    assert max(map(len, fitted + reported)) <= 80
    return reported


def test_a_head_is_reported_with_all_that_was_printed_of_it(tmp_path: Path, where: tuple[Any, ...]) -> None:
    separable(tmp_path / "cache", noise=3.0)
    grid = ("--set", "grid={C: [0.1, 1.0]}", "--set", "fixed.max_iter=500", "--set", "jobs=1")
    lines = both(where, *grid, "--set", "seeds=2", "--learning-curve", "12")
    assert "best of 2 candidates: C 0.1" in lines or "best of 2 candidates: C 1.0" in lines
    assert any(line.startswith("2 seeds") for line in lines)
    assert any(line.startswith("training rows") for line in lines)
    pairs = lines[lines.index("most frequent confusions on test") + 3]
    worst = record.read_metrics(tmp_path / "runs" / "latest")["confusions"]["test"][0]
    assert pairs.split()[:3] == [worst["truth"], worst["predicted"], str(worst["count"])]
    assert sum(line.startswith("note: fitted with 2 seeds") for line in lines) == 1


def test_labels_are_reported_as_they_were_printed(tmp_path: Path, where: tuple[Any, ...]) -> None:
    tagged(tmp_path / "cache")
    lines = both(where, "--features", "my-image")
    assert "labels on test, worst F1 first" in lines
    assert any(line.startswith("note: thresholds tuned for F1") for line in lines)


@pytest.mark.parametrize(
    ("fusion", "note"),
    [
        ("late", "note: my-image + my-text (late): late fusion: weights of least squared error"),
        ("union", "note: my-image + my-text (union): union: thresholds tuned together"),
    ],
)
def test_a_comparison_says_what_is_a_members_own(
    tmp_path: Path, where: tuple[Any, ...], fusion: str, note: str
) -> None:
    tagged(tmp_path / "cache")
    lines = both(where, "--features", BOTH, "--set", f"fusion={fusion}", "--set", "seeds=1")
    assert any(line.startswith(note) for line in lines)
    assert sum("no validation split is published" in line for line in lines) == 1


def test_fusion_without_validation_rows_says_that_its_weights_are_equal(tmp_path: Path, where: tuple[Any, ...]) -> None:
    captioned(tmp_path / "cache")
    lines = both(where, "--features", BOTH, "--set", "fusion=late", "--set", "validation=0")
    assert any("equal weights, as there are no" in line for line in lines)


def test_the_numbers_of_a_product_are_those_that_its_head_sees(tmp_path: Path) -> None:
    captioned(tmp_path)
    task = prepared(tmp_path, features=BOTH, fusion={"kind": "product", "width": 2})
    runs = fit(task)
    comparison = record.compare(task, runs, ["a", "b", "c"])
    assert comparison is not None
    assert {row.label: row.dims for row in comparison.rows} == {
        "my-image": 3,
        "my-text": 2,
        "my-image + my-text (product)": 2,
    }
    reduced = prepared(tmp_path, features=BOTH, transform=["standardize", {"pca": 4}])
    assert [record.width(run) for run in fit(reduced)] == [4]


def test_a_note_on_seeds_stands_once_in_the_page(tmp_path: Path, where: tuple[Any, ...]) -> None:
    separable(tmp_path / "cache")
    shown("fit-head", "--set", "seeds=2", *where)
    page = (tmp_path / "runs" / "latest" / PAGE).read_text(encoding="utf-8")
    assert page.count("fitted with 2 seeds") == 1
