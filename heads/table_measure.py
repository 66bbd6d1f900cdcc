"""The numbers of a table: what is kept of each fitted head, and what its figures are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from heads.fit import FittedRun
from heads.kinds import Floats
from heads.metrics import Interval, interval
from heads.table import HEADLINE, Figure
from heads.task import SCORED_SPLITS, Task

SECONDS, BYTES = "seconds", "bytes"


@dataclass(frozen=True)
class Measured:
    """A number of a table. metric: what it is: a metric's name, ``seconds`` or ``bytes``. why: where there is none.

    low, high, split, samples: of a score. folder: of the run that it was measured on, below the table's own.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    split: str | None = None
    samples: int | None = None
    folder: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class Kept:
    """What is left of a fitted head once it is recorded.

    headline: the metric that comparisons are sorted by. digests: of the ids of each split's samples. draws: of the
    headline on each bootstrap resample of a split. encoders: whether they are frozen. training, predict: seconds; size:
    bytes; None where they are not known. notes: what was said of the fit.
    """

    folder: str
    headline: str
    scores: Mapping[str, Mapping[str, Interval]]
    samples: Mapping[str, int]
    digests: Mapping[str, int]
    draws: Mapping[str, Floats]
    encoders: str
    training: float
    predict: float | None
    size: int | None
    notes: tuple[str, ...]


def keep(task: Task, runs: Sequence[FittedRun], folder: str, size: int | None) -> Kept:
    """What is to be kept of the last of the runs; the others are the parts that it may be a fusion of."""
    run = runs[-1]
    scored = {split: one for split, one in run.scored.items() if one.scores}
    headline = next((name for one in scored.values() for name in one.own), task.kind.headline)
    thresholds, seed = run.head.thresholds, task.config.seed
    draws = {
        split: task.kind.draws(one.truth, one.probabilities, thresholds, seed, one.own)[headline]
        for split, one in scored.items()
        if split in SCORED_SPLITS
    }
    left_out = [f"{count:,} samples left out: {reason}" for reason, count in task.left_out.items()]
    return Kept(
        folder=folder,
        headline=headline,
        scores={split: one.scores for split, one in scored.items()},
        samples={split: len(one.truth) for split, one in scored.items()},
        digests={split: xxhash.xxh3_64_intdigest("\0".join(one.ids).encode()) for split, one in scored.items()},
        draws=draws,
        encoders=encoders(run),
        training=sum(one.seconds for one in runs),
        predict=seconds_to_predict(task, run),
        size=size,
        notes=(*left_out, *run.notes),
    )


def encoders(run: FittedRun) -> str:
    """``frozen``, and of word ids whether the words' vectors were trained; ``none`` where a head reads texts."""
    found = ["frozen"] if any(one.dim for one in run.features.sets) else []
    if not all(one.dim for one in run.features.sets):
        found.append("words frozen" if run.parameters.get("freeze_embedding") else "words trained")
    return ", ".join(found) or "none"


def seconds_to_predict(task: Task, run: FittedRun) -> float | None:
    """Seconds for the test split from its files on: items at the speed of their extraction, and the head's own time.

    None where nothing was scored on test, or a feature file does not say how fast it was made.
    """
    if "test" not in run.scored or not run.scored["test"].scores:
        return None
    units = np.flatnonzero(np.isin(run.features.sample_rows, task.base.sample_rows[task.splits.test]))
    total = run.scored["test"].seconds
    for one in run.features.sets:
        made = one.file.record
        if not made.get("encoded") or not made.get("seconds"):
            return None
        total += len(np.unique(one.take(units).references)) * made["seconds"] / made["encoded"]
    return total


def measured(figure: Figure, kept: Kept) -> Measured:
    """One number of a fitted head, or why there is none. figure: no mean of others."""
    if figure.takes is not None:
        value = {"training": kept.training, "predict": kept.predict, "size": kept.size}[figure.takes]
        why = "the speed or the size of an encoder is not known" if value is None else None
        return Measured(metric_of(figure), value, folder=kept.folder, why=why)
    split: str = figure.split or next((name for name in SCORED_SPLITS[::-1] if name in kept.scores), "test")
    metric = kept.headline if figure.score == HEADLINE else str(figure.score)
    found = kept.scores.get(split, {}).get(metric)
    if found is None:
        why = f"no {metric} on {split}" if split in kept.scores else f"no rows of {split} are scored"
        return Measured(metric, None, split=split, folder=kept.folder, why=why)
    return Measured(metric, found.value, found.low, found.high, split, kept.samples[split], kept.folder)


def metric_of(figure: Figure) -> str:
    """What kind of number a figure is, as far as the figure says."""
    if figure.takes is not None:
        return BYTES if figure.takes == "size" else SECONDS
    return figure.score or ""


def mean(parts: Sequence[Measured]) -> Measured:
    """The mean of other numbers of the row; none where one of them is missing."""
    values = [one.value for one in parts if one.value is not None]
    if len(values) < len(parts):
        return Measured(parts[0].metric, None, why="one of its parts is not known")
    return Measured(parts[0].metric, sum(values) / len(values))


def comparable(numbers: Sequence[Measured], kept: Sequence[Kept]) -> bool:
    """Whether the numbers are headline scores of the same samples, none of them trained on."""
    same = {
        (one.split, one.metric, own.digests.get(str(one.split)), one.metric == own.headline, one.value is None)
        for one, own in zip(numbers, kept, strict=True)
    }
    if len(numbers) < 2 or len(same) > 1:
        return False
    split, _, _, headline, lacking = same.pop()
    return headline and not lacking and split in SCORED_SPLITS


def differences(numbers: Sequence[Measured], kept: Sequence[Kept]) -> list[Interval | None]:
    """Each number less the first, with its paired bootstrap interval; None for the first. For comparable numbers."""
    values = [one.value or 0.0 for one in numbers]
    draws = [own.draws[str(one.split)] for one, own in zip(numbers, kept, strict=True)]
    gaps = [interval(value - values[0], own - draws[0]) for value, own in zip(values[1:], draws[1:], strict=True)]
    return [None, *gaps]
