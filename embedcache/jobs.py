"""One data set and one backbone: which items are wanted, what is there already, what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache import items as item_states
from embedcache import samples as tables
from embedcache import store
from embedcache.backbones import slug
from embedcache.backbones.base import Backbone
from embedcache.container import VECTORS, read_header
from embedcache.datasets import image_source
from embedcache.errors import DamagedFileError, ItemError, UsageError
from embedcache.items import ItemStates
from embedcache.opening import OpenedDataset
from embedcache.options import Options, usable_cores
from embedcache.planning import ENCODE, Plan, doubtful, plan
from embedcache.provenance import Modality, Provenance, digest_json
from embedcache.store import FeatureFile

if TYPE_CHECKING:
    from embedcache.backbones.base import Encoder
    from embedcache.engines.base import Engine, Work


@dataclass(frozen=True)
class Job:
    """One data set, one backbone. chosen: the samples whose items are encoded, rows of the table; None for all."""

    opened: OpenedDataset
    backbone: Backbone
    options: Options
    limit: int | None
    seed: int
    chosen: npt.NDArray[np.int64] | None = None

    @property
    def modality(self) -> Modality:
        """What the backbone reads."""
        return self.backbone.modality

    @property
    def workers(self) -> int:
        """Threads that read and decode: as stated, else one per core."""
        return self.options.workers or usable_cores()

    def sample_rows(self) -> np.ndarray | None:
        """The samples whose items are encoded; None for all."""
        n = self.opened.table.samples.num_rows
        if self.limit is None or self.limit >= n:
            return self.chosen
        if self.limit < 1:
            raise UsageError(f"--limit must be positive, got {self.limit}.")
        names = self.opened.table.targets
        labels = self.opened.table.samples[tables.TARGET_PREFIX + names[0]] if names else None
        flat = None if labels is None or pa.types.is_list(labels.type) else np.asarray(labels.cast(pa.string()))
        return tables.nested_subset(flat, n, self.limit, self.seed)

    def lock_path(self) -> Path:
        """What is locked while this encoder's file is written, whatever the precision turns out to be."""
        digest = digest_json([self.backbone.identity.weights, self.backbone.identity.preprocessing], 8)
        return self.opened.folder.path / f"{self.modality}.{slug(self.backbone.name)}.{digest}"


@dataclass(frozen=True)
class Wanted:
    """The items that are wanted: their rows in the item table, their states, and how to read them."""

    rows: npt.NDArray[np.int64]
    states: ItemStates
    read: item_states.Read


def wanted_items(job: Job) -> Wanted:
    """Items in the order of the item table, with what is known of their contents."""
    opened, modality = job.opened, job.modality
    rows = opened.table.used_items(modality, job.sample_rows())
    found = opened.table.items[modality]
    whole = len(rows) == found.num_rows
    ids = item_states.fixed_length(found["id"] if whole else found["id"].take(pa.array(rows)))
    if modality == "text":
        return Wanted(rows, item_states.text_states(ids), item_states.reader_of_texts(found, rows))
    source = image_source(opened.dataset)
    remembered = opened.remembered() if job.options.check == "stat" else None
    states = item_states.image_states(source.stat, ids, remembered)
    return Wanted(rows, states, item_states.reader_of_images(source.read, ids))


@dataclass(frozen=True)
class Found:
    """Feature files of this encoder that are there; what was damaged is said."""

    sealed: FeatureFile | None
    partial: FeatureFile | None
    notes: tuple[str, ...]


def existing(job: Job) -> Found:
    """The sealed and the unfinished file whose provenance satisfies the request."""
    notes: list[str] = []
    sealed = [file for path in job.opened.folder.feature_paths(job.modality) if (file := _satisfying(job, path, notes))]
    partial = [
        file for path in job.opened.folder.partial_paths(job.modality) if (file := _satisfying(job, path, notes))
    ]
    best = max(sealed, key=lambda file: file.n_items, default=None)
    if best is not None:
        partial = [file for file in partial if file.fingerprint == best.fingerprint]
    return Found(best, max(partial, key=lambda file: file.n_items, default=None), tuple(notes))


def _satisfying(job: Job, path: Path, notes: list[str]) -> FeatureFile | None:
    if (header := read_header(path)) is not None and header.kind != VECTORS:
        return None
    try:
        file = FeatureFile(path, partial=path.name.endswith(store.PARTIAL_SUFFIX))
    except DamagedFileError as error:
        notes.append(str(error))
        return None
    return file if satisfies(file, job.backbone, job.options) else None


def satisfies(file: FeatureFile, backbone: Backbone, options: Options) -> bool:
    """Whether a file's vectors are this encoder's, in a precision that is asked for."""
    found = file.provenance
    compute, stored = found.pop("compute"), found.pop("stored")
    wanted = Provenance(backbone.identity, "float32", "float32").to_dict()
    del wanted["compute"], wanted["stored"]
    same = bool(json.loads(json.dumps(wanted)) == found)
    return same and options.precision in ("auto", compute) and options.stored in ("auto", stored)


def decide(job: Job, wanted: Wanted, found: Found) -> tuple[Plan, Wanted]:
    """Digest what is doubtful, then plan."""
    files = [file for file in (found.sealed, found.partial) if file is not None]
    states = item_states.with_digests(wanted.states, doubtful(wanted.states, files), wanted.read, job.workers)
    decided = plan(states, found.sealed, found.partial, retry_failed=job.options.retry_failed)
    return decided, replace(wanted, states=states)


def payloads(decided: Plan, wanted: Wanted, n: int) -> list[bytes]:
    """Bytes of the first few items that can be read."""
    found: list[bytes] = []
    for row in np.flatnonzero(decided.donor == ENCODE)[: 4 * n]:
        try:
            found.append(wanted.read(int(decided.state[row])))
        except ItemError:
            continue
        if len(found) == n:
            break
    return found


def work_of(block: int, rows: npt.NDArray[np.int64], decided: Plan, wanted: Wanted) -> Work:
    """Rows of the file to be, for an engine."""
    from embedcache.engines.base import Work

    return Work(block, rows, lambda row: wanted.read(int(decided.state[row])))


def engine_for(job: Job, encoder: Encoder) -> Engine:
    """The engine that the job's options ask for."""
    from embedcache.engines.local import LocalEngine

    return LocalEngine(encoder, job.modality, workers=job.options.workers, batch_size=job.options.batch_size)
