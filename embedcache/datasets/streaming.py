"""Big files of rows, a block at a time: CSV and JSON lines, plain or gzipped, with progress and with line numbers.

Memory is bounded by a few blocks, whatever the file's size. Arrow parses; only where it refuses a block is the file
or the block read once more, line by line, to name the line that is wrong.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

import pyarrow as pa

from embedcache.errors import DataNotFoundError, UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

BLOCK = 4 << 20
"""Bytes that are parsed at once."""
LONGEST_LINE = 64 << 20
"""Bytes that one line of JSON may have; a CSV record must fit a block."""

PATIENCE = 1.0
"""Seconds after which a bar is shown."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_DAMAGED_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
_PARSERS = 2


class Bar:
    """Bytes of some files, and the rows they gave, on stderr; what takes less than a second shows none."""

    def __init__(self, name: str, paths: Iterable[Path], *, shown: bool) -> None:
        from tqdm import tqdm

        total = sum(path.stat().st_size for path in paths)
        self._bar: tqdm[Any] = tqdm(
            total=total, unit="B", unit_scale=True, desc=name, disable=not shown, delay=PATIENCE, dynamic_ncols=True
        )
        self._rows = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, nbytes: int, rows: int) -> None:
        """So many bytes of a file on disk are read, and gave so many rows."""
        self._rows += rows
        self._bar.set_postfix_str(f"{self._rows:,} rows", refresh=False)
        self._bar.update(nbytes)


def first_line(path: Path) -> str | None:
    """The first line of a file without its line break; None where there is none that could be read."""
    try:
        with _opened(path) as file:
            line = file.readline(1 << 16)
        return line.removeprefix(_BOM).rstrip(b"\r\n").decode()
    except (OSError, UnicodeDecodeError, *_DAMAGED_GZIP):
        return None


def header(path: Path) -> tuple[str, ...]:
    """The names of a CSV's columns; empty where it has none that could be read."""
    line = first_line(path)
    try:
        return tuple(next(csv.reader([line]))) if line else ()
    except csv.Error:
        return ()


def _opened(path: Path) -> IO[bytes]:
    """A file's own bytes, decompressed where its name ends in ``.gz``."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.endswith(".gz") else open(path, "rb")


@contextmanager
def _streamed(path: Path) -> Iterator[tuple[Any, FileIO]]:
    """A file as Arrow's stream of decompressed bytes, and the file on disk below it."""
    try:
        raw = FileIO(path)
    except OSError as error:
        raise DataNotFoundError(f"{path} cannot be opened: {error.strerror}.") from error
    with raw:
        plain = pa.PythonFile(raw, mode="r")
        yield (pa.CompressedInputStream(plain, "gzip") if path.name.endswith(".gz") else plain), raw


# ------------------------------------------------------------------------------------------------------------- CSV


def csv_batches(path: Path, columns: Sequence[str], bar: Bar) -> Iterator[pa.RecordBatch]:
    """Record batches of the named columns, all large strings without nulls; quoted commas and line breaks intact.

    Raises UsageError with the line that is no record of that many columns, or is not UTF-8.
    """
    from pyarrow import csv as arrow_csv

    names = header(path)
    if sorted(names) != sorted(columns):
        raise UsageError(f"{path}, line 1: expected the columns {', '.join(columns)}, got {', '.join(names)}.")
    convert = arrow_csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.large_string()),
        strings_can_be_null=False,
    )
    parse = arrow_csv.ParseOptions(newlines_in_values=True)
    read = arrow_csv.ReadOptions(block_size=BLOCK)
    with _streamed(path) as (stream, raw):
        done = 0
        try:
            with arrow_csv.open_csv(stream, read, parse, convert) as reader:
                for batch in reader:
                    bar.advance((now := raw.tell()) - done, batch.num_rows)
                    done = now
                    yield batch
        except (pa.ArrowException, OSError) as error:
            _refuse_csv(path, columns, error)


def _refuse_csv(path: Path, columns: Sequence[str], cause: Exception) -> NoReturn:
    """Name the line that Arrow could not read."""
    line, what = _wrong_record(path, len(columns)) or (None, str(cause))
    where = f"{path}, line {line}" if line else str(path)
    raise UsageError(
        f"{where}: {what}; expected {', '.join(columns)}. Mend the file, or unpack or download it again."
    ) from cause


def _wrong_record(path: Path, n_columns: int) -> tuple[int, str] | None:
    """Line and fault of the first record that is none, by the standard library's reader; None where it finds none."""
    line = 1
    try:
        with _opened(path) as file:
            reader = csv.reader(raw.decode() for raw in file)
            for record in reader:
                if record and len(record) != n_columns:
                    return line, f"{len(record)} fields where there are {n_columns} columns"
                line = reader.line_num + 1
    except csv.Error as error:
        unquoted = str(error).startswith("new-line")
        return line, "a carriage return, a line break that is not quoted" if unquoted else str(error)
    except UnicodeDecodeError:
        return reader.line_num + 1, "bytes that are not UTF-8"
    except _DAMAGED_GZIP:
        return line, "the compressed file is damaged or cut off here"
    return None


# ------------------------------------------------------------------------------------------------------ JSON lines


def json_batches(path: Path, schema: pa.Schema, bar: Bar) -> Iterator[pa.Table]:
    """Tables of the schema's columns, an object a line; other fields are ignored, blank lines give no row.

    A field that is missing is null, and refused where the schema says that it is not nullable.
    Raises UsageError with the line that is no such object.
    """
    with _streamed(path) as (stream, raw), ThreadPoolExecutor(_PARSERS, thread_name_prefix="json") as pool:
        waiting: deque[tuple[Future[pa.Table], int]] = deque()
        done = 0

        def oldest() -> pa.Table:
            nonlocal done
            future, position = waiting.popleft()
            table = future.result()
            bar.advance(position - done, table.num_rows)
            done = position
            return table

        try:
            for line, block in _blocks(stream, path):
                waiting.append((pool.submit(_parsed, path, line, block, schema), raw.tell()))
                if len(waiting) > _PARSERS:
                    yield oldest()
            while waiting:
                yield oldest()
        finally:
            for future, _ in waiting:
                future.cancel()


def _blocks(stream: Any, path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines of about ``BLOCK`` bytes, each with the number of its first."""
    line, rest = 1, b""
    while chunk := _read(stream, path, line):
        rest, begun = b"", rest
        cut = chunk.rfind(b"\n") + 1
        if not cut and len(begun) + len(chunk) > LONGEST_LINE:
            raise UsageError(f"{path}, line {line}: the line is longer than {LONGEST_LINE:,} bytes.")
        if not cut:
            rest = begun + chunk
            continue
        block, rest = begun + chunk[:cut], chunk[cut:]
        yield line, block.removeprefix(_BOM) if line == 1 else block
        line += block.count(b"\n")
    if rest:
        yield line, rest.removeprefix(_BOM) if line == 1 else rest


def _read(stream: Any, path: Path, line: int) -> bytes:
    try:
        return bytes(stream.read(BLOCK))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{path}: the compressed file is damaged or cut off after line {line - 1}. Download it again."
        ) from error


def _parsed(path: Path, line: int, block: bytes, schema: pa.Schema) -> pa.Table:
    """A block's rows. Raises UsageError with the line that is wrong."""
    from pyarrow import json as arrow_json

    start = block.lstrip(_BLANK)[:1] if block[:1] != b"{" else b"{"
    if not start:
        return schema.empty_table()
    if start != b"{":  # Arrow must not see it: a block that begins with a null ends the process (26.0)
        _refuse_json(path, line, block, schema, "no JSON object")
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    parse = arrow_json.ParseOptions(explicit_schema=nullable, unexpected_field_behavior="ignore")
    read = arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        table = arrow_json.read_json(pa.BufferReader(block), read, parse)
        table.validate(full=True)
    except pa.ArrowException as error:
        _refuse_json(path, line, block, schema, str(error))
    if table.num_rows != _n_lines(block) or any(_lacks(table, field) for field in schema):
        _refuse_json(path, line, block, schema, "not an object a line")
    return table


def _n_lines(block: bytes) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip(_BLANK)) for line in block.split(b"\n"))


def _lacks(table: pa.Table, field: pa.Field) -> bool:
    """Whether a column that must be whole has nulls, in itself or in its lists."""
    column = table[field.name]
    inner = pa.types.is_list(field.type) and column.combine_chunks().flatten().null_count
    return bool(inner or (not field.nullable and column.null_count))


def _refuse_json(path: Path, line: int, block: bytes, schema: pa.Schema, cause: str) -> NoReturn:
    """Name the first line of a block that is wrong, or the block's lines where none alone is."""
    lines = block.split(b"\n")
    for number, raw in enumerate(lines, line):
        if raw.strip(_BLANK) and (what := _fault(raw, schema)):
            raise UsageError(f"{path}, line {number}: {what}. Mend the line, or unpack or download the file again.")
    last = line + len(lines) - 1 - (not lines[-1])
    raise UsageError(f"{path}, lines {line} to {last}: {cause}; expected one JSON object a line.")


def _fault(raw: bytes, schema: pa.Schema) -> str | None:
    """What is wrong with a line; None where nothing is."""
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError:
        return "bytes that are not UTF-8"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"no JSON object ({error})"
    if not isinstance(found, dict):
        return f"a JSON object was expected, got {str(found)[:40]!r}"
    faults = (_wrong_value(found.get(field.name), field) for field in schema)
    return next((fault for fault in faults if fault), None)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


def _wrong_value(value: Any, field: pa.Field) -> str | None:
    if value is None:
        return None if field.nullable else f"the field {field.name!r} is missing"
    if pa.types.is_list(field.type):
        whole = isinstance(value, list) and all(type(one) is int and abs(one) < 1 << 31 for one in value)
        return None if whole else f"{field.name!r} is no list of whole numbers"
    if not isinstance(value, str):
        return f"{field.name!r} is no text but {str(value)[:40]!r}"
    return f"{field.name!r} holds half a surrogate pair" if any("\ud800" <= c <= "\udfff" for c in value) else None


def read_json(path: Path) -> Any:
    """A whole JSON document, plain or gzipped. Raises UsageError where it is none."""
    if not path.is_file():
        raise DataNotFoundError(f"There is no file {path}.")
    try:
        with _opened(path) as file:
            return json.loads(file.read().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError, *_DAMAGED_GZIP) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
