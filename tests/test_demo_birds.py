"""The demo's data set on disk: the published layout, and the same bytes from the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.demo.birds import draw_cub
from embedcache.demo.genera import MAX_SPECIES
from embedcache.errors import UsageError


def rows(path: Path) -> dict[int, str]:
    """A list of the published layout: value by id."""
    pairs = (line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {int(key): value for key, value in pairs}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five species of six pictures each."""
    folder = tmp_path_factory.mktemp("birds")
    return draw_cub(folder, species=5, images_per_species=6, seed=3)


def test_lists_agree_with_each_other_and_with_the_pictures(drawn: Path) -> None:
    root = drawn / "CUB_200_2011"
    images, classes = rows(root / "images.txt"), rows(root / "classes.txt")
    labels = {key: int(value) for key, value in rows(root / "image_class_labels.txt").items()}
    assert list(images) == list(labels) == list(rows(root / "train_test_split.txt"))
    assert list(images) == list(range(1, 31))
    assert list(classes) == [1, 2, 3, 4, 5]
    assert Counter(labels.values()) == dict.fromkeys(classes, 6)
    assert all(images[key].startswith(f"{classes[label]}/") for key, label in labels.items())
    on_disk = {path.relative_to(root / "images") for path in root.rglob("*.jpg")}
    assert on_disk == {Path(name) for name in images.values()}


def test_class_folders_carry_their_id_and_files_their_species(drawn: Path) -> None:
    for key, name in rows(drawn / "CUB_200_2011" / "images.txt").items():
        folder, _, file = name.partition("/")
        number, _, kind = folder.partition(".")
        assert int(number) == (key - 1) // 6 + 1
        assert file == f"{kind}_{(key - 1) % 6 + 1:04d}.jpg"


def test_half_of_each_species_is_train(drawn: Path) -> None:
    root = drawn / "CUB_200_2011"
    labels, split = rows(root / "image_class_labels.txt"), rows(root / "train_test_split.txt")
    assert Counter(labels[key] for key, part in split.items() if part == "1") == dict.fromkeys(labels.values(), 3)
    assert set(split.values()) == {"0", "1"}


def test_ten_captions_stand_beside_every_picture(drawn: Path) -> None:
    for name in rows(drawn / "CUB_200_2011" / "images.txt").values():
        text = (drawn / "text_c10" / name).with_suffix(".txt").read_text(encoding="utf-8")
        captions = text.splitlines()
        assert len(captions) == 10
        assert all(caption.endswith(".") and caption == caption.lower() for caption in captions)
        assert "{" not in text
        assert "  " not in text


def test_pictures_are_rgb_jpegs_that_are_not_flat(drawn: Path) -> None:
    for path in drawn.rglob("*.jpg"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            assert all(120 <= side <= 152 for side in picture.size)
            assert np.asarray(picture).std() > 8


def test_a_seed_draws_the_same_bytes_and_another_seed_does_not(drawn: Path, tmp_path: Path) -> None:
    same = draw_cub(tmp_path / "same", species=5, images_per_species=6, seed=3)
    other = draw_cub(tmp_path / "other", species=5, images_per_species=6, seed=4)
    assert contents(same) == contents(drawn)
    assert contents(other).keys() != contents(drawn).keys()


@pytest.mark.parametrize("taken", ["CUB_200_2011", "text_c10"])
def test_files_that_are_there_are_never_drawn_over(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    (tmp_path / taken / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(FileExistsError, match=taken):
        draw_cub(tmp_path, species=2, images_per_species=2)
    assert contents(tmp_path) == {f"{taken}/mine.txt": b"keep"}


@pytest.mark.parametrize(("species", "images"), [(1, 4), (MAX_SPECIES + 1, 4), (2, 1)])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, species: int, images: int) -> None:
    with pytest.raises(UsageError, match="Got"):
        draw_cub(tmp_path, species=species, images_per_species=images)
    assert not contents(tmp_path)
