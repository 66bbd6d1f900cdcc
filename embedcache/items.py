"""Items as they are on disk now: bytes to read, sizes and times, content digests.

``items.image.parquet`` remembers size, time and digest of every image that was read, so that an unchanged
data set is recognised without reading it again. A digest that is not known is always computed, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from embedcache.errors import ItemError
from embedcache.samples import combined

Digests = npt.NDArray[np.uint8]
Read = Callable[[int], bytes]
ABSENT = -1
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class ItemStates:
    """What is known of items, in one order.

    ids: UTF-8 bytes, (n,). content: xxh3-128, uint8 (n, 16), zeros for what cannot be read.
    known: bool (n,), whether ``content`` is that of the item as it is now. size, mtime_ns: int64 (n,), -1 where
    there is no file (texts have none).
    """

    ids: npt.NDArray[np.bytes_]
    content: Digests
    known: npt.NDArray[np.bool_]
    size: npt.NDArray[np.int64]
    mtime_ns: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


def text_states(ids: npt.NDArray[np.bytes_]) -> ItemStates:
    """Texts are their own digest: an id is the content in hexadecimal digits."""
    raw = np.empty((len(ids), 16), np.uint8)
    for start in range(0, len(ids), _AT_ONCE):
        digits = ids[start : start + _AT_ONCE].tobytes().decode()
        raw[start : start + _AT_ONCE] = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 16)
    absent = np.broadcast_to(np.int64(ABSENT), len(ids))
    return ItemStates(ids, raw, np.ones(len(ids), bool), absent, absent)


def image_states(
    stat: Callable[[str], tuple[int, int]], ids: npt.NDArray[np.bytes_], remembered: pa.Table | None
) -> ItemStates:
    """Sizes and times as ``stat`` says; digests from ``remembered`` where size and time still agree."""
    size = np.full(len(ids), ABSENT, np.int64)
    mtime = np.full(len(ids), ABSENT, np.int64)
    for row, item in enumerate(ids):
        try:
            size[row], mtime[row] = stat(bytes(item).decode())
        except (OSError, ValueError):
            continue
    content = np.zeros((len(ids), 16), np.uint8)
    known = size == ABSENT
    if remembered is not None and "content" in remembered.column_names:
        _recall(ids, size, mtime, content, known, remembered)
    return ItemStates(ids, content, known, size, mtime)


def _recall(
    ids: npt.NDArray[np.bytes_],
    size: npt.NDArray[np.int64],
    mtime: npt.NDArray[np.int64],
    content: Digests,
    known: npt.NDArray[np.bool_],
    remembered: pa.Table,
) -> None:
    """Fill in the digests that were remembered for the same size and time."""
    rows = np.asarray(
        pc.fill_null(pc.index_in(strings(ids), value_set=combined(remembered["id"]).cast(pa.large_string())), -1)
    )
    digests = combined(remembered["content"])
    valid = np.asarray(digests.is_valid())
    raw = np.zeros((len(digests), 16), np.uint8)
    raw[valid] = np.frombuffer(b"".join(digests.drop_null().to_pylist()), np.uint8).reshape(-1, 16)
    old_size, old_mtime = np.asarray(remembered["size"]), np.asarray(remembered["mtime_ns"])
    same = (rows >= 0) & ~known
    same[same] &= valid[rows[same]] & (old_size[rows[same]] == size[same]) & (old_mtime[rows[same]] == mtime[same])
    content[same] = raw[rows[same]]
    known |= same


def with_digests(states: ItemStates, rows: npt.NDArray[np.int64], read: Read, workers: int) -> ItemStates:
    """Read and digest the items at ``rows``, on threads; what cannot be read gets zeros."""
    if not len(rows):
        return states
    content, known = states.content.copy(), states.known.copy()

    def digest(part: npt.NDArray[np.int64]) -> None:
        for row in part.tolist():
            content[row] = np.frombuffer(_digest(read, row), np.uint8)

    parts = [rows[start : start + 1024] for start in range(0, len(rows), 1024)]
    with ThreadPoolExecutor(workers, thread_name_prefix="digest") as pool:
        for _ in pool.map(digest, parts):
            pass
    known[rows] = True
    return ItemStates(states.ids, content, known, states.size, states.mtime_ns)


def _digest(read: Read, row: int) -> bytes:
    try:
        return xxhash.xxh3_128_digest(read(row))
    except ItemError:
        return bytes(16)


def remembering(items: pa.Table, states: ItemStates, previous: pa.Table | None) -> pa.Table:
    """The image items with size, time and digest: those of ``states``, else what ``previous`` remembered."""
    ids = combined(items["id"])
    columns = {"size": pa.int64(), "mtime_ns": pa.int64(), "content": pa.binary(16)}
    known = np.flatnonzero(states.known & (states.size != ABSENT))
    fresh = pa.table({
        "id": strings(states.ids[known]),
        "size": states.size[known],
        "mtime_ns": states.mtime_ns[known],
        "content": _binary(states.content[known]),
    })  # fmt: skip
    sources = [fresh]
    if previous is not None and "content" in previous.column_names:
        sources.append(previous.select(["id", *columns]).cast(fresh.schema))
    together = pa.concat_tables(sources)
    rows = pc.index_in(ids, value_set=combined(together["id"]))
    return pa.table({"id": ids, **{name: combined(together[name]).take(rows) for name in columns}})


def _binary(digests: Digests) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(digests.tobytes())])


def strings(ids: npt.NDArray[np.bytes_]) -> pa.Array:
    """Item ids as an Arrow array of strings."""
    return combined(pa.array(ids, pa.large_binary())).cast(pa.large_string())


def fixed_length(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    """Item ids as fixed-length UTF-8 bytes; read-only, and the column's own bytes where all are of one length."""
    column = combined(ids).cast(pa.large_binary())
    extremes = pc.min_max(pc.binary_length(column))
    longest = max(1, extremes["max"].as_py() or 1)
    if extremes["min"].as_py() == longest and not column.null_count:
        return np.frombuffer(column.buffers()[2], f"S{longest}", len(column), _first_offset(column))
    out = np.empty(len(column), f"S{longest}")
    for start in range(0, len(column), _AT_ONCE):
        out[start : start + _AT_ONCE] = column[start : start + _AT_ONCE].to_pylist()
    out.setflags(write=False)
    return out


def _first_offset(column: pa.LargeBinaryArray) -> int:
    """Where the first value's bytes begin in the column's data."""
    return int(np.frombuffer(column.buffers()[1], np.int64, 1, 8 * column.offset)[0])


def positions(ids: npt.NDArray[np.bytes_], among: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """Row of each id in ``among``, -1 where it is not there; the identity costs nothing."""
    if ids.shape == among.shape and np.array_equal(ids, among):
        return np.arange(len(ids), dtype=np.int64)
    found = pc.index_in(strings(ids), value_set=strings(among))
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def reader_of_images(read: Callable[[str], bytes], ids: npt.NDArray[np.bytes_]) -> Read:
    """Row number to bytes, for images named by ``ids``."""
    return lambda row: read(bytes(ids[row]).decode())


def reader_of_texts(items: pa.Table, rows: Sequence[int] | npt.NDArray[np.int64]) -> Read:
    """Row number to UTF-8 bytes, for texts ``items["text"][rows[i]]``; -1 is a text that is no longer there."""
    column = combined(items["text"])
    errors = combined(items["error"]) if "error" in items.column_names else None

    def read(row: int) -> bytes:
        if rows[row] < 0:
            raise ItemError("the text is no longer in the data set")
        if errors is not None and (reason := errors[int(rows[row])].as_py()) is not None:
            raise ItemError(reason)
        return str(column[int(rows[row])].as_py()).encode("utf-8", "surrogatepass")

    return read
