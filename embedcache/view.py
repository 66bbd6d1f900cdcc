"""Features: the per-sample matrix that a head sees, gathered through the sample table.

Vectors meet samples by item id. A sample that lacks a vector in any of the feature sets is left out, and
counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from embedcache.container import FAILED, ItemFile
from embedcache.errors import DamagedFileError, UsageError, unknown_name
from embedcache.items import fixed_length, positions
from embedcache.provenance import Modality
from embedcache.ragged import TokenFile, take_rows
from embedcache.samples import TARGET_PREFIX, SampleTable, combined
from embedcache.store import FeatureFile

if TYPE_CHECKING:
    import pandas as pd

Captions: TypeAlias = Literal["mean", "first", "each"]
CAPTIONS: tuple[Captions, ...] = ("mean", "first", "each")
_CHUNK = 4096

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureSet:
    """One feature file seen from the samples.

    references, offsets: unit ``i`` of the features has the file's rows ``references[offsets[i]:offsets[i + 1]]``;
    several are averaged.
    """

    name: str
    file: FeatureFile
    references: Rows
    offsets: Rows

    def __repr__(self) -> str:
        return f"FeatureSet({self.name!r}, {len(self.offsets) - 1:,} × {self.dim})"

    @property
    def modality(self) -> str:
        """``image`` or ``text``."""
        return self.file.modality

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.file.dim

    def take(self, rows: Rows) -> FeatureSet:
        """The same set for some of the units; costs what they cost, however many there are in all."""
        if self.single:
            counted = self.offsets[: len(rows) + 1] if len(rows) < len(self.offsets) else np.arange(len(rows) + 1)
            return replace(self, references=self.references[rows], offsets=counted)
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return replace(
            self, references=self.references[np.repeat(self.offsets[rows], lengths) + within], offsets=offsets
        )

    @cached_property
    def single(self) -> bool:
        """Whether every unit has exactly one vector."""
        return len(self.references) == len(self.offsets) - 1 and bool((np.diff(self.offsets) == 1).all())

    def gather(self) -> npt.NDArray[Any]:
        """(units, dim): the stored type where units have one vector each, float32 means otherwise.

        A run of consecutive rows is a view of the map: nothing is copied.
        """
        if not self.single:
            return self._means()
        rows = self.references
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return self.file.features[rows[0] : rows[-1] + 1]
        return np.take(self.file.features, rows, axis=0)

    def _means(self) -> npt.NDArray[np.float32]:
        n = len(self.offsets) - 1
        out = np.zeros((n, self.dim), np.float32)
        for start in range(0, n, _CHUNK):
            stop = min(start + _CHUNK, n)
            first, last = self.offsets[start], self.offsets[stop]
            vectors = np.take(self.file.features, self.references[first:last], axis=0).astype(np.float32)
            sums = np.add.reduceat(vectors, self.offsets[start:stop] - first, axis=0)
            out[start:stop] = sums / np.diff(self.offsets[start : stop + 1])[:, None]
        return out


@dataclass(frozen=True)
class WordSet(FeatureSet):
    """Word ids among feature sets: one row of any length for each unit, and no number in the matrix."""

    @property
    def dim(self) -> int:
        """None: 0."""
        return 0

    @property
    def tokens(self) -> TokenFile:
        """The file, as what it is."""
        found: Any = self.file
        return cast(TokenFile, found)

    def gather(self) -> npt.NDArray[np.float32]:
        """(units, 0)."""
        return np.zeros((len(self.offsets) - 1, 0), np.float32)

    def ragged(self) -> tuple[npt.NDArray[np.int32], Rows]:
        """The ids of all units, flat, and offsets (units + 1,).

        Raises DamagedFileError for an id outside the vocabulary.
        """
        tokens, offsets = take_rows(self.tokens.tokens, self.tokens.offsets, self.references)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.tokens.n_words:
            raise DamagedFileError(f"{self.file.path} has an id outside its vocabulary: run verify.")
        return tokens, offsets


@dataclass(frozen=True)
class Features:
    """Feature sets on the samples that all of them have, and those samples' targets.

    sample_rows: the sample of each unit, rows of ``table.samples``. A unit is a sample, or with
    ``captions="each"`` a sample and one of its captions. left_out: samples by the reason why they are not here.
    """

    table: SampleTable
    sets: tuple[FeatureSet, ...]
    sample_rows: Rows
    captions: Captions
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.sample_rows)

    def __repr__(self) -> str:
        """One line: the sets with their sizes, the units, and what was left out."""
        sets = " + ".join(f"{one.name} ({one.dim})" for one in self.sets) or "no feature set"
        left_out = f", {sum(self.left_out.values()):,} samples left out" if self.left_out else ""
        return f"Features({sets}: {len(self):,} × {sum(self.dims)}{left_out})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the feature sets, in the order of the columns."""
        return tuple(one.name for one in self.sets)

    @property
    def dims(self) -> tuple[int, ...]:
        """Numbers that each feature set gives."""
        return tuple(one.dim for one in self.sets)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each feature set by name."""
        return {one.name: one.file.fingerprint for one in self.sets}

    @cached_property
    def ids(self) -> npt.NDArray[np.object_]:
        """Sample ids, (units,)."""
        return self.column("id")

    @cached_property
    def splits(self) -> npt.NDArray[np.object_]:
        """Published split of each unit, None where there is none."""
        return self.column("split")

    def column(self, name: str) -> npt.NDArray[np.object_]:
        """A column of the sample table for each unit."""
        column = combined(self.table.samples[name]).take(pa.array(self.sample_rows))
        return np.fromiter(column.to_pylist(), object, len(column))  # lists stay lists, even of equal lengths

    def target(self, name: str | None = None) -> npt.NDArray[np.object_]:
        """A published target for each unit, None where there is none. Default: the only one."""
        return self.column(TARGET_PREFIX + target_name(self.table, name))

    def take(self, units: npt.ArrayLike) -> Features:
        """The same features for some of the units (row numbers or a mask)."""
        chosen = np.asarray(units)
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64, copy=False)
        sets = tuple(one.take(rows) for one in self.sets)
        return replace(self, sets=sets, sample_rows=self.sample_rows[rows])

    def matrix(self, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        """All sets side by side, (units, sum of dims). One set in its own type is not copied where it can be."""
        if len(self.sets) == 1:
            found = self.sets[0].gather()
            return found if dtype is None else found.astype(dtype, copy=False)
        kind = np.dtype(dtype) if dtype is not None else np.result_type(*(_type(one) for one in self.sets))
        out = np.empty((len(self), sum(self.dims)), kind)
        start = 0
        for one in self.sets:
            out[:, start : start + one.dim] = one.gather()
            start += one.dim
        return out

    def split(self, name: str, target: str | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[np.object_]]:
        """``(X, y)`` of one published split, rows without a target left out."""
        known = sorted({str(value) for value in self.splits if value is not None})
        if name not in known:
            raise unknown_name("split", name, known)
        labels = self.target(target)
        here = self.take((self.splits == name) & np.array([label is not None for label in labels]))
        return here.matrix(), here.target(target)

    def frame(self) -> pd.DataFrame:
        """The units' samples as a pandas table, row for row with ``matrix()``."""
        return samples_frame(self.table.samples.take(pa.array(self.sample_rows)))


def _type(one: FeatureSet) -> np.dtype[Any]:
    if isinstance(one, WordSet):
        return np.dtype(np.float16)
    return np.dtype(one.file.layout.stored) if one.single else np.dtype(np.float32)


def target_name(table: SampleTable, name: str | None) -> str:
    """The target that is meant. Raises UsageError where there is none, or several and no word on which."""
    if name is None and len(table.targets) == 1:
        return table.targets[0]
    if not table.targets:
        raise UsageError(
            "The data set has no target: say which column or folder is the label when extracting (--label)."
        )
    if name is None:
        raise UsageError(f"The data set has several targets ({', '.join(table.targets)}): say which one.")
    if name not in table.targets:
        raise unknown_name("target", name, table.targets)
    return name


def samples_frame(samples: pa.Table) -> pd.DataFrame:
    """The sample table as pandas; targets and notes for analysis under their plain names where those are free."""
    names = samples.column_names
    plain = [name.split(".", 1)[1] if name.startswith(("target.", "meta.")) else name for name in names]
    renamed = [short if plain.count(short) == 1 else name for name, short in zip(names, plain, strict=True)]
    frame: pd.DataFrame = samples.rename_columns(renamed).to_pandas()
    return frame


def assemble(table: SampleTable, files: Sequence[tuple[str, ItemFile]], captions: Captions = "mean") -> Features:
    """Features of the samples that have a vector, or word ids, in every file.

    Raises UsageError where there is no file, a file's modality is not the data set's, or word ids would be averaged.
    """
    if not files:
        raise UsageError("Name at least one feature set.")
    if captions not in CAPTIONS:
        raise unknown_name("caption policy", captions, CAPTIONS)
    seen = {modality: _Seen.of(table, modality) for modality in table.modalities}
    for name, file in files:
        if file.modality not in seen:
            raise UsageError(f"{name} has vectors of {file.modality}s, and the data set has none.")
    rows = [_file_rows(table, file) for _, file in files]
    if captions == "each" and any(file.modality == "text" for _, file in files):
        return _each_caption(table, files, rows, seen)
    features = _per_sample(table, files, rows, seen, captions)
    for one in features.sets:
        if isinstance(one, WordSet) and not one.single:
            raise UsageError(
                f"Samples have several texts, and the word ids of {one.name} cannot be averaged: say "
                "select.captions=first or select.captions=each."
            )
    return features


def _set(name: str, file: ItemFile, references: Rows, offsets: Rows) -> FeatureSet:
    found: Any = file
    return (WordSet if isinstance(file, TokenFile) else FeatureSet)(name, found, references, offsets)


@dataclass(frozen=True)
class _Seen:
    """One modality's references of all samples."""

    references: Rows
    offsets: Rows

    @classmethod
    def of(cls, table: SampleTable, modality: Modality) -> _Seen:
        return cls(*table.references(modality))

    @cached_property
    def sample(self) -> Rows:
        """The sample of each reference."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def _file_rows(table: SampleTable, file: ItemFile) -> Rows:
    """For each item of the table its row in the file: -1 not there, -2 failed."""
    modality: Modality = "image" if file.modality == "image" else "text"
    rows = positions(fixed_length(table.items[modality]["id"]), file.ids)
    there = rows >= 0
    failed = there.copy()
    failed[there] = file.status[rows[there]] == FAILED
    return np.where(failed, -2, rows)


def _per_sample(
    table: SampleTable,
    files: Sequence[tuple[str, ItemFile]],
    rows: Sequence[Rows],
    seen: Mapping[Any, _Seen],
    captions: Captions,
) -> Features:
    n = table.samples.num_rows
    usable = np.ones(n, bool)
    reasons: Counter[str] = Counter()
    parts: list[tuple[Rows, Rows]] = []
    for (name, file), file_rows in zip(files, rows, strict=True):
        own = seen[file.modality]
        found = file_rows[own.references]
        references, offsets = _done(found, own.sample, n, first_only=captions == "first")
        _count_lacking(reasons, name, file, own, found, np.diff(offsets) == 0, usable)
        parts.append((references, offsets))
    sets = tuple(_set(name, file, *part) for (name, file), part in zip(files, parts, strict=True))
    features = Features(table, sets, np.arange(n, dtype=np.int64), captions, dict(reasons))
    return features if usable.all() else features.take(usable)


def _done(found: Rows, sample: Rows, n: int, *, first_only: bool) -> tuple[Rows, Rows]:
    """References to rows that are done, ragged over ``n`` samples."""
    keep = found >= 0
    if first_only:
        kept = np.flatnonzero(keep)
        _, first = np.unique(sample[kept], return_index=True)
        keep = np.zeros(len(found), bool)
        keep[kept[first]] = True
    lengths = np.bincount(sample[keep], minlength=n)
    return found[keep], np.concatenate([[0], np.cumsum(lengths)])


def _count_lacking(
    reasons: Counter[str], name: str, file: ItemFile, own: _Seen, found: Rows, lacking: Any, usable: Any
) -> None:
    """Count samples by why they lack a vector; each is counted once, under the first set that lacks it."""
    new = lacking & usable
    usable &= ~lacking
    if not new.any():
        return
    failed = np.bincount(own.sample[found == -2], minlength=len(new)) > 0
    referring = np.diff(own.offsets) > 0
    for reason, mask in (
        (f"no {file.modality}", new & ~referring),
        (f"its {file.modality} failed in {name}", new & referring & failed),
        (f"not extracted with {name}", new & referring & ~failed),
    ):
        if mask.any():
            reasons[reason] += int(mask.sum())


def _each_caption(
    table: SampleTable,
    files: Sequence[tuple[str, ItemFile]],
    rows: Sequence[Rows],
    seen: Mapping[Any, _Seen],
) -> Features:
    """One unit per caption that every text set has, of samples whose image every image set has."""
    whole = _per_sample(table, files, rows, seen, "mean")
    text = seen["text"]
    good = np.isin(text.sample, whole.sample_rows)
    for (_, file), file_rows in zip(files, rows, strict=True):
        if file.modality == "text":
            good &= file_rows[text.references] >= 0
    chosen = np.flatnonzero(good)
    sample_rows = text.sample[chosen]
    left_out = dict(whole.left_out)
    if torn := len(whole) - len(np.unique(sample_rows)):
        left_out["no text that every text set has"] = torn
    sets = []
    for (name, file), file_rows in zip(files, rows, strict=True):
        if file.modality == "text":
            references = file_rows[text.references[chosen]]
        else:
            image = seen["image"]
            references = file_rows[image.references[image.offsets[sample_rows]]]
        sets.append(_set(name, file, references, np.arange(len(references) + 1)))
    return Features(table, tuple(sets), sample_rows, "each", left_out)


def text_units(table: SampleTable, name: str, file: ItemFile, captions: Captions) -> tuple[Rows, Rows, dict[str, int]]:
    """A text file's rows seen from the samples, one a unit: (rows of the file, sample rows, left-out by reason).

    captions: ``first``, a unit per sample with the first text that is done; or ``each``, a unit per text.
    """
    seen, n = _Seen.of(table, "text"), table.samples.num_rows
    found = _file_rows(table, file)[seen.references]
    references, offsets = _done(found, seen.sample, n, first_only=captions == "first")
    reasons: Counter[str] = Counter()
    _count_lacking(reasons, name, file, seen, found, np.diff(offsets) == 0, np.ones(n, bool))
    return references, np.repeat(np.arange(n), np.diff(offsets)), dict(reasons)


def content_digests(features: Features) -> pa.Table:
    """What each sample's vectors were made from: ``id`` and ``content``, the xxh3-128 of its items' content digests.

    A sample whose photo or caption has changed since gets another digest; one that is untouched keeps its own.
    """
    parts: dict[int, list[bytes]] = {int(row): [] for row in features.sample_rows}
    for one in features.sets:
        contents = one.file.content[one.references]
        for unit, row in enumerate(features.sample_rows):
            parts[int(row)].append(contents[one.offsets[unit] : one.offsets[unit + 1]].tobytes())
    rows = pa.array(list(parts), pa.int64())
    digests = [xxhash.xxh3_128_hexdigest(b"".join(found)) for found in parts.values()]
    return pa.table({"id": combined(features.table.samples["id"]).take(rows), "content": pa.array(digests)})


def shared_groups(features: Features) -> npt.NDArray[np.int64]:
    """Group of each unit, (units,): units that share a sample, an image or a stated group are one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(features)
    keys = [features.sample_rows]
    for name in ("image", "group"):
        if name in features.table.samples.column_names:
            column = combined(features.table.samples[name]).take(pa.array(features.sample_rows))
            codes = np.asarray(pc.fill_null(column.dictionary_encode().indices, -1)).astype(np.int64)
            keys.append(np.where(codes >= 0, codes, -1))
    rows, columns, start = [], [], n
    for codes in keys:
        _, compact = np.unique(codes[codes >= 0], return_inverse=True)
        rows.append(np.flatnonzero(codes >= 0))
        columns.append(start + compact)
        start += int(compact.max(initial=-1)) + 1
    edges = (np.ones(sum(map(len, rows)), np.int8), (np.concatenate(rows), np.concatenate(columns)))
    _, labels = connected_components(coo_array(edges, shape=(start, start)), directed=False)
    return np.asarray(labels[:n], np.int64)
