"""Stage one: the only place where data sets, backbones, engines and the store meet.

For each data set and backbone: read the samples (``opening``), find out what is there (``jobs``), decide
(``planning``), then encode what is missing and commit it block by block (``writing``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedcache import items as item_states
from embedcache import store, word_ids
from embedcache.backbones import resolve_all
from embedcache.backbones.base import Backbone, BackboneSettings
from embedcache.backbones.words_family import WordIds
from embedcache.datasets import image_source
from embedcache.errors import UsageError
from embedcache.failures import some_failures
from embedcache.files import locked
from embedcache.jobs import Found, Job, Wanted, decide, engine_for, existing, payloads, wanted_items, work_of
from embedcache.opening import OpenedDataset, find
from embedcache.options import Options
from embedcache.planning import ENCODE, Action, Plan
from embedcache.precision import load_encoder
from embedcache.provenance import Modality
from embedcache.word_ids import FoundTokens
from embedcache.writing import PROBE_ITEMS, Outcome, Run, execute_together

WORD_ROW_BYTES = 100
"""About what a text takes in a file of word ids: id, digest, offset, and ten words or so."""


@dataclass(frozen=True)
class Estimate:
    """A dry run's word on what is to come. seconds, nbytes: of the whole; None where nothing is to be encoded."""

    seconds: float | None = None
    nbytes: int | None = None


@dataclass(frozen=True)
class Extraction:
    """What became of one data set and one backbone.

    n_items: rows of the file. n_encoded: forward passes of this run; n_kept: vectors that were there. n_failed:
    rows whose item could not be encoded; failures: some of them with reasons. n_truncated: texts that were cut.
    """

    dataset: str
    backbone: str
    modality: Modality
    action: Action | Literal["skip"]
    reason: str
    n_samples: int = 0
    n_items: int = 0
    n_encoded: int = 0
    n_kept: int = 0
    n_failed: int = 0
    n_truncated: int = 0
    dim: int | None = None
    path: Path | None = None
    fingerprint: str | None = None
    seconds: float = 0.0
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    estimate: Estimate | None = None

    @property
    def items_per_second(self) -> float | None:
        """Items encoded a second, loading of the model left out."""
        return self.n_encoded / self.seconds if self.seconds and self.n_encoded else None


def extract(
    dataset: str | Path | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    backbones: Sequence[str | Backbone],
    name: str | None = None,
    cache: str | Path = "cache",
    settings: BackboneSettings | None = None,
    options: Options | None = None,
    limit: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    **dataset_options: Any,
) -> list[Extraction]:
    """Encode every item of a data set with each backbone, once; what the cache holds is not encoded again.

    dataset: an adapter's name (``cub``), a name that the cache remembers, a folder of images, or None for every
    data set found in ``data``. limit: encode the items of that many samples only (seeded, stratified by class,
    nested); the sample table is whole all the same. dataset_options: the adapter's own (``captions=``,
    ``label=``, ``text=`` …).

    Raises UsageError for a request that cannot be, AllItemsFailedError where nothing could be encoded.
    """
    options = options or Options()
    opened = [
        OpenedDataset.read(*pair, cache=Path(cache), progress=options.progress)
        for pair in find(dataset, data, name, Path(cache), dataset_options)
    ]
    if not backbones:
        raise UsageError("Name at least one backbone: --backbone vit-large. 'backbones' lists them.")
    named = resolve_all([item for item in backbones if isinstance(item, str)], settings)
    resolved = [*named, *(item for item in backbones if not isinstance(item, str))]
    return [
        one
        for data_set in opened
        for one in _extract_all([Job(data_set, backbone, options, limit, seed) for backbone in resolved], dry_run)
    ]


def extract_rows(
    opened: OpenedDataset, backbone: Backbone, options: Options, rows: npt.NDArray[np.int64]
) -> Extraction:
    """Encode the items of some samples of one data set, as ``extract`` would. rows: of its table, int64."""
    return _extract_all([Job(opened, backbone, options, None, 0, rows)], dry_run=False)[0]


def _extract_all(jobs: Sequence[Job], dry_run: bool) -> list[Extraction]:
    """One data set with each backbone; those that have images to encode go through them side by side."""
    found: dict[int, Extraction] = {}
    together: list[int] = []
    for number, job in enumerate(jobs):
        settled = _settled(job, dry_run)
        if settled is not None:
            found[number] = settled
        elif job.modality == "image":
            together.append(number)
        else:
            found |= _encode([(number, job)])
    found |= _encode([(number, jobs[number]) for number in together])
    return [found[number] for number in range(len(jobs))]


def _settled(job: Job, dry_run: bool) -> Extraction | None:
    """What there is to say where nothing is to be done; None where something is."""
    opened, table = job.opened, job.opened.table
    if job.modality not in table.modalities:
        reason = f"{opened.folder.name} has no {job.modality}s"
        return Extraction(opened.folder.name, job.backbone.name, job.modality, "skip", reason)
    if isinstance(job.backbone, WordIds):
        return _extract_words(job, dry_run)
    wanted, found = wanted_items(job), existing(job)
    if not len(wanted.rows):
        raise UsageError(f"{opened.folder.name} has no {job.modality} items to encode.")
    decided, wanted = decide(job, wanted, found)
    if dry_run:
        return replace(_summary(job, decided, found), estimate=_estimate(job, decided, wanted, found))
    if decided.action == "reuse":
        _save_where_changed(job, wanted)
        return _summary(job, decided, found)
    return None


def _lock_order(numbered: tuple[int, Job]) -> Path:
    """Everybody takes locks in one order, or two who wait could wait for each other."""
    return numbered[1].lock_path()


def _encode(jobs: Sequence[tuple[int, Job]]) -> dict[int, Extraction]:
    """Take the locks, plan on what is there then, and do it."""
    done: dict[int, Extraction] = {}
    with ExitStack() as stack:
        runs: dict[int, tuple[Job, Run]] = {}
        for number, job in sorted(jobs, key=_lock_order):
            job.opened.folder.path.mkdir(parents=True, exist_ok=True)
            if job.lock_path() in {other.lock_path() for other, _ in runs.values()}:
                continue
            stack.enter_context(locked(job.lock_path(), wait=job.options.wait))
            found = existing(job)
            decided, wanted = decide(job, wanted_items(job), found)
            if decided.action == "reuse":
                done[number] = _summary(job, decided, found)
                continue
            job.opened.save()
            runs[number] = job, Run(job, decided, wanted, found)
        outcomes = execute_together([run for _, run in runs.values()])
        for (number, (job, run)), outcome in zip(runs.items(), outcomes, strict=True):
            done[number] = _finished(job, run.plan, run.found, outcome)
    again = [(number, job) for number, job in jobs if number not in done]
    return done | (_encode(again) if again else {})


def _extract_words(job: Job, dry_run: bool) -> Extraction:
    """The same for word ids, which need no encoder and are written whole."""
    wanted, found = wanted_items(job), word_ids.existing(job)
    decided = word_ids.decide(job, wanted, found)
    if dry_run:
        estimate = word_ids.seconds_for(job, decided), len(decided.ids) * WORD_ROW_BYTES
        return replace(_summary(job, decided, found), estimate=Estimate(*estimate) if decided.n_encode else Estimate())
    if decided.action == "reuse":
        _save_where_changed(job, wanted)
        return _summary(job, decided, found)
    job.opened.folder.path.mkdir(parents=True, exist_ok=True)
    with locked(job.lock_path(), wait=job.options.wait):
        found = word_ids.existing(job)
        decided = word_ids.decide(job, wanted, found)
        if decided.action == "reuse":
            return _summary(job, decided, found)
        job.opened.save()
        outcome = word_ids.run(job, decided, wanted, found)
    summary = _summary(job, decided, found)
    return replace(
        summary,
        n_items=outcome.file.n_items,
        n_failed=outcome.file.n_failed,
        path=outcome.file.path,
        fingerprint=outcome.file.fingerprint,
        seconds=outcome.seconds,
        failures=some_failures(outcome.file),
        notes=(*summary.notes, *outcome.notes),
    )


def _finished(job: Job, decided: Plan, found: Found, outcome: Outcome) -> Extraction:
    file, summary = outcome.file, _summary(job, decided, found)
    return replace(
        summary,
        n_items=file.n_items,
        n_failed=file.n_failed,
        n_truncated=outcome.n_truncated,
        dim=file.dim,
        path=file.path,
        fingerprint=file.fingerprint,
        seconds=outcome.seconds,
        failures=some_failures(file),
        notes=(*summary.notes, *outcome.notes),
    )


def _save_where_changed(job: Job, wanted: Wanted) -> None:
    """Keep tables true where labels or times changed while every vector is there; a read-only cache is left alone."""
    folder = job.opened.folder
    old = folder.table() if folder.exists else None
    unchanged = old is not None and old.samples.equals(job.opened.table.samples)
    learnt = job.modality == "image" and bool((~_remembered_now(job, wanted)).any())
    if (not unchanged or learnt) and os.access(folder.path, os.W_OK):
        job.opened.save(wanted.states)


def _remembered_now(job: Job, wanted: Wanted) -> npt.NDArray[np.bool_]:
    stat = image_source(job.opened.dataset).stat
    states = item_states.image_states(stat, wanted.states.ids, job.opened.remembered())
    return states.known


def _summary(job: Job, decided: Plan, found: Found | FoundTokens) -> Extraction:
    """What is known before anything runs; for a reuse, all there is to say."""
    file = found.sealed if decided.action == "reuse" else None
    rows = decided.donor_row if file is not None else np.zeros(0, np.int64)
    return Extraction(
        job.opened.folder.name,
        job.backbone.name,
        job.modality,
        decided.action,
        decided.reason,
        n_samples=job.opened.table.samples.num_rows if job.limit is None else job.limit,
        n_items=len(decided.ids),
        n_encoded=0 if file is not None else decided.n_encode,
        n_kept=decided.n_copied,
        n_failed=int((file.status[rows] == store.FAILED).sum()) if file is not None else 0,
        dim=file.dim if isinstance(file, store.FeatureFile) else None,
        path=file.path if file is not None else None,
        fingerprint=file.fingerprint if file is not None else None,
        notes=(*job.opened.table.notes, *found.notes),
        failures=some_failures(file) if file is not None else {},
    )


def _estimate(job: Job, decided: Plan, wanted: Wanted, found: Found) -> Estimate:
    """Load the encoder, encode a few items for real, and multiply."""
    if not decided.n_encode:
        return Estimate()
    encoder, _ = load_encoder(job.backbone, job.options, payloads(decided, wanted, PROBE_ITEMS))
    engine = engine_for(job, encoder)
    rows = np.flatnonzero(decided.donor == ENCODE)
    probe = rows[:: max(1, len(rows) // (2 * PROBE_ITEMS))][: 2 * PROBE_ITEMS]
    encoded = next(iter(engine.encode([work_of(0, probe[:2], decided, wanted)])))
    began = time.perf_counter()
    encoded = next(iter(engine.encode([work_of(0, probe, decided, wanted)])))
    seconds = (time.perf_counter() - began) / len(probe) * len(rows)
    width = 4 if job.options.stored == "float32" else 2
    return Estimate(seconds, len(decided.ids) * (encoded.vectors.shape[1] * width + 64))
