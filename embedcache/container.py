"""What every file of item rows has in common, whatever it holds of each: userblock, digests, HDF5 as a mere layout.

Before HDF5 begins there is a userblock with everything that can be checked before a byte of HDF5 is parsed: the kind
of file, where the datasets lie whose bytes are checked by themselves, a digest of all the others. ``store`` has vectors
in rows of one width, ``ragged`` has word ids in rows of any length.

ARCHITECTURE.md describes the format for readers in other languages.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from embedcache.errors import DamagedFileError, EmbedCacheError, IncompleteFileError
from embedcache.files import DiskFullError, read_at
from embedcache.provenance import MODALITIES, fingerprint

MAGIC: Final = b"embedcache-hdf5\0"
FORMAT_VERSION: Final = 1
USERBLOCK: Final = 4096
ALIGNMENT: Final = 4096
SEAL_DIGEST_AT: Final = 24

PENDING, DONE, FAILED = 0, 1, 2

VECTORS, TOKENS = 0, 1
CHANGING: Final = {
    VECTORS: ("features", "content", "status", "checksum"),
    TOKENS: ("tokens", "content", "status", "checksum"),
}
"""By kind of file, the datasets that the header places, in its order; the first one has checksums of its own."""

HOLDS: Final = {VECTORS: "vectors", TOKENS: "word ids"}

# magic, format version, sealed (0 or 1), length of the record, seal digest, layout digest,
# extents of CHANGING (offset, bytes), kind
_HEADER: Final = struct.Struct("<16sHHI16s16s8QH")
_RECORD_AT: Final = 256


class Extent(NamedTuple):
    """A run of bytes in a file."""

    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """The offset just past the run."""
        return self.offset + self.nbytes


_SEAL_DIGEST: Final = Extent(SEAL_DIGEST_AT, 16)


@dataclass(frozen=True)
class Header:
    """The userblock: what can be known of a file before HDF5 parses a byte of it.

    layout_digest: xxh3-128 of what never changes after the layout: every byte outside the userblock and
        the datasets that are filled. It guards a ``.partial``, even one whose sealing was cut off.
    seal_digest: xxh3-128 of every byte outside the vectors or tokens, its own 16 bytes taken as zeros.
    record: the run's record (when, how fast, on what) and names; nothing that decides what a vector means.
    """

    sealed: bool
    extents: Mapping[str, Extent]
    record: Mapping[str, Any] = field(default_factory=dict)
    layout_digest: bytes = bytes(16)
    seal_digest: bytes = bytes(16)
    kind: int = VECTORS

    def pack(self) -> bytes:
        """The 4,096 bytes of the userblock."""
        text = json.dumps(self.record, ensure_ascii=False, sort_keys=True).encode()
        if len(text) > USERBLOCK - _RECORD_AT:
            raise EmbedCacheError(f"The run's record takes {len(text)} bytes; {USERBLOCK - _RECORD_AT} fit.")
        numbers = [number for name in CHANGING[self.kind] for number in self.extents[name]]
        head = _HEADER.pack(
            MAGIC, FORMAT_VERSION, self.sealed, len(text), self.seal_digest, self.layout_digest, *numbers, self.kind
        )
        return (head.ljust(_RECORD_AT, b"\0") + text).ljust(USERBLOCK, b"\0")

    @classmethod
    def unpack(cls, block: bytes, path: Path) -> Header:
        """Parse a userblock. Raises DamagedFileError on anything but this format's own bytes."""
        if len(block) < USERBLOCK or not block.startswith(MAGIC):
            raise DamagedFileError(
                f"{path} is not a feature file: it should begin with {MAGIC.rstrip(bytes(1)).decode()!r}."
            )
        _, version, sealed, length, seal_digest, layout_digest, *numbers, kind = _HEADER.unpack_from(block)
        if version != FORMAT_VERSION:
            raise DamagedFileError(
                f"{path} has format version {version}; this release reads {FORMAT_VERSION}. "
                "Read it with the release that wrote it, or extract again."
            )
        if kind not in CHANGING:
            raise DamagedFileError(f"{path} is of kind {kind}; this release knows {', '.join(map(str, CHANGING))}.")
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        extents = {name: Extent(*pair) for name, pair in zip(CHANGING[kind], pairs, strict=True)}
        record = _parse_record(block[_RECORD_AT : _RECORD_AT + length])
        return cls(bool(sealed), extents, record, layout_digest, seal_digest, kind)

    def holes(self) -> list[Extent]:
        """The bytes that the file's digest leaves out: of a sealed file, the vectors or tokens alone."""
        if self.sealed:
            return [self.extents[CHANGING[self.kind][0]], _SEAL_DIGEST]
        return [Extent(0, USERBLOCK), *self.extents.values()]


def _parse_record(text: bytes) -> dict[str, Any]:
    """The record, or nothing where a crash tore it; in a sealed file the digest has vouched for it."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return {}


def read_header(path: Path) -> Header | None:
    """The userblock, unchecked; None where it cannot be read."""
    try:
        with open(path, "rb") as raw:
            return Header.unpack(raw.read(USERBLOCK), path)
    except (DamagedFileError, OSError):
        return None


def digest_outside(fd: int, excluded: Sequence[Extent]) -> bytes:
    """xxh3-128 of a file's bytes outside the ``excluded`` runs."""
    holes = sorted(excluded)
    state = xxhash.xxh3_128()
    position, size = 0, os.fstat(fd).st_size
    for hole in [*holes, Extent(size, 0)]:
        while position < min(hole.offset, size):
            part = read_at(fd, min(1 << 20, hole.offset - position), position)
            state.update(part)
            position += len(part)
        position = max(position, hole.end)
    return state.digest()


# --------------------------------------------------------------------------------------------------------- writing


@contextmanager
def laying_out(path: Path) -> Iterator[None]:
    """HDF5 tells of a full or failing disk in many words, on closing as RuntimeError; here it is an OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if any(f"errno = {code}," in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise DiskFullError(f"No room to lay out {path}. Nothing was written; free some space first.") from error
        raise error if isinstance(error, OSError) else OSError(f"HDF5 could not lay out {path}: {error}") from error


def new_hdf5(path: Path) -> h5py.File:
    """An empty file with a userblock, large datasets aligned to pages."""
    return h5py.File(path, "x", userblock_size=USERBLOCK, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT)


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """A dataset whose bytes are contiguous and there from the start."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist))


def extent(dataset: h5py.Dataset) -> Extent:
    """Where a contiguous dataset lies."""
    return Extent(dataset.id.get_offset(), dataset.id.get_storage_size())


# --------------------------------------------------------------------------------------------------------- reading


class Laid(Protocol):
    """The part of a layout that every kind of file has. ids: UTF-8 bytes, (n_items,)."""

    @property
    def ids(self) -> npt.NDArray[np.bytes_]: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def n_blocks(self) -> int: ...


class ItemFile(ABC):
    """A file with a row per item, checked and mapped: what is the same whatever a row holds.

    ids: item ids, numpy bytes, (n_items,). content: uint8, (n_items, 16). status: uint8, (n_items,).
    """

    kind: int
    layout: Laid

    def __init__(self, path: Path, *, partial: bool = False) -> None:
        self.path = path
        try:
            with open(path, "rb") as raw:
                self._read(raw, partial)
        except FileNotFoundError as error:
            raise DamagedFileError(f"There is no feature file {path}.") from error
        if not partial and self.n_pending:
            raise IncompleteFileError(f"{path} has {self.n_pending} pending rows: run the extraction again.")

    @abstractmethod
    def _declared(self, raw: BinaryIO) -> dict[str, Extent]:
        """Set ``layout`` from the HDF5 metadata, refused unless it is exactly this kind's; where the datasets lie."""

    @abstractmethod
    def bad_blocks(self) -> Iterator[int]:
        """Blocks that do not have their checksum. Reads the file, never through a map."""

    def _read(self, raw: BinaryIO, partial: bool) -> None:
        """Check, parse and map one and the same file, whatever takes its name meanwhile."""
        self.header = self._check_bytes(raw.fileno(), partial)
        found = os.fstat(raw.fileno())
        self.size, self._inode = found.st_size, (found.st_dev, found.st_ino)
        self._bytes = np.memmap(raw, np.uint8, "r")
        self._extents = self._declared(raw)
        for name in CHANGING[self.kind]:
            if self._extents[name] != self.header.extents[name]:
                raise DamagedFileError(f"{self.path}: /{name} does not lie where the header says.")

    def _check_bytes(self, fd: int, partial: bool) -> Header:
        header = Header.unpack(read_at(fd, USERBLOCK, 0), self.path)
        if header.kind != self.kind:
            raise DamagedFileError(f"{self.path} holds {HOLDS[header.kind]}; {HOLDS[self.kind]} are expected.")
        if not header.sealed and not partial:
            raise IncompleteFileError(f"{self.path} is not sealed: run its extraction again to finish it.")
        header = replace(header, sealed=not partial)
        size = os.fstat(fd).st_size
        if any(extent.end > size for extent in header.extents.values()):
            raise DamagedFileError(f"{self.path} is cut short: it has {size:,} bytes and declares more.")
        expected = header.layout_digest if partial else header.seal_digest
        if digest_outside(fd, header.holes()) != expected:
            raise DamagedFileError(
                f"{self.path} is damaged: its metadata does not have the digest that was "
                "written with it. Remove it and extract again, or restore it from a copy."
            )
        return header

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """Item ids in row order, UTF-8 bytes, (n_items,)."""
        return self.layout.ids

    @property
    def provenance(self) -> dict[str, Any]:
        """What the rows mean, as a JSON document."""
        return dict(self.layout.provenance)

    @property
    def fingerprint(self) -> str:
        """The 12 hexadecimal digits of the provenance."""
        return fingerprint(self.layout.provenance)

    @property
    def modality(self) -> str:
        """``image`` or ``text``."""
        return str(self.layout.provenance["modality"])

    @property
    def record(self) -> dict[str, Any]:
        """When, how fast and on what the file was made, and the names it goes by."""
        return dict(self.header.record)

    @property
    def n_items(self) -> int:
        """Rows."""
        return len(self.layout.ids)

    @cached_property
    def content(self) -> npt.NDArray[np.uint8]:
        """xxh3-128 digests of the items' bytes as they were encoded, uint8, (n_items, 16)."""
        return self._map("content", "u1", (self.n_items, 16))

    @cached_property
    def status(self) -> npt.NDArray[np.uint8]:
        """0 pending, 1 done, 2 failed; uint8, (n_items,)."""
        return self._map("status", "u1", (self.n_items,))

    @cached_property
    def checksum(self) -> npt.NDArray[np.uint64]:
        """xxh3-64 of each block, uint64, (n_blocks,)."""
        return self._map("checksum", "<u8", (self.layout.n_blocks,))

    @property
    def n_pending(self) -> int:
        """Rows that wait to be encoded; zero in every sealed file."""
        return int(np.count_nonzero(self.status == PENDING))

    @property
    def n_failed(self) -> int:
        """Rows whose item could not be encoded."""
        return int(np.count_nonzero(self.status == FAILED))

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
        little = np.dtype(dtype).newbyteorder("<")
        shaped: Any = view(self._bytes, self._extents[name], little).reshape(shape)
        found: np.memmap[Any, Any] = shaped
        return found

    @contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor of this very file. Raises DamagedFileError where another has taken its name since."""
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise DamagedFileError(f"{self.path} was removed or sealed while it was open: open it again.") from error
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self._inode:
                raise DamagedFileError(f"{self.path} was replaced while it was open: open it again.")
            yield fd
        finally:
            os.close(fd)

    def ids_of(self, rows: slice) -> Extent:
        """Where the ids of consecutive rows lie in the file."""
        width = self.ids.dtype.itemsize
        return Extent(self._extents["ids"].offset + rows.start * width, (rows.stop - rows.start) * width)


def view(whole: np.memmap[Any, Any], extent: Extent, dtype: npt.DTypeLike) -> np.memmap[Any, Any]:
    """A run of a mapped file's bytes as numbers: one map, and so one descriptor, a file."""
    seen: Any = whole[extent.offset : extent.end].view(dtype)
    found: np.memmap[Any, Any] = seen
    return found


@contextmanager
def parsing(raw: BinaryIO, path: Path) -> Iterator[h5py.File]:
    """The file as HDF5; what the library says of metadata that is none becomes DamagedFileError."""
    try:
        with h5py.File(raw, "r") as file:
            yield file
    except DamagedFileError:
        raise
    except (EmbedCacheError, OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise DamagedFileError(f"{path}: its HDF5 metadata cannot be read ({error}).") from error


def plain_datasets(file: h5py.File, names: Sequence[str], path: Path) -> dict[str, h5py.Dataset]:
    """Exactly the datasets of ``names``, each plain (``_plain_dataset``)."""
    if set(file) != set(names):
        raise DamagedFileError(f"{path} holds {sorted(file)}; a feature file holds {sorted(names)}.")
    return {name: _plain_dataset(file, name, path) for name in names}


def whole_extents(datasets: Mapping[str, h5py.Dataset], size: int, path: Path) -> dict[str, Extent]:
    """Where the datasets lie, all of their bytes inside a file of ``size`` bytes."""
    extents = {name: extent(dataset) for name, dataset in datasets.items()}
    for name, dataset in datasets.items():
        if extents[name].nbytes != math.prod(dataset.shape) * dataset.dtype.itemsize or extents[name].end > size:
            raise DamagedFileError(f"{path} is cut short: /{name} declares more bytes than there are.")
    return extents


def check_kinds(
    datasets: Mapping[str, h5py.Dataset],
    expected: Mapping[str, tuple[int, tuple[str, ...]]],
    texts: Sequence[str],
    path: Path,
) -> None:
    """Ranks and types are as expected, by name; ``texts`` are fixed-length strings, whatever their length."""
    for name, dataset in datasets.items():
        rank, kinds = expected.get(name, (1, ()))
        text = h5py.check_string_dtype(dataset.dtype)
        good = (text is not None and bool(text.length)) if name in texts else dataset.dtype.str in kinds
        if dataset.ndim != rank or not good:
            raise DamagedFileError(f"{path}: /{name} is {dataset.dtype} {dataset.shape}, not of this format.")


def read_block_length(file: h5py.File, path: Path) -> int:
    """The attribute ``block_length``, a positive integer."""
    length = file.attrs["block_length"]
    if not isinstance(length, np.integer) or length < 1:
        raise DamagedFileError(f"{path}: its block length is {length!r}, expected a positive integer.")
    return int(length)


def read_provenance(file: h5py.File, path: Path) -> dict[str, Any]:
    """The provenance, which its fingerprint vouches for."""
    texts = {name: file.attrs[name] for name in ("provenance", "fingerprint")}
    if not all(isinstance(text, bytes) for text in texts.values()):
        raise DamagedFileError(f"{path}: its provenance and fingerprint are not fixed-length texts.")
    provenance = json.loads(texts["provenance"].decode())
    if not isinstance(provenance, dict) or provenance.get("modality") not in MODALITIES:
        raise DamagedFileError(f"{path}: its provenance names no modality of {', '.join(MODALITIES)}.")
    if fingerprint(provenance) != texts["fingerprint"].decode():
        raise DamagedFileError(f"{path}: its fingerprint is not that of its provenance.")
    return provenance


def _plain_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A dataset behind a hard link, contiguous, in this very file; anything else is refused."""
    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise DamagedFileError(f"{path}: /{name} is not a dataset of this file.")
    plist = dataset.id.get_create_plist()
    plain = plist.get_layout() == h5py.h5d.CONTIGUOUS and plist.get_external_count() == 0
    if not plain or dataset.id.get_offset() is None:
        raise DamagedFileError(f"{path}: /{name} is not contiguous bytes of this file.")
    return dataset
