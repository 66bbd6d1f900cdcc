"""The sample table: which rows a data set has, and which items they refer to.

A *sample* is one row: id, published split, targets, groups, and references to its items. An *item* is
one unique input of one modality, encoded once however many samples use it. Everything is held in Arrow
tables, so that a million rows cost tens of bytes each and not a Python object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from embedcache.errors import DamagedFileError, UsageError
from embedcache.files import replacing
from embedcache.provenance import MODALITIES, Modality

TARGET_PREFIX = "target."
META_PREFIX = "meta."
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

_SAMPLES = "samples.parquet"
_ROW_GROUP = 1 << 17
_HASHED_AT_ONCE = 1 << 16
_HEX = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)
"""The two hexadecimal digits of each byte."""


def canonical_split(name: str) -> str:
    """``val`` and its like become ``validation``, and so on; any other name stays as it is."""
    return SPLIT_NAMES.get(name.strip().lower(), name)


def text_id(text: str) -> str:
    """A text's item id: the xxh3-128 of its UTF-8 bytes, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class SampleTable:
    """One data set's samples and items.

    samples: columns ``id`` and ``split`` (string, null where unpublished), ``image`` (item id or null),
        ``texts`` (list of item ids), ``group`` (string or null), ``weight`` (float64 or null), one
        ``target.<name>`` per published target and ``meta.<name>`` for what is kept for analysis.
        A modality that the data set lacks has no column.
    items: by modality, in stable order; ``id``, and for texts ``text``, with an ``error`` beside those that are not as
        they were read.
    notes: what a reader should know, with counts ("12 images without captions").
    """

    samples: pa.Table
    items: Mapping[Modality, pa.Table]
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        counts = {"samples": self.samples.num_rows}
        counts |= {f"{modality}s": table.num_rows for modality, table in self.items.items()}
        object.__setattr__(self, "counts", counts)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that this data set has."""
        return tuple(modality for modality in MODALITIES if modality in self.items)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the published targets, without prefix."""
        return tuple(
            name.removeprefix(TARGET_PREFIX) for name in self.samples.column_names if name.startswith(TARGET_PREFIX)
        )

    def used_items(self, modality: Modality, rows: np.ndarray | None = None) -> np.ndarray:
        """Item rows that samples use, sorted; int64. ``rows`` picks the samples (all, which use every item)."""
        if rows is None:
            return np.arange(self.items[modality].num_rows)
        references, _ = self.references(modality, rows)
        return np.unique(references)

    def references(self, modality: Modality, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Item rows of each sample, ragged: (references, offsets), both int64.

        Sample ``i`` refers to ``references[offsets[i]:offsets[i + 1]]``, rows of ``items[modality]``.
        """
        samples = self.samples if rows is None else self.samples.take(pa.array(rows))
        ids = self.items[modality]["id"]
        if modality == "image":
            column = combined(samples["image"])
            lengths = np.asarray(pc.is_valid(column)).astype(np.int64)
            flat = column.drop_null()
        else:
            column = combined(samples["texts"])
            lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
            flat = column.flatten()
        found = pc.index_in(flat, value_set=combined(ids))
        if found.null_count:
            raise DamagedFileError(f"{found.null_count} references to {modality} items that are not there.")
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return np.asarray(found).astype(np.int64), offsets


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array of a column that may come in chunks."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def build(
    ids: Sequence[str] | pa.Array,
    *,
    split: Sequence[str | None] | pa.Array | None = None,
    images: Sequence[str | None] | pa.Array | None = None,
    texts: Sequence[Sequence[str]] | pa.Array | None = None,
    targets: Mapping[str, Sequence[Any] | pa.Array] | None = None,
    group: Sequence[str | None] | pa.Array | None = None,
    weight: Sequence[float | None] | pa.Array | None = None,
    meta: Mapping[str, Sequence[Any] | pa.Array] | None = None,
    notes: Sequence[str] = (),
) -> SampleTable:
    """A sample table from columns of equal length; items are de-duplicated in order of appearance.

    images: paths below the data folder. texts: per sample a list of texts (not ids).
    Raises UsageError where two samples share an id.
    """
    columns: dict[str, pa.Array] = {"id": _strings(ids)}
    _refuse_repeated(columns["id"])
    items: dict[Modality, pa.Table] = {}
    n = len(columns["id"])
    columns["split"] = _strings(split) if split is not None else pa.nulls(n, pa.large_string())
    if images is not None:
        columns["image"] = _strings(images)
        items["image"] = pa.table({"id": pc.unique(columns["image"].drop_null())})
    if texts is not None:
        columns["texts"], items["text"] = _text_items(texts)
    if group is not None:
        columns["group"] = _strings(group)
    if weight is not None:
        columns["weight"] = pa.array(weight, pa.float64())
    for prefix, extra in ((TARGET_PREFIX, targets), (META_PREFIX, meta)):
        for name, values in (extra or {}).items():
            columns[prefix + name] = combined(values) if _is_arrow(values) else pa.array(values)
    return SampleTable(pa.table(columns), items, tuple(notes))


def _is_arrow(values: Any) -> bool:
    return isinstance(values, pa.Array | pa.ChunkedArray)


def _strings(values: Any) -> pa.Array:
    if _is_arrow(values):
        return combined(values).cast(pa.large_string())
    return pa.array(values, pa.large_string())


def _refuse_repeated(ids: pa.Array) -> None:
    if ids.null_count:
        raise UsageError(f"{ids.null_count} samples have no id.")
    if _first_seen(text_digests(ids)) is None:
        return
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    examples = ", ".join(repr(value) for value in repeated[:3].to_pylist())
    raise UsageError(f"{len(repeated)} sample ids occur more than once ({examples}); ids must be unique.")


def _text_items(texts: Any) -> tuple[pa.Array, pa.Table]:
    """Lists of texts become lists of item ids, and the table of unique texts."""
    lists = combined(texts) if _is_arrow(texts) else pa.array(texts, pa.large_list(pa.large_string()))
    lists = lists.cast(pa.large_list(pa.large_string()))
    texts = lists.flatten()
    if texts.null_count:
        raise ValueError(f"{texts.null_count} of the samples' texts are null: leave them out of their lists.")
    digests = text_digests(texts)
    references = ids = _hex_strings(digests)
    if (repeated := _first_seen(digests)) is not None:
        first, inverse = repeated
        ids, texts = _hex_strings(digests[first]), texts.take(pa.array(first))
        references = ids.take(pa.array(inverse))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, references), pa.table({"id": ids, **_decoded(texts)})


def _decoded(texts: pa.LargeStringArray) -> dict[str, pa.Array]:
    """The column of texts. Bytes that are not UTF-8 become replacement characters, with the reason in ``error``."""
    raw = texts.cast(pa.large_binary())
    try:
        return {"text": raw.cast(pa.large_string())}
    except pa.ArrowInvalid:
        decoded = [value.decode("utf-8", "replace") for value in raw.to_pylist()]
        return {"text": pa.array(decoded, pa.large_string()), "error": pa.array(map(_why_not_utf8, raw.to_pylist()))}


def _why_not_utf8(value: bytes) -> str | None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return f"it is not UTF-8: {error.reason} at byte {error.start}"
    return None


def text_digests(texts: pa.LargeStringArray) -> npt.NDArray[np.uint8]:
    """xxh3-128 of each text's UTF-8 bytes, uint8 (n, 16). Hashes the column's own bytes: no Python text is made."""
    if not len(texts):
        return np.zeros((0, 16), np.uint8)
    _, bounds, data = texts.buffers()
    offsets = np.frombuffer(bounds, np.int64)[texts.offset :][: len(texts) + 1]
    view = memoryview(data if data is not None else b"")
    out = np.empty((len(texts), 16), np.uint8)
    for start in range(0, len(texts), _HASHED_AT_ONCE):
        ends = offsets[start : start + _HASHED_AT_ONCE + 1].tolist()
        hashed = b"".join(xxhash.xxh3_128_digest(view[begin:end]) for begin, end in pairwise(ends))
        out[start : start + _HASHED_AT_ONCE] = np.frombuffer(hashed, np.uint8).reshape(-1, 16)
    return out


def _hex_strings(digests: npt.NDArray[np.uint8]) -> pa.LargeStringArray:
    """Digests (n, 16) as strings of 32 hexadecimal digits: ``text_id``, by the column."""
    offsets = pa.py_buffer(np.arange(0, 32 * (len(digests) + 1), 32))
    return pa.LargeStringArray.from_buffers(len(digests), offsets, pa.py_buffer(_HEX[digests]))


def _first_seen(digests: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Where each distinct digest stands first, and for each row its place among those; None where none is repeated.

    Sorting takes a third of the memory of a hash table, which at a million rows is the peak of an extraction.
    """
    pairs = digests.view(np.uint64)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = (pairs[order[1:]] != pairs[order[:-1]]).any(1)
    if new.all():
        return None
    first = order[new]
    by_first = np.argsort(first)
    place = np.empty_like(first)
    place[by_first] = np.arange(len(first))
    inverse = np.empty_like(order)
    inverse[order] = place[np.cumsum(new) - 1]
    return first[by_first], inverse


def nested_subset(labels: Sequence[Any] | np.ndarray | None, n: int, limit: int, seed: int = 0) -> np.ndarray:
    """Row numbers of a seeded, stratified, nested subset, sorted; int64, (min(limit, n),).

    Each class's rows are shuffled and spread evenly over [0, 1); the subset is the ``limit`` smallest.
    So the first 1,000 are among the first 10,000, and each prefix holds the classes in proportion.
    """
    return np.sort(nested_order(labels, n, seed)[:limit])


def nested_order(labels: Sequence[Any] | np.ndarray | None, n: int, seed: int = 0) -> np.ndarray:
    """Row numbers in an order of which every beginning is such a subset; int64, (n,)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    if labels is None:
        return order
    _, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    shuffled = codes[order]
    by_class = np.argsort(shuffled, kind="stable")
    sizes = np.bincount(shuffled)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(n)
    rank[by_class] = np.arange(n) - np.repeat(starts, sizes)
    place = (rank + rng.random(len(sizes))[shuffled]) / sizes[shuffled]
    return np.asarray(order[np.argsort(place, kind="stable")])


def save(table: SampleTable, folder: Path) -> None:
    """Write ``samples.parquet`` and one ``items.<modality>.parquet`` per modality, each in one step.

    Items that only the samples of before refer to go last, so that a crash in between leaves tables that agree.
    """
    former = {modality: _former_items(folder, modality, items) for modality, items in table.items.items()}
    for modality, items in table.items.items():
        gone = former[modality]
        both = items if gone is None else pa.concat_tables([items, gone], promote_options="permissive")
        write_parquet(items_path(folder, modality), both)
    write_parquet(folder / _SAMPLES, table.samples)
    for modality, items in table.items.items():
        if former[modality] is not None:
            write_parquet(items_path(folder, modality), items)


def _former_items(folder: Path, modality: Modality, items: pa.Table) -> pa.Table | None:
    """Items on disk that are not among ``items``; None where there are none."""
    path = items_path(folder, modality)
    if not path.exists():
        return None
    try:
        old = read_parquet(path)
    except DamagedFileError:
        return None
    if "id" not in old.column_names or combined(old["id"]).equals(combined(items["id"])):
        return None
    gone = old.filter(pc.invert(pc.is_in(old["id"], value_set=combined(items["id"]))))
    return gone if gone.num_rows else None


def load(folder: Path, notes: Sequence[str] = ()) -> SampleTable:
    """Read what ``save`` wrote. Raises DamagedFileError where a table cannot be read."""
    samples = read_parquet(folder / _SAMPLES)
    columns: dict[Modality, str] = {"image": "image", "text": "texts"}
    items = {
        modality: read_parquet(items_path(folder, modality))
        for modality, column in columns.items()
        if column in samples.column_names
    }
    _refuse_other_kinds(samples, {"id": _TEXT, "split": _TEXT}, {"image": _TEXT, "texts": _LIST}, folder / _SAMPLES)
    for modality, table in items.items():
        expected = {"id": _TEXT, "text": _TEXT} if modality == "text" else {"id": _TEXT}
        _refuse_other_kinds(table, expected, {"error": _TEXT}, items_path(folder, modality))
    return SampleTable(samples, items, tuple(notes))


_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
_LIST = (pa.types.is_list, pa.types.is_large_list)


def _refuse_other_kinds(table: pa.Table, needed: Mapping[str, Any], optional: Mapping[str, Any], path: Path) -> None:
    """Columns that this release writes, of the kinds that it writes. Raises DamagedFileError where one is not."""
    for name, kinds in {**needed, **optional}.items():
        found = table.schema.field(name).type if table.column_names.count(name) == 1 else None
        there = name in table.column_names
        if (there or name in needed) and not (found is not None and any(kind(found) for kind in kinds)):
            raise DamagedFileError(f"{path}: its column {name!r} is {found if there else 'missing'}, not as written.")


def items_path(folder: Path, modality: Modality) -> Path:
    """Where the items of one modality stand."""
    return folder / f"items.{modality}.parquet"


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write one Parquet table in one step."""
    with replacing(path) as beside:
        pq.write_table(table, beside, compression="zstd", row_group_size=_ROW_GROUP)


def read_parquet(path: Path) -> pa.Table:
    """Read one Parquet table. Raises DamagedFileError where it is missing or cannot be parsed."""
    try:
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DamagedFileError(f"Cannot read the table {path}: {error}") from error
