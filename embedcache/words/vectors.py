"""Word vectors that others have learnt, from text files: GloVe's format and word2vec's.

Both have a word a line and its numbers behind it, spaces between. word2vec's first line says how many words there are
and how many numbers each has; a file of GloVe has no such line. (Pennington et al. 2014: GloVe, Global Vectors for Word
Representation; Mikolov et al. 2013: Efficient Estimation of Word Representations in Vector Space.)
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from embedcache.errors import CheckpointError, CheckpointNotFoundError, unknown_name
from embedcache.words.vocabulary import PADDING_ID

FloatMatrix = npt.NDArray[np.float32]

_AT_ONCE: Final = 8 << 20
_LARGEST: Final = float(np.finfo(np.float32).max)
_OPENERS: Final[Mapping[str, Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class WordVectors:
    """Words with a vector each.

    rows: row of each word. matrix: float32, (words, dim). duplicates: lines whose word had occurred before, left out;
    undecodable: words with bytes that are not UTF-8, which became replacement characters.
    """

    rows: Mapping[str, int]
    matrix: FloatMatrix
    duplicates: int = 0
    undecodable: int = 0

    def __len__(self) -> int:
        return len(self.matrix)

    def __repr__(self) -> str:
        return f"WordVectors({len(self):,} × {self.dim}{'' if self.cased else ', lower case'})"

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self.matrix.shape[1])

    @cached_property
    def cased(self) -> bool:
        """Whether any word has a capital; where none has, texts must be lower-cased to be found."""
        return any(word != word.lower() for word in self.rows)

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of shape, words and numbers, 32 hexadecimal digits; how the file writes them does not enter."""
        state = xxhash.xxh3_128(f"{self.matrix.shape}".encode())
        state.update("\0".join(self.rows).encode())
        state.update(np.ascontiguousarray(self.matrix, "<f4").data)
        return state.hexdigest()


class EmbeddingMatrix(NamedTuple):
    """A vocabulary's vectors. matrix: float32, (words, dim). known: bool (words,), whether a word has a vector."""

    matrix: FloatMatrix
    known: npt.NDArray[np.bool_]

    @property
    def coverage(self) -> float:
        """Share of the words, padding left out, that have a vector."""
        return float(self.known[PADDING_ID + 1 :].mean()) if len(self.known) > 1 else 0.0


def embedding_matrix(
    vocabulary: Sequence[str], vectors: WordVectors, *, unknown: Literal["zeros", "random"] = "zeros", seed: int = 0
) -> EmbeddingMatrix:
    """The vector of each word of a vocabulary, to begin a trainable embedding with; row 0, the padding, is zeros.

    A word is looked up as it is, then in lower case. unknown: rows of words without a vector are zeros, or drawn with
    ``seed`` from a normal distribution of mean 0 and the standard deviation of the known words' numbers (1 / sqrt(dim)
    where none is known).
    """
    if unknown not in ("zeros", "random"):
        raise unknown_name("way to fill unknown rows:", unknown, ("zeros", "random"))
    rows = np.array([_row(vectors.rows, word) for word in vocabulary], np.int64)
    rows[: PADDING_ID + 1] = -1
    known = rows >= 0
    matrix = np.zeros((len(rows), vectors.dim), np.float32)
    matrix[known] = vectors.matrix[rows[known]]
    if unknown == "random":
        scale = float(matrix[known].std()) if known.any() else vectors.dim**-0.5
        drawn = np.random.default_rng(seed).normal(0, scale, matrix.shape).astype(np.float32)
        matrix = np.where(known[:, None], matrix, drawn)
        matrix[PADDING_ID] = 0
    return EmbeddingMatrix(matrix, known)


def _row(rows: Mapping[str, int], word: str) -> int:
    found = rows.get(word, -1)
    return found if found >= 0 else rows.get(word.lower(), -1)


# --------------------------------------------------------------------------------------------------------- reading


def read_vectors(path: str | Path) -> WordVectors:
    """Read a text file of GloVe or word2vec, plain or as ``.gz``, ``.bz2``, ``.xz`` or ``.zip``.

    Of a ``.zip`` with several files, name one as if it were a folder: ``glove.6B.zip/glove.6B.50d.txt``.
    Words may hold spaces (``. . .`` in glove.840B): the numbers are counted from the right. The first of several lines
    with the same word counts. Raises CheckpointNotFoundError where there is no file, CheckpointError with the number of
    the line where one is malformed.
    """
    found = Path(path).expanduser()
    try:
        with _opened(found) as raw:
            return _read(raw, found)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if isinstance(error, CheckpointNotFoundError):
            raise
        raise CheckpointError(f"The word vectors {found} cannot be read: {error}") from error


def archive_of(path: Path) -> Path | None:
    """The ``.zip`` that a path is or leads into; None for a plain file. Raises CheckpointNotFoundError for neither."""
    archive = next((one for one in (path, *path.parents) if one.suffix == ".zip" and one.is_file()), None)
    if archive is None and not path.is_file():
        raise CheckpointNotFoundError(f"There is no file of word vectors {path}.")
    return archive


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    archive = archive_of(path)
    if archive is None:
        with _OPENERS.get(path.suffix, open)(path, "rb") as raw:
            yield raw
        return
    with zipfile.ZipFile(archive) as opened, opened.open(_member(opened, archive, path)) as member:
        yield member  # type: ignore[misc]


def _member(opened: zipfile.ZipFile, archive: Path, path: Path) -> str:
    """The file that is meant of an archive's: the one that is named, or the only one."""
    names = [one.filename for one in opened.infolist() if not one.is_dir()]
    if path != archive:
        inner = path.relative_to(archive).as_posix()
        if inner not in names:
            raise CheckpointNotFoundError(f"{archive} holds no {inner}; it holds {', '.join(names) or 'nothing'}.")
        return inner
    if len(names) != 1:
        listed = ", ".join(f"{archive}/{name}" for name in names) or "nothing"
        raise CheckpointError(f"{archive} holds {len(names)} files; name the one that is meant: {listed}.")
    return names[0]


def _read(raw: BinaryIO, path: Path) -> WordVectors:
    if path.name.removesuffix(".gz").endswith(".bin"):
        raise CheckpointError(
            f"{path} has the ending of word2vec's binary format, which is not read. Save it as text first "
            "(gensim: save_word2vec_format(…, binary=False))."
        )
    first = raw.readline().rstrip(b"\r\n \t")
    stated = _stated(first)
    dim = stated[1] if stated is not None else first.count(b" ")
    if dim < 1:
        raise CheckpointError(f"{path}, line 1: expected a word and its numbers, got {first[:60]!r}.")
    found = _Reading(path, dim)
    if stated is None:
        found.take([first], 1)
    for number, lines in _lines(raw):
        found.take(lines, number)
    if stated is not None and stated[0] != found.n_lines:
        raise CheckpointError(
            f"{path} states {stated[0]:,} words in its first line and has {found.n_lines:,}: it may be cut short."
        )
    return found.vectors()


def _stated(line: bytes) -> tuple[int, int] | None:
    """Words and numbers of each, where a first line states just that: word2vec's."""
    parts = line.split()
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


def _lines(raw: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    """Lines from the second on, some at a time, with the number of the first of them."""
    number, rest = 2, b""
    while data := raw.read(_AT_ONCE):
        *lines, rest = (rest + data).split(b"\n")
        yield number, lines
        number += len(lines)
    yield number, [rest]


class _Reading:
    """Lines becoming words and numbers."""

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim = path, dim
        self.rows: dict[str, int] = {}
        self.blocks: list[FloatMatrix] = []
        self.n_lines = 0
        self.undecodable = 0
        self._columns = [f"{column}" for column in range(dim)]

    def vectors(self) -> WordVectors:
        """All that was taken."""
        duplicates = self.n_lines - len(self.rows)
        return WordVectors(self.rows, np.concatenate(self.blocks), duplicates, self.undecodable)

    def take(self, lines: Sequence[bytes], number: int) -> None:
        """Some lines, the first of them line ``number``; empty ones are passed over."""
        numbers: list[bytes] = []
        places: list[int] = []
        for place, line in enumerate(lines, number):
            stripped = line.rstrip(b" \t\r")
            if not stripped:
                continue
            word, rest = self._divided(stripped, place)
            self.n_lines += 1
            if word not in self.rows:
                self.rows[word] = len(self.rows)
                numbers.append(rest)
                places.append(place)
        if numbers:
            self.blocks.append(self._parsed(numbers, places))

    def _divided(self, line: bytes, place: int) -> tuple[str, bytes]:
        """A line's word and the text of its numbers, which are counted from the right."""
        word, _, rest = line.partition(b" ")
        if rest.count(b" ") != self.dim - 1:
            parts = line.rsplit(b" ", self.dim)
            if len(parts) != self.dim + 1:
                raise self._malformed(place, f"it has {len(parts) - 1} numbers, the lines before it {self.dim}")
            word, rest = parts[0], b" ".join(parts[1:])
        if not word:
            raise self._malformed(place, "there is no word before its numbers")
        try:
            return word.decode(), rest
        except UnicodeDecodeError:
            self.undecodable += 1
            return word.decode(errors="replace"), rest

    def _parsed(self, numbers: Sequence[bytes], places: Sequence[int]) -> FloatMatrix:
        """float32, (lines, dim), by Arrow's parser of numbers, which is many times as fast as Python's."""
        from pyarrow import csv

        try:
            table = csv.read_csv(
                pa.BufferReader(b"\n".join(numbers) + b"\n"),
                csv.ReadOptions(column_names=self._columns),
                csv.ParseOptions(delimiter=" ", quote_char=False),
                csv.ConvertOptions(column_types=dict.fromkeys(self._columns, pa.float32()), null_values=[]),
            )
        except pa.ArrowInvalid as error:
            raise self._not_numbers(numbers, places) from error
        matrix = np.column_stack([column.to_numpy() for column in table.columns])
        if len(matrix) != len(numbers) or not np.isfinite(matrix).all():
            raise self._not_numbers(numbers, places)
        return matrix

    def _not_numbers(self, numbers: Sequence[bytes], places: Sequence[int]) -> CheckpointError:
        """The first line that is not numbers, by Python's own parser."""
        for text, place in zip(numbers, places, strict=True):
            for part in text.split(b" "):
                try:
                    fine = abs(float(part.decode())) <= _LARGEST and b"_" not in part
                except (ValueError, UnicodeDecodeError):
                    fine = False
                if not fine:
                    return self._malformed(place, f"{part[:40]!r} is no number")
        return self._malformed(places[0], f"it, or one of the {len(places)} lines from there on, is not numbers")

    def _malformed(self, place: int, what: str) -> CheckpointError:
        return CheckpointError(f"The word vectors {self.path}, line {place}: {what}.")
