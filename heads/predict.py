"""From a fitted head to labels: of cached samples, or of photos and texts that no cache has seen."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache.cache import CachedDataset
from embedcache.encoding import EncoderReference, Encodings, encode
from embedcache.errors import AllItemsFailedError, UsageError
from embedcache.files import replacing
from embedcache.options import Options
from embedcache.provenance import Modality
from embedcache.view import CAPTIONS, Features, content_digests
from heads.saved import FeatureBinding, FittedHead

TOP = 5


@dataclass(frozen=True)
class Predictions:
    """Labels with probabilities. ids: (n,). probabilities: (n, classes). failures: id to reason, not among ``ids``."""

    ids: tuple[str, ...]
    classes: tuple[Any, ...]
    probabilities: npt.NDArray[np.float64]
    failures: Mapping[str, str]

    def top(self, k: int = TOP) -> list[list[tuple[Any, float]]]:
        """The ``k`` most probable labels of each id with their probabilities, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.classes[code], float(row[code])) for code in codes]
            for codes, row in zip(order, self.probabilities, strict=True)
        ]

    def table(self) -> pa.Table:
        """One row per id: label, probability, the five most probable labels and their probabilities."""
        best = self.top()
        return pa.table({
            "id": pa.array(self.ids, pa.string()),
            "label": pa.array([str(row[0][0]) for row in best], pa.string()),
            "probability": pa.array([row[0][1] for row in best], pa.float64()),
            "top_classes": pa.array([[str(label) for label, _ in row] for row in best], pa.list_(pa.string())),
            "top_probabilities": pa.array([[p for _, p in row] for row in best], pa.list_(pa.float64())),
        })  # fmt: skip


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
    given: dict[str, Sequence[Any]] = {"image": images, "text": texts}
    needed = {one.modality for one in head.features}
    _refuse_mismatch(head, given, needed)
    n = len(given[next(iter(needed))])
    ids = [_name(given, needed, row) for row in range(n)]
    found = [_encoded(one, given[one.modality], checkpoints or {}, options) for one in head.features]
    failures = {ids[row]: reason for one in found for row, reason in one.failures.items()}
    kept = [row for row in range(n) if not any(row in one.failures for one in found)]
    if not kept:
        raise AllItemsFailedError("Nothing could be encoded: " + "; ".join(f"{k}: {v}" for k, v in failures.items()))
    matrix = np.hstack([one.vectors[kept].astype(np.float32) for one in found])
    return Predictions(tuple(ids[row] for row in kept), head.classes, head.predict_proba(matrix), failures)


def _refuse_mismatch(head: FittedHead, given: Mapping[str, Sequence[Any]], needed: set[str]) -> None:
    features = " + ".join(f"{one.name} ({one.modality})" for one in head.features)
    for modality, items in given.items():
        if modality in needed and not len(items):
            raise UsageError(f"The head was fitted on {features}: it needs {modality}s, and none is given.")
        if modality not in needed and len(items):
            raise UsageError(f"The head was fitted on {features}: it takes no {modality}s.")
    if len({len(given[modality]) for modality in needed}) > 1:
        counts = ", ".join(f"{len(given[modality])} {modality}s" for modality in sorted(needed))
        raise UsageError(f"Images and texts belong together one by one; got {counts}.")


def _name(given: Mapping[str, Sequence[Any]], needed: set[str], row: int) -> str:
    return str(given["image" if "image" in needed else "text"][row])


def _encoded(
    binding: FeatureBinding, items: Sequence[Any], checkpoints: Mapping[str, str], options: Options | None
) -> Encodings:
    reference = EncoderReference(
        binding.backbone, binding.settings, binding.compute, binding.stored, binding.fingerprint
    )
    modality: Modality = "image" if binding.modality == "image" else "text"
    return encode(reference, items, modality, checkpoint=checkpoints.get(binding.name), options=options)


def predict_dataset(
    head: FittedHead, dataset: CachedDataset, split: str | None = None, seen: pa.Table | None = None
) -> Predictions:
    """Labels of a cached data set's samples, or of one split; samples without all features are named as failures.

    seen: what a run saw (its ``seen.parquet``); only samples that are new since, or whose items have changed, are
    predicted then. Raises MissingFeaturesError where the cache lacks a feature set that the head was fitted on.
    """
    captions = next(policy for policy in CAPTIONS if policy == head.captions)
    queries = [f"{one.name.partition('@')[0]}@{one.fingerprint}" for one in head.features]
    features = dataset.features(*queries, captions=captions)
    head.check(features)
    whole = Features(dataset.table, (), np.arange(dataset.table.samples.num_rows), "mean", {})
    chosen, wanted = _of_split(features, split), _of_split(whole, split)
    if seen is not None:
        chosen, wanted = _news(chosen, wanted, seen)
    probabilities, samples = _mean_per_sample(head, chosen)
    lacking = sorted(set(wanted.ids) - set(chosen.ids))
    failures = dict.fromkeys(map(str, lacking), "it lacks features")
    ids = chosen.column("id")
    first = {int(row): str(name) for row, name in zip(chosen.sample_rows, ids, strict=True)}
    return Predictions(tuple(first[int(row)] for row in samples), head.classes, probabilities, failures)


def _news(features: Features, wanted: Features, seen: pa.Table) -> tuple[Features, Features]:
    """The units, and the samples, that are new since or have changed since."""
    before = dict(zip(seen["id"].to_pylist(), seen["content"].to_pylist(), strict=True))
    now = content_digests(features)
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


def _mean_per_sample(head: FittedHead, features: Features) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Probabilities averaged over a sample's units (captions), and the samples they are of."""
    if not len(features):
        return np.zeros((0, len(head.classes))), np.zeros(0, np.int64)
    found = head.predict_proba(features.matrix())
    samples, inverse = np.unique(features.sample_rows, return_inverse=True)
    mean = np.zeros((len(samples), found.shape[1]))
    np.add.at(mean, inverse, found)
    return mean / np.bincount(inverse)[:, None], samples


def write_submission(path: Path, found: Predictions) -> None:
    """``id,label`` rows as CSV, in one step."""
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "label"))
        writer.writerows((name, best[0][0]) for name, best in zip(found.ids, found.top(1), strict=True))
