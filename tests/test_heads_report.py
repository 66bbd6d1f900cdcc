"""The page of a run: it shows what was computed, and never lets a label speak HTML."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache import samples
from heads import record, report
from heads.fit import fit
from heads.metrics import Interval, class_counts, confusion
from tests.heads_helpers import add_features, captioned, image_name, prepared, save_table, separable

SETS = [["my-image"], ["my-text"], ["my-image", "my-text"]]
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, cells, items, pictures, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.pictures: list[Image.Image] = []
        self.rows: list[list[str]] = []
        self.items: list[str] = []
        self.headings: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "img":
            data = str(dict(attrs)["src"]).removeprefix("data:image/png;base64,")
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag == "tr":
            self.rows.append([])
        self._into = {"td": self.rows and self.rows[-1], "th": self.rows and self.rows[-1], "li": self.items,
                      "h1": self.headings, "h2": self.headings, "h3": self.headings}.get(tag)  # fmt: skip
        if self._into is not None:
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "li", "h1", "h2", "h3"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


def page_of(cache: Path, **document: Any) -> tuple[Page, Any, Any]:
    """The written page, the runs and their comparison."""
    task = prepared(cache, **document)
    runs = fit(task)
    folder, comparison = record.write(task, runs, cache / "runs")
    path = report.write(folder, task, runs, comparison)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8")), runs, comparison


def test_the_page_of_a_head_shows_its_scores_and_a_confusion_matrix(tmp_path: Path) -> None:
    separable(tmp_path, noise=2.0)
    page, (run,), _ = page_of(tmp_path)
    assert page.headings == ["tiny: logistic", "my-image"]
    assert page.rows[0] == ["score", "validation (4)", "test (18)"]
    test = run.scored["test"].scores["accuracy"]
    assert page.rows[1][0] == "accuracy"
    assert page.rows[1][2] == f"{100 * test.value:.1f} % ({100 * test.low:.1f} to {100 * test.high:.1f})"
    loss = run.scored["test"].scores["log_loss"]
    assert page.rows[6][2] == f"{loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f})"
    assert len(page.pictures) == 1
    assert "38 samples in train" in page.items
    assert f"my-image: 4 numbers, fingerprint {run.head.features[0].fingerprint}" in page.items
    assert "no validation split is published: 10% of train carved, seed 0" in page.items


def test_the_page_of_a_comparison_shows_it_best_first_and_then_each_head(tmp_path: Path) -> None:
    folder = captioned(tmp_path)
    images = {image_name(row): [float(row)] for row in range(1, 72)}
    add_features(folder, "image", images, name="holes", failed=[image_name(0)])
    page, runs, comparison = page_of(tmp_path, features=[*SETS, ["holes"]])
    assert page.headings == ["tiny: logistic", "Comparison", *(run.label for run in runs)]
    table = page.rows[: 1 + len(runs)]
    assert table[0] == ["features", "dims", "test accuracy", "difference to the best"]
    assert [row[0] for row in table[1:]] == [row.label for row in comparison.rows]
    assert table[1] == ["my-image + my-text", "5", report.percent(comparison.rows[0].score), "best"]
    assert [row[3] for row in table[2:]] == [report.signed(row.difference) for row in comparison.rows[1:]]
    assert len(page.pictures) == 1 + len(runs)
    assert "1 samples left out: its image failed in holes" in page.items


def test_the_page_of_a_search_shows_candidates_best_first(tmp_path: Path) -> None:
    separable(tmp_path, noise=2.0)
    grid = [{"C": [1e-4, 1.0]}, {"C": [0.5], "class_weight": ["balanced"]}]
    page, (run,), _ = page_of(tmp_path, grid=grid, cv={"folds": 2})
    assert page.headings[-1] == "Search (StratifiedKFold)"
    start = next(index for index, row in enumerate(page.rows) if row[0] == "rank")
    assert page.rows[start] == ["rank", "C", "class_weight", "mean accuracy", "fit"]
    shown = page.rows[start + 1 : start + 4]
    assert [int(row[0]) for row in shown] == sorted(row["rank_test_score"] for row in run.search.rows)
    assert sorted((row[1], row[2]) for row in shown) == [("0.0001", ""), ("0.5", "balanced"), ("1.0", "")]
    best = run.search.rows[run.search.best]
    assert shown[0][3] == f"{best['mean_test_score']:.4f} ± {best['std_test_score']:.4f}"


def test_a_long_search_shows_its_head_and_counts_the_rest(tmp_path: Path) -> None:
    separable(tmp_path)
    page, _, _ = page_of(tmp_path, grid={"C": [1 + 0.001 * number for number in range(23)]})
    start = next(index for index, row in enumerate(page.rows) if row[0] == "rank")
    assert len(page.rows) - start - 1 == 20
    assert "3 more in cv_results.csv" in next((tmp_path / "runs" / "latest").glob("*.html")).read_text()


def test_every_text_is_escaped(tmp_path: Path) -> None:
    labels = [HOSTILE if row % 2 else '"><img src=x onerror=alert(2)>' for row in range(40)]
    images = [f"{row}.jpg" for row in range(40)]
    table = samples.build(
        [f"{HOSTILE}{row}" for row in range(40)], images=images, targets={HOSTILE: labels}, texts=[["t"]] * 40
    )
    folder = save_table(tmp_path, table)
    vectors = {image: [float(row % 2)] for row, image in enumerate(images[:-1])}
    add_features(folder, "image", vectors, name="<b>bold</b>", failed=images[-1:], weights="a")
    add_features(folder, "text", {"t": [1.0]}, name="plain")
    sets = [["<b>bold</b>"], ["plain"]]
    grid = {"class_weight": [None, "balanced"], "solver": ["lbfgs", "<i>newton</i>"]}
    page, _, _ = page_of(tmp_path, features=sets, grid=grid, cv={"folds": 2})
    allowed = {
        "html",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "table",
        "tr",
        "th",
        "td",
        "img",
        "ul",
        "li",
    }
    assert set(page.tags) <= allowed
    assert {name for name, _ in page.attributes} <= {"lang", "charset", "name", "content", "class", "alt", "src"}
    assert all(str(value).startswith("data:image/png") for name, value in page.attributes if name == "src")
    assert page.headings == [
        "tiny: logistic", "Comparison", "<b>bold</b>", "Search (StratifiedKFold)", "plain", "Search (StratifiedKFold)",
    ]  # fmt: skip
    assert "1 samples left out: its image failed in <b>bold</b>" in page.items
    assert any("<i>newton</i>" in row for row in page.rows)
    text = next((tmp_path / "runs" / "latest").glob("*.html")).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert HOSTILE not in text


@pytest.mark.parametrize(
    "label",
    ["$x^2$", "$", r"\frac{", "a\nb", "", " ", "鳥", "x" * 500, "\x00", "_{", "%", "é" * 40],
)
def test_any_label_can_be_drawn(tmp_path: Path, label: str, recwarn: pytest.WarningsRecorder) -> None:
    separable(tmp_path, labels=[label if row % 2 else "other" for row in range(60)])
    page, _, _ = page_of(tmp_path)
    assert len(page.pictures) == 1
    assert not [one for one in recwarn if "lyph" in str(one.message)]


def test_plots_grow_with_their_labels_and_classes(tmp_path: Path) -> None:
    sizes = {}
    for name, labels in {
        "short": ["a", "b"],
        "long": ["a" * 28, "b" * 28],
        "many": [f"{number:02d}" for number in range(20)],
    }.items():
        separable(tmp_path / name, labels=[labels[row % len(labels)] for row in range(60)])
        page, _, _ = page_of(tmp_path / name)
        sizes[name] = page.pictures[0].size
    assert sizes["short"] < sizes["long"]
    assert sizes["short"] < sizes["many"]


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 50, 2000)
    wrong = np.isin(truth, np.arange(10, 40)) & (rng.random(2000) < 0.5)
    predicted = np.where(wrong, 10 + (truth + 7) % 30, truth)
    kept = report._most_confused(class_counts(truth, predicted, 50))
    assert kept.tolist() == list(range(10, 40))
    part = report._confusion_of(kept, truth, predicted, 50)
    assert (part == confusion(truth, predicted, 50)[10:40, 10:40]).all()


def test_a_run_without_anything_to_score_has_a_page(tmp_path: Path) -> None:
    separable(tmp_path, split=["train"] * 60)
    page, _, comparison = page_of(tmp_path, cv={"folds": 2})
    assert comparison is None
    assert page.pictures == []
    assert page.rows == []


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (report.percent(Interval(0.82, 0.74, 0.89)), "82.0 % (74.0 to 89.0)"),
        (report.shown("accuracy", Interval(0.82, 0.74, 0.89)), "82.0 % (74.0 to 89.0)"),
        (report.shown("log_loss", Interval(0.5, 0.25, 1.0)), "0.500 (0.250 to 1.000)"),
        (report.signed(Interval(-0.1, -0.2, 0.01)), "-10.0 (-20.0 to +1.0)"),
        (report.signed(None), "best"),
    ],
)
def test_scores_are_written_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected
