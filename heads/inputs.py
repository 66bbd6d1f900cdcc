"""What a head reads of a data set: vectors of feature files, word ids, or the samples' own texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from embedcache.cache import CachedDataset, file_name
from embedcache.errors import UsageError
from embedcache.samples import SampleTable, combined
from embedcache.view import Captions, Features, content_digests
from heads.base import TEXTS, TOKENS, VECTORS, Head, reads
from heads.config import Fusion, HeadConfig
from heads.sequences import check_words, rows_of


def feature_sets(head: Head, dataset: CachedDataset, config: HeadConfig) -> tuple[Features, ...]:
    """The choices of features that a configuration compares; of a head that reads texts, the samples with texts."""
    captions = config.select.captions
    if reads(head) == TEXTS:
        if config.features is not None or config.searches_features:
            raise UsageError(f"The head {head.name!r} reads the texts themselves: it takes no feature sets.")
        if config.axis("transform"):
            raise UsageError(f"The head {head.name!r} reads the texts themselves: there are no transforms to try.")
        return (text_units(dataset.table, captions),)
    chosen = config.axis("features") or (config.features if config.features is not None else [[]])
    opened = dataset.with_words if reads(head) == TOKENS else dataset.features
    sets = tuple(opened(*names, captions=captions) for names in chosen)
    _refuse_doubles(sets)
    if reads(head) == TOKENS:
        for one in sets:
            check_words(head.name, one)
    return sets


def _refuse_doubles(sets: Sequence[Features]) -> None:
    """Raise UsageError where a choice of features would be fitted twice, and compared with itself."""
    seen = set()
    for one in sets:
        marks = tuple(own.file.fingerprint for own in one.sets)
        if marks in seen:
            raise UsageError(f"The features {label_of(one)} are named twice: leave one of them out.")
        seen.add(marks)


def with_each_alone(
    dataset: CachedDataset, sets: tuple[Features, ...], fusion: Fusion, *, searched: bool = False
) -> tuple[Features, ...]:
    """The choices of features; where the fusion asks for it, each feature set that is fused also alone, and first.

    searched: the search chooses among them, as they are listed: none is added.
    Raises UsageError where nothing is fused by a fusion that is more than side by side.
    """
    fused = [one for one in sets if len(one.sets) > 1]
    if fusion.kind != "concat" and not fused:
        raise UsageError(f"'fusion: {fusion.kind}' needs a choice of several feature sets; none has more than one.")
    if searched or not fusion.alone:
        return sets
    alone = {one.sets[0].file.fingerprint: one for one in sets if len(one.sets) == 1}
    for own in (own for one in fused for own in one.sets):
        if own.file.fingerprint not in alone:
            made = dataset.features(f"{file_name(own.file)}@{own.file.fingerprint}", captions=fused[0].captions)
            alone[own.file.fingerprint] = replace(made, sets=(replace(made.sets[0], name=own.name),))
    return (*alone.values(), *fused)


def inputs_for(head: Head, features: Features, *, stored: bool = False) -> Any:
    """What the head is fitted on, a row per unit: float32 (units, sum of dims), or texts, object (units,).

    Where word ids are among the feature sets: ``Sequences``. stored: vectors in the type that they are stored in,
    instead of float32.
    """
    if reads(head) == TEXTS:
        return texts_of(features)
    return features.matrix() if stored and reads(head) == VECTORS else rows_of(features)


def label_of(features: Features) -> str:
    """The feature sets as the tables name them."""
    return " + ".join(features.names) or TEXTS


def transforms_apply(head: Head) -> bool:
    """Whether the configuration's ``transform`` is for this head: texts have no numbers to transform."""
    return reads(head) == VECTORS


def text_units(table: SampleTable, captions: Captions) -> Features:
    """The samples that have a text, without vectors; with ``each`` a unit for each of their texts."""
    if "text" not in table.modalities:
        raise UsageError("The data set has no texts, and the head reads nothing else.")
    _, offsets = table.references("text")
    lengths = np.diff(offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths if captions == "each" else np.minimum(lengths, 1))
    lacking = int((lengths == 0).sum())
    return Features(table, (), rows.astype(np.int64), captions, {"no text": lacking} if lacking else {})


def texts_of(features: Features) -> npt.NDArray[np.object_]:
    """The text of each unit, (units,): a sample's first, one of its texts, or all of them with spaces between.

    By the caption policy ``first``, ``each`` and ``mean``. The units of a sample are all here, in their order.
    """
    rows = np.unique(features.sample_rows)
    references, offsets = features.table.references("text", rows)
    column = combined(features.table.items["text"]["text"])
    texts = column.take(pa.array(references)).to_pylist()
    if features.captions == "each":
        return _objects(texts)
    first = features.captions == "first"
    own = (texts[start : start + 1 if first else end] for start, end in pairwise(offsets.tolist()))
    return _objects([" ".join(one) for one in own])


def _objects(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    return np.fromiter(texts, object, len(texts))


def seen(features: Features) -> pa.Table:
    """``id`` and ``content`` of every sample, as ``content_digests``; of texts, the digest of the texts themselves."""
    if features.sets:
        return content_digests(features)
    whole = Features(features.table, (), np.unique(features.sample_rows), "mean", {})
    digests = [xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass")) for text in texts_of(whole)]
    return pa.table({"id": pa.array(whole.ids, pa.large_string()), "content": pa.array(digests, pa.string())})
