"""Folders of images: flat, class/image, split/class/image."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from embedcache.datasets import discover, open_dataset
from embedcache.datasets.folder import Folder
from embedcache.errors import DataNotFoundError, UnknownNameError, UsageError


def tree(root: Path, *paths: str) -> Path:
    """Files that are never opened."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def test_flat_images_are_samples_without_target(tmp_path: Path) -> None:
    table = Folder.open(tree(tmp_path, "b.jpg", "a.PNG", "c.tiff", "notes.txt", "d.jpg.bak")).read()
    assert table.samples["id"].to_pylist() == table.samples["image"].to_pylist() == ["a.PNG", "b.jpg", "c.tiff"]
    assert table.samples["split"].to_pylist() == [None] * 3
    assert table.targets == ()
    assert table.modalities == ("image",)


def test_class_folders_are_labels(tmp_path: Path) -> None:
    table = Folder.open(tree(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "stray.jpg")).read()
    assert table.samples["id"].to_pylist() == ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "stray.jpg"]
    assert table.samples["target.label"].to_pylist() == ["cat", "dog", "dog", None]
    assert table.samples["split"].to_pylist() == [None] * 4


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "Val"])
def test_split_folders_are_splits_by_any_of_their_names(tmp_path: Path, name: str) -> None:
    table = Folder.open(tree(tmp_path, "train/cat/1.jpg", f"{name}/cat/2.jpg", "test/dog/3.jpg")).read()
    rows = {
        image: (split, label)
        for image, split, label in zip(
            *(table.samples[column].to_pylist() for column in ("image", "split", "target.label")), strict=True
        )
    }
    assert rows == {
        "train/cat/1.jpg": ("train", "cat"),
        f"{name}/cat/2.jpg": ("validation", "cat"),
        "test/dog/3.jpg": ("test", "dog"),
    }


def test_images_directly_in_a_split_folder_have_no_label(tmp_path: Path) -> None:
    table = Folder.open(tree(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/2.jpg")).read()
    found = dict(zip(table.samples["id"].to_pylist(), table.samples["target.label"].to_pylist(), strict=True))
    assert found == {"train/cat/1.jpg": "cat", "train/dog/1.jpg": "dog", "test/2.jpg": None}
    assert table.samples["split"].to_pylist() == ["test", "train", "train"]


def test_split_names_are_classes_where_another_folder_is_none(tmp_path: Path) -> None:
    table = Folder.open(tree(tmp_path, "train/1.jpg", "bus/2.jpg")).read()
    assert table.samples["split"].to_pylist() == [None, None]
    assert table.samples["target.label"].to_pylist() == ["bus", "train"]


def test_label_none_gives_no_target(tmp_path: Path) -> None:
    assert Folder.open(tree(tmp_path, "cat/1.jpg", "dog/1.jpg"), label="none").read().targets == ()


def test_label_parent_is_the_nearest_folder(tmp_path: Path) -> None:
    table = Folder.open(tree(tmp_path, "animals/cat/1.jpg", "animals/dog/1.jpg"), label="parent").read()
    assert table.samples["target.label"].to_pylist() == ["cat", "dog"]


def test_label_and_group_by_regular_expression(tmp_path: Path) -> None:
    root = tree(tmp_path, "p01_sick_1.png", "p01_well_2.png", "p02_well_1.png", "blank.png")
    table = open_dataset("folder", [root], {"label": r"_(sick|well)_", "group": r"^(p\d+)_"}).read()
    assert table.samples["id"].to_pylist() == ["blank.png", "p01_sick_1.png", "p01_well_2.png", "p02_well_1.png"]
    assert table.samples["target.label"].to_pylist() == [None, "sick", "well", "well"]
    assert table.samples["group"].to_pylist() == [None, "p01", "p01", "p02"]


@pytest.mark.parametrize("option", ["label", "group"])
@pytest.mark.parametrize(
    ("pattern", "says"), [("p(", "is no regular expression"), (r"p\d+", "needs a group in parentheses")]
)
def test_a_bad_expression_is_refused_with_its_option(tmp_path: Path, option: str, pattern: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} .*{says}"):
        open_dataset("folder", [tree(tmp_path, "p1.png")], {option: pattern})


@pytest.mark.parametrize("option", ["label", "group"])
def test_an_expression_that_matches_nothing_shows_a_path(tmp_path: Path, option: str) -> None:
    found = open_dataset("folder", [tree(tmp_path, "a/p1.png")], {option: r"q(\d)"})
    with pytest.raises(UsageError, match=rf"--{option} .* matches none of 1 paths .*a/p1\.png"):
        found.read()


def test_settings_are_what_decides_how_it_is_read(tmp_path: Path) -> None:
    assert Folder.open(tmp_path, label="none", group="(p)").settings() == {"label": "none", "group": "(p)"}


@pytest.mark.parametrize("file", ["readme.txt", ".hidden.jpg", ".thumbnails/1.jpg"])
def test_a_folder_without_images_is_an_error(tmp_path: Path, file: str) -> None:
    with pytest.raises(DataNotFoundError, match="holds no images"):
        Folder.open(tree(tmp_path, file)).read()


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat/1.jpg", "cat/._1.jpg", ".git/2.jpg", "dog/.cache/3.jpg", "dog/4.jpg")
    assert Folder.open(root).read().samples["id"].to_pylist() == ["cat/1.jpg", "dog/4.jpg"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="absent"):
        open_dataset("folder", [tmp_path / "absent"])


def test_linked_folders_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    tree(tmp_path, "photos/cat/1.jpg", "more/2.jpg")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "more")
    (tmp_path / "photos" / "cat" / "again").symlink_to(tmp_path / "photos")
    assert Folder.open(tmp_path / "photos").read().samples["id"].to_pylist() == ["cat/1.jpg", "dog/2.jpg"]


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are always Unicode there")
def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"not UTF-8: b'caf\\xe9\.jpg'"):
        Folder.open(tmp_path).read()


def test_names_outside_ascii_are_ids_as_they_are(tmp_path: Path) -> None:
    table = Folder.open(tree(tmp_path, "größe/ü 1.jpg", "鳥/2.jpg")).read()
    assert table.samples["id"].to_pylist() == ["größe/ü 1.jpg", "鳥/2.jpg"]
    assert table.samples["target.label"].to_pylist() == ["größe", "鳥"]


def test_discovery_finds_labelled_folders_and_nothing_else(tmp_path: Path) -> None:
    tree(tmp_path, "pets/cat/1.jpg", "pets/dog/1.jpg")
    tree(tmp_path, "split/train/a/1.jpg", "split/train/b/1.jpg", "split/test/a/2.jpg")
    tree(tmp_path, "flat/1.jpg", "single/only/1.jpg", ".hidden/a/1.jpg", ".hidden/b/1.jpg", "bank/train.csv", "x.jpg")
    found = discover(tmp_path)
    assert [(data.adapter, data.default_name) for data in found] == [("folder", "pets"), ("folder", "split")]


@pytest.mark.parametrize("present", [True, False])
def test_discovery_of_nothing_says_what_to_do(tmp_path: Path, present: bool) -> None:
    data = tree(tmp_path / "data", "readme.txt") if present else tmp_path / "data"
    with pytest.raises(DataNotFoundError, match="--data") as caught:
        discover(data)
    message = str(caught.value)
    assert str(data) in message
    assert all(word in message for word in ("CUB_200_2011", "split/class/image", "--dataset", "demo"))


def test_an_unknown_data_set_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'folder'"):
        open_dataset("foldr", [tmp_path])


def test_one_folder_is_taken_not_two(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one data folder, got 2"):
        open_dataset("folder", [tmp_path, tmp_path])


def test_clothing_counts(shared_data: Path) -> None:
    found = {data.default_name: data for data in discover(shared_data)}
    table = found["clothing"].read()
    assert table.counts == {"samples": 600, "images": 600}
    assert Counter(table.samples["split"].to_pylist()) == {"train": 400, "validation": 100, "test": 100}
    assert Counter(table.samples["target.label"].to_pylist()) == dict.fromkeys(
        ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"], 60
    )
