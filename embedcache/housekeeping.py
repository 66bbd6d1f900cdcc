"""What can go: feature sets, whole data sets, what crashes left over, rows that no sample uses.

Deciding and doing are apart: ``removable`` and ``left_over`` say what, and touch nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache import ragged, store
from embedcache.backbones import slug
from embedcache.cache import CachedDataset, FeatureEntry, FeatureQuery, parse_query
from embedcache.container import TOKENS, ItemFile, read_header
from embedcache.errors import DamagedFileError, EmbedCacheError, LockedError, UnknownNameError
from embedcache.failures import failures_path, keep_failures
from embedcache.files import locked
from embedcache.items import fixed_length, positions
from embedcache.provenance import Modality, digest_json
from embedcache.ragged import TokenFile
from embedcache.store import PARTIAL_SUFFIX, PENDING, FeatureFile, Layout, partial_path

_IN_THE_MAKING = re.compile(r"\..+\.[0-9a-f]{8}\.(layout|tmp)")
_SET_ASIDE = re.compile(r".+\.h5\.partial\.set-aside-\d+")
_LOCK = re.compile(r"\.(.+)\.lock")
_FAILED_SUFFIX = ".failed.jsonl"


@dataclass(frozen=True)
class Removal:
    """One file or folder that would go. size: bytes, of a folder all that is in it."""

    path: Path
    reason: str
    size: int


@dataclass(frozen=True)
class Shrinkage:
    """A feature file with rows that no sample uses. keep: the rows that stay, sorted, int64."""

    path: Path
    keep: npt.NDArray[np.int64]
    n_items: int

    @property
    def n_unused(self) -> int:
        """Rows that would go."""
        return self.n_items - len(self.keep)


@dataclass(frozen=True)
class LeftOver:
    """What ``rm --unused`` would do. kept: what looks left over and is not, and why it stays."""

    removals: tuple[Removal, ...]
    shrinkages: tuple[Shrinkage, ...]
    kept: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to do."""
        return not self.removals and not self.shrinkages


def asked_for(dataset: CachedDataset, query: FeatureQuery | None = None) -> LeftOver:
    """``removable`` in the form that ``carry_out`` takes."""
    return LeftOver(tuple(removable(dataset, query)), ())


def carry_out(found: LeftOver) -> None:
    """Do what ``left_over`` or ``asked_for`` said. The caller holds the locks (``nobody_writing``)."""
    remove(found.removals)
    for one in found.shrinkages:
        without_unused(one)


def removable(dataset: CachedDataset, query: FeatureQuery | None = None) -> list[Removal]:
    """What ``rm`` would remove: one feature set with its unfinished file and failures, or the data set's folder.

    A damaged or unfinished feature set is found by its name too. Raises MissingFeaturesError where there is none.
    """
    if query is None:
        return [_removal(dataset.folder.path, "the data set with all its features")]
    path = _path_of(dataset, query)
    beside = (path, partial_path(path), failures_path(path))
    return [_removal(one, "asked for") for one in beside if one.exists()]


def _path_of(dataset: CachedDataset, query: FeatureQuery) -> Path:
    """Where the sealed file of a feature set stands, or would stand."""
    name, _, prefix = parse_query(query)
    partial = [FeatureEntry(path) for path in dataset.folder.partial_paths()]
    broken = [entry for entry in (*dataset.entries, *partial) if not entry.sealed or entry.damage is not None]
    matching = {
        entry.path.with_name(entry.path.name.removesuffix(PARTIAL_SUFFIX))
        for entry in broken
        if name in entry.names | {entry.path.name} and entry.begins_with(prefix)
    }
    try:
        return dataset.find_any(query).path
    except (UnknownNameError, DamagedFileError, LookupError):
        if len(matching) == 1:
            return matching.pop()
        raise


def _removal(path: Path, reason: str) -> Removal:
    parts = [path] if not path.is_dir() or path.is_symlink() else [one for one in path.rglob("*") if one.is_file()]
    return Removal(path, reason, sum(one.lstat().st_size for one in parts))


def remove(removals: Sequence[Removal]) -> None:
    """Remove what ``removable`` or ``left_over`` named; what is gone already is passed over."""
    for one in removals:
        if one.path.is_symlink() or not one.path.is_dir():
            one.path.unlink(missing_ok=True)
        else:
            shutil.rmtree(one.path)


# ---------------------------------------------------------------------------------------------------- left over


def left_over(dataset: CachedDataset) -> LeftOver:
    """Files that nothing goes on with, and rows that no sample uses. Damaged sealed files are not touched."""
    removals = [*_temporary(dataset), *_lists_without_file(dataset)]
    kept: list[str] = []
    for path in dataset.folder.partial_paths():
        if reason := _why_not_resumed(dataset, path):
            removals.append(_removal(path, reason))
        else:
            kept.append(f"{path.name} stays: the same extraction goes on with it")
    going = {one.path for one in removals}
    shrinkages: list[Shrinkage] = []
    for entry in dataset.entries:
        if entry.damage is not None:
            kept.append(f"{entry.path.name} stays: it is damaged, see verify")
        elif (found := _shrinkage(dataset, entry.file)) is None:
            continue
        elif (partial := partial_path(entry.path)).exists() and partial not in going:
            kept.append(f"{found.n_unused:,} unused rows of {entry.path.name} stay until {partial.name} is finished")
        elif len(found.keep):
            shrinkages.append(found)
        else:
            listed = failures_path(entry.path)
            gone = [entry.path, *([listed] if listed.exists() else [])]
            removals += [_removal(path, "no sample uses any of its rows") for path in gone]
    return LeftOver(tuple(removals), tuple(shrinkages), tuple(kept))


def _temporary(dataset: CachedDataset) -> Iterator[Removal]:
    """Files in the making that a crash left, and unfinished files that were set aside."""
    for path in sorted(dataset.folder.path.iterdir()):
        if _IN_THE_MAKING.fullmatch(path.name):
            yield _removal(path, "left by a run that was cut off")
        elif _SET_ASIDE.fullmatch(path.name):
            yield _removal(path, "an unfinished file that was set aside")


def _lists_without_file(dataset: CachedDataset) -> Iterator[Removal]:
    for path in sorted(dataset.folder.path.glob(f"*{_FAILED_SUFFIX}")):
        feature_path = path.with_name(path.name.removesuffix(_FAILED_SUFFIX) + ".h5")
        if not feature_path.exists() and not partial_path(feature_path).exists():
            yield _removal(path, "failures of a feature file that is not there")


def _why_not_resumed(dataset: CachedDataset, path: Path) -> str | None:
    """Why no extraction would go on with an unfinished file; None where one would."""
    try:
        partial = FeatureFile(path, partial=True)
    except DamagedFileError:
        return "unfinished and damaged"
    table = dataset.table.items
    modality = _modality(partial)
    if modality not in table or (positions(fixed_length(table[modality]["id"]), partial.ids) < 0).all():
        return "unfinished, and no sample uses its items"
    return "unfinished, and its rows are in the sealed file" if _covered(partial, path) else None


def _covered(partial: FeatureFile, path: Path) -> bool:
    """Whether the sealed file of the same name has every row of an unfinished one, with the same content."""
    try:
        sealed = FeatureFile(path.with_name(path.name.removesuffix(PARTIAL_SUFFIX)))
    except DamagedFileError:
        return False
    rows = positions(partial.ids, sealed.ids)
    if (rows < 0).any():
        return False
    committed = np.flatnonzero(np.asarray(partial.status) != PENDING)
    return bool((np.asarray(partial.content)[committed] == np.asarray(sealed.content)[rows[committed]]).all())


def _shrinkage(dataset: CachedDataset, file: ItemFile) -> Shrinkage | None:
    """The rows of a file that samples use; None where all are used."""
    table = dataset.table.items
    modality = _modality(file)
    known = fixed_length(table[modality]["id"]) if modality in table else np.zeros(0, "S1")
    keep = np.flatnonzero(positions(file.ids, known) >= 0) if len(known) else np.zeros(0, np.int64)
    if isinstance(file, TokenFile) and not np.diff(file.offsets)[keep].any():
        keep = keep[:0]
    return Shrinkage(file.path, keep, file.n_items) if len(keep) < file.n_items else None


def _modality(file: ItemFile) -> Modality:
    return "image" if file.modality == "image" else "text"


# ------------------------------------------------------------------------------------------------------ rewriting


@contextmanager
def nobody_writing(dataset: CachedDataset) -> Iterator[None]:
    """Hold every lock of a data set. Raises LockedError where another process is writing there."""
    folder = dataset.folder.path
    paths = {folder / "tables", *(_lock_of(entry.file) for entry in dataset.entries if entry.damage is None)}
    found = (_LOCK.fullmatch(path.name) for path in folder.iterdir())
    paths |= {folder / match.group(1) for match in found if match is not None}
    with ExitStack() as stack:
        for path in sorted(paths):
            stack.enter_context(_held(path, dataset.name))
        yield


@contextmanager
def _held(path: Path, name: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
        except LockedError as error:
            raise LockedError(
                f"Another process is writing to {name} ({path.name}): nothing was removed. Run again when it is done."
            ) from error
        yield


def lock_path(folder: Path, name: str, provenance: Mapping[str, Any]) -> Path:
    """What is locked while an encoder's file is written; the same as ``Job.lock_path``."""
    digest = digest_json([provenance.get("weights"), provenance.get("preprocessing")], 8)
    return folder / f"{provenance['modality']}.{slug(name)}.{digest}"


def _lock_of(file: ItemFile) -> Path:
    return lock_path(file.path.parent, str(file.record.get("backbone")), file.provenance)


def without_unused(found: Shrinkage, *, sync: bool = True) -> ItemFile:
    """Write the file again without its unused rows: laid out, copied, sealed in its place in one step.

    The caller holds the locks. Readers keep what they mapped. Raises DamagedFileError, with the file left as it
    is, where a block does not have its checksum: copying it would give wrong vectors a right one.
    """
    if (header := read_header(found.path)) is not None and header.kind == TOKENS:
        return _fewer_tokens(found)
    old = FeatureFile(found.path)
    if bad := list(old.bad_blocks()):
        raise DamagedFileError(f"{old.path}: blocks {bad[:3]} do not have their checksums; nothing was rewritten.")
    if len(found.keep) == old.n_items:
        return old
    if partial_path(old.path).exists():
        raise EmbedCacheError(f"{partial_path(old.path)} is there: finish its extraction, or remove it first.")
    layout = Layout(old.ids[found.keep], old.dim, old.layout.stored, old.provenance, old.layout.block_length)
    try:
        with store.create(old.path, layout, old.record, sync=sync) as writer:
            for block in range(layout.n_blocks):
                rows = found.keep[layout.rows(block)]
                writer.write_block(block, *(np.asarray(one[rows]) for one in (old.features, old.content, old.status)))
            writer.seal({**old.record, "dropped": found.n_unused})
    except BaseException:
        partial_path(old.path).unlink(missing_ok=True)
        raise
    file = FeatureFile(old.path)
    keep_failures(file)
    return file


def _fewer_tokens(found: Shrinkage) -> TokenFile:
    """The same for word ids; the vocabulary stays as it is, so that heads go on working."""
    old = TokenFile(found.path)
    record = {**old.record, "dropped": found.n_unused}
    file = ragged.write(old.path, ragged.keep_rows(old.rows(), found.keep), old.provenance, record)
    keep_failures(file)
    return file
