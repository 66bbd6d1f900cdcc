"""Lists of photos and texts to be labelled: CSV, TSV or JSON lines, read row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from embedcache.errors import DataNotFoundError, UsageError, unknown_name
from heads.predict import ItemPredictor, Predictions

BATCH: Final = 1024
"""Rows whose vectors are in memory at once."""
_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_LINES: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class ItemColumns:
    """Which columns hold what. None: the column of that name (``image``, ``text``, ``id``) where there is one."""

    image: str | None = None
    text: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class ItemRow:
    """One row. id: as stated, else the row's number, the first being 1. An empty cell is None."""

    id: str
    image: Path | None = None
    text: str | None = None


@dataclass(frozen=True)
class ItemFile:
    """A list of items. images: the folder that image paths are relative to; by default the list's own."""

    path: Path
    columns: ItemColumns = ItemColumns()
    images: Path | None = None

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataNotFoundError(f"There is no file {self.path}.")
        if self.path.suffix.lower() not in (*_DELIMITERS, *_LINES):
            known = ", ".join((*_DELIMITERS, *_LINES))
            raise UsageError(f"{self.path} is no list of items that is known: expected {known}.")

    def count(self) -> int:
        """Rows; reads the file once, and raises UsageError for what ``rows`` could not read."""
        return sum(1 for _ in self._cells())

    def check(self, needed: Iterable[str]) -> None:
        """Raise UsageError for a column that ``rows`` would not find; reads the first row."""
        for cells in self._cells():
            self._chosen(set(needed), list(cells))
            return

    def rows(self, needed: Iterable[str] = ("image", "text")) -> Iterator[ItemRow]:
        """Row after row. needed: modalities whose columns must be there.

        Raises UsageError for a column that is not there, and names the row that cannot be read.
        """
        chosen: Mapping[str, str | None] | None = None
        folder = self.images or self.path.parent
        for number, cells in enumerate(self._cells(), 1):
            if chosen is None:
                chosen = self._chosen(set(needed), list(cells))
            image, text, name = (_cell(cells, chosen[key]) for key in ("image", "text", "id"))
            yield ItemRow(name or str(number), folder / image if image else None, text)

    def _chosen(self, needed: set[str], names: Sequence[str]) -> dict[str, str | None]:
        """The column of each part of a row; None where the row has none."""
        found: dict[str, str | None] = {}
        for part in ("image", "text", "id"):
            stated = getattr(self.columns, part)
            if part != "id" and part not in needed:
                if stated is not None:
                    raise UsageError(f"The head takes no {part}s: leave --{part}-column out.")
                found[part] = None
                continue
            column = stated or part
            if column not in names and (stated is not None or part != "id"):
                hint = f"Say which one it is with --{part}-column."
                raise unknown_name(f"{part} column in {self.path}:", column, names, hint)
            found[part] = column if column in names else None
        return found

    def _cells(self) -> Iterator[Mapping[str, Any]]:
        """Cells by column. Bytes that are not UTF-8 stay in their text, which then fails alone."""
        with open(self.path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            if self.path.suffix.lower() in _LINES:
                yield from self._objects(file)
            else:
                yield from self._records(csv.reader(file, delimiter=_DELIMITERS[self.path.suffix.lower()], strict=True))

    def _records(self, reader: Any) -> Iterator[Mapping[str, Any]]:
        try:
            names = next(reader, None)
            if not names:
                raise UsageError(f"{self.path} is empty: expected a first row with the names of its columns.")
            if len(set(names)) < len(names):
                raise UsageError(f"{self.path} has two columns of one name among {', '.join(names)}: rename one.")
            for cells in filter(None, reader):
                if len(cells) != len(names):
                    raise UsageError(
                        f"{self.path}, line {reader.line_num}: {len(cells)} cells where the first row names "
                        f"{len(names)} columns."
                    )
                yield dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise UsageError(f"{self.path}, line {reader.line_num}, cannot be read: {error}.") from error

    def _objects(self, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{self.path}, line {number}, is no JSON: {error}.") from error
            if not isinstance(found, dict):
                raise UsageError(f"{self.path}, line {number}, holds a {type(found).__name__}; expected an object.")
            yield found


def _cell(cells: Mapping[str, Any], column: str | None) -> str | None:
    """A cell's text; None where it is empty or missing."""
    value = None if column is None else cells.get(column)
    return None if value is None or value == "" else str(value)


def predict_rows(
    predictor: ItemPredictor, rows: Iterable[ItemRow], *, total: int | None = None, progress: bool = False
) -> Iterator[Predictions]:
    """Labels of any number of rows, a batch at a time: no more than a batch is in memory.

    total: of rows, for the bar that ``progress`` shows on stderr.
    """
    from tqdm import tqdm

    needed = predictor.head.modalities
    own = iter(rows)
    with tqdm(total=total, unit=" rows", desc="predict", disable=not progress, dynamic_ncols=True) as bar:
        while batch := list(islice(own, BATCH)):
            images = [row.image for row in batch] if "image" in needed else []
            texts = [row.text for row in batch] if "text" in needed else []
            yield predictor.predict(images, texts, [row.id for row in batch])
            bar.update(len(batch))
