"""CachedEncoder: a scikit-learn transformer that hits the cache by content. Forward passes are counted."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

import embedcache as ec
from embedcache.errors import ItemError, UsageError
from tests.fakes import FakeBackbone, known_vector


@dataclass(frozen=True)
class Fake(FakeBackbone):
    """A fake that clones share, so that its forward passes are counted in one place."""

    def __deepcopy__(self, memo: Any) -> Fake:
        return self


TEXTS = ["a red bird", "a blue bird", "a red bird", "no bird at all"]


def text_encoder(cache: Path, **changes: Any) -> tuple[Fake, ec.CachedEncoder]:
    backbone = Fake("text", **changes)
    return backbone, ec.CachedEncoder(backbone, cache=cache)


def expected(texts: list[str], dim: int = 8) -> np.ndarray:
    return np.stack([known_vector(text.encode(), dim) for text in texts])


def test_texts_are_encoded_once_and_come_in_order(tmp_path: Path) -> None:
    backbone, encoder = text_encoder(tmp_path)
    found = encoder.fit_transform(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(TEXTS))
    assert backbone.encoded == 3
    np.testing.assert_array_equal(encoder.transform(TEXTS[::-1]), expected(TEXTS[::-1]))
    np.testing.assert_array_equal(encoder.transform(np.array(["new", TEXTS[0]])), expected(["new", TEXTS[0]]))
    assert backbone.encoded == 4


def test_another_instance_and_a_fresh_fit_find_what_is_there(tmp_path: Path) -> None:
    backbone, encoder = text_encoder(tmp_path)
    encoder.fit(TEXTS)
    again = ec.CachedEncoder(backbone, cache=str(tmp_path))
    np.testing.assert_array_equal(again.transform(TEXTS), expected(TEXTS))
    assert backbone.encoded == 3
    assert list(ec.open(tmp_path)) == []  # it keeps apart from the cache's data sets


def test_what_extraction_has_made_is_found_by_content(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\na red bird\na blue bird\n")
    backbone, encoder = text_encoder(tmp_path / "cache")
    ec.extract("table", tmp_path / "t.csv", backbones=[backbone], cache=tmp_path / "cache", text="text", name="birds")
    assert backbone.encoded == 2
    np.testing.assert_array_equal(encoder.fit_transform(TEXTS), expected(TEXTS))
    assert backbone.encoded == 3


def photos(folder: Path, n: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{row}.jpg" for row in range(n)]
    for row, path in enumerate(paths):
        path.write_bytes(f"photo {row}".encode())
    return paths


def test_images_are_known_by_their_bytes_and_not_by_their_names(tmp_path: Path) -> None:
    paths = photos(tmp_path / "photos", 5)
    backbone = Fake("image")
    ec.extract(tmp_path / "photos", backbones=[backbone], cache=tmp_path / "cache", name="photos")
    encoder = ec.CachedEncoder(backbone, cache=tmp_path / "cache").fit(paths)
    assert backbone.encoded == 5
    moved = tmp_path / "elsewhere.jpg"
    moved.write_bytes(paths[3].read_bytes())
    (tmp_path / "copy.jpg").write_bytes(b"photo 99")
    paths[0].write_bytes(b"photo 99")
    found = encoder.transform([str(moved), paths[0], tmp_path / "copy.jpg"])
    payloads = [b"photo 3", b"photo 99", b"photo 99"]
    np.testing.assert_array_equal(found, [known_vector(payload, 8) for payload in payloads])
    assert backbone.encoded == 6  # one photo under two names
    paths[1].write_bytes(b"photo 100")
    paths[0].unlink()
    encoder.transform([paths[1], tmp_path / "copy.jpg"])
    assert backbone.encoded == 7


def test_an_image_that_changes_in_place_with_its_time_is_encoded_again(tmp_path: Path) -> None:
    import os

    [path] = photos(tmp_path, 1)
    backbone = Fake("image")
    encoder = ec.CachedEncoder(backbone, cache=tmp_path / "cache").fit([path])
    before = path.stat()
    path.write_bytes(b"photo 7")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(encoder.transform([path]), [known_vector(b"photo 7", 8)])


def test_two_encoders_share_a_cache_and_encode_only_what_each_was_asked_for(tmp_path: Path) -> None:
    first, one = text_encoder(tmp_path)
    second, other = text_encoder(tmp_path, weights="1" * 32, dim=4, name="other")
    one.fit(TEXTS)
    np.testing.assert_array_equal(other.fit_transform(TEXTS[:1]), expected(TEXTS[:1], 4))
    assert (first.encoded, second.encoded) == (3, 1)


def test_failed_items_are_named_or_are_rows_of_nan(tmp_path: Path) -> None:
    backbone = Fake("text")
    texts = ["good", "BAD one", "BAD two", "also good"]
    encoder = ec.CachedEncoder(backbone, cache=tmp_path)
    with pytest.raises(ItemError, match=r"2 of 4 .*'BAD one': it is bad; 'BAD two': it is bad"):
        encoder.fit(texts)
    lenient = ec.CachedEncoder(backbone, cache=tmp_path, on_error="nan")
    found = lenient.fit_transform(texts)
    assert np.isnan(found).all(1).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(found[[0, 3]], expected(["good", "also good"]))
    assert np.isnan(lenient.transform(["BAD three", "half \ud800"])).all()
    assert backbone.encoded == 2
    with pytest.raises(ItemError, match="BAD"):
        ec.CachedEncoder(Fake("text"), cache=tmp_path / "new", on_error="nan").fit(["BAD"])
    with pytest.raises(ItemError, match=r"missing\.jpg.*the file is missing"):
        ec.CachedEncoder(Fake("image"), cache=tmp_path).fit([tmp_path / "missing.jpg"])


def test_what_is_no_list_of_items_is_refused(tmp_path: Path) -> None:
    _, encoder = text_encoder(tmp_path)
    with pytest.raises(UsageError, match="Item 1 is a int"):
        encoder.fit(["a", 3])
    with pytest.raises(UsageError, match="single str"):
        encoder.fit("a text")
    with pytest.raises(UsageError, match="shape"):
        encoder.fit(np.array([["a", "b"]]))
    with pytest.raises(UsageError, match="no items"):
        encoder.fit([])
    assert encoder.fit(["a"]).transform([]).shape == (0, 8)


def test_a_setting_that_there_is_none_of_is_named(tmp_path: Path) -> None:
    encoder = ec.CachedEncoder("roberta", cache=tmp_path, settings={"lowercas": True})
    with pytest.raises(UsageError, match="setting of a backbone: 'lowercas'. Did you mean 'lowercase'"):
        encoder.fit(["a text"])


def test_a_fitted_encoder_refuses_other_weights_with_both_fingerprints(tmp_path: Path) -> None:
    _, encoder = text_encoder(tmp_path)
    encoder.fit(TEXTS)
    encoder.set_params(backbone=Fake("text", weights="2" * 32))
    with pytest.raises(
        UsageError, match=rf"fitted with fake@{encoder.fingerprint_}; .* make fake@(?!{encoder.fingerprint_})"
    ):
        encoder.transform(TEXTS)


def test_it_stays_with_the_precision_that_it_was_fitted_with(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(TEXTS[:2]) + "\n")
    backbone = Fake("text")
    wide = ec.Options(stored="float32")
    ec.extract("table", tmp_path / "t.csv", backbones=[backbone], cache=tmp_path, text="text", options=wide)
    encoder = ec.CachedEncoder(backbone, cache=tmp_path).fit(TEXTS)
    [file] = ec.open(tmp_path)["t"].files
    assert encoder.fingerprint_ == file.fingerprint
    ec.CachedEncoder(backbone, cache=tmp_path, options=ec.Options(stored="float16")).fit(["another"])
    assert ec.CachedEncoder(backbone, cache=tmp_path).fit(TEXTS).fingerprint_ == file.fingerprint


def test_scikit_learn_can_clone_pickle_and_name_it(tmp_path: Path) -> None:
    import pandas as pd

    encoder = ec.CachedEncoder("demo-text", cache=tmp_path, settings={"lowercase": True}).fit(TEXTS)
    copy = clone(encoder)
    assert copy.get_params() == encoder.get_params()
    assert not hasattr(copy, "fingerprint_")
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(again.transform(TEXTS), encoder.transform(TEXTS))
    assert list(encoder.get_feature_names_out()[:2]) == ["demo-text_0", "demo-text_1"]
    frame = encoder.set_output(transform="pandas").transform(pd.Series(TEXTS))
    assert frame.shape == (4, 128)
    assert frame.columns[-1] == "demo-text_127"


def labelled(n: int) -> tuple[list[str], list[str]]:
    words = ("sparrow", "owl")
    return [f"{words[row % 2]} number {row}" for row in range(n)], [words[row % 2] for row in range(n)]


def test_it_works_in_pipelines_searches_and_folds(tmp_path: Path) -> None:
    texts, labels = labelled(24)
    backbone = Fake("text")
    pipe = make_pipeline(ec.CachedEncoder(backbone, cache=tmp_path), LogisticRegression())
    pipe.fit(texts, labels)
    cross_val_score(pipe, texts, labels, cv=3)
    grid = GridSearchCV(pipe, {"logisticregression__C": [0.1, 1.0]}, cv=3).fit(texts, labels)
    assert grid.best_estimator_.predict(texts[:2]).shape == (2,)
    assert backbone.encoded == 24


def test_it_works_in_several_processes(tmp_path: Path) -> None:
    texts, labels = labelled(12)
    pipe = make_pipeline(ec.CachedEncoder(Fake("text"), cache=tmp_path), LogisticRegression())
    scores = cross_val_score(pipe, texts, labels, cv=2, n_jobs=2)
    assert np.isfinite(scores).all()
    backbone = Fake("text")
    again = make_pipeline(ec.CachedEncoder(backbone, cache=tmp_path), LogisticRegression())
    np.testing.assert_array_equal(scores, cross_val_score(again, texts, labels, cv=2))
    assert backbone.encoded == 0  # the processes have left all of it in the cache


def test_threads_encode_each_item_once(tmp_path: Path) -> None:
    backbone = Fake("text")
    parts = [[f"text {row}" for row in range(start, start + 20)] for start in (0, 10, 0, 10)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: ec.CachedEncoder(backbone, cache=tmp_path).transform(part), parts))
    for part, vectors in zip(parts, found, strict=True):
        np.testing.assert_array_equal(vectors, expected(part))
    assert backbone.encoded == 30


def test_it_gives_the_numbers_of_extraction_for_a_real_photo(tmp_path: Path, shared_data: Path) -> None:
    weights = shared_data / "weights" / "timm_mobilenetv2_100.safetensors"
    settings = ec.BackboneSettings(weights=str(weights))
    folder = sorted((shared_data / "clothing" / "test").iterdir())[0]
    paths = sorted(folder.glob("*.jpg"))[:2]
    encoder = ec.CachedEncoder("timm:mobilenetv2_100", cache=tmp_path / "mine", settings=settings)
    own = encoder.fit_transform(paths)
    (tmp_path / "photos").mkdir()
    for path in paths:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    ec.extract(
        tmp_path / "photos", backbones=["timm:mobilenetv2_100"], cache=tmp_path / "c", settings=settings, name="p"
    )
    features = ec.open(tmp_path / "c")["p"].features()
    np.testing.assert_array_equal(own, features.matrix(np.float32))
    assert features.sets[0].file.fingerprint == encoder.fingerprint_


def test_its_own_data_set_can_be_listed_and_verified(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cli import app

    ec.CachedEncoder("demo-text", cache=tmp_path).fit(TEXTS)
    for arguments in (["ls"], ["verify", "--recompute", "2"], ["info", "texts"]):
        done = CliRunner().invoke(app, [*arguments, "--cache", str(tmp_path / ".encoder")])
        assert done.exit_code == 0, done.output
        assert "texts" in done.output
