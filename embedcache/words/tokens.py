"""Texts into words, by one rule, a few thousand texts at a time.

The rule: lower-case where that is asked for; Unicode's composed form (NFC); then every run of letters, digits and
underscores is a word, and so is every other visible character by itself. Punctuation stands alone, as in GloVe's lists.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

RULE: Final = "words-1"
"""The name of the rule: it goes into every fingerprint, so a change of the rule is a change of this name."""

_WORD: Final = re.compile(r"\w+|[^\w\s]")
_BETWEEN: Final = "\0"
"""Stands between texts that are split together; it is a word of its own by the rule, and no text may have it."""
_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class Tokenized:
    """Texts as numbers of words, ragged.

    numbers: int32, flat; text ``i`` is ``numbers[offsets[i]:offsets[i + 1]]``. offsets: int64, (texts + 1,).
    words: the distinct words, in the order in which they were first seen; a number is a place in it.
    """

    numbers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    words: list[str]


def split_words(text: str, *, lowercase: bool = False) -> list[str]:
    """The words of one text.

    >>> split_words("¿Qué es?  A 7'' sofa-bed", lowercase=True)
    ['¿', 'qué', 'es', '?', 'a', '7', "'", "'", 'sofa', '-', 'bed']
    """
    return _WORD.findall(_normal(text.replace(_BETWEEN, " "), lowercase))


def tokenize(
    texts: pa.Array, *, lowercase: bool = False, advance: Callable[[int], object] = lambda count: None
) -> Tokenized:
    """Split an Arrow array of texts. advance: called with the number of texts that are done with, now and then."""
    numbering: defaultdict[str, int] = defaultdict(count().__next__)
    _ = numbering[_BETWEEN]
    flat, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(texts), _AT_ONCE):
        some = texts.slice(start, _AT_ONCE).to_pylist()
        found = _WORD.findall(_joined(some, lowercase))
        numbers = np.fromiter(map(numbering.__getitem__, found), np.int32, len(found))
        between = np.flatnonzero(numbers == 0)
        lengths.append(np.diff(np.concatenate([[-1], between, [len(numbers)]])) - 1)
        flat.append(numbers[numbers > 0] - 1)
        advance(len(some))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Tokenized(np.concatenate(flat), offsets.astype(np.int64), list(numbering)[1:])


def _joined(texts: list[str], lowercase: bool) -> str:
    """Texts as one, which is several times as fast to split as each by itself."""
    joined = _BETWEEN.join(texts)
    if joined.count(_BETWEEN) != len(texts) - 1:
        joined = _BETWEEN.join(text.replace(_BETWEEN, " ") for text in texts)
    return _normal(joined, lowercase)


def _normal(text: str, lowercase: bool) -> str:
    return unicodedata.normalize("NFC", text.lower() if lowercase else text)
