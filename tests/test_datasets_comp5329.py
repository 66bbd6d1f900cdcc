"""COMP5329: files that look like CSV and are not quite."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import embedcache as ec
from embedcache.datasets import discover, open_dataset
from embedcache.datasets.comp5329 import LABELS, Comp5329
from embedcache.errors import DataNotFoundError, UsageError
from embedcache.samples import SampleTable
from tests.fakes import FakeBackbone, known_vector
from tests.tiny_multilabel import TRAIN_ROWS, texts_of, write_comp5329, write_images

IDS = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "30000.jpg", "30001.jpg"]
LABELLED = [["1"], ["1", "19"], ["1", "3", "10"], ["8"], None, None]
CAPTIONS = [
    ["Woman in swim suit holding parasol on sunny day."],
    ["A couple of men riding horses on top of a green field."],
    ['A red bus, a car and a "stop" sign.'],
    ["Two cats"],
    ["A little girl waring a white dress standing in tall grass."],
    ["A dog, asleep"],
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_comp5329(tmp_path / "data" / "COMP5329S1A2Dataset")


def check(table: SampleTable) -> None:
    assert table.samples["id"].to_pylist() == IDS
    assert table.samples["target.labels"].to_pylist() == LABELLED
    assert table.samples["split"].to_pylist() == ["train"] * 4 + ["test"] * 2
    assert texts_of(table) == CAPTIONS


def captions_of(folder: Path, *rows: str) -> dict[str, list[str]]:
    """Captions by image of a training file with these rows."""
    table = Comp5329.open(write_comp5329(folder, rows, None)).read()
    return dict(zip(table.samples["id"].to_pylist(), texts_of(table), strict=True))


def notes_of(folder: Path) -> tuple[str, ...]:
    return Comp5329.open(folder).read().notes


def test_the_published_layout_is_read_in_file_order(root: Path) -> None:
    table = Comp5329.open(root).read()
    check(table)
    assert table.samples["image"].to_pylist() == IDS
    assert table.targets == ("labels",)
    assert table.notes == ()


def test_there_are_18_labels() -> None:
    assert len(LABELS) == 18
    assert "12" not in LABELS


@pytest.mark.parametrize("column", ["", ",", ", ", ",,"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_dos_line_ends_and_an_empty_fourth_column_change_nothing(tmp_path: Path, end: str, column: str) -> None:
    table = Comp5329.open(write_comp5329(tmp_path, end=end, column=column)).read()
    check(table)
    assert table.notes == ()


def test_a_byte_order_mark_and_quoted_fields_change_nothing(root: Path) -> None:
    for name in ("train", "test"):
        path = root / f"{name}.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    check(Comp5329.open(root).read())
    (root / "train.csv").write_text(
        '"ImageID","Labels","Caption"\n'
        + "".join(
            f'"{image}","{labels}","{caption}"\n' for image, labels, caption in (r.split(",", 2) for r in TRAIN_ROWS)
        ).replace('""', '"')
    )
    check(Comp5329.open(root).read())


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ("plain", "plain"),
        ('"with, comma"', "with, comma"),
        ("with, comma and no quotes", "with, comma and no quotes"),
        ('"Stop sign with "added war" annotation"', 'Stop sign with "added war" annotation'),
        ('"It says "stop""', 'It says "stop"'),
        ('""Stop" is what it says, twice"', '"Stop" is what it says, twice'),
        ('"It says ""stop"", twice"', 'It says "stop", twice'),
        ('"""Stop"" it says"', '"Stop" it says'),
        ('It says "stop"', 'It says "stop"'),
        ('"Stop" it says', '"Stop" it says'),
        ('A 12" pizza', 'A 12" pizza'),
        ('"A 12" pizza, hot"', 'A 12" pizza, hot'),
        ("  spaces around  ", "spaces around"),
        ('" spaces inside "', "spaces inside"),
        ("and/or a 50% slash \\ here", "and/or a 50% slash \\ here"),
        ("naïve 鳥 🐦\u2028one line\x85still", "naïve 鳥 🐦\u2028one line\x85still"),
        ("<script>alert(1)</script> &amp;", "<script>alert(1)</script> &amp;"),
    ],
)
def test_quotes_and_commas_in_a_caption(tmp_path: Path, raw: str, caption: str) -> None:
    rows = captions_of(tmp_path, f"1.jpg,1,{raw}", "2.jpg,2,next")
    assert rows == {"1.jpg": [caption], "2.jpg": ["next"]}
    assert notes_of(tmp_path) == ()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        ('"two{}lines"', "two\nlines"),
        ('"two{0}{0}lines, "one" of them empty"', 'two\nlines, "one" of them empty'),
        ('"says "hi"{}and goes"', 'says "hi"\nand goes'),
        ("two{}lines without quotes", "two\nlines without quotes"),
        ('three{}"quoted"{}lines', 'three\n"quoted"\nlines'),
        ('"a line{}7, 8 and more",', "a line\n7, 8 and more"),
    ],
)
def test_line_breaks_in_a_caption(tmp_path: Path, raw: str, caption: str, end: str) -> None:
    rows = captions_of(tmp_path, f"1.jpg,1,{raw.format(end, end)}", "2.jpg,2,next")
    assert rows == {"1.jpg": [caption], "2.jpg": ["next"]}
    assert notes_of(tmp_path) == ()


@pytest.mark.parametrize("labels", ["", "  "])
def test_a_row_without_labels_is_kept_and_counted_in_training(tmp_path: Path, labels: str) -> None:
    write_comp5329(tmp_path, [f"1.jpg,{labels},a", "2.jpg,2,b"], None)
    table = Comp5329.open(tmp_path).read()
    assert table.samples["target.labels"].to_pylist() == [None, ["2"]]
    assert table.notes == ("1 training rows without labels",)


def test_repeated_labels_are_one(tmp_path: Path) -> None:
    table = Comp5329.open(write_comp5329(tmp_path, ["1.jpg, 10  2 10 ,a"], None)).read()
    assert table.samples["target.labels"].to_pylist() == [["2", "10"]]


@pytest.mark.parametrize("labels", ["12", "0", "20", "1 190", "x", "1;2", "1.0", "-1", "١", "9" * 5000, "01"])
def test_a_row_whose_labels_are_none_is_named(tmp_path: Path, labels: str) -> None:
    rows = captions_of(tmp_path, "1.jpg,1,a", f"2.jpg,{labels},b", "its second line", "3.jpg,3,c")
    assert rows == {"1.jpg": ["a"], "3.jpg": ["c"]}
    assert notes_of(tmp_path) == (
        "train.csv: rows whose labels are not numbers of 1 to 19 without 12, left out: 1 (line 3)",
        "train.csv: lines that belong to no row, left out: 1 (line 4)",
    )


def test_a_caption_that_is_not_certain_is_left_out_and_its_row_is_not(tmp_path: Path) -> None:
    rows = captions_of(tmp_path, '1.jpg,1,"never closed', "2.jpg,2,b", '3.jpg,3,"closed", and more', '4.jpg,4,"x', "y")
    assert rows == {"1.jpg": [], "2.jpg": ["b"], "3.jpg": [], "4.jpg": []}
    assert notes_of(tmp_path) == (
        "train.csv: rows whose caption does not end where its quotes do, read without caption: 3 (lines 2, 4, 5)",
    )


def test_lines_that_belong_to_no_row_are_named(tmp_path: Path) -> None:
    rows = captions_of(tmp_path, "stray", '1.jpg,1,"whole, already"', "stray", "stray")
    assert rows == {"1.jpg": ["whole, already"]}
    assert notes_of(tmp_path) == (
        "train.csv: lines that belong to no row, left out: 1 (line 2)",
        "train.csv: lines after a caption that is whole, left out: 2 (lines 4, 5)",
    )


def test_an_image_that_comes_twice_is_read_once(tmp_path: Path) -> None:
    write_comp5329(tmp_path, ["1.jpg,1,a", "1.jpg,2,b"], ["1.jpg,c", "2.jpg,d"])
    table = Comp5329.open(tmp_path).read()
    assert table.samples["id"].to_pylist() == ["1.jpg", "2.jpg"]
    assert table.notes == (
        "train.csv: rows of an image that another row has, left out: 1 (line 3)",
        "test.csv: rows of an image that another row has, left out: 1 (line 2)",
    )


def test_many_lines_are_named_in_part_and_counted(tmp_path: Path) -> None:
    write_comp5329(tmp_path, ["0.jpg,1,a", *(f"{row}.jpg,x,a" for row in range(1, 31))], None)
    [note] = notes_of(tmp_path)
    assert note.endswith(": 30 (lines " + ", ".join(map(str, range(3, 23))) + " and 10 more)")


@pytest.mark.parametrize("rows", [[], ["x"], ["1.jpg,12,a", "2.jpg;1;b"]])
def test_a_file_in_which_nothing_is_certain_is_refused(tmp_path: Path, rows: list[str]) -> None:
    write_comp5329(tmp_path, rows, None)
    with pytest.raises(UsageError, match=r"train\.csv: not one row is certain"):
        Comp5329.open(tmp_path).read()


def test_empty_and_damaged_captions_are_counted(root: Path) -> None:
    path = root / "train.csv"
    path.write_bytes(path.read_bytes() + b'4.jpg,1,\n5.jpg,1,""\n6.jpg,1,caf\xe9\n')
    table = Comp5329.open(root).read()
    assert table.notes == ("2 rows without a caption", "1 captions hold replacement characters")
    assert texts_of(table)[4:7] == [[], [], ["caf\ufffd"]]


# ------------------------------------------------------------------------------------------- files and folders


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_one_file_is_enough(root: Path, lacking: str) -> None:
    (root / f"{lacking}.csv").unlink()
    table = Comp5329.open(root).read()
    assert set(table.samples["split"].to_pylist()) == {"test" if lacking == "train" else "train"}
    assert table.targets == (("labels",) if lacking == "test" else ())


def test_a_test_file_that_has_labels_gives_them(root: Path) -> None:
    (root / "test.csv").write_text("ImageID,Labels,Caption\n30000.jpg,5,a\n30001.jpg,,b\n")
    table = Comp5329.open(root).read()
    assert table.samples["target.labels"].to_pylist()[4:] == [["5"], None]
    assert table.notes == ()


@pytest.mark.parametrize(
    "header", ["title,label_quality,language,category", "ImageID,Labels,Caption,Split", "imageid,labels", ""]
)
def test_another_header_is_another_data_set(root: Path, header: str) -> None:
    (root / "train.csv").write_text(f"{header}\n1,2,3\n")
    assert notes_of(root) == ("train.csv is not read: its header is not this data set's",)
    (root / "test.csv").unlink()
    assert Comp5329.find(root) is None
    with pytest.raises(DataNotFoundError, match="ImageID,Labels,Caption"):
        Comp5329.open(root)


def test_it_is_found_unasked_in_the_data_folder_and_its_children(root: Path) -> None:
    for folder in (root, root.parent):
        [found] = discover(folder)
        assert found == Comp5329.open(root)
    assert Comp5329.find(root.parent.parent) is None


def test_its_photos_are_no_data_set_of_their_own(root: Path) -> None:
    for name in ("data/a", "data/b", "photos/cat", "photos/dog"):
        write_images(root / name, ["1.jpg"])
    assert [one.adapter for one in discover(root)] == ["comp5329", "folder"]


@pytest.mark.parametrize("place", ["data", "images", "."])
def test_photos_are_looked_for_beside_the_files(tmp_path: Path, place: str) -> None:
    found = Comp5329.open(write_comp5329(tmp_path, images=place))
    assert found.image_folder == tmp_path / place
    assert open_dataset("comp5329", found.sources, found.settings()) == found


def test_without_photos_the_texts_are_read_and_that_is_said(root: Path) -> None:
    (root / "data").rename(root.parent / "photos")
    found = Comp5329.open(root)
    assert found.read().modalities == ("text",)
    assert "--images" in found.read().notes[0]
    stated = open_dataset("comp5329", [root], {"images": str(root.parent / "photos")})
    assert stated.read().counts == {"samples": 6, "images": 6, "texts": 6}
    with pytest.raises(DataNotFoundError, match=r"no folder of images .*absent \(--images\)"):
        open_dataset("comp5329", [root], {"images": str(root / "absent")})


@settings(max_examples=200, deadline=None)
@given(
    body=st.lists(
        st.sampled_from([
            "1.jpg,", "2.PNG,1 2,", '"3.jpg",', "../4.jpg,1,", "12,", '"', '""', ",", "\n", "\r\n", "\r", "a", " ",
            "\0", "é", "\ufeff", "ImageID,Caption",
        ])
        | st.text(max_size=5),
        max_size=40,
    ).map("".join),
    labelled=st.booleans(),
)  # fmt: skip
@example(body="1.jpg,1," + '"' * 20_000, labelled=True)
@example(body="." * 50_000 + "jpg", labelled=False)
def test_whatever_a_file_holds_it_is_read_or_refused(body: str, labelled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        header = "ImageID,Labels,Caption\n" if labelled else "ImageID,Caption\n"
        Path(folder, "train.csv").write_bytes((header + body).encode("utf-8", "surrogatepass"))
        try:
            table = Comp5329.open(Path(folder)).read()
        except UsageError as error:
            assert "not one row is certain" in str(error)  # noqa: PT017
            return
        assert table.counts["samples"] >= 1
        assert all(labels is None or LABELS.issuperset(labels) for labels in _labels(table))


def _labels(table: SampleTable) -> list[list[str] | None]:
    found: list[list[str] | None] = table.samples["target.labels"].to_pylist() if table.targets else []
    return found


# ------------------------------------------------------------------------------------------------ end to end


def test_extraction_of_both_modalities(root: Path, tmp_path: Path) -> None:
    (root / "data" / "3.jpg").unlink()
    backbones = [FakeBackbone("image"), FakeBackbone("text", name="fake-text")]
    images, texts = ec.extract(None, root, backbones=backbones, cache=tmp_path / "cache")
    assert (images.n_items, images.n_failed, texts.n_items, texts.n_failed) == (6, 1, 6, 0)
    dataset = ec.open(tmp_path / "cache")["comp5329"]
    features = dataset.features("fake")
    assert (features.matrix()[0] == known_vector(b"0.jpg", 8)).all()
    assert [list(found) if found is not None else None for found in features.target()] == [
        LABELLED[row] for row in (0, 1, 2, 4, 5)
    ]


def test_images_that_lie_elsewhere_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    rows = ["../secret.jpg,1,a", "/etc/x.jpg,2,b", "1.jpg,3,<b>c</b>"]
    root = write_comp5329(tmp_path / "set", rows, None, images=None)
    write_images(root / "data", ["1.jpg"])
    [done] = ec.extract("comp5329", root, backbones=[FakeBackbone()], cache=tmp_path / "cache")
    assert (done.n_items, done.n_failed) == (3, 2)
    assert set(done.failures.values()) == {"its path leaves the data folder"}
