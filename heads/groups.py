"""A recorded run's predictions sample by sample: scores by group, and two runs compared on the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcache.cache import open_cache
from embedcache.errors import DataNotFoundError, UsageError, unknown_name
from embedcache.samples import META_PREFIX, TARGET_PREFIX, SampleTable, combined, read_parquet
from embedcache.view import Features
from heads import vqa
from heads.config import HeadConfig, parse, read_grid
from heads.metrics import Paired, RowScores, paired
from heads.record import CONFIG, METRICS_FILE, PREDICTIONS

Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
NOTHING: Final = "(none)"
TOP_5: Final = 5


@dataclass(frozen=True)
class GroupRow:
    """One group: its samples, and of each score the sum over them (for shares: the hits) and the mean."""

    group: str
    count: int
    hits: Mapping[str, float]
    means: Mapping[str, float]


def by_group(
    groups: Iterable[str], rows: Rows, scores: RowScores, *, min_count: int = 1, worst: bool = False
) -> list[GroupRow]:
    """Scores of each group, the best by the first score first (``worst``: last); ties by size, then by name.

    groups: of each pair, (m,); rows: the row of ``scores`` that each pair is about, (m,): a row may be in several
    groups, or in none. scores: one number per row each, (n,). min_count: smaller groups are left out.
    """
    names, codes = np.unique(np.asarray(list(groups), str), return_inverse=True)
    counts = np.bincount(codes, minlength=len(names))
    sums = {score: np.bincount(codes, values[rows], len(names)) for score, values in scores.items()}
    first = next(iter(scores))
    found = [
        GroupRow(
            str(names[code]),
            int(counts[code]),
            {score: float(values[code]) for score, values in sums.items()},
            {score: float(values[code] / counts[code]) for score, values in sums.items()},
        )
        for code in np.flatnonzero(counts >= min_count)
    ]
    sign = 1 if worst else -1
    return sorted(found, key=lambda row: (sign * row.means[first], -row.count, row.group))


@dataclass(frozen=True)
class Recorded:
    """The scored samples of one split of a recorded run, joined with the sample table of its data set.

    sample_rows: rows of ``table.samples``, (n,). truth: labels as they are recorded, texts or lists of texts. scores:
    one number per sample each, (n,), the headline first.
    """

    run: str
    config: HeadConfig
    split: str
    table: SampleTable
    sample_rows: Rows
    truth: npt.NDArray[np.object_]
    scores: RowScores

    def __len__(self) -> int:
        return len(self.sample_rows)

    def column(self, name: str) -> pa.Array:
        """A column of the sample table for each sample: by its own name, or that of a target or of what is kept."""
        known = self.table.samples.column_names
        found = next((full for full in (name, META_PREFIX + name, TARGET_PREFIX + name) if full in known), None)
        if found is None:
            short = [full.removeprefix(META_PREFIX).removeprefix(TARGET_PREFIX) for full in known]
            raise unknown_name("column of the sample table:", name, short)
        return combined(self.table.samples[found]).take(pa.array(self.sample_rows))


def recorded(folder: Path, cache: str | Path = "cache", split: str | None = None) -> Recorded:
    """Read a run's predictions of one split (default: test, or validation where there is none) and join them by id.

    Raises DataNotFoundError for a folder that holds no single run, UsageError for a split that was not scored or
    samples that the cache does not know.
    """
    refuse_comparison(folder)
    config = parse(read_grid(folder / CONFIG), str(folder / CONFIG))
    predictions = read_parquet(folder / PREDICTIONS)
    predictions = predictions.filter(pc.is_valid(predictions["truth"]))
    scored = list(dict.fromkeys(predictions["split"].to_pylist()))
    split = split or next((name for name in ("test", "validation") if name in scored), None)
    if split is None or split not in scored:
        asked = f"of the split {split!r}" if split else "at all"
        raise UsageError(f"The run {folder} has no scored samples {asked}; it has scored {scored or 'nothing'}.")
    predictions = predictions.filter(pc.equal(predictions["split"], split))
    opened = open_cache(cache)
    table = opened[str(config.dataset)].table
    rows = pc.index_in(combined(predictions["id"]).cast(pa.large_string()), value_set=combined(table.samples["id"]))
    if rows.null_count:
        raise UsageError(
            f"{rows.null_count:,} of {len(rows):,} samples of {folder} are not in the sample table of {config.dataset} "
            "in this cache: it is another one, or has been read anew from other files. Fit the head again."
        )
    sample_rows = np.asarray(rows).astype(np.int64)
    truth = predictions["truth"].to_pylist()
    scores = _scores(predictions, truth, table, sample_rows, config.select.target)
    return Recorded(folder.resolve().name, config, split, table, sample_rows, _objects(truth), scores)


def refuse_comparison(folder: Path) -> None:
    """Raise DataNotFoundError for a comparison, which holds a run per choice of features and no predictions."""
    if not (folder / PREDICTIONS).is_file():
        inner = ", ".join(sorted(path.parent.as_posix() for path in folder.glob(f"*/{METRICS_FILE}")))
        hint = f" It compares several: name one of {inner}." if inner else ""
        raise DataNotFoundError(f"The run {folder} has no {PREDICTIONS}.{hint}")


def _objects(values: Sequence[Any]) -> npt.NDArray[np.object_]:
    return np.fromiter(values, object, len(values))


def _scores(
    predictions: pa.Table, truth: Sequence[Any], table: SampleTable, rows: Rows, target: str | None
) -> dict[str, npt.NDArray[np.float64]]:
    """One number per sample for each score that the recorded predictions decide."""
    predicted = predictions["predicted"].to_pylist()
    if "rank_of_truth" not in predictions.column_names:
        return _of_label_sets(truth, predicted)
    ranks = np.asarray(pc.fill_null(combined(predictions["rank_of_truth"]), np.iinfo(np.int64).max))
    found = {"accuracy": (ranks == 1).astype(np.float64), "top_5_accuracy": (ranks <= TOP_5).astype(np.float64)}
    labels, codes = np.unique(np.asarray(predicted, str), return_inverse=True)
    samples = Features(table, (), rows, "mean", {})
    return found | vqa.row_scores(samples, target or "", labels.tolist(), codes)


def _of_label_sets(truth: Sequence[Any], predicted: Sequence[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Exact match and F1 of each sample's own labels; F1 is 1 where both are empty."""
    pairs = [(set(own), set(said)) for own, said in zip(truth, predicted, strict=True)]
    return {
        "exact_match": np.array([float(own == said) for own, said in pairs]),
        "f1_samples": np.array([2 * len(own & said) / (len(own) + len(said)) if own or said else 1.0
                                for own, said in pairs]),
    }  # fmt: skip


def grouped(
    run: Recorded,
    by: str,
    *,
    min_count: int = 1,
    exclude: Sequence[tuple[str, str]] = (),
    worst: bool = False,
) -> list[GroupRow]:
    """A run's scores by a column of the sample table, without the samples that ``exclude`` names.

    exclude: pairs of a column and a value. A sample whose column holds a list is in the group of each of its values.
    """
    kept = np.ones(len(run), bool)
    for name, value in exclude:
        kept &= ~_has(run.column(name), name, value)
    if not kept.any():
        raise UsageError(f"Nothing is left of {len(run):,} samples of {run.split}: 'exclude' takes all of them.")
    groups, rows = _pairs(run.column(by))
    inside = kept[rows]
    found = by_group(groups[inside], rows[inside], run.scores, min_count=min_count, worst=worst)
    if not found:
        most = max(np.unique(groups[inside], return_counts=True)[1], default=0)
        raise UsageError(f"No group of {by} has {min_count:,} samples; the largest has {most:,}.")
    return found


def _has(column: pa.Array, name: str, value: str) -> Flags:
    """Which samples have a value, as text. Raises UsageError with the values for one that no sample has."""
    groups, rows = _pairs(column)
    found = np.zeros(len(column), bool)
    found[rows[groups == value]] = True
    if not found.any():
        raise unknown_name(f"value of {name}:", value, set(groups.tolist()))
    return found


def _pairs(column: pa.Array) -> tuple[npt.NDArray[np.str_], Rows]:
    """The values of a column as texts, and the row of each; a missing value and an empty list are ``(none)``."""
    texts: list[str] = []
    rows: list[int] = []
    for row, value in enumerate(column.to_pylist()):
        several = list(dict.fromkeys(map(_text, value))) if isinstance(value, list) else [_text(value)]
        own = several or [NOTHING]
        texts += own
        rows += [row] * len(own)
    return np.asarray(texts, str), np.asarray(rows, np.int64)


def _text(value: Any) -> str:
    return NOTHING if value is None else str(value)


@dataclass(frozen=True)
class Compared:
    """Two runs on the samples that both scored. scores: of each score that both have."""

    one: str
    other: str
    split: str
    samples: int
    scores: Mapping[str, Paired]


def compare(one: Recorded, other: Recorded, seed: int = 0) -> Compared:
    """Test two runs in pairs. Raises UsageError where they share no sample, or disagree on what is true."""
    if one.config.dataset != other.config.dataset or one.config.select.target != other.config.select.target:
        raise UsageError(
            f"{one.run} predicts {one.config.select.target} of {one.config.dataset} and {other.run} "
            f"{other.config.select.target} of {other.config.dataset}: only runs on one target are compared."
        )
    _, left, right = np.intersect1d(one.sample_rows, other.sample_rows, return_indices=True)
    if not len(left):
        raise UsageError(f"{one.run} and {other.run} have no sample of {one.split} in common.")
    if any(a != b for a, b in zip(one.truth[left], other.truth[right], strict=True)):
        raise UsageError(f"{one.run} and {other.run} were fitted on different targets of the same samples.")
    shared = [name for name in one.scores if name in other.scores]
    tests = {name: paired(one.scores[name][left], other.scores[name][right], seed) for name in shared}
    return Compared(one.run, other.run, one.split, len(left), tests)
