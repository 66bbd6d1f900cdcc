"""COCO's captions and instances, as one set of photos with captions and labels."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache as ec
from embedcache.datasets import discover, open_dataset, read_image
from embedcache.datasets.coco import Coco
from embedcache.errors import DataNotFoundError, UsageError
from tests.fakes import FakeBackbone, known_vector
from tests.tiny_multilabel import (
    CAPTIONED,
    captions_document,
    coco_images,
    instances_document,
    texts_of,
    write_coco,
    write_images,
    write_json,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "data" / "coco")


def test_the_published_layout_is_read_in_file_order(root: Path) -> None:
    table = Coco.open(root).read()
    assert table.samples["id"].to_pylist() == ["7", "9", "2", "3", "1"]
    assert table.samples["split"].to_pylist() == ["train"] * 3 + ["validation", "test"]
    assert table.samples["target.labels"].to_pylist() == [["cat", "person"], ["dog"], [], ["giraffe"], None]
    assert texts_of(table) == [["A cat.", "One cat\nasleep"], ["A dog"], ["Nobody"], ["A giraffe"], []]
    assert table.samples["image"].to_pylist()[2:] == [
        "train2017/000000000002.jpg", "val2017/000000000003.jpg", "test2017/000000000001.jpg",
    ]  # fmt: skip
    assert table.notes == ()


def test_labels_may_be_what_categories_are_kinds_of(root: Path) -> None:
    found = open_dataset("coco", [root], {"supercategories": True})
    assert found.read().samples["target.labels"].to_pylist() == [["animal", "person"], ["animal"], [], ["animal"], None]
    assert open_dataset("coco", found.sources, json.loads(json.dumps(found.settings()))) == found
    with pytest.raises(UsageError, match="true or false, got 'yes'"):
        open_dataset("coco", [root], {"supercategories": "yes"})


def test_captions_alone_have_no_target_and_instances_alone_no_texts(root: Path) -> None:
    for path in (root / "annotations").glob("instances_*"):
        path.rename(root / path.name.replace("instances", "kept"))
    table = Coco.open(root).read()
    assert (table.targets, table.modalities) == ((), ("image", "text"))
    for path in (root / "annotations").glob("captions_*"):
        path.unlink()
    for path in root.glob("kept_*"):
        path.rename(root / "annotations" / path.name.replace("kept", "instances"))
    table = Coco.open(root).read()
    assert (table.targets, table.modalities) == (("labels",), ("image",))


def test_a_split_without_instances_has_no_labels(root: Path) -> None:
    (root / "annotations" / "instances_train2017.json").unlink()
    table = Coco.open(root).read()
    assert table.samples["target.labels"].to_pylist() == [None, None, None, ["giraffe"], None]


def test_images_that_only_one_of_the_files_lists_are_samples(root: Path) -> None:
    write_json(root / "annotations" / "instances_val2017.json", instances_document({4: [25]}, (4,)))
    table = Coco.open(root).read()
    assert table.samples["id"].to_pylist() == ["7", "9", "2", "3", "4", "1"]
    assert table.samples["target.labels"].to_pylist()[3:5] == [[], ["giraffe"]]
    assert table.notes == ("1 images without captions",)


def test_splits_that_use_the_same_ids_keep_them_apart(root: Path) -> None:
    write_json(root / "annotations" / "captions_val2017.json", captions_document({7: ["A giraffe"]}))
    write_json(root / "annotations" / "instances_val2017.json", instances_document({}, ()))
    assert Coco.open(root).read().samples["id"].to_pylist() == [
        "train2017:7", "train2017:9", "train2017:2", "val2017:7", "test2017:1",
    ]  # fmt: skip


def test_files_that_name_no_split(tmp_path: Path) -> None:
    write_json(tmp_path / "captions.json", captions_document())
    write_json(tmp_path / "instances.json", instances_document())
    write_images(tmp_path / "images", [one["file_name"] for one in coco_images(list(CAPTIONED))])
    table = Coco.open(tmp_path).read()
    assert table.samples["split"].null_count == 3
    assert table.samples["image"].to_pylist() == ["000000000007.jpg", "000000000009.jpg", "000000000002.jpg"]
    write_json(tmp_path / "captions_train.json", captions_document({5: ["Named"]}))
    table = Coco.open(tmp_path).read()
    assert table.samples["id"].to_pylist() == ["5"]
    assert table.notes == ("captions.json, instances.json not read: other files name their splits",)


def test_of_several_years_one_is_read(root: Path) -> None:
    write_json(root / "annotations" / "captions_train2014.json", captions_document({5: ["Older"]}))
    write_images(root / "train2014", [f"{5:012d}.jpg"])
    table = Coco.open(root).read()
    assert table.counts["samples"] == 5
    assert table.notes == ("annotations of 2014 are there too, and not read (--option year=2014)",)
    older = open_dataset("coco", [root], {"year": 2014})
    assert older.read().samples["image"].to_pylist() == ["train2014/000000000005.jpg"]
    assert open_dataset("coco", older.sources, older.settings()) == older
    with pytest.raises(UsageError, match="no annotations of 2015.*2014, 2017"):
        open_dataset("coco", [root], {"year": 2015})


def test_of_the_test_sets_the_whole_one_is_read(root: Path) -> None:
    listed = {"images": coco_images([1]), "categories": []}
    write_json(root / "annotations" / "image_info_test-dev2017.json", listed)
    assert Coco.open(root).read().counts["samples"] == 5
    (root / "annotations" / "image_info_test2017.json").unlink()
    table = Coco.open(root).read()
    assert table.samples["image"].to_pylist()[-1] == "test2017/000000000001.jpg"
    assert table.samples["split"].to_pylist()[-1] == "test"


def test_annotations_of_what_is_not_listed_are_counted(root: Path) -> None:
    captions = captions_document()
    captions["annotations"] += [{"id": 50, "image_id": 77, "caption": "x"}, {"id": 51, "image_id": 7, "caption": " \n"}]
    write_json(root / "annotations" / "captions_train2017.json", captions)
    instances = instances_document()
    instances["annotations"] += [{"image_id": 77, "category_id": 17}, {"image_id": 9, "category_id": 99}]
    write_json(root / "annotations" / "instances_train2017.json", instances)
    table = Coco.open(root).read()
    assert table.samples["target.labels"].to_pylist()[1] == ["dog"]
    assert table.notes == (
        "1 captions of images that are not listed",
        "1 empty captions, left out",
        "1 objects in images that are not listed",
        "1 objects of a category that is not listed",
    )


# ------------------------------------------------------------------------------------------- files and folders


def test_it_is_found_unasked_and_its_splits_are_no_classes(root: Path) -> None:
    for folder in (root, root.parent):
        [found] = discover(folder)
        assert found == Coco.open(root)
    for name in ("photos/cat", "photos/dog"):
        write_images(root / name, ["1.jpg"])
    assert [one.adapter for one in discover(root)] == ["coco", "folder"]
    assert Coco.find(root.parent.parent) is None


@pytest.mark.parametrize("content", ["[1, 2]", '"images"', "not JSON", '{"captions": []}', ""])
def test_another_file_of_the_same_name_is_not_found(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.json").write_text(content)
    assert Coco.find(tmp_path) is None
    with pytest.raises(DataNotFoundError, match="No COCO annotations"):
        Coco.open(tmp_path)


def test_a_list_of_images_alone_is_no_data_set(root: Path) -> None:
    for path in (root / "annotations").glob("[ci]*_[tv][ra]*"):
        path.unlink()
    assert [path.name for path in (root / "annotations").iterdir()] == ["image_info_test2017.json"]
    assert Coco.find(root) is None


@pytest.mark.parametrize("move", [("train2017", "images/train2017"), ("train2017", "images"), ("train2017", "train")])
def test_images_are_found_where_people_unpack_them(root: Path, move: tuple[str, str]) -> None:
    for path in [*(root / "annotations").glob("*val*"), *(root / "annotations").glob("*test*")]:
        path.unlink()
    (root / move[1]).parent.mkdir(exist_ok=True)
    (root / move[0]).rename(root / move[1])
    found = Coco.open(root)
    image = found.read().samples["image"][0].as_py()
    assert read_image(found.image_folder, image) == b"000000000007.jpg"
    assert Coco.open(root / "annotations").read().samples["id"] == found.read().samples["id"]
    assert open_dataset("coco", found.sources, found.settings()) == found


def test_images_that_are_not_there_are_said(root: Path, tmp_path: Path) -> None:
    (root / "val2017").rename(tmp_path / "val2017")
    table = Coco.open(root).read()
    assert table.samples["image"].to_pylist()[3] is None
    assert "no images of val2017" in table.notes[0]
    for split in ("train2017", "test2017"):
        (root / split).rename(tmp_path / split)
    table = Coco.open(root).read()
    assert table.modalities == ("text",)
    assert "--images" in table.notes[0]
    assert open_dataset("coco", [root], {"images": str(tmp_path)}).read().counts["images"] == 5
    with pytest.raises(DataNotFoundError, match="no folder of images"):
        open_dataset("coco", [root], {"images": str(tmp_path / "absent")})


# ------------------------------------------------------------------------------------------------ what is wrong


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: without(d, "images"), "no list of images"),
        (lambda d: {**d, "annotations": {}}, "no list of annotations"),
        (lambda d: {**d, "images": [3]}, "entry 1 of images is no object"),
        (lambda d: {**d, "images": [{"file_name": "a"}]}, "image 1 has no id"),
        (lambda d: {**d, "images": [{"id": True, "file_name": "a"}]}, "image 1 has no id"),
        (lambda d: {**d, "images": [{"id": 7}]}, "image 7 has no file_name"),
        (lambda d: {**d, "images": [{"id": 7, "file_name": "a\0b"}]}, "image 7 has no file_name"),
        (lambda d: {**d, "images": [{"id": 7, "file_name": n} for n in "ab"]}, "two images have the id 7"),
        (lambda d: {**d, "annotations": [{"id": 1, "caption": "x"}]}, "an annotation has no image_id"),
        (lambda d: {**d, "annotations": [{"id": 1, "image_id": 7, "caption": 3}]}, "image 7 has no caption"),
    ],
)
def test_a_file_that_is_not_as_cocos_is_named_with_what_is_wrong(
    root: Path, change: Callable[[dict[str, Any]], dict[str, Any]], word: str
) -> None:
    write_json(root / "annotations" / "captions_train2017.json", change(captions_document()))
    with pytest.raises(UsageError, match=rf"captions_train2017\.json is not as COCO's: .*{word}"):
        Coco.open(root).read()


@pytest.mark.parametrize("content", ['{"images": [', '{"images": ' + "[" * 100_000, '{"images": 1' + "0" * 5000 + "}"])
def test_what_is_no_json_is_named(root: Path, content: str) -> None:
    (root / "annotations" / "captions_train2017.json").write_text(content)
    with pytest.raises(UsageError, match=r"captions_train2017\.json"):
        Coco.open(root).read()


def test_halves_of_surrogate_pairs_become_replacement_characters(root: Path) -> None:
    write_json(root / "annotations" / "captions_train2017.json", captions_document({7: ["a \ud83d b", "\ud83d\ude00"]}))
    assert texts_of(Coco.open(root).read())[0] == ["a \ufffd b", "\U0001f600"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 30) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "image_id"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 60), VALUES), min_size=1, max_size=4), instances=st.booleans()
)  # fmt: skip
def test_whatever_stands_in_the_json_it_is_read_or_refused(places: list[tuple[int, Any]], instances: bool) -> None:
    """Some leaves of a right document are changed for anything."""
    document = instances_document() if instances else captions_document()
    for place, value in places:
        changed(document, place, value)
    with tempfile.TemporaryDirectory() as folder:
        name = "instances.json" if instances else "captions.json"
        Path(folder, name).write_text(json.dumps(document))
        try:
            assert Coco.open(Path(folder)).read().counts["samples"] >= 1
        except UsageError as error:
            assert name in str(error) or "COCO" in str(error)  # noqa: PT017


def changed(document: Any, place: int, value: Any) -> None:
    """Put a value at the place-th spot of a document, counted in depth."""
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(document)
    node, key = spots[place % len(spots)]
    node[key] = value


# ------------------------------------------------------------------------------------------ real, and end to end


def test_real_photos_captions_and_objects(shared_data: Path) -> None:
    coco33 = shared_data / "coco33"
    found = Coco.open(coco33)
    table = found.read()
    assert table.counts == {"samples": 33, "images": 33, "texts": 165}
    assert table.samples["split"].null_count == 33
    assert {len(texts) for texts in texts_of(table)} == {5}
    instances = json.loads((coco33 / "instances.json").read_text())
    names = {one["id"]: one["name"] for one in instances["categories"]}
    present = {(str(one["image_id"]), names[one["category_id"]]) for one in instances["annotations"]}
    assert len(instances["annotations"]) == 184
    labels = table.samples["target.labels"].to_pylist()
    pairs = zip(table.samples["id"].to_pylist(), labels, strict=True)
    assert {(image, name) for image, some in pairs for name in some} == present
    assert sum(map(len, labels)) == len(present)
    assert all(some == sorted(some) for some in labels)
    assert table.notes == ()
    items = table.items["image"]["id"].to_pylist()
    assert all(read_image(found.image_folder, item)[:2] == b"\xff\xd8" for item in items)


def test_extraction_of_both_modalities(root: Path, tmp_path: Path) -> None:
    captions = captions_document({7: ["A cat"], 8: ["<img src=x>"]})
    captions["images"][1]["file_name"] = "../../../secret.jpg"
    write_json(root / "annotations" / "captions_val2017.json", captions)
    write_json(root / "annotations" / "instances_val2017.json", instances_document({}, (7,)))
    write_images(tmp_path, ["secret.jpg"])
    backbones = [FakeBackbone("image"), FakeBackbone("text", name="fake-text")]
    images, texts = ec.extract(None, root.parent, backbones=backbones, cache=tmp_path / "cache")
    assert (images.n_items, images.n_failed, texts.n_items, texts.n_failed) == (6, 2, 6, 0)
    assert images.failures["val2017/../../../secret.jpg"] == "its path leaves the data folder"
    features = ec.open(tmp_path / "cache")["coco"].features("fake")
    assert (features.matrix()[1] == known_vector(b"000000000009.jpg", 8)).all()
    assert list(features.target()[1]) == ["dog"]
