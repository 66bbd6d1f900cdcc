"""The token file: the word ids of one data set's texts, rows of any length, and the vocabulary that they count in.

Word ids are cheap, so a file is written whole: under a hidden name, sealed, synced, renamed. A kill leaves the file
that was there before, or none, and a hidden left-over that ``rm --unused`` finds. Userblock, digests and the rules of
reading are those of ``container``; the seal covers every byte outside ``/tokens``, which has a checksum per block.

ARCHITECTURE.md and docs/words.md describe the format for readers in other languages.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from embedcache import container
from embedcache.container import CHANGING, DONE, FORMAT_VERSION, SEAL_DIGEST_AT, TOKENS, Extent, Header, ItemFile
from embedcache.errors import DamagedFileError, EmbedCacheError
from embedcache.files import read_at, reserve, sync_folder, write_at
from embedcache.provenance import canonical_json, fingerprint

KIND: Final = "tokens"
BLOCK_TOKENS: Final = 1 << 20
"""Tokens in a block, 4 MiB; the last block may be shorter."""

DATASETS: Final = (*CHANGING[TOKENS], "offsets", "ids", "vocabulary")
_AT_ONCE: Final = 1 << 16


@dataclass(frozen=True)
class TokenRows:
    """What a token file holds.

    ids: item ids, numpy bytes, (n_items,). content: xxh3-128, uint8, (n_items, 16). status: uint8, (n_items,), done or
    failed. tokens: int32, flat; row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``, a failed row is empty. offsets:
    int64, (n_items + 1,). vocabulary: UTF-8 bytes, (n_words,); a token is a place in it.
    """

    ids: npt.NDArray[np.bytes_]
    content: npt.NDArray[np.uint8]
    status: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    vocabulary: npt.NDArray[np.bytes_]

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not n or not len(self.tokens) or not len(self.vocabulary):
            raise EmbedCacheError(f"A token file needs items and tokens, got {n} and {len(self.tokens)}.")
        if self.content.shape != (n, 16) or self.status.shape != (n,) or self.offsets.shape != (n + 1,):
            raise EmbedCacheError(f"The rows of a token file do not agree: {n} items, {self.status.shape} states.")
        if not rising(self.offsets, len(self.tokens)):
            raise EmbedCacheError("The offsets of a token file must rise from 0 to the number of its tokens.")
        if self.tokens.min() < 0 or self.tokens.max() >= len(self.vocabulary):
            raise EmbedCacheError(f"A token lies outside the vocabulary of {len(self.vocabulary):,} words.")


def rising(offsets: npt.NDArray[np.int64], total: int) -> bool:
    """Whether offsets begin at 0, never fall, and end at ``total``."""
    return offsets[0] == 0 and offsets[-1] == total and not bool((offsets[1:] < offsets[:-1]).any())


def take_rows(
    tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Some rows of a ragged array: (tokens, offsets). A run of consecutive rows is a view."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        bounds = offsets[rows[0] : rows[-1] + 2]
        return tokens[bounds[0] : bounds[-1]], bounds - bounds[0]
    lengths = offsets[rows + 1] - offsets[rows]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    return tokens[np.repeat(offsets[rows], lengths) + within], bounds


# --------------------------------------------------------------------------------------------------------- writing


def write(path: Path, rows: TokenRows, provenance: Mapping[str, Any], record: Mapping[str, Any]) -> TokenFile:
    """Write ``path`` whole, or in the place of the one that is there, in one step. The caller holds the file's lock.

    Raises DiskFullError, with nothing left behind, where it cannot fit.
    """
    for killed in path.parent.glob(f".{glob.escape(path.name)}.*.layout"):
        killed.unlink()
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.layout")
    try:
        with container.laying_out(path):
            extents = _write_hdf5(beside, rows, provenance)
        fd = os.open(beside, os.O_RDWR)
        try:
            reserve(fd, os.fstat(fd).st_size, path)
            write_at(fd, np.ascontiguousarray(rows.tokens, "<i4").data, extents["tokens"].offset)
            _seal(fd, Header(True, extents, record, kind=TOKENS))
        finally:
            os.close(fd)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)
    return TokenFile(path)


def _seal(fd: int, header: Header) -> None:
    """Header, digest, sync: after this only the name is missing."""
    write_at(fd, header.pack(), 0)
    write_at(fd, container.digest_outside(fd, header.holes()), SEAL_DIGEST_AT)
    os.fsync(fd)


def _write_hdf5(path: Path, rows: TokenRows, provenance: Mapping[str, Any]) -> dict[str, Extent]:
    """Everything but the tokens, which are given their place; where the datasets lie."""
    texts = {"ids": rows.ids, "vocabulary": rows.vocabulary}
    numbers = {
        "content": rows.content,
        "status": rows.status,
        "checksum": np.fromiter(_checksums(rows.tokens), "<u8"),
        "offsets": rows.offsets.astype("<i8", copy=False),
    }
    with container.new_hdf5(path) as file:
        placed = {"tokens": container.allocate(file, "tokens", rows.tokens.shape, "<i4")}
        for name, values in numbers.items():
            placed[name] = container.allocate(file, name, values.shape, values.dtype)
            placed[name][...] = values
        for name, texts_of in texts.items():
            kind = h5py.string_dtype("utf-8", max(1, texts_of.dtype.itemsize))
            placed[name] = container.allocate(file, name, texts_of.shape, kind)
            for start in range(0, len(texts_of), _AT_ONCE):
                placed[name][start : start + _AT_ONCE] = texts_of[start : start + _AT_ONCE].astype(kind)
        file.attrs["kind"] = np.bytes_(KIND.encode())
        file.attrs["provenance"] = np.bytes_(canonical_json(provenance).encode())
        file.attrs["fingerprint"] = np.bytes_(fingerprint(provenance).encode())
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        file.attrs["block_length"] = np.int64(BLOCK_TOKENS)
        return {name: container.extent(placed[name]) for name in CHANGING[TOKENS]}


def _checksums(tokens: npt.NDArray[np.int32]) -> Iterator[int]:
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = np.ascontiguousarray(tokens[start : start + BLOCK_TOKENS], "<i4")
        yield xxhash.xxh3_64_intdigest(block.data)


# --------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class TokenLayout:
    """What a token file declares. block_length: tokens in a block."""

    ids: npt.NDArray[np.bytes_]
    n_tokens: int
    n_words: int
    word_bytes: int
    provenance: Mapping[str, Any]
    block_length: int

    @property
    def n_blocks(self) -> int:
        """Blocks of tokens, the last one included where it is shorter."""
        return -(-self.n_tokens // self.block_length)


class TokenFile(ItemFile):
    """A token file, checked and mapped. Raises DamagedFileError for anything but a whole one.

    That every token lies inside the vocabulary is what ``verify`` checks, as it does the checksums.
    """

    kind = TOKENS
    layout: TokenLayout

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not rising(self.offsets, self.layout.n_tokens):
            raise DamagedFileError(f"{path}: its offsets do not rise from 0 to the number of its tokens.")

    def _declared(self, raw: BinaryIO) -> dict[str, Extent]:
        with container.parsing(raw, self.path) as file:
            self.layout, extents = _read_layout(file, self.path, self._bytes)
        return extents

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        return self.layout.n_tokens

    @property
    def n_words(self) -> int:
        """Words of the vocabulary."""
        return self.layout.n_words

    @cached_property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Tokens of all rows, mapped read-only; int32, (n_tokens,)."""
        return self._map("tokens", "<i4", (self.n_tokens,))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``; int64, (n_items + 1,)."""
        return self._map("offsets", "<i8", (self.n_items + 1,))

    @cached_property
    def vocabulary(self) -> npt.NDArray[np.bytes_]:
        """Words by id, UTF-8 bytes, (n_words,)."""
        return self._map("vocabulary", f"S{self.layout.word_bytes}", (self.n_words,))

    @cached_property
    def words(self) -> list[str]:
        """Words by id."""
        return [word.decode(errors="replace") for word in self.vocabulary.tolist()]

    def read_block(self, fd: int, block: int) -> bytes:
        """A block's bytes from a descriptor that ``reading`` gave, never through a map."""
        start = block * self.layout.block_length
        n = min(self.layout.block_length, self.n_tokens - start)
        return read_at(fd, 4 * n, self._extents["tokens"].offset + 4 * start)

    def bad_blocks(self) -> Iterator[int]:
        """Blocks that do not have their checksum."""
        with self.reading() as fd:
            for block in range(self.layout.n_blocks):
                if xxhash.xxh3_64_intdigest(self.read_block(fd, block)) != int(self.checksum[block]):
                    yield block

    def rows(self) -> TokenRows:
        """All that it holds. Raises DamagedFileError where a block does not have its checksum."""
        if bad := list(self.bad_blocks()):
            raise DamagedFileError(
                f"{self.path}: blocks {bad[:3]} do not have their checksums, so no row of it is copied. Remove it "
                f"('python cli.py rm {self.path.parent.name} --features …'), or restore it from a copy; then "
                "extract again."
            )
        return TokenRows(self.ids, self.content, self.status, self.tokens, self.offsets, self.vocabulary)


def keep_rows(found: TokenRows, keep: npt.NDArray[np.int64]) -> TokenRows:
    """Some of the rows, the vocabulary as it is."""
    tokens, offsets = take_rows(found.tokens, found.offsets, keep)
    return replace(
        found,
        ids=found.ids[keep],
        content=found.content[keep],
        status=found.status[keep],
        tokens=tokens,
        offsets=offsets,
    )


def _read_layout(file: h5py.File, path: Path, whole: np.memmap[Any, Any]) -> tuple[TokenLayout, dict[str, Extent]]:
    datasets = container.plain_datasets(file, DATASETS, path)
    if file.attrs["kind"] != KIND.encode():
        raise DamagedFileError(f"{path} says that it is of kind {file.attrs['kind']!r}, expected {KIND!r}.")
    length = container.read_block_length(file, path)
    _check_shapes(datasets, length, path)
    extents = container.whole_extents(datasets, len(whole), path)
    layout = TokenLayout(
        container.view(whole, extents["ids"], f"S{datasets['ids'].dtype.itemsize}"),
        datasets["tokens"].shape[0],
        datasets["vocabulary"].shape[0],
        datasets["vocabulary"].dtype.itemsize,
        container.read_provenance(file, path),
        length,
    )
    return layout, extents


def _check_shapes(datasets: Mapping[str, h5py.Dataset], length: int, path: Path) -> None:
    """Types, ranks and lengths are this format's, and agree."""
    expected = {
        "tokens": (1, ("<i4",)), "offsets": (1, ("<i8",)), "status": (1, ("|u1",)), "content": (2, ("|u1",)),
        "checksum": (1, ("<u8",)),
    }  # fmt: skip
    container.check_kinds(datasets, expected, ("ids", "vocabulary"), path)
    n, n_tokens = datasets["ids"].shape[0], datasets["tokens"].shape[0]
    shapes = {"offsets": (n + 1,), "status": (n,), "content": (n, 16), "checksum": (-(-n_tokens // length),)}
    if not (n and n_tokens and datasets["vocabulary"].shape[0]):
        raise DamagedFileError(f"{path} has no rows, no tokens or no vocabulary.")
    if any(datasets[name].shape != shape for name, shape in shapes.items()):
        raise DamagedFileError(f"{path}: the shapes of its datasets do not agree.")


def status_of(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Done where a row has tokens, failed where it has none; uint8, (rows,)."""
    return np.where(np.diff(offsets) > 0, DONE, container.FAILED).astype(np.uint8)
