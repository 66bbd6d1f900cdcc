"""Predictions of several labels, submissions as their publishers ask for them, and rows for what failed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import embedcache as ec
from cli import app
from embedcache import samples
from embedcache.demo.birds import draw_cub
from embedcache.errors import UsageError
from heads.predict import Predictions, predict_dataset, predict_items
from heads.saved import FittedHead
from heads.submission import joined, write_submission, write_table
from tests.heads_helpers import LABELS, add_features, fitted, image_name, label_lists, save_table, separable, tagged

SETS = Predictions(
    ("b.jpg", "a.jpg", "c.jpg"),
    ("1", "2", "19"),
    np.array([[0.9, 0.1, 0.6], [0.3, 0.4, 0.2], [0.1, 0.7, 0.1]]),
    {},
    "multi",
    (0.5, 0.6, 0.5),
    {"c.jpg": "the training mean of my-image"},
)
CLASSES = Predictions(("7", "12"), ("yes", "blue, dark"), np.array([[0.8, 0.2], [0.3, 0.7]]), {})


def call(*arguments: str | Path) -> Any:
    done = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done


def table_of(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("found", "adapter", "rows"),
    [
        (SETS, "comp5329", [["ImageID", "Labels"], ["b.jpg", "1 19"], ["a.jpg", "2"], ["c.jpg", "2"]]),
        (SETS, "coco", [["id", "labels"], ["b.jpg", "1 19"], ["a.jpg", "2"], ["c.jpg", "2"]]),
        (CLASSES, "meli", [["id", "category"], ["7", "yes"], ["12", "blue, dark"]]),
        (CLASSES, "vqa", [["question_id", "answer"], ["7", "yes"], ["12", "blue, dark"]]),
        (CLASSES, None, [["id", "label"], ["7", "yes"], ["12", "blue, dark"]]),
    ],
)
def test_a_submission_has_the_columns_of_its_data_set(
    tmp_path: Path, found: Predictions, adapter: str | None, rows: list[list[str]]
) -> None:
    write_submission(tmp_path / "out.csv", found, adapter)
    assert table_of(tmp_path / "out.csv") == rows


def test_vqa_results_are_the_published_json(tmp_path: Path) -> None:
    write_submission(tmp_path / "out.json", CLASSES, "vqa")
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"question_id": 7, "answer": "yes"},
        {"question_id": 12, "answer": "blue, dark"},
    ]
    with pytest.raises(UsageError, match="'one' is no whole number"):
        write_submission(tmp_path / "out.json", replace(CLASSES, ids=("one", "2")), "vqa")


@pytest.mark.parametrize("write", [write_submission, write_table])
def test_what_cannot_be_written_is_refused_and_nothing_is_made(tmp_path: Path, write: Any) -> None:
    for name in ("out.xlsx", "out.txt", "out"):
        with pytest.raises(UsageError, match=f"expected a name that ends in .csv or .json.*, got .*{name}"):
            write(tmp_path / name, SETS)
    with pytest.raises(UsageError, match="There is no folder"):
        write(tmp_path / "new" / "out.csv", SETS)
    assert not list(tmp_path.iterdir())


def test_outputs_are_refused_before_a_head_is_read(tmp_path: Path) -> None:
    for options, expected in (
        (("--table", tmp_path / "x.xlsx"), "A table is CSV or JSON lines"),
        (("--submission", tmp_path / "x.jsonl"), "A submission is CSV or a JSON list"),
        (("--submission", tmp_path / "x.csv", "--text", "one"), "--submission is of a list of samples"),
    ):
        done = CliRunner().invoke(app, ["predict", "--run", "none", *map(str, options)])
        assert (done.exit_code, expected in done.stderr) == (2, True), done.output


def test_other_json_holds_lists_of_labels(tmp_path: Path) -> None:
    write_submission(tmp_path / "out.json", SETS, "coco")
    assert json.loads((tmp_path / "out.json").read_text())[0] == {"id": "b.jpg", "labels": ["1", "19"]}


def test_what_reaches_no_threshold_gets_its_most_probable_label_or_none() -> None:
    assert SETS.bare.tolist() == [False, True, False]
    assert SETS.labels() == [["1", "19"], ["2"], ["2"]]
    assert replace(SETS, empty="keep").labels() == [["1", "19"], [], ["2"]]
    assert joined(replace(SETS, empty="keep"))[1] == ""


def test_labels_with_spaces_are_joined_by_what_none_has() -> None:
    assert joined(replace(SETS, classes=("traffic light", "dog", "cat")))[0] == "traffic light|cat"
    assert joined(replace(SETS, classes=("traffic light", "a|b", "cat")))[0] == "traffic light;cat"
    with pytest.raises(UsageError, match="cannot stand in one cell"):
        joined(replace(SETS, classes=("traffic light", "a|b", "c;d")))


def test_the_table_has_every_probability(tmp_path: Path) -> None:
    write_table(tmp_path / "out.csv", SETS)
    assert table_of(tmp_path / "out.csv") == [
        ["id", "labels", "probability.1", "probability.2", "probability.19", "filled"],
        ["b.jpg", "1 19", "0.9", "0.1", "0.6", ""],
        ["a.jpg", "2", "0.3", "0.4", "0.2", ""],
        ["c.jpg", "2", "0.1", "0.7", "0.1", "the training mean of my-image"],
    ]
    write_table(tmp_path / "out.csv", CLASSES)
    assert table_of(tmp_path / "out.csv")[1] == ["7", "yes", "0.8", "0.2", ""]


TEST = [row for row in range(96) if row // 16 % 3 == 2]
LAST = TEST[0], TEST[5], TEST[9]
NO_IMAGE, NO_TEXT, NOTHING = LAST


@pytest.fixture(scope="module")
def comp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as of comp5329: a test split without labels, of which an image, a text, and both of one sample failed."""
    folder = tmp_path_factory.mktemp("comp")
    labels = [None if row in TEST else own for row, own in enumerate(label_lists(96))]
    tagged(
        folder / "cache",
        labels=labels,
        failed_images=[image_name(NO_IMAGE), image_name(NOTHING)],
        failed_texts=[f"caption of {NO_TEXT}", f"caption of {NOTHING}"],
        adapter="comp5329",
    )
    call("fit-head", "--cache", folder / "cache", "--out", folder / "runs")
    return folder


@pytest.fixture
def head(comp: Path) -> FittedHead:
    return FittedHead.load(comp / "runs" / "latest" / "head")


def test_a_submission_has_one_row_per_test_id_in_file_order(comp: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    arguments = ("predict", "--cache", comp / "cache", "--out", comp / "runs", "--dataset", "tiny", "--split", "test")
    done = call(*arguments, "--submission", out, "--json")
    header, *rows = table_of(out)
    assert header == ["ImageID", "Labels"]
    assert [name for name, _ in rows] == [image_name(row) for row in TEST]
    truth = label_lists(96)
    for row, (_, own) in zip(TEST, rows, strict=True):
        if row not in LAST and truth[row]:
            assert own.split(" ") == truth[row]
        assert own  # those without a label get their most probable one
    assert "3 rows lack features, and something stood in for them: " in done.stderr
    assert f"{image_name(NO_IMAGE)} (the training mean of my-image)" in done.stderr
    assert f"{image_name(NOTHING)} (the training labels' shares)" in done.stderr
    assert "rows reach no label's threshold: given their most probable one" in done.stderr
    document = json.loads(done.stdout)
    assert document["failures"] == {}
    filled = {row["id"]: row["filled"] for row in document["predictions"] if row["filled"]}
    assert filled == {
        image_name(NO_IMAGE): "the training mean of my-image",
        image_name(NO_TEXT): "the training mean of my-text",
        image_name(NOTHING): "the training labels' shares",
    }
    assert [" ".join(row["labels"]) for row in document["predictions"]] == [own for _, own in rows]
    done = call(*arguments, "--submission", out, "--empty", "keep")
    assert [own for _, own in table_of(out)[1:]].count("") > 0
    assert "left without one" in done.stderr


def test_a_failed_image_is_predicted_from_its_text_and_the_training_mean(comp: Path, head: FittedHead) -> None:
    dataset = ec.open(comp / "cache")["tiny"]
    found = predict_dataset(head, dataset, "test", fill=True)
    row = found.probabilities[found.ids.index(image_name(NO_IMAGE))]
    text = dataset.features("my-text")
    own = text.take(text.ids == image_name(NO_IMAGE)).matrix(np.float32)
    train = dataset.features("my-image", "my-text").split("train")[0]
    kept = fitted(comp / "cache")[0].counts["train"]
    assert len(train) > kept  # a part was carved for validation: the mean is of what was trained on
    assert row == pytest.approx(head.predict_proba(np.hstack([np.array([head.mean[:2]]), own]))[0])
    assert np.allclose(head.mean, train.mean(0), atol=0.2)
    prior = found.probabilities[found.ids.index(image_name(NOTHING))]
    assert prior.tolist() == list(head.prior)
    unfilled = predict_dataset(head, dataset, "test")
    assert sorted(unfilled.failures) == sorted(image_name(row) for row in LAST)
    assert len(unfilled.ids) == len(TEST) - 3
    same = [found.ids.index(name) for name in unfilled.ids]
    assert (found.probabilities[same] == unfilled.probabilities).all()


def test_without_a_submission_failed_rows_are_named_and_left_out(comp: Path) -> None:
    done = call("predict", "--cache", comp / "cache", "--out", comp / "runs", "--dataset", "tiny", "--split", "test")
    assert f"not predicted: {image_name(NO_TEXT)}: it lacks features" in done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if image_name(TEST[1]) in line).split()[1] == LABELS[0]


def test_the_prior_and_the_mean_are_those_of_the_training_rows(tmp_path: Path) -> None:
    tagged(tmp_path, noise=1.0)
    (run,) = fitted(tmp_path, cv={"folds": 2})
    labels, train = label_lists(96), [row for row in range(96) if row not in TEST]
    assert run.head.prior == tuple(sum(label in labels[row] for row in train) / 64 for label in LABELS)
    assert run.head.mean == pytest.approx(run.features.matrix(np.float64)[train].mean(0), abs=1e-6)
    separable(tmp_path / "single")
    (run,) = fitted(tmp_path / "single", cv={"folds": 2})
    assert run.head.prior == pytest.approx((1 / 3,) * 3)


def test_a_test_split_of_which_nothing_has_features_gets_the_most_frequent_class(tmp_path: Path) -> None:
    labels = ["b" if row % 3 else "a" for row in range(12)] + [None] * 4
    names = [f"{row}.jpg" for row in range(16)]
    split = ["train"] * 12 + ["test"] * 4
    table = samples.build([f"{row}" for row in range(16)], split=split, images=names, targets={"category": labels})
    folder = save_table(tmp_path, table, adapter="meli")
    vectors = {name: [1.0 if label == "a" else -1.0] for name, label in zip(names, labels, strict=True) if label}
    add_features(folder, "image", vectors, failed=names[12:])
    (run,) = fitted(tmp_path)
    found = predict_dataset(run.head, ec.open(tmp_path)["tiny"], "test", fill=True)
    write_submission(tmp_path / "out.csv", found, "meli")
    assert table_of(tmp_path / "out.csv") == [["id", "category"], *([f"{row}", "b"] for row in range(12, 16))]
    assert set(found.filled.values()) == {"the training labels' shares"}
    nothing = predict_dataset(run.head, ec.open(tmp_path)["tiny"], "test")
    assert (nothing.ids, len(nothing.failures)) == ((), 4)


def test_a_head_of_an_earlier_release_cannot_fill(comp: Path, head: FittedHead, tmp_path: Path) -> None:
    head.save(tmp_path / "head")
    path = tmp_path / "head" / "head.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in document.items() if name not in ("mean", "prior")}))
    old = FittedHead.load(tmp_path / "head")
    dataset = ec.open(comp / "cache")["tiny"]
    assert len(predict_dataset(old, dataset, "test").ids) == len(TEST) - 3
    with pytest.raises(UsageError, match="3 samples lack features, and the head.*fit it again"):
        predict_dataset(old, dataset, "test", fill=True)


def test_a_single_label_head_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    separable(tmp_path)
    (run,) = fitted(tmp_path)
    run.head.save(tmp_path / "head")
    path = tmp_path / "head" / "head.json"
    document = json.loads(path.read_text())
    for name in ("kind", "thresholds", "mean", "prior"):
        del document[name]
    path.write_text(json.dumps(document))
    again = FittedHead.load(tmp_path / "head")
    assert (again.kind, again.predict(np.eye(4)[:1]).tolist()) == ("single", run.head.predict(np.eye(4)[:1]).tolist())


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn birds with a target of several labels, extracted, and a head on both modalities."""
    folder = tmp_path_factory.mktemp("birds")
    draw_cub(folder / "data", species=4, images_per_species=8)
    cache = ("--cache", folder / "cache")
    call("extract", "--data", folder / "data", "--backbone", "demo-image", "--backbone", "demo-text", *cache)
    table = samples.load(folder / "cache" / "cub")
    [target] = table.targets
    kinds = table.samples[f"target.{target}"].to_pylist()
    sets = [["bird", str(kind)] if position % 2 else [str(kind)] for position, kind in enumerate(kinds)]
    samples.save(replace(table, samples=table.samples.append_column("target.labels", [sets])), folder / "cache" / "cub")
    call("fit-head", *cache, "--out", folder / "runs", "--set", "select.target=labels", "--set", "threshold=0.4")
    return folder


def test_photos_and_captions_get_label_sets(birds: Path, tmp_path: Path) -> None:
    images = sorted((birds / "data" / "CUB_200_2011" / "images").rglob("*.jpg"))[:2]
    texts = ("--text", "a small red bird", "--text", "a big blue bird")
    common = ("predict", "--out", birds / "runs", "--image", images[0], "--image", images[1], *texts)
    found = json.loads(call(*common, "--json", "--table", tmp_path / "out.csv").stdout)["predictions"]
    head = FittedHead.load(birds / "runs" / "latest" / "head")
    assert head.thresholds == (0.4,) * 5
    own = predict_items(head, images, [texts[1], texts[3]])
    for row, probabilities, labels in zip(found, own.probabilities, own.labels(), strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(probabilities.tolist())
        assert row["labels"] == labels
        reached = [name for name, share in row["probabilities"].items() if share >= 0.4]
        assert labels == (reached or [max(row["probabilities"], key=row["probabilities"].get)])
    assert [row[0] for row in table_of(tmp_path / "out.csv")[1:]] == [str(image) for image in images]
    assert "labels" in call(*common).stdout.splitlines()[0]


def test_only_the_news_get_label_sets(birds: Path) -> None:
    since = ("--cache", birds / "cache", "--out", birds / "runs", "--dataset", "cub", "--changed-since", "latest")
    assert json.loads(call("predict", *since, "--json").stdout)["predictions"] == []
    assert call("predict", *since).exit_code == 0
