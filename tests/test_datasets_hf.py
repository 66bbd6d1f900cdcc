"""Data sets of Hugging Face on disk: Arrow as save_to_disk writes it, Parquet as the hub holds it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache as ec
from embedcache.datasets import image_source, open_dataset, options_of
from embedcache.datasets.hf_dataset import CHUNKS_KEPT, HfDataset
from embedcache.errors import DataNotFoundError, EmbedCacheError, ItemError, UnknownNameError, UsageError
from embedcache.verification import remembered_data, verify
from tests.fakes import FakeBackbone, known_vector
from tests.tiny_multilabel import (
    HF_FEATURES,
    HF_ROWS,
    hf_table,
    save_dict_to_disk,
    save_to_disk,
    texts_of,
    write_hub,
    write_images,
    write_json,
    write_stream,
)

COLUMNS = {"image": "image", "text": "caption", "label": "label"}
ROWS = [row for rows in HF_ROWS.values() for row in rows]
Write = Callable[[Path], Path]


def cached(folder: Path) -> Path:
    """The library's own cache: Arrow files named by data set and split."""
    folder.mkdir()
    for split, rows in HF_ROWS.items():
        write_stream(folder / f"my-set-{split}.arrow", hf_table(rows))
    (folder / "cache-1234.arrow").write_bytes(b"of a map, not of the data set")
    write_json(folder / "dataset_info.json", {"features": HF_FEATURES, "splits": {"train": {}, "test": {}}})
    return folder


def clone(folder: Path) -> Path:
    """A folder of the hub's cache: snapshots of links to blobs."""
    write_hub(folder / "blobs")
    for commit in ("abc", "def"):
        (folder / "snapshots" / commit / "data").mkdir(parents=True)
        for path in (folder / "blobs").iterdir() if commit == "def" else ():
            (folder / "snapshots" / commit / "data" / path.name).symlink_to(path)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("def")
    return folder


LAYOUTS: dict[str, Write] = {
    "DatasetDict": save_dict_to_disk,
    "shards": lambda path: save_dict_to_disk(path, 3),
    "hub": lambda path: write_hub(path, name="data/{split}-{number:05d}-of-{shards:05d}.parquet"),
    "hub, hashes": lambda path: write_hub(path, 2, "data/{split}-{number:05d}-of-{shards:05d}-0a1b2c3d.parquet"),
    "one configuration": lambda path: write_hub(path, name="plain_text/{split}-{number:05d}-of-{shards:05d}.parquet"),
    "converted": lambda path: write_hub(path, 3, name="default/{split}/{number:04d}.parquet"),
    "plain names": lambda path: write_hub(path, name="{split}.parquet"),
    "cache of the library": cached,
    "cache of the hub": clone,
}


def opened(root: Path, **options: Any) -> HfDataset:
    found = open_dataset("hf-dataset", [root], options or COLUMNS)
    assert isinstance(found, HfDataset)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples_and_images(tmp_path: Path, layout: str) -> None:
    found = opened(LAYOUTS[layout](tmp_path / "set"))
    table = found.read()
    assert table.samples["id"].to_pylist() == ["train:0", "train:1", "train:2", "test:0"]
    assert table.samples["split"].to_pylist() == ["train", "train", "train", "test"]
    assert table.samples["target.label"].to_pylist() == ["cat", "dog", "cat", None]
    assert texts_of(table) == [[row[1]] for row in ROWS]
    items = table.samples["image"].to_pylist()
    assert items == ["train/0", "train/1", "train/2", "test/0"]
    source = image_source(found)
    assert [source.read(item) for item in items] == [row[0] for row in ROWS]
    assert open_dataset("hf-dataset", found.sources, json.loads(json.dumps(found.settings()))) == found


@pytest.mark.parametrize(("split", "expected"), [("train", ["train"] * 4), (None, [None] * 4), ("odd", ["odd"] * 4)])
def test_one_data_set_of_one_split(tmp_path: Path, split: str | None, expected: list[str | None]) -> None:
    found = opened(save_to_disk(tmp_path / "set", ROWS, split, shards=2))
    table = found.read()
    assert table.samples["id"].to_pylist() == ["0", "1", "2", "3"]
    assert table.samples["split"].to_pylist() == expected
    item = table.samples["image"][3].as_py()
    assert item == (f"{split}/3" if split else "3")
    assert image_source(found).read(item) == b"four"


@pytest.mark.parametrize("write", [save_dict_to_disk, write_hub])
def test_lists_of_classes_are_several_labels_and_lists_of_texts_several_texts(tmp_path: Path, write: Write) -> None:
    table = opened(write(tmp_path / "set"), text=("captions", "caption"), label="tags").read()
    assert table.samples["target.label"].to_pylist() == [["blue", "red"], [], None, ["green"]]
    assert pa.types.is_list(table.samples["target.label"].type)
    assert texts_of(table) == [["c1", "c2", "A cat"], ["A dog"], ["c1", ""], ["c3", "Another"]]


@pytest.mark.parametrize(
    "feature",
    [
        [{"names": ["a", "b", "c"], "_type": "ClassLabel"}],
        {"feature": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "_type": "LargeList"},
    ],
)
def test_lists_are_written_in_several_ways(tmp_path: Path, feature: Any) -> None:
    table = hf_table(HF_ROWS["train"], {"tags": feature})
    tags = table["tags"].cast(pa.large_list(pa.int64()))
    pq.write_table(table.set_column(4, "tags", tags), tmp_path / "train.parquet")
    found = opened(tmp_path, text="caption", label="tags").read()
    assert found.samples["target.label"].to_pylist() == [["c", "a"], [], None]


def test_labels_that_are_no_classes_stay_what_they_are(tmp_path: Path) -> None:
    pq.write_table(hf_table(HF_ROWS["train"], {}), tmp_path / "train.parquet")
    assert opened(tmp_path).read().samples["target.label"].to_pylist() == [0, 1, 0]
    assert opened(tmp_path, text="caption", label="captions").read().samples["target.label"][0].as_py() == ["c1", "c2"]


def test_a_code_without_a_name_is_refused(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "set", [(b"x", "a", [], 2, [])])
    with pytest.raises(UsageError, match="column 'label': codes of 2 to 2, where 2 classes have names"):
        opened(tmp_path / "set").read()


def test_features_may_stand_beside_the_files_only(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset_info.json", {"features": HF_FEATURES})
    pq.write_table(hf_table(HF_ROWS["train"]).replace_schema_metadata(None), tmp_path / "train.parquet")
    assert opened(tmp_path).read().samples["target.label"].to_pylist() == ["cat", "dog", "cat"]


def test_a_label_that_one_split_lacks_is_null_there_and_one_that_all_lack_an_error(tmp_path: Path) -> None:
    write_hub(tmp_path)
    pq.write_table(hf_table(HF_ROWS["test"]).drop_columns(["label"]), tmp_path / "test-00000-of-00001.parquet")
    assert opened(tmp_path).read().samples["target.label"].to_pylist() == ["cat", "dog", "cat", None]
    with pytest.raises(UnknownNameError, match=r"label column .*'lable'. Did you mean 'label'\?.*caption"):
        opened(tmp_path, text="caption", label="lable").read()


@pytest.mark.parametrize("column", ["image", "text", "id"])
def test_a_column_that_is_not_there_is_an_error_with_those_that_are(tmp_path: Path, column: str) -> None:
    write_hub(tmp_path)
    with pytest.raises(UnknownNameError, match=rf"{column} column .*'absent'.*caption"):
        opened(tmp_path, **{**COLUMNS, column: "absent"}).read()


def test_without_columns_the_error_says_which_there_are(tmp_path: Path) -> None:
    save_dict_to_disk(tmp_path / "set")
    with pytest.raises(UsageError, match=r"--text COLUMN.*image \(Image\), caption \(string\).*label \(ClassLabel\)"):
        open_dataset("hf-dataset", [tmp_path / "set"])
    assert {"text", "image", "label", "images", "config", "id", "weight"} <= set(options_of("hf-dataset"))
    assert "columns" not in options_of("hf-dataset")


# ------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_images_are_read_in_any_order_by_several_threads(tmp_path: Path, kind: str) -> None:
    rows = [(f"image {row}".encode(), "", [], 0, []) for row in range(40)]
    if kind == "arrow":
        save_to_disk(tmp_path / "set", rows, "train", shards=3, batch=3)
    else:
        (tmp_path / "set").mkdir()
        pq.write_table(hf_table(rows), tmp_path / "set" / "train.parquet", row_group_size=3)
    found = opened(tmp_path / "set", image="image")
    source: Any = image_source(found)
    order = np.random.default_rng(0).permutation(40).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: source.read(f"train/{row}"), order)) == [rows[row][0] for row in order]
    assert len(source._kept) == CHUNKS_KEPT


@pytest.mark.parametrize("item", ["train/3", "train/-1", "train/x", "other/0", "0", "train/" + "9" * 30, "train/0/0"])
def test_an_item_that_is_no_row_fails(tmp_path: Path, item: str) -> None:
    source = image_source(opened(save_dict_to_disk(tmp_path / "set")))
    with pytest.raises(ItemError, match="no such row"):
        source.read(item)
    with pytest.raises(ItemError, match="no such row"):
        source.stat(item)


def test_rows_without_an_image_have_none(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "set", [(None, "a", [], 0, []), (b"", "b", [], 0, []), (b"x", "c", [], 0, [])])
    found = opened(tmp_path / "set")
    assert found.read().samples["image"].to_pylist() == [None, "1", "2"]
    with pytest.raises(ItemError, match="no image in its row"):
        image_source(found).read("1")


def with_images(values: Any, kind: Any) -> pa.Table:
    return pa.table({"image": pa.array(values, kind), "caption": ["a"] * len(values)})


def test_images_that_are_paths_are_read_below_the_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", ["a.jpg"])
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    values = [{"bytes": None, "path": path} for path in ("a.jpg", "../secret.jpg", "/etc/passwd")]
    write_images(tmp_path, ["secret.jpg"])
    pq.write_table(with_images(values, struct), tmp_path / "train.parquet")
    source = image_source(opened(tmp_path, image="image", images=str(tmp_path / "photos")))
    assert source.read("train/0") == b"a.jpg"
    for item in ("train/1", "train/2"):
        with pytest.raises(ItemError, match="leaves the data folder"):
            source.read(item)
    pq.write_table(with_images(["photos/a.jpg"], pa.string()), tmp_path / "train.parquet")
    found = opened(tmp_path, image="image")
    assert found.read().samples["image"].to_pylist() == ["photos/a.jpg"]
    assert image_source(found).read("photos/a.jpg") == b"a.jpg"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct({"bytes": pa.binary()})])
def test_images_that_are_bytes_alone(tmp_path: Path, kind: pa.DataType) -> None:
    values = [b"x", b"y"] if not pa.types.is_struct(kind) else [{"bytes": b"x"}, {"bytes": b"y"}]
    pq.write_table(with_images(values, kind), tmp_path / "train.parquet")
    found = opened(tmp_path, image="image")
    assert found.read().samples["image"].to_pylist() == ["train/0", "train/1"]
    assert image_source(found).read("train/1") == b"y"


# ------------------------------------------------------------------------------------------------ what is wrong


def test_several_configurations_ask_for_one(tmp_path: Path) -> None:
    for name in ("en", "es"):
        write_hub(tmp_path / name)
    with pytest.raises(UsageError, match=r"2 configurations.*config=NAME \(en, es\)"):
        opened(tmp_path)
    found = opened(tmp_path, config="es", **COLUMNS)
    assert found.files[0].parent == tmp_path / "es"
    assert open_dataset("hf-dataset", found.sources, found.settings()) == found
    for config in ("../x", "", "fr"):
        with pytest.raises(EmbedCacheError):
            HfDataset.open(tmp_path, config=config, text="caption")


def test_files_that_are_lacking_are_said(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub", 3)
    (tmp_path / "hub" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UsageError, match="2 files of train, whose names speak of 3"):
        opened(tmp_path / "hub")
    save_to_disk(tmp_path / "saved", ROWS)
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataNotFoundError, match="lacks data-00000-of-00001.arrow"):
        opened(tmp_path / "saved")


def test_a_folder_without_a_data_set_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="dataset_dict.json or state.json"):
        opened(tmp_path)
    with pytest.raises(DataNotFoundError, match="no folder"):
        opened(tmp_path / "absent")
    (tmp_path / "snapshots" / "a").mkdir(parents=True)
    (tmp_path / "snapshots" / "b").mkdir()
    with pytest.raises(UsageError, match="2 snapshots"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("file", "document"),
    [
        ("dataset_dict.json", {"splits": ["../train"]}),
        ("dataset_dict.json", {"splits": ["/etc"]}),
        ("dataset_dict.json", {"splits": []}),
        ("dataset_dict.json", {"splits": ["train", "train"]}),
        ("dataset_dict.json", [1]),
        ("train/state.json", {"_data_files": [{"filename": "../../secret.arrow"}]}),
        ("train/state.json", {"_data_files": [{"filename": "/etc/passwd"}]}),
        ("train/state.json", {"_data_files": [{"filename": 3}]}),
        ("train/state.json", {"_data_files": "data"}),
        ("train/state.json", {}),
    ],
)
def test_files_that_json_names_do_not_leave_the_folder(tmp_path: Path, file: str, document: Any) -> None:
    save_dict_to_disk(tmp_path / "set")
    save_to_disk(tmp_path / "other", ROWS)
    (tmp_path / "other" / "data-00000-of-00001.arrow").rename(tmp_path / "secret.arrow")
    write_json(tmp_path / "set" / file, document)
    with pytest.raises(UsageError, match=r"set"):
        opened(tmp_path / "set")


@pytest.mark.parametrize("write", [save_dict_to_disk, write_hub])
@pytest.mark.parametrize("keep", [0, 7, 200])
def test_files_that_are_cut_short_are_named(tmp_path: Path, write: Write, keep: int) -> None:
    [path] = [path for path in write(tmp_path / "set").rglob("*") if path.suffix in (".arrow", ".parquet")][-1:]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=path.name):
        opened(tmp_path / "set").read()


WORDS = st.sampled_from(["", "..", "a/b", "ClassLabel", "List", "data-00000-of-00001.arrow"])
KEYS = st.sampled_from(["_type", "names", "feature", "filename", "info", "features"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(state=JSON, info=JSON, label=JSON, meant=st.sampled_from(["state", "dict", "info", "schema"]))
def test_whatever_stands_in_the_json_it_is_read_or_refused(state: Any, info: Any, label: Any, meant: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "set")
        save_to_disk(folder, HF_ROWS["train"])
        if meant == "schema":
            table = hf_table(HF_ROWS["train"], {"label": label, "tags": label})
            write_stream(folder / "data-00000-of-00001.arrow", table)
        elif meant == "info":
            write_json(folder / "dataset_info.json", info)
        else:
            document = {"_data_files": state, "_split": info} if meant == "state" else {"splits": state}
            write_json(folder / ("state.json" if meant == "state" else "dataset_dict.json"), document)
        for column in ("label", "tags"):
            try:
                found = opened(folder, image="image", text="caption", label=column)
                assert found.read().counts == {"samples": 3, "images": 3, "texts": 3}
            except EmbedCacheError as error:
                assert str(error)  # noqa: PT017


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
    parquet=st.booleans(),
)
def test_files_with_damaged_bytes_are_read_or_refused(edits: list[tuple[int, int]], parquet: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = (write_hub if parquet else save_dict_to_disk)(Path(name, "set"))
        [path] = [*root.glob("train*.parquet"), *root.glob("train/*.arrow")]
        content = bytearray(path.read_bytes())
        for place, value in edits:
            content[place % len(content)] = value
        path.write_bytes(content)
        try:
            found = opened(root, image="image", text=("caption", "captions"), label="tags")
            items = found.read().samples["image"].drop_null().to_pylist()
            source = image_source(found)
        except EmbedCacheError as error:
            assert "set" in str(error)  # noqa: PT017
            return
        for item in items:
            with contextlib.suppress(ItemError):
                assert isinstance(source.read(item), bytes)


# --------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("write", [save_dict_to_disk, write_hub])
def test_extraction_reads_images_inside_the_files_and_notices_changes(tmp_path: Path, write: Write) -> None:
    root, cache, backbone = write(tmp_path / "set"), tmp_path / "cache", FakeBackbone()
    both = [backbone, FakeBackbone("text", name="fake-text")]
    images, texts = ec.extract("hf-dataset", root, backbones=both, cache=cache, **COLUMNS)
    assert (images.n_items, images.n_failed, texts.n_items, backbone.encoded) == (4, 0, 4, 4)
    dataset = ec.open(cache)["set"]
    assert (dataset.features("fake").matrix() == np.stack([known_vector(row[0], 8) for row in ROWS])).all()
    [again] = ec.extract("set", backbones=[backbone], cache=cache)
    assert (again.action, backbone.encoded) == ("reuse", 4)
    against = verify(dataset, recompute=None, against_data=remembered_data(dataset))
    assert not [finding for report in against for finding in report.findings if finding.severity != "note"]

    [path] = [*root.glob("train*.parquet"), *root.glob("train/*.arrow")]
    table = hf_table([(b"another", "A cat", [], 0, []), *HF_ROWS["train"][1:]])
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        write_stream(path, table)
    os.utime(path, ns=(1, 1))
    [changed] = ec.extract("set", backbones=[backbone], cache=cache)
    assert (changed.action, changed.n_encoded, backbone.encoded) == ("grow", 1, 5)


def test_what_the_library_itself_writes_is_read(tmp_path: Path) -> None:
    if find_spec("datasets") is None:
        pytest.skip("datasets is not installed: the layouts above are written by pyarrow")
    import datasets

    features = datasets.Features.from_dict(HF_FEATURES)
    for name, rows in HF_ROWS.items():
        values = dict(zip(HF_FEATURES, map(list, zip(*rows, strict=True)), strict=True))
        values["image"] = [{"bytes": content, "path": None} for content in values["image"]]
        datasets.Dataset.from_dict(values, features, split=name).save_to_disk(tmp_path / "set" / name)
    write_json(tmp_path / "set" / "dataset_dict.json", {"splits": list(HF_ROWS)})
    found = opened(tmp_path / "set")
    table = found.read()
    assert table.samples["target.label"].to_pylist() == ["cat", "dog", "cat", None]
    assert [image_source(found).read(item) for item in table.samples["image"].to_pylist()] == [row[0] for row in ROWS]
