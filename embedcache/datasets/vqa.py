"""VQA v1 (Antol et al., ICCV 2015) and v2 (Goyal et al., CVPR 2017): open-ended questions on photos of COCO.

Questions and annotations are single JSON documents, plain, gzipped or in the zip files of the download page; they
are decoded record by record, so that 400 MB of annotations never stand in memory as Python objects.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa

from embedcache.errors import DataNotFoundError, UsageError
from embedcache.samples import SampleTable, build

Kind = Literal["questions", "annotations"]
SUBSETS: Final = {"train2014": "train", "val2014": "validation", "test2015": "test", "test-dev2015": "test"}
"""The parts of the data set as files name them, and their splits."""
PHOTO_FOLDERS: Final = ("train2014", "val2014", "test2015")

_NAME = re.compile(
    r"(?P<v2>v2_)?(?:(?P<questions>OpenEnded_)mscoco_(?P<of_questions>train2014|val2014|test2015|test-dev2015)_questions"
    r"|mscoco_(?P<of_annotations>train2014|val2014)_annotations)\.json"
)
_FOLDERS = ("questions", "annotations")
_IMAGE_FOLDERS = ("", "images", "Images", "images/mscoco", "Images/mscoco", "coco", "mscoco")
_CHUNK: Final = 1 << 20
_LARGEST: Final = 1 << 26
"""Characters that one record may have."""
_UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""What damaged, encrypted or unknown archives raise."""


@dataclass(frozen=True)
class Source:
    """A JSON document on disk. member: its name inside a zip file."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.member})" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The file's own name, also inside a zip file."""
        return self.member.rsplit("/", 1)[-1] if self.member else self.path.name

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """Its text; bytes that are not UTF-8 become replacement characters."""
        with _bytes_of(self) as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace")


@contextmanager
def _bytes_of(source: Source) -> Iterator[IO[bytes]]:
    if source.member is not None:
        with zipfile.ZipFile(source.path) as archive, archive.open(source.member) as raw:
            yield raw
    elif source.path.suffix == ".gz":
        with gzip.open(source.path) as unpacked:
            yield unpacked  # type: ignore[misc]  # a GzipFile is what TextIOWrapper reads
    else:
        with open(source.path, "rb") as plain:
            yield plain


Sources = Mapping[tuple[int, Kind, str], Source]
"""Question and annotation files by version, kind and part."""


@dataclass(frozen=True)
class Vqa:
    """The published layout. root: the folder of the questions. photos: the folder of ``train2014`` and so on, if any.

    files: what was found in ``root``. images: the folder of photos as it was stated.
    """

    root: Path
    version: int
    files: Sources
    photos: Path | None = None
    images: str | None = None

    adapter: ClassVar[str] = "vqa"

    @classmethod
    def open(cls, data: Path, images: str | None = None, version: int | None = None) -> Vqa:
        """The data set in or below ``data``. images: the folder of ``train2014``, ``val2014`` or ``test2015``.

        version: 1 or 2; needed where both are there.
        """
        root, files = _find(data)
        return cls(root, _one_version(root, files, version), files, _photos(root, data, images), images)

    @classmethod
    def find(cls, data: Path) -> Path | None:
        """The folder that holds questions, or whose folder ``Questions`` does: ``data`` or one of its children."""
        try:
            return _find(data)[0]
        except DataNotFoundError:
            return None

    @property
    def default_name(self) -> str:
        """``vqa-v1`` or ``vqa-v2``: a cache can hold both."""
        return f"vqa-v{self.version}"

    @property
    def image_folder(self) -> Path:
        """The folder of ``train2014`` and so on."""
        return self.photos or self.root

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder of the questions."""
        return (self.root,)

    @property
    def claims(self) -> tuple[Path, ...]:
        """The folders of photos, which are not labelled images of their own."""
        folder = self.photos
        return tuple(folder / name for name in PHOTO_FOLDERS) if folder else ()

    def settings(self) -> dict[str, Any]:
        """The version, and where the photos are if that was stated."""
        return {"version": self.version, "images": self.images}

    def read(self) -> SampleTable:
        """All questions: text, photo, the most frequent answer; the ten human answers and the types as ``meta``."""
        found = _Rows()
        for subset in SUBSETS:
            questions = self.files.get((self.version, "questions", subset))
            annotations = self.files.get((self.version, "annotations", subset))
            if questions is None and annotations is not None:
                found.notes.append(f"annotations of {subset} without questions: not read")
            if questions is not None:
                found.add(subset, questions, annotations)
        return found.table(self.photos)


@dataclass
class _Rows:
    """Columns as they are gathered, part by part. place: the row of each question id."""

    ids: list[int] = field(default_factory=list)
    subsets: list[str] = field(default_factory=list)
    photos: list[int] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answer: list[str | None] = field(default_factory=list)
    question_type: list[str | None] = field(default_factory=list)
    answer_type: list[str | None] = field(default_factory=list)
    answers: list[list[str] | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)

    def add(self, subset: str, questions: Source, annotations: Source | None) -> None:
        """The questions of one part, with their annotations where there are any."""
        start = len(self.ids)
        if subset == "test-dev2015" and "test2015" in self.subsets:
            self.notes.append("the questions of test-dev2015 are among those of test2015: not read twice")
            return
        for record in records(questions, "questions"):
            self._add_question(record, subset, questions)
        n = len(self.ids) - start
        if not n:
            raise UsageError(f"{questions}: its list 'questions' is empty.")
        columns: tuple[list[Any], ...] = (self.answer, self.question_type, self.answer_type, self.answers)
        for column in columns:
            column += [None] * n
        if annotations is not None:
            self._annotate(annotations, start, n, subset)
        elif SUBSETS[subset] != "test":
            self.notes.append(f"no annotations of {subset}: its {n:,} questions have no answer")

    def _add_question(self, record: Mapping[str, Any], subset: str, source: Source) -> None:
        number, photo = _number(record, "question_id", source), _number(record, "image_id", source)
        if self.place.setdefault(number, len(self.ids)) != len(self.ids):
            raise UsageError(f"{source}: the question {number} occurs more than once; ids must be unique.")
        self.ids.append(number)
        self.subsets.append(subset)
        self.photos.append(photo)
        self.questions.append(_text(record, "question", source))

    def _annotate(self, source: Source, start: int, n: int, subset: str) -> None:
        known: dict[str, str] = {}
        seen = unknown = 0
        for record in records(source, "annotations"):
            row = self.place.get(_number(record, "question_id", source), -1)
            if row < start:
                unknown += 1
                continue
            if self.answer[row] is not None:
                raise UsageError(f"{source}: the question {self.ids[row]} has more than one annotation.")
            if record.get("image_id", self.photos[row]) != self.photos[row]:
                raise UsageError(
                    f"{source}: the question {self.ids[row]} is on photo {record['image_id']!r} here and on "
                    f"{self.photos[row]} among the questions: these files do not belong together."
                )
            self.answer[row] = _shared(known, _text(record, "multiple_choice_answer", source))
            self.question_type[row] = _shared(known, _text(record, "question_type", source))
            self.answer_type[row] = _shared(known, _text(record, "answer_type", source))
            self.answers[row] = _human_answers(record, source, known)
            seen += 1
        if not seen:
            raise UsageError(
                f"{source} has no annotation for any of the {n:,} questions of {subset} (first: "
                f"{self.ids[start]}): these files do not belong together."
            )
        if unknown:
            self.notes.append(f"{unknown:,} annotations of {subset} for questions that are not there: left out")
        if lacking := n - seen:
            self.notes.append(f"{lacking:,} questions of {subset} without an annotation: kept without an answer")

    def table(self, photos: Path | None) -> SampleTable:
        """The sample table. photos: the folder of images, None for texts alone."""
        names = [f"COCO_{_photo_folder(part)}_{n:012d}" for part, n in zip(self.subsets, self.photos, strict=True)]
        annotated = any(answer is not None for answer in self.answer)
        texts = pa.LargeListArray.from_arrays(np.arange(len(self.ids) + 1), pa.array(self.questions, pa.large_string()))
        meta = {
            "question_type": pa.array(self.question_type, pa.large_string()),
            "answer_type": pa.array(self.answer_type, pa.large_string()),
            "answers": pa.array(self.answers, pa.large_list(pa.large_string())),
        }
        return build(
            list(map(str, self.ids)),
            split=[SUBSETS[subset] for subset in self.subsets],
            images=self._images(photos, names) if photos is not None else None,
            texts=texts,
            targets={"answer": pa.array(self.answer, pa.large_string())} if annotated else None,
            group=names,
            meta=meta if annotated else None,
            notes=[*self.notes, *self._photo_notes(photos)],
        )

    def _images(self, photos: Path, names: Sequence[str]) -> list[str | None]:
        """Paths below the folder of photos; null for a part whose folder is not there."""
        there = {name for name in PHOTO_FOLDERS if (photos / name).is_dir()}
        folders = [_photo_folder(subset) for subset in self.subsets]
        return [
            f"{folder}/{name}.jpg" if folder in there else None for folder, name in zip(folders, names, strict=True)
        ]

    def _photo_notes(self, photos: Path | None) -> list[str]:
        counts = Counter(map(_photo_folder, self.subsets))
        if photos is None:
            return [
                f"texts only: no folder {' or '.join(counts)} of photos was found (--images PATH says where they are)"
            ]
        return [
            f"no folder {name} in {photos}: its {count:,} questions have no photo"
            for name, count in counts.items()
            if not (photos / name).is_dir()
        ]


def _find(data: Path) -> tuple[Path, Sources]:
    """The folder of questions, ``data`` or one of its children, and its files. Raises DataNotFoundError."""
    damaged: list[Path] = []
    for folder in (data, *_folders(data)):
        files = _files(folder, damaged)
        if _versions(files):
            return folder, files
    also = f" These zip files cannot be read: {', '.join(map(str, damaged))}." if damaged else ""
    raise DataNotFoundError(
        f"No VQA questions in {data} or its folders: expected v2_OpenEnded_mscoco_train2014_questions.json "
        f"or its like (version 1: without v2_), plain, as .json.gz or inside a .zip.{also}"
    )


def _folders(folder: Path) -> list[Path]:
    """Child folders, sorted; no file is looked at but for its kind."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(one.path) for one in entries if one.is_dir() and not one.name.startswith("."))


def _files(folder: Path, damaged: list[Path]) -> Sources:
    """Files by their published names, directly in ``folder`` or in its folders ``Questions`` and ``Annotations``.

    Zip files are known by what is inside them; those that cannot be read join ``damaged``. A plain file wins over a
    packed one.
    """
    places = [folder, *(path for path in _folders(folder) if path.name.lower() in _FOLDERS)]
    names = [path for place in places if place.is_dir() for path in sorted(_named(place))]
    packed = [Source(path, member) for path in names if path.suffix == ".zip" for member in _members(path, damaged)]
    plain = [Source(path) for path in sorted(names, key=lambda path: path.suffix == ".gz") if path.suffix != ".zip"]
    found: dict[tuple[int, Kind, str], Source] = {}
    for source in [*plain, *packed]:
        if key := _key(source.name):
            found.setdefault(key, source)
    return found


def _named(folder: Path) -> list[Path]:
    """Files of a folder that may be ours by their names."""
    with os.scandir(folder) as entries:
        return [Path(one.path) for one in entries if (_key(one.name) or one.name.endswith(".zip")) and one.is_file()]


def _members(path: Path, damaged: list[Path]) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _UNREADABLE:
        damaged.append(path)
        return []


def _key(name: str) -> tuple[int, Kind, str] | None:
    """Version, kind and part that a file name says."""
    match = _NAME.fullmatch(name.removesuffix(".gz"))
    if match is None:
        return None
    version = 2 if match["v2"] else 1
    return (version, "questions", match["of_questions"]) if match["questions"] else (
        version, "annotations", match["of_annotations"]
    )  # fmt: skip


def _versions(files: Sources) -> list[int]:
    """Versions that have questions."""
    return sorted({version for version, kind, _ in files if kind == "questions"})


def _one_version(root: Path, files: Sources, stated: int | None) -> int:
    there = _versions(files)
    if stated is None:
        if len(there) > 1:
            raise UsageError(
                f"{root} holds questions of VQA v1 and of v2: say which one with --dataset vqa --option version=1 "
                "(or 2)."
            )
        return there[0]
    if str(stated) not in ("1", "2"):
        raise UsageError(f"The version of VQA is 1 or 2, got {stated!r}.")
    if int(stated) not in there:
        raise DataNotFoundError(f"{root} holds no questions of VQA v{stated}; it holds v{there[0]}.")
    return int(stated)


def _photo_folder(subset: str) -> str:
    """The folder of a part's photos: ``test-dev2015`` asks about photos of ``test2015``."""
    return subset.replace("-dev", "")


def _photos(root: Path, data: Path, stated: str | None) -> Path | None:
    """The folder that holds ``train2014``, ``val2014`` or ``test2015``; None where there is none."""
    names = PHOTO_FOLDERS
    if stated is not None:
        given = Path(stated)
        for folder in (given, given.parent if given.name in names else given):
            if any((folder / name).is_dir() for name in names):
                return folder
        raise DataNotFoundError(f"No photos in {stated}: expected folders {', '.join(names)} of COCO in it.")
    places = [place / inner for place in dict.fromkeys((root, data)) for inner in _IMAGE_FOLDERS]
    return next((place for place in places if any((place / name).is_dir() for name in names)), None)


def records(source: Source, key: str) -> Iterator[dict[str, Any]]:
    """The objects in the list ``key`` of a JSON document, decoded one at a time in bounded memory.

    Raises UsageError where the document is damaged, or is not such a list of objects.
    """
    try:
        with source.open() as stream:
            yield from _Window(stream, source).objects(key)
    except _UNREADABLE as error:
        if isinstance(error, RecursionError):
            raise UsageError(f"{source} is nested too deeply for a file of {key}.") from error
        raise UsageError(f"{source} cannot be read: {error}. Is the download complete?") from error


class _Window:
    """A JSON text of which only the part at hand is in memory."""

    def __init__(self, stream: IO[str], source: Source) -> None:
        self._stream, self._source = stream, source
        self._text, self._at, self._passed = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def objects(self, key: str) -> Iterator[dict[str, Any]]:
        """The objects in the list under a key of the outermost object; other keys are passed over."""
        self._expect("{")
        found = False
        while self._peek() != "}":
            name = self._value()
            self._expect(":")
            if name == key and not found:
                found = True
                yield from self._list(key)
            else:
                self._value()
            if self._peek() != "}":
                self._expect(",")
                if self._peek() == "}":
                    raise self._wrong("a key")
        self._expect("}")
        if self._peek():
            raise self._wrong("the end of the file")
        if not found:
            raise UsageError(f"{self._source} has no list {key!r}: is it a file of {key}?")

    def _list(self, key: str) -> Iterator[dict[str, Any]]:
        self._expect("[")
        while self._peek() != "]":
            record = self._value()
            if not isinstance(record, dict):
                raise UsageError(f"{self._source}: the list {key!r} holds {record!r:.60}; expected objects.")
            yield record
            if self._peek() != "]":
                self._expect(",")
                if self._peek() == "]":
                    raise self._wrong("an object")
        self._expect("]")

    def _value(self) -> Any:
        """The next value, of whatever kind."""
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError as error:
                if len(self._text) - self._at > _LARGEST or not self._more():
                    raise self._wrong("a JSON value") from error
                continue
            if end + len("e+") >= len(self._text) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _peek(self) -> str:
        """The next character that is no blank, '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _expect(self, char: str) -> None:
        if self._peek() != char:
            raise self._wrong(repr(char))
        self._at += 1

    def _more(self) -> bool:
        """Read on, as much again as is at hand; what was passed is forgotten."""
        chunk = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        if chunk:
            self._passed += self._at
            self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def _wrong(self, expected: str) -> UsageError:
        found = self._text[self._at : self._at + 40]
        where = f"at character {self._passed + self._at:,}"
        got = f"got {found!r}" if found else "the file ends"
        return UsageError(f"{self._source} is no JSON {where}: expected {expected}, {got}. Is the download complete?")


def _number(record: Mapping[str, Any], key: str, source: Source) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise _odd(record, key, "a number", source)
    return value


def _text(record: Mapping[str, Any], key: str, source: Source) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise _odd(record, key, "a text", source)
    return _whole(value)


def _human_answers(record: Mapping[str, Any], source: Source, known: dict[str, str]) -> list[str]:
    given = record.get("answers")
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise _odd(record, "answers", "a list of objects with an 'answer' each", source)
    texts = [one.get("answer") for one in given]
    return [
        known[text] if isinstance(text, str) and text in known else _shared(known, _text(one, "answer", source))
        for one, text in zip(given, texts, strict=True)
    ]


def _odd(record: Mapping[str, Any], key: str, expected: str, source: Source) -> UsageError:
    found = f"{record[key]!r:.60}" if key in record else "nothing"
    number = record.get("question_id")
    where = f"question {number}: " if type(number) is int and key != "question_id" else ""
    return UsageError(f"{source}: {where}expected {key!r} to be {expected}, got {found}.")


def _whole(text: str) -> str:
    """A text that UTF-8 can hold: halves of surrogate pairs, which JSON can spell, become replacement characters."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _shared(known: dict[str, str], text: str) -> str:
    """The same text as one object: few answers are given millions of times."""
    return known.setdefault(text, text)
