"""VQA v1 and v2 as published: names, packings, splits, targets, photos, and what is wrong with a file."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache as ec
from embedcache.datasets import discover, open_dataset, vqa
from embedcache.datasets.vqa import Source, Vqa, records
from embedcache.errors import DataNotFoundError, EmbedCacheError, UsageError
from embedcache.samples import SampleTable
from embedcache.view import shared_groups
from tests import tiny_vqa as tiny
from tests.fakes import FakeBackbone
from tests.heads_helpers import bare
from tests.tiny_vqa import TEST, TEST_DEV, TRAIN, VAL, Question, annotation, by_id, column, write, write_part

TRAIN_QUESTIONS = (
    Question(9, 0, "What is this?", "net", ("nets", "a net")),
    Question(9, 1, "How many?", "2", kind="number", begins="how many"),
    Question(9, 2, "Is it day?", "yes", ("no",), kind="yes/no", begins="is it"),
    Question(25, 0, "What is this?", "giraffe"),
)
VAL_QUESTIONS = (Question(42, 0, "Is it ünusual?", "no", kind="yes/no", begins="is it"),)
TEST_QUESTIONS = (Question(1, 0, "What is on the plate?", ""), Question(1, 1, "Who?", ""))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with version 2 and its photos."""
    root = tmp_path / "data" / "vqa"
    write_part(root, TRAIN, TRAIN_QUESTIONS)
    write_part(root, VAL, VAL_QUESTIONS)
    tiny.write_photos(root, TRAIN, [9, 25])
    tiny.write_photos(root, VAL, [42])
    return tmp_path / "data"


def read(data: Path, **options: Any) -> SampleTable:
    return open_dataset("vqa", [data], options).read()


def test_the_published_layout_is_read_as_published(data: Path) -> None:
    table = read(data)
    assert column(table, "id") == ["9000", "9001", "9002", "25000", "42000"]
    assert column(table, "split") == ["train"] * 4 + ["validation"]
    assert column(table, "target.answer") == ["net", "2", "yes", "giraffe", "no"]
    assert table.targets == ("answer",)
    assert column(table, "meta.answers")[0] == ["nets", "a net", *["net"] * 8]
    assert all(len(answers) == 10 for answers in column(table, "meta.answers"))
    assert column(table, "meta.question_type") == ["what is", "how many", "is it", "what is", "is it"]
    assert column(table, "meta.answer_type") == ["other", "number", "yes/no", "other", "yes/no"]
    assert column(table, "image")[0] == "train2014/COCO_train2014_000000000009.jpg"
    assert table.notes == ()


def test_items_are_unique_photos_and_questions(data: Path) -> None:
    table = read(data)
    assert table.counts == {"samples": 5, "images": 3, "texts": 4}
    texts = table.items["text"]["text"].to_pylist()
    assert texts == ["What is this?", "How many?", "Is it day?", "Is it ünusual?"]


def test_questions_on_one_photo_are_one_group_with_and_without_photos(data: Path, tmp_path: Path) -> None:
    alone = write_part(tmp_path / "alone", TRAIN, TRAIN_QUESTIONS)
    for table in (read(data), read(alone)):
        assert len(set(shared_groups(bare(table))[:3])) == 1
        assert len(set(shared_groups(bare(table))[:4])) == 2


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", ["", "gz", "Questions_Train_mscoco.zip"])
def test_plain_gzipped_and_zipped_files_are_the_same(tmp_path: Path, version: int, packed: str) -> None:
    plain = write_part(tmp_path / "plain", TRAIN, TRAIN_QUESTIONS)
    root = write_part(tmp_path / "packed", TRAIN, TRAIN_QUESTIONS, version=version, packed=packed)
    opened = open_dataset("vqa", [root])
    assert opened.default_name == f"vqa-v{version}"
    assert opened.read().samples.equals(read(plain).samples)


def test_a_zip_file_is_known_by_what_is_inside(tmp_path: Path) -> None:
    """The archives of version 1 hold the multiple-choice questions too, and folders of their own."""
    document = tiny.questions_document(TRAIN_QUESTIONS, TRAIN)
    write(tmp_path, "MultipleChoice_mscoco_train2014_questions.json", "not read", "anything.zip")
    write(tmp_path, f"some/folder/{tiny.question_file(TRAIN, 1)}", document, "anything.zip")
    write(tmp_path, tiny.annotation_file(TRAIN, 1), tiny.annotations_document(TRAIN_QUESTIONS, TRAIN), "other.zip")
    assert read(tmp_path).counts["samples"] == 4


def test_a_plain_file_wins_over_a_packed_one(tmp_path: Path) -> None:
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS, packed="a.zip")
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS[:2], packed="gz")
    assert read(tmp_path).counts["samples"] == 2
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS[:1])
    assert read(tmp_path).counts["samples"] == 1


def test_the_folders_of_the_official_repository(tmp_path: Path) -> None:
    root = tmp_path / "VQA"
    write(root / "Questions", tiny.question_file(TRAIN), tiny.questions_document(TRAIN_QUESTIONS, TRAIN))
    write(root / "Annotations", tiny.annotation_file(TRAIN), tiny.annotations_document(TRAIN_QUESTIONS, TRAIN))
    tiny.write_photos(root / "Images" / "mscoco", TRAIN, [9, 25])
    for data in (tmp_path, root):
        opened = open_dataset("vqa", [data])
        assert opened.image_folder == root / "Images" / "mscoco"
        assert column(opened.read(), "target.answer") == ["net", "2", "yes", "giraffe"]


def test_one_split_alone_is_enough(tmp_path: Path) -> None:
    table = read(write_part(tmp_path, VAL, VAL_QUESTIONS))
    assert column(table, "split") == ["validation"]


def test_test_questions_have_no_answers(tmp_path: Path) -> None:
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS)
    write_part(tmp_path, TEST, TEST_QUESTIONS, annotated=False)
    table = read(tmp_path)
    assert column(table, "split")[-2:] == ["test", "test"]
    assert column(table, "target.answer")[-2:] == [None, None]
    assert column(table, "meta.answers")[-2:] == [None, None]
    assert column(table, "group")[-1] == "COCO_test2015_000000000001"


def test_test_questions_alone_have_no_target(tmp_path: Path) -> None:
    table = read(write_part(tmp_path, TEST_DEV, TEST_QUESTIONS, annotated=False))
    assert (table.targets, column(table, "split")) == ((), ["test", "test"])
    assert "meta.answers" not in table.samples.column_names


def test_questions_of_test_dev_are_read_once(tmp_path: Path) -> None:
    write_part(tmp_path, TEST, TEST_QUESTIONS, annotated=False)
    write_part(tmp_path, TEST_DEV, TEST_QUESTIONS[:1], annotated=False)
    tiny.write_photos(tmp_path, TEST, [1])
    table = read(tmp_path)
    assert table.counts == {"samples": 2, "images": 1, "texts": 2}
    assert "the questions of test-dev2015 are among those of test2015: not read twice" in table.notes


def test_both_versions_in_one_folder_need_a_word_on_which(tmp_path: Path) -> None:
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS, version=1)
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS[:1], version=2)
    with pytest.raises(UsageError, match="holds questions of VQA v1 and of v2: .* --option version=1"):
        discover(tmp_path)
    assert read(tmp_path, version=1).counts["samples"] == 4
    assert read(tmp_path, version="2").counts["samples"] == 1
    with pytest.raises(UsageError, match="1 or 2, got 3"):
        read(tmp_path, version=3)


def test_a_version_that_is_not_there_is_refused(data: Path) -> None:
    with pytest.raises(DataNotFoundError, match="holds no questions of VQA v1; it holds v2"):
        read(data, version=1)


# ------------------------------------------------------------------------------------------------------ photos


def test_without_photos_it_is_texts_and_says_so(tmp_path: Path) -> None:
    table = read(write_part(tmp_path, TRAIN, TRAIN_QUESTIONS))
    assert table.modalities == ("text",)
    assert table.notes[-1].startswith("texts only: no folder train2014 of photos was found (--images")


def test_text_extraction_works_without_photos(tmp_path: Path) -> None:
    write_part(tmp_path / "data", TRAIN, TRAIN_QUESTIONS)
    backbones = [FakeBackbone("image"), FakeBackbone("text")]
    image, text = ec.extract(
        "vqa", tmp_path / "data", backbones=backbones, cache=tmp_path / "cache", options=ec.Options(device="cpu")
    )
    assert (image.action, image.reason) == ("skip", "vqa-v2 has no images")
    assert (text.n_encoded, text.n_samples) == (3, 4)
    assert any(note.startswith("texts only") for note in text.notes)


def test_a_photo_with_three_questions_is_encoded_once_and_a_missing_one_fails(data: Path, tmp_path: Path) -> None:
    (data / "vqa" / tiny.photo_name(TRAIN, 25)).unlink()
    backbone = FakeBackbone("image")
    (found,) = ec.extract("vqa", data, backbones=[backbone], cache=tmp_path / "c", options=ec.Options(device="cpu"))
    assert (backbone.encoded, found.n_items, found.n_failed) == (2, 3, 1)
    assert found.failures == {tiny.photo_name(TRAIN, 25): "the file is missing"}
    again = ec.extract("vqa-v2", backbones=[backbone], cache=tmp_path / "c", options=ec.Options(device="cpu"))
    assert (again[0].action, backbone.encoded) == ("reuse", 2)


@pytest.mark.parametrize("place", ["", "images", "coco", "Images/mscoco"])
def test_photos_are_found_where_they_usually_lie(tmp_path: Path, place: str) -> None:
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS)
    tiny.write_photos(tmp_path / place, TRAIN, [9])
    assert open_dataset("vqa", [tmp_path]).image_folder == tmp_path / place


def test_photos_elsewhere_are_stated_and_remembered(data: Path, tmp_path: Path) -> None:
    tiny.write_photos(tmp_path / "coco", TRAIN, [9, 25])
    for stated in ("coco", "coco/train2014"):
        opened = open_dataset("vqa", [data], {"images": str(tmp_path / stated)})
        assert opened.image_folder == tmp_path / "coco"
        assert opened.settings() == {"version": 2, "images": str(tmp_path / stated)}

    with pytest.raises(DataNotFoundError, match="expected folders train2014, val2014, test2015 of COCO"):
        open_dataset("vqa", [data], {"images": str(tmp_path / "nowhere")})


def test_a_part_whose_photos_are_not_there_has_none(data: Path, tmp_path: Path) -> None:
    tiny.write_photos(tmp_path / "coco", TRAIN, [9, 25])
    table = read(data, images=str(tmp_path / "coco"))
    assert by_id(table, "image")["42000"] is None
    assert table.notes == (f"no folder val2014 in {tmp_path / 'coco'}: its 1 questions have no photo",)


def test_it_is_found_unasked_and_its_photos_are_no_labelled_folders(data: Path) -> None:
    assert [(one.adapter, one.default_name) for one in discover(data)] == [("vqa", "vqa-v2")]
    tiny.write_photos(data / "vqa" / "images", VAL, [1])
    assert len(discover(data)) == 1


# ------------------------------------------------------------------------------------------- files that disagree


def test_questions_and_annotations_that_lack_each_other_are_counted(tmp_path: Path) -> None:
    write(tmp_path, tiny.question_file(TRAIN), tiny.questions_document(TRAIN_QUESTIONS[:3], TRAIN))
    write(tmp_path, tiny.annotation_file(TRAIN), tiny.annotations_document(TRAIN_QUESTIONS[1:], TRAIN))
    table = read(tmp_path)
    assert column(table, "target.answer") == [None, "2", "yes"]
    assert table.notes[:2] == (
        "1 annotations of train2014 for questions that are not there: left out",
        "1 questions of train2014 without an annotation: kept without an answer",
    )


def test_a_missing_file_of_annotations_is_said(tmp_path: Path) -> None:
    write_part(tmp_path, TRAIN, TRAIN_QUESTIONS, annotated=False)
    write(tmp_path, tiny.annotation_file(VAL), tiny.annotations_document(VAL_QUESTIONS, VAL))
    notes = read(tmp_path).notes
    assert "no annotations of train2014: its 4 questions have no answer" in notes
    assert "annotations of val2014 without questions: not read" in notes


def broken(**change: Any) -> dict[str, Any]:
    """An annotations file whose first annotation has other values; None takes a key away."""
    found = tiny.annotations_document(TRAIN_QUESTIONS, TRAIN)
    first = {**annotation(TRAIN_QUESTIONS[0]), **change}
    found["annotations"][0] = {key: value for key, value in first.items() if value is not None}
    return found


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (tiny.annotations_document(VAL_QUESTIONS, TRAIN), "no annotation for any of the 4 questions of train2014"),
        (broken(question_id=9001), "the question 9001 has more than one annotation"),
        (broken(image_id=8), "the question 9000 is on photo 8 here and on 9 among the questions"),
        (broken(question_id="9000"), "expected 'question_id' to be a number, got '9000'"),
        (broken(question_id=True), "expected 'question_id' to be a number, got True"),
        (broken(question_id=1 << 80), "expected 'question_id' to be a number"),
        (broken(multiple_choice_answer=None), "question 9000: expected 'multiple_choice_answer' .*, got nothing"),
        (broken(answer_type=[1]), r"expected 'answer_type' to be a text, got \[1\]"),
        (broken(answers=[]), "expected 'answers' to be a list of objects with an 'answer' each"),
        (broken(answers=["net"]), "expected 'answers' to be a list of objects"),
        (broken(answers=[{"answer": 3}]), "expected 'answer' to be a text, got 3"),
        (broken(answers=[{"answer": ["net"]}]), "expected 'answer' to be a text"),
        ({"annotations": {}}, "is no JSON at character 16: expected '\\['"),
        ({"annotations": [3]}, "the list 'annotations' holds 3; expected objects"),
        ({"questions": []}, "has no list 'annotations': is it a file of annotations"),
        ("", "is no JSON at character 0: expected '{', the file ends. Is the download complete"),
        ("[]", "expected '{', got '\\[\\]'"),
        ('{"annotations": [', "the file ends"),
        ('{"annotations": [{"answer', "expected a JSON value"),
        ('{"annotations": [{},]}', "expected 'question_id'|expected an object"),
        ('{"annotations": [] "info": 3}', "expected ','"),
        ('{"annotations": [],}', "expected a key"),
        ('{"info": nothing}', "expected a JSON value, got 'nothing}'"),
        ("{" + '"a":[' * 100_000, "nested too deeply|expected a JSON value"),
        ('{"annotations": []} more', "expected the end of the file, got 'more'"),
    ],
)
def test_what_is_wrong_with_annotations_is_said(tmp_path: Path, document: Any, words: str) -> None:
    write(tmp_path, tiny.question_file(TRAIN), tiny.questions_document(TRAIN_QUESTIONS, TRAIN))
    write(tmp_path, tiny.annotation_file(TRAIN), document)
    with pytest.raises(UsageError, match=words) as refused:
        read(tmp_path)
    assert tiny.annotation_file(TRAIN) in str(refused.value)


@pytest.mark.parametrize(
    ("questions", "words"),
    [
        ([], "its list 'questions' is empty"),
        ([{"image_id": 1, "question_id": 1}], "question 1: expected 'question' to be a text, got nothing"),
        ([{"image_id": 1, "question_id": 1, "question": "?"}] * 2, "the question 1 occurs more than once"),
        ([{"image_id": -1, "question_id": 1, "question": "?"}], "expected 'image_id' to be a number, got -1"),
        ([{"image_id": "../../1", "question_id": 1, "question": "?"}], "expected 'image_id' to be a number"),
    ],
)
def test_what_is_wrong_with_questions_is_said(tmp_path: Path, questions: list[Any], words: str) -> None:
    write(tmp_path, tiny.question_file(TRAIN), {"questions": questions})
    with pytest.raises(UsageError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("packed", ["gz", "questions.zip"])
def test_a_download_that_broke_off_is_said(tmp_path: Path, packed: str) -> None:
    write_part(tmp_path, TRAIN, [Question(n, 0, f"question {n * n}", "a") for n in range(300)], packed=packed)
    (path,) = (path for path in tmp_path.iterdir() if "annotations" not in path.name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EmbedCacheError, match="cannot be read.*Is the download complete|zip files cannot be read"):
        read(tmp_path)
    if packed == "questions.zip":
        path.write_bytes(whole[:200] + bytes(200) + whole[400:])
        with pytest.raises(EmbedCacheError, match="cannot be read|is no JSON"):
            read(tmp_path)


def test_nothing_of_vqa_is_said_with_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(DataNotFoundError, match="expected v2_OpenEnded_.*photos.zip"):
        read(tmp_path)
    assert Vqa.find(tmp_path / "nowhere") is None


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    document = json.dumps(tiny.questions_document(TRAIN_QUESTIONS, TRAIN)).replace("this?", "\\ud83d\\ud83d\\ude00")
    write(tmp_path, tiny.question_file(TRAIN), document)
    assert read(tmp_path).items["text"]["text"][0].as_py() == "What is \N{REPLACEMENT CHARACTER}\N{GRINNING FACE}"


# ----------------------------------------------------------------------------------------------- the JSON window


def as_records(text: str, chunk: int) -> list[Any] | None:
    """What ``records`` reads from a file with that text, in small chunks; None where it refuses."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vqa, "_CHUNK", chunk)
        path = Path(folder) / "x.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            return list(records(Source(path), "questions"))
        except EmbedCacheError:
            return None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), max_size=4)


@given(
    st.dictionaries(st.text(max_size=4), values, max_size=3), objects, st.booleans(), st.none() | st.integers(0, 3),
    st.integers(1, 40),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_records_are_those_of_the_whole_document(
    others: dict[str, Any], wanted: list[Any], first: bool, indent: int | None, chunk: int
) -> None:
    own = {"questions": wanted}
    document = own | others if first else {**others, **own}
    assert as_records(json.dumps(document, indent=indent), chunk) == document["questions"]


@given(
    st.text(max_size=40)
    | st.text('{}[]:,"questions 0123456789.eE-+truefalsn\\\n', max_size=60).map(lambda tail: '{"questions": [' + tail),
    st.integers(1, 40),
)
@settings(deadline=None, max_examples=200)
def test_malformed_json_is_refused_in_words(text: str, chunk: int) -> None:
    try:
        expected = json.loads(text)["questions"]
    except (ValueError, TypeError, LookupError, RecursionError):
        assert as_records(text, chunk) is None
        return
    found = as_records(text, chunk)
    assert found is None or repr(found) == repr(expected)
    assert found is not None or not isinstance(expected, list) or not all(isinstance(one, dict) for one in expected)


changes = st.dictionaries(
    st.sampled_from(["question_id", "image_id", "question", "answers", "answer_type", "multiple_choice_answer", "x"]),
    values | st.lists(st.dictionaries(st.just("answer"), values, max_size=1), max_size=3),
    max_size=3,
)


@given(changes, changes)
@settings(deadline=None, max_examples=150)
def test_any_record_is_read_or_refused_in_words(question: dict[str, Any], answer: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asked = tiny.questions_document(TRAIN_QUESTIONS, TRAIN)
        asked["questions"][0] |= question
        write(Path(folder), tiny.question_file(TRAIN), asked)
        write(Path(folder), tiny.annotation_file(TRAIN), broken(**answer))
        with contextlib.suppress(EmbedCacheError):
            assert read(Path(folder)).counts["samples"] == 4
