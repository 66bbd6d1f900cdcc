"""Word ids as a data set publishes them: the vocabulary, and each text's list, joined to a sample table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcache.datasets.sampling import GOLDEN, Keys, mixed
from embedcache.datasets.streaming import read_json
from embedcache.errors import UsageError
from embedcache.samples import text_digests

LARGEST_ID = 1 << 24
"""Ids above this are refused: a vocabulary has a word, or a placeholder, for every id up to its largest."""


def read_vocabulary(path: Path) -> dict[int, str]:
    """The word of each id. Raises UsageError where the file holds anything but words with ids of their own."""
    document = read_json(path)
    words = {index: word for word, index in document.items()} if _isread_vocabulary(document) else {}
    if not words or len(words) < len(document):
        raise UsageError(
            f"{path}: expected one JSON object of words, each with its own id from 0 to {LARGEST_ID:,}, such as "
            '{"[PAD]": 0, "[UNK]": 1, "funda": 2}.'
        )
    return words


def _isread_vocabulary(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    ids = all(type(index) is int and 0 <= index <= LARGEST_ID for index in document.values())
    return ids and not any("\ud800" <= letter <= "\udfff" for word in document for letter in word)


def word_column(words: Mapping[int, str], tokens: npt.NDArray[np.int32]) -> pa.LargeStringArray:
    """A word, or a placeholder, for every id up to the largest."""
    size = 1 + max(max(words), int(tokens.max(initial=0)))
    return pa.array([words.get(index, f"<unused {index}>") for index in range(size)], pa.large_string())


class WordLists:
    """Lists of word ids by the text that they are of; where a text has several, the first counts.

    Texts are found by their digests, sorted; of each list a 64-bit sum is kept, which tells whether another differs.
    """

    def __init__(self, texts: pa.Array) -> None:
        digests = text_digests(texts.cast(pa.large_string())).view(np.uint64)
        self._order = np.argsort(digests[:, 0])
        self._digests = digests[self._order]
        self._found = np.zeros(len(texts), bool)
        self._differs = np.zeros(len(texts), bool)
        self._sums = np.zeros(len(texts), np.uint64)
        nothing = np.zeros(0, np.int64)
        self._parts = [(nothing, nothing, np.zeros(0, np.int32))]

    def add(self, titles: pa.LargeStringArray, lists: pa.ListArray, path: Path) -> None:
        """Take the lists of titles that are among the texts. Raises UsageError for an id that is none."""
        lengths, flat = np.asarray(pc.list_value_length(lists)).astype(np.int64), np.asarray(lists.flatten())
        ends = np.cumsum(lengths)
        if len(bad := np.flatnonzero((flat < 0) | (flat > LARGEST_ID))):
            title = titles[int(np.searchsorted(ends, bad[0], "right"))].as_py()
            raise UsageError(
                f"{path}: the title {title!r} has the word id {flat[bad[0]]}: expected 0 to {LARGEST_ID:,}."
            )
        rows, sums = self._rows_of(text_digests(titles)), _sums(flat, lengths, ends)
        here = np.flatnonzero(rows >= 0)
        texts, first = np.unique(rows[here], return_index=True)
        new = ~self._found[texts]
        texts, taken = texts[new], here[first[new]]
        self._found[texts], self._sums[texts] = True, sums[taken]
        self._differs[rows[here][self._sums[rows[here]] != sums[here]]] = True
        self._parts.append((texts, lengths[taken], _picked(flat, (ends - lengths)[taken], lengths[taken])))

    def joined(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """All lists in the order of the texts: (tokens, offsets); empty where a text has none."""
        rows, lengths, flat = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        order = np.argsort(rows)
        by_row = np.zeros(len(self._found), np.int64)
        by_row[rows] = lengths
        tokens = _picked(flat, (np.cumsum(lengths) - lengths)[order], lengths[order])
        return tokens, np.concatenate([[0], np.cumsum(by_row)])

    def notes(self) -> tuple[str, ...]:
        """What was not as expected, counted."""
        differ, lack = int(self._differs.sum()), int((~self._found).sum())
        notes = [f"{differ:,} texts have several lists of word ids: the first is used"] if differ else []
        return (*notes, *([f"{lack:,} texts have no word ids in the published files"] if lack else []))

    def _rows_of(self, digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """The text's row of each digest, -1 where it is of none."""
        halves = digests.view(np.uint64)
        rows = np.full(len(halves), -1, np.int64)
        places = np.searchsorted(self._digests[:, 0], halves[:, 0])
        left = np.arange(len(halves))
        while len(left := left[places[left] < len(self._order)]):  # another round only where first halves collide
            found = self._digests[places[left]]
            left, found = left[same := found[:, 0] == halves[left, 0]], found[same]
            right = found[:, 1] == halves[left, 1]
            rows[left[right]] = self._order[places[left[right]]]
            left = left[~right]
            places[left] += 1
        return rows


def _sums(flat: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Keys:
    """A number of each list that another list hardly has: the sum of its ids, each mixed with its place."""
    places = np.arange(len(flat)) - np.repeat(ends - lengths, lengths)
    scattered = mixed(flat.astype(np.uint64) + places.astype(np.uint64) * GOLDEN + np.uint64(1))
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(scattered, dtype=np.uint64)])
    found: Keys = running[ends] - running[ends - lengths]
    return found


def _picked(
    flat: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """The lists that begin at ``starts``, one after the other."""
    ends = np.cumsum(lengths)
    places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    found: npt.NDArray[np.int32] = flat[places]
    return found
