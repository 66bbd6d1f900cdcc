"""A tiny VQA in the published layout: questions and annotations as the download page has them, photos of COCO."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN, VAL, TEST, TEST_DEV = "train2014", "val2014", "test2015", "test-dev2015"


@dataclass(frozen=True)
class Question:
    """A question with what ten humans answered. others: answers of some of the ten; the rest gave ``answer``."""

    photo: int
    number: int
    text: str
    answer: str
    others: tuple[str, ...] = ()
    kind: str = "other"
    begins: str = "what is"

    @property
    def id(self) -> int:
        """The photo's number, then the question's: as in version 2."""
        return self.photo * 1000 + self.number

    @property
    def answers(self) -> list[str]:
        """The ten answers."""
        return [*self.others, *[self.answer] * (10 - len(self.others))]


def questions_document(questions: Sequence[Question], part: str) -> dict[str, Any]:
    """A questions file, keys in the published order."""
    return {
        "info": {"description": "tiny", "url": "http://visualqa.org", "version": "2.0", "year": 2017},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"},
        "data_subtype": part,
        "questions": [{"image_id": one.photo, "question": one.text, "question_id": one.id} for one in questions],
    }


def annotation(one: Question) -> dict[str, Any]:
    """One annotation with its ten answers."""
    return {
        "question_type": one.begins,
        "multiple_choice_answer": one.answer,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(one.answers, 1)
        ],
        "image_id": one.photo,
        "answer_type": one.kind,
        "question_id": one.id,
    }


def annotations_document(questions: Sequence[Question], part: str) -> dict[str, Any]:
    """An annotations file; ``data_type`` comes after the list, as published."""
    return {
        "info": {"description": "tiny"},
        "license": {},
        "data_subtype": part,
        "annotations": [annotation(one) for one in questions],
        "data_type": "mscoco",
    }


def question_file(part: str, version: int = 2) -> str:
    """The published name."""
    return f"{'v2_' if version == 2 else ''}OpenEnded_mscoco_{part}_questions.json"


def annotation_file(part: str, version: int = 2) -> str:
    """The published name."""
    return f"{'v2_' if version == 2 else ''}mscoco_{part}_annotations.json"


def write(folder: Path, name: str, document: Any, packed: str = "") -> Path:
    """A JSON file, plain, ``gz``, or inside a zip file of another name."""
    folder.mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    if packed == "gz":
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    elif packed:
        with zipfile.ZipFile(folder / packed, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, text)
    else:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def photo_name(part: str, photo: int) -> str:
    """Where COCO's photo lies below the folder of photos."""
    return f"{part}/COCO_{part}_{photo:012d}.jpg"


def write_photos(folder: Path, part: str, photos: Sequence[int]) -> None:
    """Files with the bytes that the fake backbones hash."""
    for photo in photos:
        path = folder / photo_name(part, photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def write_part(
    folder: Path,
    part: str,
    questions: Sequence[Question],
    *,
    version: int = 2,
    packed: str = "",
    annotated: bool = True,
) -> Path:
    """Questions of one part, and their annotations where they have any."""
    write(folder, question_file(part, version), questions_document(questions, part), packed)
    if annotated:
        write(folder, annotation_file(part, version), annotations_document(questions, part), packed)
    return folder


def column(table: Any, name: str) -> list[Any]:
    """A column of the sample table."""
    found: list[Any] = table.samples[name].to_pylist()
    return found


def by_id(table: Any, name: str) -> Mapping[str, Any]:
    """A column of the sample table by sample id."""
    return dict(zip(column(table, "id"), column(table, name), strict=True))
