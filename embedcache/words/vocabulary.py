"""Which words have an id: the frequent ones, most frequent first; 0 is padding, 1 every other word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from embedcache.errors import UsageError

PADDING_ID: Final = 0
UNKNOWN_ID: Final = 1
SPECIAL: Final = ("<pad>", "<unk>")
"""What the two ids stand for; the rule splits both, so no text has them as a word."""

MAX_WORD_BYTES: Final = 128
"""A longer word never gets an id of its own: every word of a stored vocabulary takes as much room as the longest."""


@dataclass(frozen=True)
class Vocabulary:
    """Words by id. words[0] is padding, words[1] stands for every word that has no id."""

    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of the words in order, 32 hexadecimal digits."""
        return vocabulary_digest(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def of(self, words: Sequence[str]) -> npt.NDArray[np.int32]:
        """Id of each word, 1 where it has none; int32, (words,)."""
        ids = self.ids
        return np.fromiter((ids.get(word, UNKNOWN_ID) for word in words), np.int32, len(words))


def vocabulary_digest(words: Sequence[str]) -> str:
    """xxh3-128 of words in order, 32 hexadecimal digits; every word with its length before it."""
    state = xxhash.xxh3_128()
    for start in range(0, len(words), 1 << 14):
        encoded = (word.encode("utf-8", "surrogatepass") for word in words[start : start + (1 << 14)])
        state.update(b"".join(b"%d:%b" % (len(word), word) for word in encoded))
    return state.hexdigest()


def build_vocabulary(
    words: Sequence[str], counts: npt.ArrayLike, *, min_count: int = 1, max_words: int | None = None
) -> Vocabulary:
    """The words that occur at least ``min_count`` times, by falling count and then alphabetically (by code point).

    counts: how often each word occurs in the training texts, (words,); a word that does not occur never gets an id.
    max_words: at most that many, padding and unknown not counted. Raises UsageError where a limit is below 1.

    >>> build_vocabulary(["b", "a", "c"], [2, 2, 5], min_count=2).words
    ('<pad>', '<unk>', 'c', 'a', 'b')
    """
    if min_count < 1 or (max_words is not None and max_words < 1):
        raise UsageError(f"min_count and max_words must be positive, got {min_count} and {max_words}.")
    often = np.asarray(counts, np.int64)
    kept = [
        (-int(often[place]), words[place])
        for place in np.flatnonzero(often >= min_count).tolist()
        if len(words[place]) * 4 <= MAX_WORD_BYTES or len(words[place].encode()) <= MAX_WORD_BYTES
    ]
    return Vocabulary((*SPECIAL, *(word for _, word in sorted(kept)[:max_words])))
