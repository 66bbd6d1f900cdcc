"""A table of samples: CSV, TSV, JSON lines or Parquet, in one file or one file per split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from embedcache.errors import DataNotFoundError, UsageError, unknown_name
from embedcache.samples import SPLIT_NAMES, SampleTable, build, canonical_split

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


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
        return first.stem if len(self.files) == 1 else first.parent.name

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
        tables = [self._rows(file) for file in self.files]
        rows = pa.concat_tables(tables, promote_options="permissive")
        return build(
            rows["id"],
            split=rows["split"] if "split" in rows.column_names else None,
            images=_blank_to_null(rows["image"]) if self.columns.image else None,
            texts=_text_lists(rows, len(self.columns.text)) if self.columns.text else None,
            targets={"label": rows["label"]} if self.columns.label else None,
            group=_blank_to_null(rows["group"]) if self.columns.group else None,
            weight=_numbers(rows["weight"], "weight") if self.columns.weight else None,
        )

    def _rows(self, file: Path) -> pa.Table:
        """One file's columns under our names."""
        table = read_table(file)
        found: dict[str, Any] = {}
        for name in ("id", "image", "label", "split", "group", "weight"):
            column = getattr(self.columns, name)
            if column is not None and not (name in ("label", "split") and column not in table.column_names):
                found[name] = _column(table, column, file, name)
        for position, column in enumerate(self.columns.text):
            found[f"text{position}"] = _column(table, column, file, "text").cast(pa.large_string())
        return pa.table(self._completed(found, table, file))

    def _completed(self, found: dict[str, Any], table: pa.Table, file: Path) -> dict[str, Any]:
        n = table.num_rows
        several = len(self.files) > 1
        if "label" not in found and self.columns.label:
            if not several:
                raise unknown_name(f"label column in {file}:", self.columns.label, table.column_names)
            found["label"] = pa.nulls(n, pa.large_string())
        if "id" in found:
            found["id"] = found["id"].cast(pa.large_string())
        else:
            prefix = f"{file.stem}:" if several else ""
            found["id"] = pa.array((f"{prefix}{row}" for row in range(n)), pa.large_string(), size=n)
        if "split" in found:
            found["split"] = _canonical_splits(found["split"])
        elif file.stem.lower() in SPLIT_NAMES:
            found["split"] = pa.repeat(pa.scalar(canonical_split(file.stem), pa.large_string()), n)
        if "label" in found and not pa.types.is_list(found["label"].type):
            found["label"] = _blank_to_null(found["label"])
        return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataNotFoundError(f"There is no table {path}.")
    tables = sorted(file for file in path.iterdir() if _suffix(file) in SUFFIXES)
    named = [file for file in tables if file.name.split(".")[0].lower() in SPLIT_NAMES]
    found = named or tables
    if not found:
        raise DataNotFoundError(f"The folder {path} holds no table ({', '.join(SUFFIXES)}).")
    if not named and len(found) > 1:
        raise UsageError(f"{path} holds {len(found)} tables, none named as a split: name the one that is meant.")
    return found


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_table(path: Path) -> pa.Table:
    """A file's rows; CSV and TSV columns as text. Raises UsageError with the parser's word on what is wrong."""
    suffix = _suffix(path)
    try:
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, "\t" if suffix == ".tsv" else ",")
        if suffix in (".jsonl", ".ndjson"):
            return pa.json.read_json(pa.input_stream(str(path)))
        if suffix == ".parquet":
            return pa.parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    raise UsageError(f"{path} is no table that is known: expected {', '.join(SUFFIXES)}.")


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    """Every column as text, commas and line breaks inside quotes intact."""
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with csv.open_csv(pa.input_stream(str(path)), parse_options=parse) as reader:
        names = reader.schema.names
    types = dict.fromkeys(names, pa.large_string())
    convert = csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    return csv.read_csv(pa.input_stream(str(path)), parse_options=parse, convert_options=convert)


def _column(table: pa.Table, column: str, file: Path, meaning: str) -> pa.ChunkedArray:
    if column not in table.column_names:
        raise unknown_name(f"{meaning} column in {file}:", column, table.column_names)
    return table[column]


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
    columns = [rows[f"text{position}"].combine_chunks() for position in range(n_texts)]
    columns = [pa.concat_arrays(c.chunks) if isinstance(c, pa.ChunkedArray) else c for c in columns]
    if n_texts == 1 and not columns[0].null_count:
        offsets = pa.array(range(rows.num_rows + 1), pa.int64())
        return pa.LargeListArray.from_arrays(offsets, columns[0])
    lists = [[text for text in row if text is not None] for row in zip(*(c.to_pylist() for c in columns), strict=True)]
    return pa.array(lists, pa.large_list(pa.large_string()))
