"""The notebook's door: names of feature sets, features, what a cache says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import embedcache as ec
from embedcache import cache as caches
from embedcache.backbones.base import BackboneSettings
from embedcache.errors import DataNotFoundError, MissingFeaturesError, UnknownNameError, UsageError
from tests.fakes import FakeBackbone, known_vector


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of texts with three encoders: two of them differ in a setting alone."""
    folder = tmp_path_factory.mktemp("cache")
    rows = "".join(f"text {row},{'train' if row < 30 else 'test'},{row % 2}\n" for row in range(40))
    (folder / "t.csv").write_text("text,split,label\n" + rows)
    backbones = [
        FakeBackbone("text", "st:org/one", dim=4),
        FakeBackbone("text", "bert", dim=6),
        FakeBackbone("text", "bert", dim=6, settings=BackboneSettings(lowercase=True)),
    ]
    columns = {"text": "text", "split": "split", "label": "label"}
    ec.extract("table", folder / "t.csv", backbones=backbones, cache=folder / "cache", **columns)
    return folder / "cache"


def test_a_feature_set_answers_to_its_names(cache: Path) -> None:
    dataset = ec.open(cache)["t"]
    one = dataset.find("st:org/one")
    for name in ("one", "fake:st:org/one", f"one@{one.fingerprint[:4]}", {"backbone": "one"}):
        assert dataset.find(name).path == one.path


def test_a_bare_name_means_the_default_settings(cache: Path) -> None:
    dataset = ec.open(cache)["t"]
    assert dataset.find("bert").record["settings"] == {}
    lower = dataset.find({"backbone": "bert", "lowercase": True})
    assert lower.record["settings"] == {"lowercase": True}
    assert dataset.find(f"bert@{lower.fingerprint[:6]}").path == lower.path


def test_features_that_are_missing_are_answered_with_the_command(cache: Path) -> None:
    dataset = ec.open(cache)["t"]
    with pytest.raises(MissingFeaturesError, match="extract --dataset t --backbone roberta$"):
        dataset.features("roberta")
    with pytest.raises(MissingFeaturesError, match="--backbone bert --max-length 9$"):
        dataset.features({"backbone": "bert", "max_length": 9})
    with pytest.raises(UsageError, match="needs the key 'backbone'"):
        dataset.features({"lowercase": True})
    with pytest.raises(UsageError, match="named twice"):
        dataset.features("bert", "bert")


def test_features_of_two_sets_with_one_name_keep_both(cache: Path) -> None:
    dataset = ec.open(cache)["t"]
    features = dataset.features("bert", {"backbone": "bert", "lowercase": True})
    assert len(features.fingerprints) == 2
    assert features.matrix().shape == (40, 12)


def test_a_split_gives_numpy_without_a_copy_where_rows_are_consecutive(cache: Path) -> None:
    features = ec.open(cache)["t"].features("bert")
    x, y = features.split("train")
    assert x.shape == (30, 6)
    assert isinstance(x, np.memmap)
    assert x.base is not None
    assert np.array_equal(x[7], known_vector(b"text 7", 6))
    assert y[:4].tolist() == ["0", "1", "0", "1"]
    with pytest.raises(UnknownNameError, match="test, train"):
        features.split("tests")


def test_the_sample_table_is_pandas_row_for_row(cache: Path) -> None:
    dataset = ec.open(cache)["t"]
    features = dataset.features()
    assert dataset.samples["label"].tolist() == [str(row % 2) for row in range(40)]
    assert features.frame()["id"].tolist() == features.ids.tolist()
    assert features.matrix(np.float32).shape == (40, 4 + 6 + 6)


def test_a_cache_says_what_is_in_it(cache: Path) -> None:
    opened = ec.open(cache)
    assert list(opened) == ["t"]
    assert len(opened) == 1
    assert "t" in opened
    assert repr(opened).endswith("t")
    text = repr(opened["t"])
    assert "40 samples, 40 texts" in text
    assert all(file.fingerprint in text for file in opened["t"].files)
    assert [one.done for one in opened["t"].summaries()] == [1.0, 1.0, 1.0]


def test_what_is_not_there_is_said(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="no cache folder"):
        ec.open(tmp_path / "nowhere")
    with pytest.raises(UnknownNameError, match="Known: t"):
        ec.open(cache)["u"]
    with pytest.raises(UsageError, match="holds no data set"):
        ec.open(tmp_path).only()


def test_the_difference_of_two_encoders_in_words(cache: Path) -> None:
    dataset = ec.open(cache)["t"]
    words = caches.difference(dataset.find("bert"), dataset.find({"backbone": "bert", "lowercase": True}))
    assert words == ["lower-casing: off → on"]
