"""Predict: what was never in the cache gets the numbers that the cache would have given it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import embedcache as ec
from cli import app
from embedcache.demo.birds import draw_cub
from embedcache.errors import AllItemsFailedError, UsageError
from heads.predict import predict_dataset, predict_items
from heads.saved import FittedHead


def call(*arguments: str | Path) -> Any:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn birds, extracted, with a head on both modalities in ``runs/``, first captions alone."""
    folder = tmp_path_factory.mktemp("birds")
    draw_cub(folder / "data", species=4, images_per_species=12)
    cache = ("--cache", folder / "cache")
    call("extract", "--data", folder / "data", "--backbone", "demo-image", "--backbone", "demo-text", *cache)
    features = ("--features", "demo-image,demo-text", "--set", "select.captions=first")
    call("fit-head", *features, *cache, "--out", folder / "runs")
    return folder


@pytest.fixture
def head(birds: Path) -> FittedHead:
    return FittedHead.load(birds / "runs" / "latest" / "head")


def test_new_items_get_what_extraction_and_fit_gave_them(birds: Path, head: FittedHead) -> None:
    recorded = pq.read_table(birds / "runs" / "latest" / "predictions.parquet").to_pylist()
    samples = ec.open(birds / "cache")["cub"].samples.set_index("id")
    rows = [row for row in recorded if row["split"] == "test"][:6]
    images = [birds / "data" / "CUB_200_2011" / "images" / samples.loc[row["id"], "image"] for row in rows]
    captions = [
        (birds / "data" / "text_c10" / samples.loc[row["id"], "image"]).with_suffix(".txt").read_text().splitlines()[0]
        for row in rows
    ]
    found = predict_items(head, images, captions)
    assert [best[0][0] for best in found.top(1)] == [row["predicted"] for row in rows]
    expected = np.array([row["top_probabilities"][0] for row in rows])
    assert np.allclose(found.probabilities.max(1), expected, atol=2e-3)


def test_a_data_set_gets_the_recorded_probabilities(birds: Path, head: FittedHead) -> None:
    found = predict_dataset(head, ec.open(birds / "cache")["cub"], "test")
    recorded = {row["id"]: row for row in pq.read_table(birds / "runs" / "latest" / "predictions.parquet").to_pylist()}
    assert len(found.ids) == 24
    for name, probabilities in zip(found.ids, found.probabilities, strict=True):
        assert probabilities.max() == pytest.approx(recorded[name]["top_probabilities"][0], abs=1e-9)
    with pytest.raises(UsageError, match="Its splits: test, train"):
        predict_dataset(head, ec.open(birds / "cache")["cub"], "tset")


def test_a_bad_item_is_named_and_the_others_are_predicted(birds: Path, head: FittedHead, tmp_path: Path) -> None:
    good = next((birds / "data" / "CUB_200_2011" / "images").rglob("*.jpg"))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    found = predict_items(head, [bad, good], ["a bird", "a red bird"])
    assert found.ids == (str(good),)
    assert list(found.failures) == [str(bad)]
    with pytest.raises(AllItemsFailedError, match="bad.jpg"):
        predict_items(head, [bad], ["a bird"])


def test_what_the_head_needs_is_asked_for(head: FittedHead) -> None:
    with pytest.raises(UsageError, match="it needs texts"):
        predict_items(head, [Path("a.jpg")])
    with pytest.raises(UsageError, match="1 images, 2 texts"):
        predict_items(head, [Path("a.jpg")], ["one", "two"])


def test_another_encoder_is_refused_with_both_fingerprints(head: FittedHead) -> None:
    from dataclasses import replace

    image, text = head.features
    other = replace(head, features=(image, replace(text, settings={"lowercase": True})))
    with pytest.raises(UsageError, match=rf"demo-text@{text.fingerprint}; .* make demo-text@(?!{text.fingerprint})"):
        predict_items(other, [Path(__file__)], ["a bird"])


def test_the_command_prints_json_and_writes_a_submission(birds: Path, tmp_path: Path) -> None:
    image = next((birds / "data" / "CUB_200_2011" / "images").rglob("*.jpg"))
    done = call("predict", "--out", birds / "runs", "--image", image, "--text", "a small red bird", "--json")
    [row] = json.loads(done.stdout)["predictions"]
    assert row["id"] == str(image)
    assert row["probability"] == max(row["top_probabilities"])
    submission = tmp_path / "out.csv"
    common = ("--out", birds / "runs", "--cache", birds / "cache")
    call("predict", *common, "--dataset", "cub", "--split", "test", "--submission", submission)
    lines = submission.read_text().splitlines()
    assert lines[0] == "id,label"
    assert len(lines) == 25


def test_only_the_news_since_a_run_is_predicted(birds: Path, tmp_path: Path) -> None:
    shutil.copytree(birds, tmp_path / "birds")
    folder = tmp_path / "birds"
    common = ("--cache", folder / "cache", "--out", folder / "runs")
    since = ("predict", *common, "--dataset", "cub", "--changed-since", "latest", "--json")
    assert json.loads(call(*since).stdout)["predictions"] == []
    images = sorted((folder / "data" / "CUB_200_2011" / "images").rglob("*.jpg"))
    shutil.copy(images[5], images[0])
    captions = sorted((folder / "data" / "text_c10").rglob("*.txt"))
    captions[7].write_text("a quite different caption\n")
    backbones = ("--backbone", "demo-image", "--backbone", "demo-text")
    call("extract", "--data", folder / "data", *backbones, "--cache", folder / "cache")
    found = json.loads(call(*since).stdout)["predictions"]
    samples = ec.open(folder / "cache")["cub"].samples.set_index("id")
    changed = {Path(samples.loc[row["id"], "image"]).stem for row in found}
    assert changed == {images[0].stem, captions[7].stem}
