"""A table of samples: CSV, TSV, JSON lines or Parquet, in one file or one file per split."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedcache.errors import DataNotFoundError, UsageError, unknown_name
from embedcache.samples import SPLIT_NAMES, SampleTable, build, canonical_split, combined

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LARGEST_ROW = 256 << 20
"""Bytes that one row of a CSV or JSON file may have."""


@dataclass(frozen=True)
class Columns:
    """Which columns mean what; any may be absent. text: several give several texts per sample."""

    id: str | None = None
    image: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    split: str | None = None
    group: str | None = None
    weight: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of one or several files. Image paths are relative to ``images``, by default the table's folder."""

    files: tuple[Path, ...]
    columns: Columns
    images: Path | None = None

    adapter: ClassVar[str] = "table"

    @classmethod
    def open(
        cls, *data: Path, images: str | None = None, text: str | Sequence[str] = (), **columns: str | None
    ) -> Table:
        """The table in ``data``: files, or one folder with a file per split (``train.csv``, ``test.csv``)."""
        files = tuple(file for path in data for file in _files(path))
        texts = (text,) if isinstance(text, str) else tuple(text)
        chosen = Columns(text=texts, **columns)
        if not texts and chosen.image is None:
            raise UsageError("A table needs a column of texts or of image paths: --text COLUMN or --image COLUMN.")
        return cls(files, chosen, Path(images) if images else None)

    @property
    def default_name(self) -> str:
        """The file's name, or the folder's where there are several."""
        first = self.files[0].resolve()
        return _stem(first) if len(self.files) == 1 else first.parent.name

    @property
    def image_folder(self) -> Path:
        """The folder that image paths are relative to."""
        return self.images or self.files[0].parent

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files."""
        return self.files

    def settings(self) -> dict[str, Any]:
        """The columns, and the folder of images where it was stated."""
        return {**asdict(self.columns), "images": str(self.images) if self.images else None}

    def read(self) -> SampleTable:
        """One sample per row; without an id column, the row's number in its file (``train:17``)."""
        rows = self._all_rows()
        pa.default_memory_pool().release_unused()  # what parsing took would otherwise stay beside all that follows
        return build(
            rows["id"],
            split=rows["split"] if "split" in rows.column_names else None,
            images=_blank_to_null(rows["image"]) if self.columns.image else None,
            texts=_text_lists(rows, len(self.columns.text)) if self.columns.text else None,
            targets={"label": rows["label"]} if self.columns.label else None,
            group=_blank_to_null(rows["group"]) if self.columns.group else None,
            weight=_numbers(rows["weight"], "weight") if self.columns.weight else None,
        )

    def _all_rows(self) -> pa.Table:
        """All files' rows, every column in one piece."""
        known: dict[str, None] = {}
        tables = [self._rows(file, known) for file in self.files]
        for name in ("label", "split"):
            column = getattr(self.columns, name)
            if column is not None and column not in known:
                raise unknown_name(f"{name} column in {', '.join(map(str, self.files))}:", column, known)
        try:
            return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        except pa.ArrowException as error:
            raise UsageError(f"A column is not of one kind in {', '.join(map(str, self.files))}: {error}") from error

    def _rows(self, file: Path, known: dict[str, None]) -> pa.Table:
        """One file's columns under our names; ``known`` gathers theirs."""
        table = self._read(file, known)
        found: dict[str, Any] = {}
        for name in ("id", "image", "label", "split", "group", "weight"):
            column = getattr(self.columns, name)
            if column is not None and not (name in ("label", "split") and column not in table.column_names):
                found[name] = _utf8(_column(table, column, file, name), name, file)
        for position, column in enumerate(self.columns.text):
            found[f"text{position}"] = _column(table, column, file, "text")
        for name in found.keys() - {"label", "weight"}:
            found[name] = _as_text(found[name], name, file)
        return pa.table(self._completed(found, table.num_rows, file))

    def _read(self, file: Path, known: dict[str, None]) -> pa.Table:
        """One file's columns."""
        table = read_table(file)
        known |= dict.fromkeys(table.column_names)
        return table

    def _name(self, file: Path) -> str:
        """What a file's rows are numbered under."""
        return _stem(file)

    def _split(self, file: Path) -> str | None:
        """The split that a file's name says, if it says one."""
        return canonical_split(_stem(file)) if _stem(file).lower() in SPLIT_NAMES else None

    def _completed(self, found: dict[str, Any], n: int, file: Path) -> dict[str, Any]:
        several = len(self.files) > 1
        if "label" not in found and self.columns.label:
            found["label"] = pa.nulls(n)
        if "id" in found:
            found["id"] = _blank_to_null(found["id"])
        else:
            numbers = pa.array(np.arange(n)).cast(pa.large_string())
            prefix = pa.scalar(f"{self._name(file)}:", pa.large_string())
            nothing = pa.scalar("", pa.large_string())
            found["id"] = pc.binary_join_element_wise(prefix, numbers, nothing) if several else numbers
        if "split" in found:
            found["split"] = _canonical_splits(found["split"])
        elif split := self._split(file):
            found["split"] = pa.repeat(pa.scalar(split, pa.large_string()), n)
        if "label" in found and not pa.types.is_list(found["label"].type):
            found["label"] = _blank_to_null(found["label"])
        return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataNotFoundError(f"There is no table {path}.")
    tables = sorted(file for file in path.iterdir() if _suffix(file) in SUFFIXES)
    named = [file for file in tables if _stem(file).lower() in SPLIT_NAMES]
    found = named or tables
    if not found:
        raise DataNotFoundError(f"The folder {path} holds no table ({', '.join(SUFFIXES)}).")
    if not named and len(found) > 1:
        raise UsageError(f"{path} holds {len(found)} tables, none named as a split: name the one that is meant.")
    return found


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def read_table(path: Path) -> pa.Table:
    """A file's rows; CSV and TSV columns as text. Raises UsageError with the parser's word on what is wrong."""
    suffix = _suffix(path)
    try:
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, "\t" if suffix == ".tsv" else ",")
        if suffix in (".jsonl", ".ndjson"):
            return _read_json(path)
        if suffix == ".parquet":
            return pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names of columns that are not UTF-8
        raise UsageError(f"{path} cannot be read: {error}") from error
    raise UsageError(f"{path} is no table that is known: expected {', '.join(SUFFIXES)}.")


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    """Every column as text, commas and line breaks inside quotes intact; bytes that are not UTF-8 as they are.

    What fails is read once more in one thread and large blocks: that reads rows longer than a block, and only then
    does the parser name the row that is wrong.
    """
    from pyarrow import csv

    try:
        return _parse_csv(path, delimiter, csv.ReadOptions())
    except pa.ArrowInvalid:
        return _parse_csv(path, delimiter, csv.ReadOptions(use_threads=False, block_size=LARGEST_ROW))


def _parse_csv(path: Path, delimiter: str, options: Any) -> pa.Table:
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with csv.open_csv(pa.input_stream(str(path)), parse_options=parse, read_options=options) as reader:
        names = reader.schema.names
    types = dict.fromkeys(names, pa.large_string())
    convert = csv.ConvertOptions(column_types=types, strings_can_be_null=False, check_utf8=False)
    return csv.read_csv(pa.input_stream(str(path)), parse_options=parse, convert_options=convert, read_options=options)


def _read_json(path: Path) -> pa.Table:
    """One object a line; a text that looks like a time stays the text it is."""
    _refuse_other_lines(path)
    table = _parse_json(path, [])
    times = [pa.field(field.name, pa.large_string()) for field in table.schema if pa.types.is_timestamp(field.type)]
    return _parse_json(path, times) if times else table


_SCANNED_AT_ONCE = 1 << 20
_NO_OBJECT = re.compile(rb"\n[ \t\r]*([^{\s][^\n]{,40})")


def _refuse_other_lines(path: Path) -> None:
    """Every line begins an object: Arrow (26.0) ends the process at a block that begins with a ``null``."""
    line, tail = 0, b"\n"
    with pa.input_stream(str(path)) as stream:
        while part := stream.read(_SCANNED_AT_ONCE):
            data = tail + (part if line else part.removeprefix(codecs.BOM_UTF8))
            if other := _NO_OBJECT.search(data):
                number = line + data.count(b"\n", 0, other.start(1))
                found = other[1].decode(errors="replace")
                raise UsageError(f"{path}, line {number}: expected an object, {{…}}, got {found!r}.")
            start = data.rfind(b"\n")
            tail = data[start:] if start >= 0 and not data[start:].strip() else b""  # a line that may yet begin wrongly
            line += data.count(b"\n") - tail.count(b"\n")


def _parse_json(path: Path, stated: list[pa.Field]) -> pa.Table:
    from pyarrow import json

    parse = json.ParseOptions(explicit_schema=pa.schema(stated))
    try:
        return json.read_json(pa.input_stream(str(path)), parse_options=parse)
    except pa.ArrowInvalid:  # perhaps of a row that is longer than a block
        options = json.ReadOptions(use_threads=False, block_size=LARGEST_ROW)
        return json.read_json(pa.input_stream(str(path)), read_options=options, parse_options=parse)


def _column(table: pa.Table, column: str, file: Path, meaning: str) -> pa.ChunkedArray:
    if column not in table.column_names:
        raise unknown_name(f"{meaning} column in {file}:", column, table.column_names)
    if table.column_names.count(column) > 1:
        raise UsageError(f"{file} has {table.column_names.count(column)} columns named {column!r}: rename all but one.")
    return table[column]


def _utf8(column: pa.ChunkedArray, meaning: str, file: Path) -> pa.ChunkedArray:
    """The column as it is; only a text may hold bytes that are not UTF-8, and fails alone.

    Raises UsageError that names the row, the header being the first.
    """
    if column.type != pa.large_string():
        return column
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(column.type)
    except pa.ArrowInvalid as error:
        row = next(row for row, value in enumerate(raw.to_pylist(), 2) if "\ufffd" in value.decode("utf-8", "replace"))
        raise UsageError(f"{file}, row {row}: its {meaning} holds bytes that are not UTF-8.") from error


def _as_text(column: pa.ChunkedArray, meaning: str, file: Path) -> pa.ChunkedArray:
    """Texts as texts; a column of texts may also hold a list of them in each row."""
    several = meaning.startswith("text") and pa.types.is_nested(column.type)
    try:
        return column.cast(pa.large_list(pa.large_string()) if several else pa.large_string())
    except pa.ArrowException as error:
        raise UsageError(f"The {meaning.rstrip('0123456789')} column in {file} holds no texts: {error}") from error


def _blank_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)


def _canonical_splits(column: pa.ChunkedArray) -> pa.Array:
    encoded = pa.chunked_array(_blank_to_null(column)).combine_chunks().dictionary_encode()
    names = [canonical_split(str(name)) for name in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.large_string()).take(encoded.indices)


def _numbers(column: pa.ChunkedArray, meaning: str) -> pa.ChunkedArray:
    try:
        return _blank_to_null(column).cast(pa.float64())
    except pa.ArrowException as error:
        raise UsageError(f"The {meaning} column holds something that is no number: {error}") from error


def _text_lists(rows: pa.Table, n_texts: int) -> pa.Array:
    """Each row's texts as a list; a null is no text, an empty text stays (and fails, counted, when encoded)."""
    columns = [combined(rows[f"text{position}"]) for position in range(n_texts)]
    if n_texts == 1 and not columns[0].null_count and not pa.types.is_nested(columns[0].type):
        offsets = pa.array(np.arange(rows.num_rows + 1))
        return pa.LargeListArray.from_arrays(offsets, columns[0])
    kinds = [pa.large_list(pa.large_binary()) if pa.types.is_nested(one.type) else pa.large_binary() for one in columns]
    raw = [column.cast(kind).to_pylist() for column, kind in zip(columns, kinds, strict=True)]
    lists = [
        [text for cell in row for text in (cell if isinstance(cell, list) else [cell]) if text is not None]
        for row in zip(*raw, strict=True)
    ]
    ragged = pa.array(lists, pa.large_list(pa.large_binary()))
    return pa.LargeListArray.from_arrays(ragged.offsets, ragged.values.view(pa.large_string()))
