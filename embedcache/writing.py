"""An extraction under way: copy what is true, encode what is missing, commit block by block, seal."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache import items as item_states
from embedcache import store
from embedcache.backbones import slug, without_own
from embedcache.datasets import image_source
from embedcache.errors import AllItemsFailedError, DamagedFileError, ItemError
from embedcache.failures import append_failures, keep_failures
from embedcache.files import sync_folder
from embedcache.items import ItemStates
from embedcache.jobs import Found, Job, Wanted, engine_for, payloads, work_of
from embedcache.opening import no_states
from embedcache.planning import ENCODE, Plan
from embedcache.precision import load_encoder, stored_type
from embedcache.provenance import FloatType, Provenance, StoredType
from embedcache.store import FeatureFile, FeatureWriter, Layout

if TYPE_CHECKING:
    from tqdm import tqdm

    from embedcache.engines.base import Encoded, Engine

PROBE_ITEMS = 16
PARTIAL = 1
"""The donor that is the unfinished file, in a plan."""


@dataclass(frozen=True)
class Outcome:
    """What a run left. seconds: of encoding and writing; n_truncated: texts cut; notes: the encoder's, and ours."""

    file: FeatureFile
    seconds: float
    n_truncated: int
    notes: tuple[str, ...] = ()


class Run:
    """One extraction under way, the file's lock held.

    Rows are handled in spans, each a whole number of the file's blocks, because the file's own block length is
    known only once ``dim`` is.
    """

    def __init__(self, job: Job, decided: Plan, wanted: Wanted, found: Found) -> None:
        self.job, self.plan, self.wanted, self.found = job, decided, wanted, found
        self.span = store.BLOCK_ROWS[job.modality]
        self.donors = _mapped(found)
        self.kept = found.sealed or found.partial
        self.encoder: Any = None
        self.engine: Engine | None = None
        self.compute: FloatType = self.kept.provenance["compute"] if self.kept is not None else "float32"
        self.writer: FeatureWriter | None = None
        self.pending: frozenset[int] = frozenset()
        self.waiting: list[Encoded] = []
        self.n_truncated = 0
        self.notes: list[str] = []
        self.seconds = 0.0
        self.outcome: Outcome | None = None

    def steps(self) -> Generator[bool]:
        """All of it once the encoder is loaded, span by span; ``outcome`` is there when it ends.

        Closing it keeps what was committed.
        """
        started = store.now()
        with ExitStack() as stack:
            stack.callback(self._close)
            if self.plan.action == "resume":
                self._resume()
            elif self.kept is not None:
                _refuse_damaged(self.donors)
                self._lay_out(self.kept.dim, self.kept.layout.stored)
            began = time.perf_counter()
            with _Commits() as commits:
                self._copy_spans(commits)
                for _ in self._encode_spans(commits, stack.enter_context(self._progress())):
                    self.seconds += time.perf_counter() - began
                    yield True
                    began = time.perf_counter()
                commits.wait()
            self.seconds += time.perf_counter() - began
            if self.writer is None:
                raise self._all_failed()
            file = self._seal(self.writer, started)
        self.outcome = Outcome(file, self.seconds, self.n_truncated, tuple(self.notes))
        self.engine = self.encoder = None

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def load(self) -> None:
        """The encoder, where there is anything to encode.

        In the precision of the file that is gone on with, or in the one that is asked for.
        """
        if not self.plan.n_encode:
            return
        options = self.job.options
        if self.kept is not None:
            options = replace(options, precision=self.compute)
        sample = payloads(self.plan, self.wanted, PROBE_ITEMS) if options.precision == "auto" else []
        self.encoder, self.compute = load_encoder(self.job.backbone, options, sample)
        self.notes += self.encoder.notes
        self.engine = engine_for(self.job, self.encoder)

    def _resume(self) -> None:
        """Go on with the unfinished file."""
        assert self.found.partial is not None
        partial = self.found.partial.path
        path = partial.with_name(partial.name.removesuffix(store.PARTIAL_SUFFIX))
        self.writer = FeatureWriter(path, sync=self.job.options.sync)
        self.pending = frozenset(self.writer.pending_blocks())

    def _lay_out(self, dim: int, stored: StoredType) -> None:
        """Lay the new file out whole; an unfinished file of other items is set aside, its rows are carried over.

        The new file takes the old one's name only when it has those rows, so that a kill in between loses none.
        """
        job = self.job
        provenance = Provenance(job.backbone.identity, self.compute, stored)
        path = job.opened.folder.feature_path(job.modality, slug(job.backbone.name), provenance.fingerprint)
        old = {store.partial_path(path), *([self.found.partial.path] if self.found.partial else [])}
        for partial in old:
            if partial.exists():
                self.notes.append(f"{self._why_not(partial)}: it was set aside as {_set_aside(partial).name}")
        length = store.block_length(job.modality, dim, stored)
        layout = Layout(self.plan.ids, dim, stored, provenance.to_dict(), length)
        record = self._record(store.now())
        self.writer = store.create(path, layout, record, sync=job.options.sync, carry=self._carry_over)
        for partial in old - {self.writer.partial}:
            partial.unlink(missing_ok=True)
        self.pending = frozenset(self.writer.pending_blocks())

    def _why_not(self, partial: Path) -> str:
        """Why an unfinished file is not gone on with."""
        if self.found.partial is not None and self.found.partial.path == partial:
            return f"{partial.name} has other items (its rows were carried over)"
        try:
            FeatureFile(partial, partial=True)
        except DamagedFileError:
            return f"{partial.name} is damaged"
        return f"{partial.name} is of another encoder"

    def _carry_over(self, writer: FeatureWriter) -> None:
        """The rows that an unfinished file has committed, to a file that is being laid out."""
        layout = writer.layout
        for block in range(layout.n_blocks):
            rows = layout.rows(block)
            taken = self.plan.donor[rows] == PARTIAL
            if taken.any():
                vectors, content, status = _empty(layout, rows)
                self._copy_rows(rows, vectors, content, status)
                status[~taken] = store.PENDING
                writer.write_rows(block, vectors, content, status)

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
            self._commit(self.writer, span, None, commits)

    def _encode_spans(self, commits: _Commits, bar: tqdm[Any]) -> Iterator[None]:
        """Encode and commit; stops after each span."""
        if self.engine is None:
            return
        spans = self._spans(self._pending_rows(), encode=True)
        works = (work_of(span, rows, self.plan, self.wanted) for span, rows in spans)
        for encoded in self.engine.encode(works, bar.update):
            self.n_truncated += encoded.truncated
            self._stop_at_failures(encoded)
            self.waiting.append(encoded)
            if self.writer is None and encoded.vectors.shape[1]:
                good = np.delete(encoded.vectors, list(encoded.failures), axis=0)
                self._lay_out(encoded.vectors.shape[1], stored_type(good, self.job.options.stored))
            if self.writer is not None:
                for one in self.waiting:
                    self._commit(self.writer, one.work.block, one, commits)
                self.waiting.clear()
            yield

    def _stop_at_failures(self, encoded: Encoded) -> None:
        if encoded.failures and self.job.options.on_error == "stop":
            position, reason = next(iter(encoded.failures.items()))
            name = bytes(self.plan.ids[encoded.work.rows[position]]).decode()
            raise ItemError(f"Stopped at {name}: {reason}. What was committed before is kept; --on-error skip goes on.")

    def _commit(self, writer: FeatureWriter, span: int, encoded: Encoded | None, commits: _Commits) -> None:
        """Put a span together from donors and new vectors, and hand its blocks to the writing thread."""
        layout = writer.layout
        rows = slice(span * self.span, min((span + 1) * self.span, layout.n_items))
        vectors, content, status = _empty(layout, rows)
        self._copy_rows(rows, vectors, content, status)
        failures = self._place(encoded, rows.start, vectors, content, status) if encoded is not None else {}
        commits.submit(_write_span, writer, rows, (vectors, content, status), self.pending, failures)

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
        stated = without_own(backbone.name, backbone.settings)
        return {
            "backbone": backbone.name,
            **backbone.record,
            "settings": {key: value for key, value in stated.items() if key not in ("weights", "revision")},
            "dataset": self.job.opened.folder.name,
            "started": started,
            "finished": store.now(),
            "seconds": round(self.seconds, 3),
            "encoded": self.plan.n_encode,
            "truncated": self.n_truncated,
            "engine": dict(self.engine.summary) if self.engine is not None else {},
            "versions": versions(),
        }

    def _seal(self, writer: FeatureWriter, started: str) -> FeatureFile:
        writer.seal(self._record(started))
        file = FeatureFile(writer.path)
        keep_failures(file)
        self.job.opened.save(self._states_after(file))
        return file

    def _states_after(self, file: FeatureFile) -> ItemStates:
        """The wanted items with the contents that were encoded, for those whose file is still as it was seen."""
        states = self.wanted.states
        if self.job.modality == "text":
            return no_states()
        rows = item_states.positions(states.ids, file.ids)
        now = item_states.image_states(image_source(self.job.opened.dataset).stat, states.ids, None)
        same = (now.size == states.size) & (now.mtime_ns == states.mtime_ns)
        return ItemStates(states.ids, np.asarray(file.content)[rows], same, states.size, states.mtime_ns)

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


def execute_together(runs: Sequence[Run]) -> list[Outcome]:
    """Run several side by side, span by span, so that images are decoded once for all of them.

    As many at a time as the device can hold. Where one fails, the others stop at their last commit, and the same
    command goes on from there.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(runs):
        loaded = _loaded(runs[len(outcomes) :])
        _share_decoding(loaded)
        with ExitStack() as stack:
            under_way = [run.steps() for run in loaded]
            for steps in under_way:
                stack.callback(steps.close)
            while under_way:
                under_way = [steps for steps in under_way if next(steps, False)]
        outcomes += [run.outcome for run in loaded if run.outcome is not None]
    return outcomes


def _loaded(runs: Sequence[Run]) -> list[Run]:
    """The first run and those after it whose encoders find room beside its own."""
    runs[0].load()
    loaded = [runs[0]]
    for run in runs[1:]:
        try:
            run.load()
        except MemoryError:
            break
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            break
        loaded.append(run)
    return loaded


def _share_decoding(runs: Sequence[Run]) -> None:
    """One decoder for all encoders of photos; one with a stated value range reads its pixels itself."""
    encoders = [run.encoder for run in runs if run.job.backbone.settings.value_range is None]
    sharing = [encoder for encoder in encoders if hasattr(encoder, "decode")]
    if len(sharing) > 1:
        from embedcache.backbones.images import SharedDecoding

        decode = SharedDecoding(len(sharing))
        for encoder in sharing:
            encoder.decode = decode


def _mapped(found: Found) -> tuple[FeatureFile | None, FeatureFile | None]:
    """The files that rows are copied from, mapped now: a map does not care for a later rename."""
    for file in (found.sealed, found.partial):
        if file is not None:
            _ = file.features, file.content, file.status
    return found.sealed, found.partial


def _refuse_damaged(donors: tuple[FeatureFile | None, ...]) -> None:
    """Copying a row of a damaged block would give a wrong vector a right checksum."""
    for file in donors:
        if file is not None and (bad := list(file.bad_blocks())):
            raise DamagedFileError(
                f"{file.path}: blocks {bad[:3]} do not have their checksums, so no row of it is copied. Remove it "
                f"('python cli.py rm {file.path.parent.name} --features …'), or restore it from a copy; then "
                "extract again."
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
    append_failures(writer.path, failures)
    length = writer.layout.block_length
    for block in range(rows.start // length, -(-rows.stop // length)):
        if block in pending:
            own = writer.layout.rows(block)
            here = slice(own.start - rows.start, own.stop - rows.start)
            writer.write_block(block, *(array[here] for array in arrays))


def _empty(layout: Layout, rows: slice) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Vectors, contents and status for consecutive rows, to be filled in."""
    n = rows.stop - rows.start
    vectors: npt.NDArray[Any] = np.zeros((n, layout.dim), layout.stored)
    return vectors, np.zeros((n, 16), np.uint8), np.full(n, store.DONE, np.uint8)


def _set_aside(partial: Path) -> Path:
    """Give an unfinished file that cannot be gone on with a second name, which it keeps; nothing is deleted.

    Where the file system has no hard links it is renamed: a kill right then loses no file, only its use.
    """
    number = 1
    while (aside := partial.with_name(f"{partial.name}.set-aside-{number}")).exists():
        number += 1
    try:
        os.link(partial, aside)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        os.rename(partial, aside)
    sync_folder(partial.parent)
    return aside


def versions() -> dict[str, str]:
    """Versions of what makes a file; for its record."""
    names = ("embedcache", "torch", "timm", "transformers", "h5py", "pillow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
