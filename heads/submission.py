"""Predictions as files: what a data set's publishers ask for, or a table with every probability."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedcache.errors import UsageError
from embedcache.files import replacing
from heads.predict import Predictions

SEPARATORS: Final = (" ", "|", ";")


SUBMISSIONS: Final = (".csv", ".json")
TABLES: Final = (".csv", ".jsonl", ".ndjson")
_LINES: Final = TABLES[1:]


def check_submission(path: Path) -> None:
    """Raise UsageError for a name whose ending is no format of a submission, or a folder that is not there."""
    _check(path, SUBMISSIONS, "A submission is CSV or a JSON list")


def check_table(path: Path) -> None:
    """Raise UsageError for a name whose ending is no format of a table, or a folder that is not there."""
    _check(path, TABLES, "A table is CSV or JSON lines")


def _check(path: Path, known: Sequence[str], what: str) -> None:
    if path.suffix.lower() not in known:
        raise UsageError(f"{what}: expected a name that ends in {' or '.join(known)}, got {path}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"There is no folder {path.absolute().parent} to write {path.name} into: make it first.")


@dataclass(frozen=True)
class Format:
    """What a submission calls its two columns. whole_ids: its ids are whole numbers, which JSON tells from texts."""

    id: str
    label: str
    whole_ids: bool = False


FORMATS: Final[Mapping[str, Format]] = {
    "comp5329": Format("ImageID", "Labels"),
    "meli": Format("id", "category"),
    "vqa": Format("question_id", "answer", whole_ids=True),
}
"""By adapter; a data set of another one has ``id`` and ``label``, or ``labels`` where a sample has several."""


def write_submission(path: Path, found: Predictions, adapter: str | None = None) -> None:
    """A row per id, in the order of ``found``: CSV, or a JSON list of objects where the name ends in ``.json``.

    In CSV several labels stand in one cell with a space between them ("|" or ";" where a label has a space). Raises
    UsageError for another ending.
    """
    check_submission(path)
    layout = FORMATS.get(adapter or "", Format("id", "labels" if found.kind == "multi" else "label"))
    if path.suffix.lower() == ".json":
        _write_json(path, layout, found)
        return
    _write_csv(path, (layout.id, layout.label), zip(found.ids, joined(found), strict=True))


def write_table(path: Path, found: Predictions) -> None:
    """A row per id: labels, the probability of each class, and how a failed item was stood in for."""
    with table_of(path) as add:
        add(found)


@contextmanager
def table_of(path: Path) -> Iterator[Callable[[Predictions], None]]:
    """A table that takes batches of one head's predictions; ``path`` is replaced when the last one is in.

    CSV, or JSON lines (``Predictions.rows``) where the name ends in ``.jsonl``.
    """
    check_table(path)
    as_lines = path.suffix.lower() in _LINES
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        began = False

        def add(found: Predictions) -> None:
            nonlocal began
            if as_lines:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows())
                return
            if not began:
                writer.writerow(_columns(found))
                began = True
            writer.writerows(
                (name, labels, *row.tolist(), found.filled.get(name, ""))
                for name, labels, row in zip(found.ids, joined(found), found.probabilities, strict=True)
            )

        yield add


def _columns(found: Predictions) -> tuple[str, ...]:
    label = "labels" if found.kind == "multi" else "label"
    return ("id", label, *(f"probability.{one}" for one in found.classes), "filled")


def joined(found: Predictions) -> list[str]:
    """Each id's labels in one text."""
    if found.kind == "single":
        return [str(own[0]) for own in found.labels()]
    separator = _separator(found.classes)
    return [separator.join(map(str, own)) for own in found.labels()]


def _separator(classes: Sequence[Any]) -> str:
    free = (mark for mark in SEPARATORS if not any(mark in str(label) for label in classes))
    separator = next(free, None)
    if separator is None:
        raise UsageError(f"The labels hold each of {SEPARATORS}: several cannot stand in one cell. Write a .json file.")
    return separator


def _write_json(path: Path, layout: Format, found: Predictions) -> None:
    values: Iterable[Any] = found.labels() if found.kind == "multi" else joined(found)
    names: Iterable[Any] = map(_whole, found.ids) if layout.whole_ids else found.ids
    rows = [{layout.id: name, layout.label: value} for name, value in zip(names, values, strict=True)]
    with replacing(path) as beside:
        beside.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _whole(name: str) -> int:
    try:
        return int(name)
    except ValueError as error:
        raise UsageError(f"The id {name!r} is no whole number, as a submission of this data set needs it.") from error


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
