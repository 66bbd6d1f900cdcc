"""Words as backbones: the mean of a text's word vectors (``glove:``, ``word2vec:``), and word ids (``words``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from embedcache.backbones.base import Backbone, BackboneSettings, Prepared
from embedcache.errors import ItemError, UsageError, unknown_name
from embedcache.provenance import EncoderIdentity, FloatType, Modality
from embedcache.words import RULE, WordVectors, read_vectors, split_words
from embedcache.words.vectors import archive_of

if TYPE_CHECKING:
    import torch

VOCABULARIES: Final = ("training", "published")
"""Whose word ids: of a vocabulary that is built on the training texts, or the data set's own."""


@dataclass(frozen=True)
class WordVectorsBackbone:
    """A text file of word vectors; a text's vector is the mean of its words' vectors.

    Texts are lower-cased where the settings ask for it, and where the vectors have no word with a capital.
    """

    name: str
    settings: BackboneSettings
    path: Path
    modality: Modality = "text"

    @cached_property
    def vectors(self) -> WordVectors:
        """The file, parsed."""
        return read_vectors(self.path)

    @property
    def lowercase(self) -> bool:
        """Whether texts are lower-cased first."""
        return self.settings.lowercase or not self.vectors.cased

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Digests the parsed vectors: the same ones in another format, or packed, are the same."""
        return EncoderIdentity(
            modality="text",
            family="word-vectors",
            weights=self.vectors.digest,
            architecture={"dim": self.vectors.dim},
            pooling="mean",
            preprocessing={"words": RULE, "lowercase": self.lowercase},
        )

    @property
    def record(self) -> dict[str, Any]:
        """Names and counts that cannot change a number."""
        counts = {"duplicates": self.vectors.duplicates, "undecodable": self.vectors.undecodable}
        return {"checkpoint": self.name, "commit": None, "words": len(self.vectors), **counts}

    def load(self, device: str) -> MeanWordVectors:
        """The vectors in float32; ``device`` makes no difference."""
        return MeanWordVectors(self.vectors, lowercase=self.lowercase)


class MeanWordVectors:
    """Means of word vectors. Words without a vector are passed over; a text in which no word has one fails.

    Always on the CPU: to look a few rows up and add them is less work than to bring them to a device.
    """

    def __init__(self, vectors: WordVectors, *, lowercase: bool) -> None:
        import torch

        self.device = torch.device("cpu")
        self.notes: tuple[str, ...] = ()
        self._matrix = vectors.matrix
        self._rows = vectors.rows
        self._lowercase = lowercase

    def cast(self, dtype: FloatType) -> None:
        """Round the vectors to ``dtype``; means are taken in float32."""
        import torch

        self._matrix = torch.from_numpy(self._matrix).to(getattr(torch, dtype)).float().numpy()

    def prepare(self, payloads: Sequence[bytes]) -> list[Prepared | ItemError]:
        """UTF-8 texts to rows of their words."""
        return [self._prepare_one(payload) for payload in payloads]

    def _prepare_one(self, payload: bytes) -> Prepared | ItemError:
        try:
            words = split_words(payload.decode(), lowercase=self._lowercase)
        except UnicodeDecodeError as error:
            return ItemError(f"it is not UTF-8: {error}")
        if not words:
            return ItemError("the text is empty")
        found = [row for row in map(self._rows.get, words) if row is not None]
        if not found:
            return ItemError(f"none of its words ({len(words)}) has a vector")
        return Prepared(np.array(found, np.int64))

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Means (n, dim), float32."""
        import torch

        lengths = np.array([item.length for item in batch])
        vectors = self._matrix[np.concatenate([item.array for item in batch])]
        sums = np.add.reduceat(vectors, np.cumsum(lengths) - lengths, axis=0)
        return torch.from_numpy(sums / lengths[:, None].astype(np.float32))


@dataclass(frozen=True)
class WordIds:
    """Word ids in place of vectors: extraction keeps them ragged, for heads that learn their own embedding.

    vocabulary: one of VOCABULARIES. Its identity lacks the words, which are known only once texts were read.
    """

    name: str
    settings: BackboneSettings
    vocabulary: str
    modality: Modality = "text"

    @property
    def published(self) -> bool:
        """Whether ids and words are the data set's own."""
        return self.vocabulary == "published"

    @property
    def identity(self) -> EncoderIdentity:
        """The rule and its limits."""
        stated = self.settings
        rule = {
            "words": RULE,
            "lowercase": stated.lowercase,
            "min_count": stated.min_count,
            "max_words": stated.max_words,
        }
        preprocessing: Mapping[str, Any] = {"words": "published"} if self.published else rule
        return EncoderIdentity("text", "words", "none", {}, "none", preprocessing, layer="none")

    @property
    def record(self) -> dict[str, Any]:
        """Names that cannot change an id."""
        return {"checkpoint": f"words:{self.vocabulary}", "commit": None}

    def load(self, device: str) -> NoReturn:
        """Raises UsageError: there is nothing to run."""
        raise UsageError(f"{self.name} gives word ids, not vectors: 'extract' makes them, tokens() reads them.")


def resolve(name: str, checkpoint: str, settings: BackboneSettings) -> Backbone:
    """Word ids by whose vocabulary, or a file of word vectors by its path (``weights`` in its place).

    Raises UsageError for another vocabulary, CheckpointNotFoundError where there is no such file.
    """
    if name == "words" or name.startswith("words:"):
        if checkpoint not in VOCABULARIES:
            raise unknown_name("vocabulary", checkpoint, VOCABULARIES)
        return WordIds(name, settings, checkpoint)
    path = Path(settings.weights or checkpoint).expanduser()
    archive_of(path)
    return WordVectorsBackbone(name, settings, path)
