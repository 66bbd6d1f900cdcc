"""From a fitted head to labels: of cached samples, or of photos and texts that no cache has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache.cache import CachedDataset
from embedcache.encoding import EncoderReference, Encodings, OpenedEncoder, WordEncodings, encode_words
from embedcache.errors import AllItemsFailedError, UsageError
from embedcache.options import Options
from embedcache.provenance import Modality
from embedcache.view import CAPTIONS, Features
from heads.base import TEXTS
from heads.inputs import seen as seen_now
from heads.inputs import text_units, texts_of
from heads.kinds import KindName
from heads.saved import FeatureBinding, FittedHead, check_names, label_sets
from heads.sequences import Sequences, rows_of
from heads.thresholds import Flags, decide

TOP = 5
AT_ONCE = 8192
"""Rows of a data set that are predicted at once: no more of their vectors are in memory."""
Empty = Literal["top", "keep"]


@dataclass(frozen=True)
class Predictions:
    """Labels with probabilities. ids: (n,). probabilities: (n, classes). failures: id to reason, not among ``ids``.

    kind, thresholds: the head's. filled: id to what stood in for features that it lacks. empty: what a row of the kind
    ``multi`` gets that reaches no threshold: its most probable label (``top``), or none (``keep``).
    """

    ids: tuple[str, ...]
    classes: tuple[Any, ...]
    probabilities: npt.NDArray[np.float64]
    failures: Mapping[str, str]
    kind: KindName = "single"
    thresholds: tuple[float, ...] = ()
    filled: Mapping[str, str] = field(default_factory=dict)
    empty: Empty = "top"

    @cached_property
    def reached(self) -> Flags:
        """What is predicted by itself, bool (n, classes): the most probable class, or what reaches its threshold."""
        if self.kind == "multi":
            return decide(self.probabilities, self.thresholds)
        return self._most_probable()

    @property
    def bare(self) -> Flags:
        """Rows that reach no threshold, bool (n,)."""
        return np.asarray(~self.reached.any(1))

    def _most_probable(self) -> Flags:
        return np.asarray(np.arange(len(self.classes)) == self.probabilities.argmax(1)[:, None])

    def labels(self) -> list[list[Any]]:
        """The labels of each id, in the order of the classes."""
        flags = self.reached
        if self.empty == "top":
            flags = flags | (self.bare[:, None] & self._most_probable())
        return list(label_sets(self.classes, flags))

    def top(self, k: int = TOP) -> list[list[tuple[Any, float]]]:
        """The ``k`` most probable labels of each id with their probabilities, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.classes[code], float(row[code])) for code in codes]
            for codes, row in zip(order, self.probabilities, strict=True)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """A mapping per id, for JSON.

        label, probability, the five most probable labels and their probabilities; of the kind ``multi`` the labels and
        the probability of each label there is. filled: None, or what stood in for features that it lacks.
        """
        filled = [self.filled.get(name) for name in self.ids]
        if self.kind == "single":
            rows = self._table().to_pylist()
            return [{**row, "filled": reason} for row, reason in zip(rows, filled, strict=True)]
        names = [str(label) for label in self.classes]
        return [
            {
                "id": name,
                "labels": [str(label) for label in own],
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
                "filled": reason,
            }
            for name, own, row, reason in zip(self.ids, self.labels(), self.probabilities, filled, strict=True)
        ]

    def _table(self) -> pa.Table:
        best = self.top()
        return pa.table({
            "id": pa.array(self.ids, pa.string()),
            "label": pa.array([str(row[0][0]) for row in best], pa.string()),
            "probability": pa.array([row[0][1] for row in best], pa.float64()),
            "top_classes": pa.array([[str(label) for label, _ in row] for row in best], pa.list_(pa.string())),
            "top_probabilities": pa.array([[p for _, p in row] for row in best], pa.list_(pa.float64())),
        })  # fmt: skip


class ItemPredictor:
    """A head with its encoders loaded: photos and texts to labels, batch after batch.

    checkpoints: by feature set, the folder or weight file of an encoder that came from one. Raises UsageError where
    an encoder on this machine is another one than the head was fitted on, naming both fingerprints, and
    UnknownNameError for a checkpoint of a feature set that the head does not have.
    """

    def __init__(
        self, head: FittedHead, *, checkpoints: Mapping[str, str] | None = None, options: Options | None = None
    ) -> None:
        self.head = head
        check_names(checkpoints or {}, [one.name for one in head.features])
        self._encoders = [None if one.words else _opened(one, checkpoints or {}, options) for one in head.features]

    def predict(
        self,
        images: Sequence[Path | None] = (),
        texts: Sequence[str | None] = (),
        ids: Sequence[str] | None = None,
    ) -> Predictions:
        """Labels of one batch. The i-th image belongs to the i-th text; each is encoded once, however often it occurs.

        None is an image or a text that is missing: its row is named among the failures. ids: names of the rows; by
        default the images, or the texts where the head takes no images.
        """
        given: dict[str, Sequence[Any]] = {"image": images, "text": texts}
        needed = self.head.modalities
        _refuse_mismatch(self.head, given, needed)
        n = len(given[next(iter(needed))])
        names = list(ids) if ids is not None else [_name(given, needed, row) for row in range(n)]
        if self.head.reads == TEXTS:
            return self._of_texts(texts, names)
        found = [
            _words(self.head, one, texts) if encoder is None else _encoded(encoder, one, given[one.modality])
            for encoder, one in zip(self._encoders, self.head.features, strict=True)
        ]
        failures = {names[row]: reason for one in found for row, reason in one.failures.items()}
        kept = [row for row in range(n) if not any(row in one.failures for one in found)]
        probabilities = np.zeros((0, len(self.head.classes)))
        if kept:
            probabilities = self.head.predict_proba(_side_by_side(self.head, found, n)[np.array(kept)])
        own = tuple(names[row] for row in kept)
        return Predictions(own, self.head.classes, probabilities, failures, self.head.kind, self.head.thresholds)

    def _of_texts(self, texts: Sequence[str | None], names: Sequence[str]) -> Predictions:
        """A head that reads the texts themselves."""
        failures = {
            name: "the text is empty" for name, text in zip(names, texts, strict=True) if not (text or "").strip()
        }
        kept = [row for row, name in enumerate(names) if name not in failures]
        probabilities = np.zeros((0, len(self.head.classes)))
        if kept:
            probabilities = self.head.predict_proba(np.array([texts[row] for row in kept], object))
        own = tuple(names[row] for row in kept)
        return Predictions(own, self.head.classes, probabilities, failures, self.head.kind, self.head.thresholds)


def predict_items(
    head: FittedHead,
    images: Sequence[Path] = (),
    texts: Sequence[str] = (),
    *,
    checkpoints: Mapping[str, str] | None = None,
    options: Options | None = None,
) -> Predictions:
    """Labels of photos and texts through the same backbones. The i-th image belongs to the i-th text.

    checkpoints: by feature set, the folder or weight file of an encoder that came from one. Raises UsageError where a
    modality that the head needs is missing, or where an encoder on this machine is another one; AllItemsFailedError
    where nothing could be encoded.
    """
    _refuse_mismatch(head, {"image": images, "text": texts}, head.modalities)
    _refuse_hopeless(head, images, texts)
    found = ItemPredictor(head, checkpoints=checkpoints, options=options).predict(images, texts)
    if not found.ids:
        raise _nothing_encoded(found.failures)
    return found


def _nothing_encoded(failures: Mapping[str, str]) -> AllItemsFailedError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
    return AllItemsFailedError(f"Nothing could be encoded: {reasons}")


def _refuse_hopeless(head: FittedHead, images: Sequence[Path], texts: Sequence[str]) -> None:
    """Raise AllItemsFailedError for items of which none is there, before an encoder is loaded for them."""
    given: dict[str, Sequence[Any]] = {"image": images, "text": texts}
    lacking = {"image": [not path.is_file() for path in images], "text": [not text.strip() for text in texts]}
    reasons = {"image": "the file is missing", "text": "the text is empty"}
    for modality in sorted(head.modalities):
        if all(lacking[modality]):
            names = [_name(given, {modality}, row) for row in range(len(given[modality]))]
            raise _nothing_encoded(dict.fromkeys(names, reasons[modality]))


def merged(parts: Sequence[Predictions]) -> Predictions:
    """Batches of one head as one, in their order; at least one."""
    failures = {name: reason for one in parts for name, reason in one.failures.items()}
    ids = tuple(name for one in parts for name in one.ids)
    return replace(parts[0], ids=ids, probabilities=np.vstack([one.probabilities for one in parts]), failures=failures)


def _side_by_side(head: FittedHead, found: Sequence[Encodings | WordEncodings], n: int) -> Any:
    """What the head reads of ``n`` items."""
    vectors = [one.vectors.astype(np.float32) for one in found if isinstance(one, Encodings)]
    matrix = np.hstack(vectors) if vectors else np.zeros((n, 0), np.float32)
    for one, binding in zip(found, head.features, strict=True):
        if isinstance(one, WordEncodings):
            return _sequences(head, binding, one.tokens, one.offsets, matrix)
    return matrix


def _sequences(
    head: FittedHead,
    binding: FeatureBinding,
    tokens: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    matrix: npt.NDArray[Any],
) -> Sequences:
    words = head.vocabulary
    return Sequences.of(tokens, offsets, len(words), matrix, words, binding.fingerprint)


def _refuse_mismatch(head: FittedHead, given: Mapping[str, Sequence[Any]], needed: Set[str]) -> None:
    features = " + ".join(f"{one.name} ({one.modality})" for one in head.features) or TEXTS
    for modality, items in given.items():
        if modality in needed and not len(items):
            raise UsageError(f"The head was fitted on {features}: it needs {modality}s, and none is given.")
        if modality not in needed and len(items):
            raise UsageError(f"The head was fitted on {features}: it takes no {modality}s.")
    if len({len(given[modality]) for modality in needed}) > 1:
        counts = ", ".join(f"{len(given[modality])} {modality}s" for modality in sorted(needed))
        raise UsageError(f"Images and texts belong together one by one; got {counts}.")


def _name(given: Mapping[str, Sequence[Any]], needed: Set[str], row: int) -> str:
    """The item itself; of one that is blank or missing, its number."""
    modality = "image" if "image" in needed else "text"
    item = given[modality][row]
    return str(item) if item is not None and str(item).strip() else f"{modality} {row + 1}"


def _opened(binding: FeatureBinding, checkpoints: Mapping[str, str], options: Options | None) -> OpenedEncoder:
    reference = EncoderReference(
        binding.backbone, binding.settings, binding.compute, binding.stored, binding.fingerprint
    )
    modality: Modality = "image" if binding.modality == "image" else "text"
    return OpenedEncoder(reference, modality, checkpoint=checkpoints.get(binding.name), options=options)


def _words(head: FittedHead, binding: FeatureBinding, texts: Sequence[str | None]) -> WordEncodings:
    """Word ids of texts by the head's own vocabulary; missing texts are failures."""
    own = [text or "" for text in texts]
    found = encode_words(binding.backbone, binding.settings, binding.fingerprint, head.vocabulary, own)
    missing = {row: "it has no text" for row, text in enumerate(texts) if text is None}
    return replace(found, failures={**found.failures, **missing})


def _encoded(encoder: OpenedEncoder, binding: FeatureBinding, items: Sequence[Any]) -> Encodings:
    """Vectors (n, dim) of items, each different one encoded once; missing ones are failures."""
    place = {item: row for row, item in enumerate(dict.fromkeys(item for item in items if item is not None))}
    failures = {row: f"it has no {binding.modality}" for row, item in enumerate(items) if item is None}
    vectors = np.zeros((len(items), binding.dim), binding.stored)
    if place:
        found = encoder.encode(list(place))
        rows = {row: place[item] for row, item in enumerate(items) if item is not None}
        failures |= {row: found.failures[own] for row, own in rows.items() if own in found.failures}
        if good := [row for row in rows if row not in failures]:
            vectors[good] = found.vectors[[rows[row] for row in good]]
    return Encodings(vectors, failures)


def predict_dataset(
    head: FittedHead,
    dataset: CachedDataset,
    split: str | None = None,
    seen: pa.Table | None = None,
    *,
    fill: bool = False,
    progress: bool = False,
) -> Predictions:
    """Labels of a cached data set's samples, or of one split, in the data set's order.

    Samples without all features are named as failures. With ``fill`` they are predicted too, from what they have: in
    place of each feature set that one lacks stands the mean vector of the training rows, and where it lacks all of
    them, the share of the training samples that have each label is its answer. ``filled`` names them then.

    seen: what a run saw (its ``seen.parquet``); only samples that are new since, or whose items have changed, are
    predicted then. Raises MissingFeaturesError where the cache lacks a feature set that the head was fitted on.
    """
    captions = next(policy for policy in CAPTIONS if policy == head.captions)
    queries = [f"{one.name.partition('@')[0]}@{one.fingerprint}" for one in head.features]
    if head.reads == TEXTS:
        features = text_units(dataset.table, captions)
    else:
        features = dataset.with_words(*queries, captions=captions)
    head.check(features)
    whole = Features(dataset.table, (), np.arange(dataset.table.samples.num_rows), "mean", {})
    wanted = _of_split(whole, split)
    chosen = features if split is None else features.take(features.splits == split)
    if seen is not None:
        chosen, wanted = _news(chosen, wanted, seen)
    probabilities, samples = _mean_per_sample(head, chosen, progress)
    lacking = np.setdiff1d(wanted.sample_rows, samples)
    failures, filled = dict.fromkeys(map(str, whole.ids[lacking]), "it lacks features"), {}
    if fill and len(lacking):
        added, reasons = _filled(head, dataset, queries, lacking)
        filled, failures = dict(zip(failures, reasons, strict=True)), {}
        samples = np.concatenate([samples, lacking])
        order = np.argsort(samples)
        samples, probabilities = samples[order], np.concatenate([probabilities, added])[order]
    ids = tuple(map(str, whole.ids[samples]))
    return Predictions(ids, head.classes, probabilities, failures, head.kind, head.thresholds, filled)


def _filled(
    head: FittedHead, dataset: CachedDataset, queries: Sequence[str], samples: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Probabilities (n, classes) of samples that lack feature sets, and what stood in for those of each.

    Several captions are averaged here under every policy but ``first``: what is missing is coarser than that.
    """
    if head.reads == TEXTS:
        return np.tile(np.array(head.prior), (len(samples), 1)), ["the training labels' shares"] * len(samples)
    if len(head.mean) != sum(one.dim for one in head.features) or not head.prior:
        raise UsageError(
            f"{len(samples)} samples lack features, and the head, saved by an earlier release, does not know what to "
            "put in their place: fit it again."
        )
    x = np.tile(np.array(head.mean, np.float32), (len(samples), 1))
    lacks = np.ones((len(samples), len(queries)), bool)
    ends = np.cumsum([one.dim for one in head.features])
    rows: Any = x
    for number, (query, one) in enumerate(zip(queries, head.features, strict=True)):
        own = dataset.with_words(query, captions="first" if one.words or head.captions == "first" else "mean")
        have = np.isin(samples, own.sample_rows)
        taken = own.take(np.searchsorted(own.sample_rows, samples[have]))
        if one.words:
            words = rows_of(taken)
            lengths = np.zeros(len(samples), np.int64)
            lengths[have] = words.lengths
            rows = _sequences(head, one, words.tokens, np.concatenate([[0], np.cumsum(lengths)]), x)
        else:
            x[have, ends[number] - one.dim : ends[number]] = taken.matrix(np.float32)
        lacks[:, number] = ~have
    probabilities = head.predict_proba(rows)
    probabilities[lacks.all(1)] = head.prior
    return probabilities, [_stand_in(head.features, row) for row in lacks]


def _stand_in(features: Sequence[FeatureBinding], lacks: Flags) -> str:
    if lacks.all():
        return "the training labels' shares"
    lacking = [features[int(number)] for number in np.flatnonzero(lacks)]
    means = " and ".join(one.name.partition("@")[0] for one in lacking if not one.words)
    said = [f"the training mean of {means}"] if means else []
    return " and ".join([*said, *("no words" for one in lacking if one.words)])


def _news(features: Features, wanted: Features, seen: pa.Table) -> tuple[Features, Features]:
    """The units, and the samples, that are new since or have changed since."""
    before = dict(zip(seen["id"].to_pylist(), seen["content"].to_pylist(), strict=True))
    now = seen_now(features)
    same = {
        name for name, digest in zip(now["id"].to_pylist(), now["content"].to_pylist(), strict=True)
        if before.get(name) == digest
    }  # fmt: skip
    have = set(features.ids)
    fresh = np.array([name not in same for name in features.ids], bool)
    missing = np.array([name not in before and name not in have for name in wanted.ids], bool)
    changed = np.isin(wanted.sample_rows, features.sample_rows[fresh])
    return features.take(fresh), wanted.take(missing | changed)


def _of_split(features: Features, split: str | None) -> Features:
    if split is None:
        return features
    chosen = features.take(features.splits == split)
    if not len(chosen):
        known = ", ".join(sorted({str(name) for name in features.splits if name is not None})) or "none"
        raise UsageError(f"The data set has no samples in the split {split!r}. Its splits: {known}.")
    return chosen


def _mean_per_sample(
    head: FittedHead, features: Features, progress: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Probabilities averaged over a sample's units (captions), and the samples they are of.

    progress: show a bar on stderr where there is more than one batch of units.
    """
    from tqdm import tqdm

    if not len(features):
        return np.zeros((0, len(head.classes))), np.zeros(0, np.int64)
    samples, inverse = np.unique(features.sample_rows, return_inverse=True)
    mean = np.zeros((len(samples), len(head.classes)))
    silent = not progress or len(features) <= AT_ONCE
    with tqdm(total=len(features), unit=" rows", desc="predict", disable=silent, dynamic_ncols=True) as bar:
        for start in range(0, len(features), AT_ONCE):
            units = np.arange(start, min(start + AT_ONCE, len(features)))
            part = features.take(units)
            np.add.at(
                mean, inverse[units], head.predict_proba(texts_of(part) if head.reads == TEXTS else rows_of(part))
            )
            bar.update(len(units))
    return mean / np.bincount(inverse)[:, None], samples
