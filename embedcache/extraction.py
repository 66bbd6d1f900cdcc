"""Stage one: the only place where data sets, backbones, engines and the store meet.

For each data set and backbone: read the samples, find out what is there, decide (``planning``), then encode
what is missing and commit it block by block.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache import items as item_states
from embedcache import samples as tables
from embedcache import store
from embedcache.backbones import resolve_all, slug
from embedcache.backbones.base import Backbone, BackboneSettings
from embedcache.catalog import DatasetFolder, DatasetRecord, failures_path, read_failures
from embedcache.datasets import ADAPTERS, Dataset, discover, open_dataset, read_image
from embedcache.errors import AllItemsFailedError, DamagedFileError, ItemError, UsageError, unknown_name
from embedcache.files import locked, replacing
from embedcache.items import ItemStates
from embedcache.planning import ENCODE, Action, Plan, doubtful, plan
from embedcache.provenance import FloatType, Modality, Provenance, StoredType
from embedcache.samples import SampleTable
from embedcache.store import FeatureFile, FeatureWriter, Layout

if TYPE_CHECKING:
    from tqdm import tqdm

    from embedcache.backbones.base import Encoder
    from embedcache.engines.base import Encoded, Work

LARGEST_HALF = 65504.0
TRUSTED_COSINE = 0.999
FAITHFUL_COSINE = 0.9999
PROBE_ITEMS = 16


@dataclass(frozen=True)
class Options:
    """How to extract; nothing here changes what a vector means but ``precision`` and ``stored``.

    device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``. precision: of the forward pass; ``auto`` is fp32 on a
    CPU and a checked half precision on CUDA, and is satisfied by what is there. stored: ``auto`` is float16 unless
    the first vectors would lose by it. check: ``stat`` trusts size and time, ``content`` reads every item.
    on_error: ``skip`` marks a bad item failed and goes on, ``stop`` raises at the first.
    """

    device: str = "auto"
    precision: Literal["auto"] | FloatType = "auto"
    stored: Literal["auto"] | StoredType = "auto"
    batch_size: int | None = None
    workers: int | None = None
    check: Literal["stat", "content"] = "stat"
    on_error: Literal["skip", "stop"] = "skip"
    retry_failed: bool = False
    wait: bool = False
    sync: bool = True
    progress: bool = False


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
        _Opened.read(*pair, cache=Path(cache)) for pair in find(dataset, data, name, Path(cache), dataset_options)
    ]
    if not backbones:
        raise UsageError("Name at least one backbone: --backbone vit-large. 'backbones' lists them.")
    named = resolve_all([item for item in backbones if isinstance(item, str)], settings)
    resolved = [*named, *(item for item in backbones if not isinstance(item, str))]
    return [_extract_one(_Job(one, backbone, options, limit, seed), dry_run) for one in opened for backbone in resolved]


def find(
    dataset: str | Path | None,
    data: str | Path | Sequence[str | Path] | None,
    name: str | None,
    cache: Path,
    dataset_options: Mapping[str, Any],
) -> list[tuple[str, Dataset]]:
    """The data sets that are meant, each with its name in the cache; nothing is read yet."""
    paths = _paths(data)
    if dataset is None:
        if any(value not in (None, (), []) for value in dataset_options.values()) or name is not None:
            raise UsageError("Options of a data set, or a name for it, need --dataset to say which.")
        return [(one.default_name, one) for root in paths or [Path("data")] for one in discover(root)]
    word = str(dataset)
    if word in ADAPTERS:
        opened = open_dataset(word, paths or [Path("data")], dataset_options)
    elif _is_name(word) and DatasetFolder(cache, word).exists:
        return [(word, _remembered(DatasetFolder(cache, word).record(), paths, dataset_options))]
    elif Path(word).is_dir():
        opened = open_dataset("folder", [Path(word)], dataset_options)
    elif Path(word).is_file():
        opened = open_dataset("table", [Path(word)], dataset_options)
    else:
        known = [*ADAPTERS, *(folder.name for folder in _folders(cache))]
        raise unknown_name("data set", word, known, "It is neither a folder nor a file here.")
    return [(name or opened.default_name, opened)]


def _paths(data: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if data is None:
        return []
    return [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]


def _is_name(word: str) -> bool:
    return "/" not in word and os.sep not in word and word not in (".", "..", "")


def _folders(cache: Path) -> list[DatasetFolder]:
    from embedcache.catalog import dataset_folders

    return list(dataset_folders(cache))


def _remembered(record: DatasetRecord, paths: list[Path], options: Mapping[str, Any]) -> Dataset:
    """A data set by its name alone: where and how it was read before, with what is stated now in its place."""
    stated = {key: value for key, value in options.items() if value not in (None, (), [])}
    settings = {key: value for key, value in record.settings.items() if value not in (None, (), [])}
    if record.adapter == "cub":
        settings = {"captions": record.sources[1]} if len(record.sources) > 1 and not paths else {}
        paths = paths or [Path(record.sources[0])]
    return open_dataset(record.adapter, paths or [Path(path) for path in record.sources], {**settings, **stated})


@dataclass(frozen=True)
class _Opened:
    """A data set that was read, and its folder in the cache."""

    dataset: Dataset
    folder: DatasetFolder
    table: SampleTable
    record: DatasetRecord

    @classmethod
    def read(cls, name: str, dataset: Dataset, cache: Path) -> _Opened:
        """Read the sample table; refuse to take the place of another data set of the same name."""
        folder = DatasetFolder(cache, name)
        table = dataset.read()
        if folder.exists:
            _refuse_another(folder, dataset, table)
        record = DatasetRecord(
            name,
            dataset.adapter,
            dataset.settings(),
            tuple(str(path) for path in dataset.sources),
            table.counts,
            table.notes,
            store.now(),
        )
        return cls(dataset, folder, table, record)

    def save(self, states: ItemStates | None = None) -> None:
        """Write tables and record, with what is now known of the images' contents, under the data set's lock."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with locked(self.folder.path / "tables", wait=True):
            found = dict(self.table.items)
            if "image" in found:
                known = states if states is not None else _no_states()
                found["image"] = item_states.remembering(found["image"], known, self.remembered())
            self.folder.save(self.record, replace(self.table, items=found))

    def remembered(self) -> pa.Table | None:
        """The image items as they were saved last."""
        path = tables.items_path(self.folder.path, "image")
        return tables.read_parquet(path) if path.exists() else None


def _no_states() -> ItemStates:
    nothing = np.zeros(0, np.int64)
    return ItemStates(np.zeros(0, "S1"), np.zeros((0, 16), np.uint8), np.zeros(0, bool), nothing, nothing)


def _refuse_another(folder: DatasetFolder, dataset: Dataset, table: SampleTable) -> None:
    """The same name for other data would mix two data sets: refused where no sample is shared."""
    old = folder.record()
    same_source = [str(path) for path in dataset.sources] == list(old.sources)
    if old.adapter == dataset.adapter and same_source:
        return
    import pyarrow.compute as pc

    ids = pc.is_in(table.samples["id"], value_set=tables.combined(folder.table().samples["id"]))
    if old.adapter == dataset.adapter and pc.any(ids).as_py():
        return
    raise UsageError(
        f"The cache's data set {folder.name!r} was read by the adapter {old.adapter!r} from "
        f"{', '.join(old.sources)}, and shares no sample with {', '.join(str(path) for path in dataset.sources)}. "
        f"Give this one another name with --name, or remove the old one: python cli.py rm {folder.name}"
    )


@dataclass(frozen=True)
class _Job:
    """One data set, one backbone."""

    opened: _Opened
    backbone: Backbone
    options: Options
    limit: int | None
    seed: int

    @property
    def modality(self) -> Modality:
        return self.backbone.modality

    @property
    def workers(self) -> int:
        from embedcache.engines.local import usable_cores

        return self.options.workers or usable_cores()

    def sample_rows(self) -> np.ndarray | None:
        """The samples whose items are encoded; None for all."""
        n = self.opened.table.samples.num_rows
        if self.limit is None or self.limit >= n:
            return None
        if self.limit < 1:
            raise UsageError(f"--limit must be positive, got {self.limit}.")
        names = self.opened.table.targets
        labels = self.opened.table.samples[tables.TARGET_PREFIX + names[0]] if names else None
        flat = None if labels is None or pa.types.is_list(labels.type) else np.asarray(labels.cast(pa.string()))
        return tables.nested_subset(flat, n, self.limit, self.seed)

    def lock_path(self) -> Path:
        from embedcache.provenance import digest_json

        digest = digest_json([self.backbone.identity.weights, self.backbone.identity.preprocessing], 8)
        return self.opened.folder.path / f"{self.modality}.{slug(self.backbone.name)}.{digest}"


@dataclass(frozen=True)
class _Wanted:
    """The items that are wanted: their rows in the item table, their states, and how to read them."""

    rows: npt.NDArray[np.int64]
    states: ItemStates
    read: item_states.Read


def _wanted(job: _Job) -> _Wanted:
    """Items in the order of the item table, with what is known of their contents."""
    opened, modality = job.opened, job.modality
    rows = opened.table.used_items(modality, job.sample_rows())
    found = opened.table.items[modality]
    ids = item_states.fixed_length(found["id"].take(pa.array(rows)))
    if modality == "text":
        return _Wanted(rows, item_states.text_states(ids), item_states.reader_of_texts(found["text"], rows))
    folder = opened.dataset.image_folder
    remembered = opened.remembered() if job.options.check == "stat" else None
    states = item_states.image_states(folder, ids, remembered)
    return _Wanted(rows, states, item_states.reader_of_images(lambda item: read_image(folder, item), ids))


@dataclass(frozen=True)
class _Found:
    """Feature files of this encoder that are there; what was damaged is said."""

    sealed: FeatureFile | None
    partial: FeatureFile | None
    notes: tuple[str, ...]


def _existing(job: _Job) -> _Found:
    """The sealed and the unfinished file whose provenance satisfies the request."""
    notes: list[str] = []
    sealed = [file for path in job.opened.folder.feature_paths(job.modality) if (file := _satisfying(job, path, notes))]
    partial = [
        file for path in job.opened.folder.partial_paths(job.modality) if (file := _satisfying(job, path, notes))
    ]
    best = max(sealed, key=lambda file: file.n_items, default=None)
    if best is not None:
        partial = [file for file in partial if file.fingerprint == best.fingerprint]
    return _Found(best, max(partial, key=lambda file: file.n_items, default=None), tuple(notes))


def _satisfying(job: _Job, path: Path, notes: list[str]) -> FeatureFile | None:
    try:
        file = FeatureFile(path, partial=path.name.endswith(store.PARTIAL_SUFFIX))
    except DamagedFileError as error:
        notes.append(str(error))
        return None
    found = file.provenance
    compute, stored = found.pop("compute"), found.pop("stored")
    wanted = Provenance(job.backbone.identity, "float32", "float32").to_dict()
    del wanted["compute"], wanted["stored"]
    same = json.loads(json.dumps(wanted)) == found
    options = job.options
    return file if same and options.precision in ("auto", compute) and options.stored in ("auto", stored) else None


def _decide(job: _Job, wanted: _Wanted, found: _Found) -> tuple[Plan, _Wanted]:
    """Digest what is doubtful, then plan."""
    files = [file for file in (found.sealed, found.partial) if file is not None]
    states = item_states.with_digests(wanted.states, doubtful(wanted.states, files), wanted.read, job.workers)
    decided = plan(states, found.sealed, found.partial, retry_failed=job.options.retry_failed)
    return decided, replace(wanted, states=states)


def _extract_one(job: _Job, dry_run: bool) -> Extraction:
    """Plan; where there is anything to do, take the lock, plan again on what is there then, and do it."""
    opened, table = job.opened, job.opened.table
    if job.modality not in table.modalities:
        reason = f"{opened.folder.name} has no {job.modality}s"
        return Extraction(opened.folder.name, job.backbone.name, job.modality, "skip", reason)
    wanted, found = _wanted(job), _existing(job)
    if not len(wanted.rows):
        raise UsageError(f"{opened.folder.name} has no {job.modality} items to encode.")
    decided, wanted = _decide(job, wanted, found)
    if dry_run:
        return replace(_summary(job, decided, found), estimate=_estimate(job, decided, wanted, found))
    if decided.action == "reuse":
        _save_where_changed(job, wanted)
        return _summary(job, decided, found)
    opened.folder.path.mkdir(parents=True, exist_ok=True)
    with locked(job.lock_path(), wait=job.options.wait):
        found = _existing(job)
        decided, wanted = _decide(job, wanted, found)
        if decided.action == "reuse":
            return _summary(job, decided, found)
        opened.save()
        return _Run(job, decided, wanted, found).execute()


def _save_where_changed(job: _Job, wanted: _Wanted) -> None:
    """Keep tables true where labels or times changed while every vector is there; a read-only cache is left alone."""
    folder = job.opened.folder
    old = folder.table() if folder.exists else None
    unchanged = old is not None and old.samples.equals(job.opened.table.samples)
    learnt = job.modality == "image" and bool((~_remembered_now(job, wanted)).any())
    if (not unchanged or learnt) and os.access(folder.path, os.W_OK):
        job.opened.save(wanted.states)


def _remembered_now(job: _Job, wanted: _Wanted) -> npt.NDArray[np.bool_]:
    states = item_states.image_states(job.opened.dataset.image_folder, wanted.states.ids, job.opened.remembered())
    return states.known


def _summary(job: _Job, decided: Plan, found: _Found) -> Extraction:
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
        dim=file.dim if file is not None else None,
        path=file.path if file is not None else None,
        fingerprint=file.fingerprint if file is not None else None,
        notes=(*job.opened.table.notes, *found.notes),
        failures=_some_failures(file.path) if file is not None else {},
    )


def _estimate(job: _Job, decided: Plan, wanted: _Wanted, found: _Found) -> Estimate:
    """Load the encoder, encode a few items for real, and multiply."""
    if not decided.n_encode:
        return Estimate()
    encoder, _ = load_encoder(job.backbone, job.options, _payloads(decided, wanted, PROBE_ITEMS))
    engine = _engine(job, encoder)
    rows = np.flatnonzero(decided.donor == ENCODE)
    probe = rows[:: max(1, len(rows) // (2 * PROBE_ITEMS))][: 2 * PROBE_ITEMS]
    encoded = next(iter(engine.encode([_work(0, probe[:2], decided, wanted)])))
    began = time.perf_counter()
    encoded = next(iter(engine.encode([_work(0, probe, decided, wanted)])))
    seconds = (time.perf_counter() - began) / len(probe) * len(rows)
    width = 4 if job.options.stored == "float32" else 2
    return Estimate(seconds, len(decided.ids) * (encoded.vectors.shape[1] * width + 64))


def _payloads(decided: Plan, wanted: _Wanted, n: int) -> list[bytes]:
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


def _work(block: int, rows: npt.NDArray[np.int64], decided: Plan, wanted: _Wanted) -> Work:
    from embedcache.engines.base import Work

    return Work(block, rows, lambda row: wanted.read(int(decided.state[row])))


def chosen_device(device: str) -> str:
    """``auto`` is the first GPU, where torch can use one."""
    import torch

    if device != "auto":
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError("No CUDA device can be used: torch sees none. Use --device cpu, or run 'doctor'.")
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_encoder(backbone: Backbone, options: Options, payloads: Sequence[bytes]) -> tuple[Encoder, FloatType]:
    """The encoder on its device and the precision that it computes in.

    ``auto`` on CUDA tries float16, then bfloat16, on the first items against float32 and keeps what agrees (cosine
    of at least 0.999, everything finite); elsewhere it is float32.
    """
    device = chosen_device(options.device)
    encoder = backbone.load(device)
    if options.precision != "auto":
        encoder.cast(options.precision)
        return encoder, options.precision
    if not device.startswith("cuda"):
        return encoder, "float32"
    return _half_if_trusted(backbone, encoder, device, payloads)


def _half_if_trusted(
    backbone: Backbone, encoder: Encoder, device: str, payloads: Sequence[bytes]
) -> tuple[Encoder, FloatType]:
    prepared = [item for item in encoder.prepare(payloads) if not isinstance(item, ItemError)]
    if not prepared:
        return encoder, "float32"
    reference = encoder.forward(prepared).float().cpu().numpy()
    halves: tuple[FloatType, ...] = ("float16", "bfloat16")
    for half in halves:
        encoder = backbone.load(device)
        encoder.cast(half)
        if agrees(encoder.forward(prepared).float().cpu().numpy(), reference, TRUSTED_COSINE):
            return encoder, half
    return backbone.load(device), "float32"


def agrees(vectors: npt.NDArray[Any], reference: npt.NDArray[Any], cosine: float) -> bool:
    """Whether every vector is finite and within ``cosine`` of its reference; both (n, dim)."""
    if not np.isfinite(vectors).all():
        return False
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return bool(((a * b).sum(1) >= cosine * norms).all())


def stored_type(vectors: npt.NDArray[np.float32], stored: Literal["auto"] | StoredType) -> StoredType:
    """float16 unless a vector overflows it or loses its direction in it."""
    if stored != "auto":
        return stored
    if vectors.size and np.abs(vectors).max() > LARGEST_HALF:
        return "float32"
    return "float16" if agrees(vectors.astype(np.float16), vectors, FAITHFUL_COSINE) else "float32"


def _engine(job: _Job, encoder: Encoder) -> Any:
    from embedcache.engines.local import LocalEngine

    return LocalEngine(encoder, job.modality, workers=job.options.workers, batch_size=job.options.batch_size)


class _Run:
    """One extraction under way, the file's lock held.

    Rows are handled in spans, each a whole number of the file's blocks, because the file's own block length is
    known only once ``dim`` is.
    """

    def __init__(self, job: _Job, decided: Plan, wanted: _Wanted, found: _Found) -> None:
        self.job, self.plan, self.wanted, self.found = job, decided, wanted, found
        self.span = store.BLOCK_ROWS[job.modality]
        self.writer: FeatureWriter | None = None
        self.pending: frozenset[int] = frozenset()
        self.path: Path | None = None
        self.n_truncated = self.n_failed_now = 0
        self.waiting: list[Encoded] = []
        self.seconds = 0.0
        self.engine: Any = None
        self.compute: FloatType = "float32"

    def execute(self) -> Extraction:
        """Copy, encode, commit, seal."""
        started = store.now()
        with ExitStack() as stack:
            self.donors = self._donors()
            if self.plan.n_encode:
                self._load()
            if self.plan.action == "resume":
                self._resume()
            elif self.donors:
                donor = self.donors[0] or self.donors[1]
                assert donor is not None
                self._lay_out(donor.dim, donor.layout.stored)
            bar = stack.enter_context(self._progress())
            commits = stack.enter_context(_Commits())
            self._copy_spans(commits)
            self._encode_spans(commits, bar)
            commits.wait()
            if self.writer is None:
                raise self._all_failed()
            file = self._seal(started)
        return self._finished(file)

    def _donors(self) -> list[FeatureFile | None]:
        """Sealed and partial file as donors, mapped now: a later rename does not matter to a map."""
        files = [self.found.sealed, self.found.partial]
        for file in files:
            if file is not None:
                _ = file.features, file.content, file.status
        return files if any(file is not None for file in files) else []

    def _load(self) -> None:
        options = self.job.options
        kept = self.found.sealed or self.found.partial
        if kept is not None:
            options = replace(options, precision=kept.provenance["compute"], stored=kept.layout.stored)
        payloads = _payloads(self.plan, self.wanted, PROBE_ITEMS) if options.precision == "auto" else []
        encoder, self.compute = load_encoder(self.job.backbone, options, payloads)
        self.engine = _engine(self.job, encoder)

    def _provenance(self, stored: StoredType) -> Provenance:
        kept = self.found.sealed or self.found.partial
        compute = self.compute if kept is None else kept.provenance["compute"]
        return Provenance(self.job.backbone.identity, compute, stored)

    def _resume(self) -> None:
        assert self.found.partial is not None
        self.path = self.found.partial.path.with_name(self.found.partial.path.name.removesuffix(store.PARTIAL_SUFFIX))
        self.writer = FeatureWriter(self.path, sync=self.job.options.sync)
        self.pending = frozenset(self.writer.pending_blocks())

    def _lay_out(self, dim: int, stored: StoredType) -> None:
        """Set an unfinished file of other items aside, then lay the new one out whole."""
        job = self.job
        if self.found.partial is not None:
            _set_aside(self.found.partial.path)
        provenance = self._provenance(stored)
        self.path = job.opened.folder.feature_path(job.modality, slug(job.backbone.name), provenance.fingerprint)
        length = store.block_length(job.modality, dim, stored)
        layout = Layout(self.plan.ids, dim, stored, provenance.to_dict(), length)
        if (there := store.partial_path(self.path)).exists():
            _set_aside(there)
        self.writer = store.create(self.path, layout, self._record(store.now()), sync=job.options.sync)
        self.pending = frozenset(range(layout.n_blocks))

    def _pending_rows(self) -> npt.NDArray[np.bool_]:
        """Rows that are not committed; all, before there is a file."""
        pending = np.ones(len(self.plan.ids), bool)
        if self.writer is not None:
            pending[:] = False
            for block in self.pending:
                pending[self.writer.layout.rows(block)] = True
        return pending

    def _spans(self, pending: npt.NDArray[np.bool_], *, encode: bool) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Spans with pending rows: (span, rows to encode), those with none or those with some."""
        for span, start in enumerate(range(0, len(pending), self.span)):
            here = slice(start, start + self.span)
            rows = start + np.flatnonzero(pending[here] & (self.plan.donor[here] == ENCODE))
            if pending[here].any() and bool(len(rows)) == encode:
                yield span, rows

    def _copy_spans(self, commits: _Commits) -> None:
        if self.writer is None:
            return
        for span, _ in list(self._spans(self._pending_rows(), encode=False)):
            self._commit(span, None, commits)

    def _encode_spans(self, commits: _Commits, bar: tqdm[Any]) -> None:
        if self.engine is None:
            return
        works = (
            _work(span, rows, self.plan, self.wanted) for span, rows in self._spans(self._pending_rows(), encode=True)
        )
        began = time.perf_counter()
        for encoded in self.engine.encode(works):
            self._refuse_failures(encoded)
            self.waiting.append(encoded)
            if self.writer is None and encoded.vectors.shape[1]:
                good = np.delete(encoded.vectors, list(encoded.failures), axis=0)
                self._lay_out(encoded.vectors.shape[1], stored_type(good, self.job.options.stored))
            if self.writer is not None:
                for one in self.waiting:
                    self._commit(one.work.block, one, commits)
                self.waiting.clear()
            bar.update(len(encoded.work.rows))
        self.seconds = time.perf_counter() - began

    def _refuse_failures(self, encoded: Encoded) -> None:
        self.n_truncated += encoded.truncated
        self.n_failed_now += len(encoded.failures)
        if encoded.failures and self.job.options.on_error == "stop":
            position, reason = next(iter(encoded.failures.items()))
            name = bytes(self.plan.ids[encoded.work.rows[position]]).decode()
            raise ItemError(f"Stopped at {name}: {reason}. What was committed before is kept; --on-error skip goes on.")

    def _commit(self, span: int, encoded: Encoded | None, commits: _Commits) -> None:
        """Put a span together from donors and new vectors, and hand its blocks to the writing thread."""
        assert self.writer is not None
        assert self.path is not None
        layout = self.writer.layout
        rows = slice(span * self.span, min((span + 1) * self.span, layout.n_items))
        n = rows.stop - rows.start
        vectors = np.zeros((n, layout.dim), layout.stored)
        content = np.zeros((n, 16), np.uint8)
        status = np.full(n, store.DONE, np.uint8)
        self._copy_rows(rows, vectors, content, status)
        failures = self._place(encoded, rows.start, vectors, content, status) if encoded is not None else {}
        commits.submit(_write_span, self.writer, rows, (vectors, content, status), self.pending, failures)

    def _copy_rows(self, rows: slice, vectors: Any, content: Any, status: Any) -> None:
        for index, file in enumerate(self.donors):
            here = np.flatnonzero(self.plan.donor[rows] == index)
            if file is not None and len(here):
                there = self.plan.donor_row[rows][here]
                vectors[here], content[here], status[here] = (
                    file.features[there],
                    file.content[there],
                    file.status[there],
                )

    def _place(self, encoded: Encoded, start: int, vectors: Any, content: Any, status: Any) -> dict[str, str]:
        """New vectors to their rows; returns failures by item id."""
        positions = encoded.work.rows - start
        failures = dict(encoded.failures)
        with np.errstate(over="ignore"):
            narrowed = encoded.vectors.astype(vectors.dtype)
        if encoded.vectors.shape[1]:
            for position in np.flatnonzero(~np.isfinite(narrowed).all(1)):
                failures[int(position)] = "its vector overflows float16: extract again with --stored float32"
                narrowed[position] = 0
            vectors[positions] = narrowed
        content[positions] = encoded.content
        status[positions[list(failures)]] = store.FAILED
        return {
            bytes(self.plan.ids[encoded.work.rows[position]]).decode(): reason for position, reason in failures.items()
        }

    def _progress(self) -> tqdm[Any]:
        from tqdm import tqdm

        name = f"{self.job.opened.folder.name} · {self.job.backbone.name}"
        return tqdm(
            total=self.plan.n_encode,
            unit=f" {self.job.modality}s",
            desc=name,
            disable=not self.job.options.progress or not self.plan.n_encode,
            dynamic_ncols=True,
        )

    def _record(self, started: str) -> dict[str, Any]:
        """Names, versions and speed: all that is worth knowing and changes no number."""
        backbone = self.job.backbone
        return {
            "backbone": backbone.name,
            **backbone.record,
            "settings": {k: v for k, v in backbone.settings.stated().items() if k not in ("weights", "revision")},
            "dataset": self.job.opened.folder.name,
            "started": started,
            "finished": store.now(),
            "seconds": round(self.seconds, 3),
            "encoded": self.plan.n_encode,
            "truncated": self.n_truncated,
            "engine": dict(self.engine.summary) if self.engine is not None else {},
            "versions": _versions(),
        }

    def _seal(self, started: str) -> FeatureFile:
        assert self.writer is not None
        assert self.path is not None
        self.writer.seal(self._record(started))
        file = FeatureFile(self.path)
        keep_failures(file)
        self.job.opened.save(self._states_after(file))
        return file

    def _states_after(self, file: FeatureFile) -> ItemStates:
        """The wanted items with the contents that were encoded, for those whose file is still as it was seen."""
        states = self.wanted.states
        if self.job.modality == "text":
            return _no_states()
        rows = item_states.positions(states.ids, file.ids)
        now = item_states.image_states(self.job.opened.dataset.image_folder, states.ids, None)
        same = (now.size == states.size) & (now.mtime_ns == states.mtime_ns)
        return ItemStates(states.ids, np.asarray(file.content)[rows], same, states.size, states.mtime_ns)

    def _finished(self, file: FeatureFile) -> Extraction:
        summary = _summary(self.job, self.plan, self.found)
        return replace(
            summary,
            n_items=file.n_items,
            n_failed=file.n_failed,
            n_truncated=self.n_truncated,
            dim=file.dim,
            path=file.path,
            fingerprint=file.fingerprint,
            seconds=self.seconds,
            failures=_some_failures(file.path),
        )

    def _all_failed(self) -> AllItemsFailedError:
        reasons = {
            bytes(self.plan.ids[one.work.rows[position]]).decode(): reason
            for one in self.waiting
            for position, reason in one.failures.items()
        }
        first = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        return AllItemsFailedError(
            f"None of the {len(reasons)} {self.job.modality} items of {self.job.opened.folder.name} could be encoded "
            f"with {self.job.backbone.name} ({first}). No feature file was written."
        )


class _Commits:
    """The one thread that writes; at most one span waits for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: Future[None] | None = None

    def __enter__(self) -> _Commits:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def submit(self, *call: Any) -> None:
        """Hand over one span; waits for the one before, and raises what became of it."""
        self.wait()
        self._last = self._pool.submit(*call)

    def wait(self) -> None:
        """Until all that was handed over is on disk."""
        if self._last is not None:
            self._last.result()


def _write_span(
    writer: FeatureWriter,
    rows: slice,
    arrays: tuple[Any, Any, Any],
    pending: frozenset[int],
    failures: Mapping[str, str],
) -> None:
    """Failures first, so that a committed failed row always has its reason; then block by block."""
    _append_failures(writer.path, failures)
    length = writer.layout.block_length
    for block in range(rows.start // length, -(-rows.stop // length)):
        if block in pending:
            own = writer.layout.rows(block)
            here = slice(own.start - rows.start, own.stop - rows.start)
            writer.write_block(block, *(array[here] for array in arrays))


def _append_failures(path: Path, failures: Mapping[str, str]) -> None:
    if not failures:
        return
    with open(failures_path(path), "a", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"id": name, "reason": failures[name]}, ensure_ascii=False) + "\n" for name in failures
        )


def keep_failures(file: FeatureFile) -> None:
    """Rewrite the list of failures with the rows that are failed in the sealed file, and only those."""
    listed = failures_path(file.path)
    failed = [bytes(item).decode() for item in file.ids[np.asarray(file.status) == store.FAILED]]
    if not failed:
        listed.unlink(missing_ok=True)
        return
    reasons = read_failures(file.path)
    with replacing(listed) as beside, open(beside, "w", encoding="utf-8") as out:
        for name in failed:
            entry = {"id": name, "reason": reasons.get(name, "its reason was not recorded")}
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _some_failures(path: Path, n: int = 5) -> dict[str, str]:
    return dict(list(read_failures(path).items())[:n])


def _set_aside(partial: Path) -> Path:
    """Rename an unfinished file that cannot be gone on with; nothing is deleted."""
    number = 1
    while (aside := partial.with_name(f"{partial.name}.set-aside-{number}")).exists():
        number += 1
    os.rename(partial, aside)
    return aside


def _versions() -> dict[str, str]:
    names = ("embedcache", "torch", "timm", "transformers", "h5py", "pillow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
