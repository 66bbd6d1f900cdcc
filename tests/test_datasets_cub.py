"""CUB-200-2011 with its captions, in the published layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.datasets import discover, open_dataset, read_image
from embedcache.datasets.cub import Cub
from embedcache.errors import DataNotFoundError, ItemError, UsageError
from embedcache.samples import SampleTable

IMAGES = {
    "1": "001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg",
    "2": "001.Black_footed_Albatross/Black_Footed_Albatross_0002_55.jpg",
    "3": "002.Laysan_Albatross/Laysan_Albatross_0001_545.jpg",
    "4": "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
}
LABELS = {"1": "1", "2": "1", "3": "2", "4": "2"}
TRAIN = {"1": "0", "2": "1", "3": "1", "4": "0"}
CLASSES = {"1": "001.Black_footed_Albatross", "2": "002.Laysan_Albatross"}
Tree = Callable[..., Path]


def write_index(root: Path, name: str, rows: dict[str, str]) -> None:
    (root / name).write_text("".join(f"{key} {value}\n" for key, value in rows.items()), encoding="utf-8")


def write_captions(folder: Path) -> None:
    """Ten captions an image, as ``text_c10`` holds them."""
    for path in IMAGES.values():
        file = (folder / path).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{file.stem} caption {n}\n" for n in range(10)), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as users have it after unpacking both archives."""
    root = tmp_path / "data" / "CUB_200_2011"
    for path in IMAGES.values():
        (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / path).write_bytes(path.encode())
    write_index(root, "images.txt", IMAGES)
    write_index(root, "image_class_labels.txt", LABELS)
    write_index(root, "train_test_split.txt", TRAIN)
    write_index(root, "classes.txt", CLASSES)
    write_captions(tmp_path / "data" / "text_c10")
    return tmp_path / "data"


def captions_of(table: SampleTable, row: int) -> list[str]:
    texts = dict(zip(table.items["text"]["id"].to_pylist(), table.items["text"]["text"].to_pylist(), strict=True))
    return [texts[item] for item in table.samples["texts"][row].as_py()]


def test_the_published_layout_is_read_as_published(data: Path) -> None:
    table = Cub.open(data).read()
    assert table.counts == {"samples": 4, "images": 4, "texts": 40}
    assert table.samples["id"].to_pylist() == list(IMAGES)
    assert table.samples["image"].to_pylist() == list(IMAGES.values())
    assert table.samples["split"].to_pylist() == ["test", "train", "train", "test"]
    assert table.samples["target.label"].to_pylist() == [CLASSES[label] for label in LABELS.values()]
    assert table.targets == ("label",)
    assert table.notes == ()
    for row, path in enumerate(IMAGES.values()):
        assert captions_of(table, row) == [f"{Path(path).stem} caption {n}" for n in range(10)]


def test_items_are_read_from_the_images_folder(data: Path) -> None:
    cub = Cub.open(data)
    assert read_image(cub.image_folder, IMAGES["3"]) == IMAGES["3"].encode()


def test_images_that_the_index_lacks_are_not_samples(data: Path) -> None:
    images = data / "CUB_200_2011" / "images"
    for path in IMAGES.values():
        shutil.copy(images / path, (images / path).with_name(Path(path).stem + "_rgb.jpg"))
    assert Cub.open(data).read().samples["image"].to_pylist() == list(IMAGES.values())


def test_listed_images_that_are_missing_stay_and_fail_when_read(data: Path) -> None:
    (data / "CUB_200_2011" / "images" / IMAGES["2"]).unlink()
    cub = Cub.open(data)
    assert IMAGES["2"] in cub.read().samples["image"].to_pylist()
    with pytest.raises(ItemError, match="missing"):
        read_image(cub.image_folder, IMAGES["2"])


@pytest.mark.parametrize(
    "place", ["text_c10", "CUB_200_2011/text_c10", "cvpr2016/text_c10", "CUB_200_2011/text/text_c10"]
)
def test_captions_are_found_where_people_unpack_them(data: Path, place: str) -> None:
    moved = data / place
    moved.parent.mkdir(exist_ok=True)
    if place != "text_c10":
        shutil.move(data / "text_c10", moved)
    cub = Cub.open(data)
    assert cub.captions == moved
    assert cub.read().counts["texts"] == 40
    assert open_dataset("cub", cub.sources, cub.settings()) == cub


@pytest.mark.parametrize("stated", ["mine/text_c10", "mine", ""])
def test_captions_are_read_from_the_folder_that_is_stated(data: Path, tmp_path: Path, stated: str) -> None:
    shutil.move(data / "text_c10", tmp_path / "elsewhere" / "mine" / "text_c10")
    assert Cub.open(data).captions is None
    cub = open_dataset("cub", [data], {"captions": str(tmp_path / "elsewhere" / stated)})
    assert cub.read().counts["texts"] == 40
    assert open_dataset("cub", cub.sources, cub.settings()) == cub


def test_a_stated_folder_without_captions_is_an_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match="No captions in .*empty"):
        Cub.open(data, captions=str(tmp_path / "empty"))


def test_an_empty_text_c10_does_not_hide_the_one_that_has_captions(data: Path) -> None:
    (data / "CUB_200_2011" / "text_c10" / "001.Black_footed_Albatross").mkdir(parents=True)
    assert Cub.open(data).captions == data / "text_c10"


def test_without_captions_there_are_only_images_and_a_note(data: Path) -> None:
    shutil.rmtree(data / "text_c10")
    table = Cub.open(data).read()
    assert table.modalities == ("image",)
    assert "texts" not in table.samples.column_names
    assert len(table.notes) == 1
    assert "--captions" in table.notes[0]


def test_damaged_and_lacking_captions_are_counted(data: Path) -> None:
    captions = data / "text_c10"
    (captions / IMAGES["1"]).with_suffix(".txt").unlink()
    (captions / IMAGES["2"]).with_suffix(".txt").write_text("", encoding="utf-8")
    lines = "a bird\nits beak is \ufffd long\n\n  red  \n".encode() + b"invalid \xff\xfe bytes\n"
    (captions / IMAGES["3"]).with_suffix(".txt").write_bytes(lines)
    table = Cub.open(data).read()
    assert table.notes == ("2 images without captions", "2 captions hold replacement characters")
    assert captions_of(table, 0) == captions_of(table, 1) == []
    assert captions_of(table, 2) == ["a bird", "its beak is \ufffd long", "red", "invalid \ufffd\ufffd bytes"]
    assert len(captions_of(table, 3)) == 10


def test_a_caption_of_two_images_is_one_item(data: Path) -> None:
    for key in ("1", "2"):
        (data / "text_c10" / IMAGES[key]).with_suffix(".txt").write_text("a bird\n", encoding="utf-8")
    table = Cub.open(data).read()
    assert table.counts["texts"] == 21
    assert table.samples["texts"][0] == table.samples["texts"][1]


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_a_missing_index_file_is_named(data: Path, file: str) -> None:
    (data / "CUB_200_2011" / file).unlink()
    with pytest.raises(DataNotFoundError, match=file):
        Cub.open(data)


def test_without_class_names_labels_are_their_numbers(data: Path) -> None:
    (data / "CUB_200_2011" / "classes.txt").unlink()
    assert Cub.open(data).read().samples["target.label"].to_pylist() == list(LABELS.values())


@pytest.mark.parametrize("file", ["image_class_labels.txt", "train_test_split.txt"])
def test_gaps_in_labels_or_splits_name_file_and_image(data: Path, file: str) -> None:
    root = data / "CUB_200_2011"
    rows = {"image_class_labels.txt": LABELS, "train_test_split.txt": TRAIN}[file]
    write_index(root, file, {key: value for key, value in rows.items() if key in ("1", "2")})
    with pytest.raises(UsageError, match=rf"{file} lacks 2 images .*first: 3"):
        Cub.open(data).read()


@pytest.mark.parametrize("line", ["3", "1 again.jpg", "lonely "])
def test_a_line_that_is_none_is_named_with_its_number(data: Path, line: str) -> None:
    with (data / "CUB_200_2011" / "images.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(UsageError, match=r"images\.txt, line 6"):
        Cub.open(data).read()


def test_a_split_that_is_neither_0_nor_1_is_refused(data: Path) -> None:
    write_index(data / "CUB_200_2011", "train_test_split.txt", {**TRAIN, "3": "train"})
    with pytest.raises(UsageError, match=r"train_test_split\.txt.* image 3.*'train'"):
        Cub.open(data).read()


def test_find_looks_at_the_data_folder_and_its_children_only(data: Path, tmp_path: Path) -> None:
    root = data / "CUB_200_2011"
    assert Cub.find(data) == root
    assert Cub.find(root) == root
    assert Cub.find(tmp_path) is None
    assert Cub.find(tmp_path / "absent") is None


def test_captions_beside_the_set_are_found_from_the_set_itself(data: Path) -> None:
    assert Cub.open(data / "CUB_200_2011").captions == data / "text_c10"


@pytest.mark.parametrize("below", ["", "CUB_200_2011"])
def test_discovery_gives_the_set_and_never_its_own_folders_again(data: Path, below: str) -> None:
    for folder in ("CUB_200_2011/images", "text_c10"):
        for path in IMAGES.values():
            (data / folder / path).with_name("stray.png").write_bytes(b"x")
    assert [found.adapter for found in discover(data / below)] == ["cub"]


def test_an_option_of_another_data_set_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="no option label; it has captions"):
        open_dataset("cub", [data], {"label": "parent"})
