"""Fit the heads of a table one after the other, record each as a run, and measure what the table shows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from embedcache.errors import unknown_name
from embedcache.files import replacing, write_json
from heads import config as configs
from heads import record, report, sizes
from heads.config import HeadConfig
from heads.fit import SCORED_SPLITS, FittedRun, Task, fit, prepare, shared_rows
from heads.kinds import Floats
from heads.metrics import Interval, interval
from heads.splits import Rows
from heads.table import HEADLINE, Cell, Figure, Row, Table, name_of

TABLE: Final = "table.json"


@dataclass(frozen=True)
class PreparedTable:
    """A table whose heads can be fitted: a task for each of ``table.configs``."""

    table: Table
    tasks: tuple[Task, ...]

    def items(self) -> Iterator[tuple[HeadConfig, Task]]:
        """Each of the table's different heads with its task."""
        return zip(self.table.configs, self.tasks, strict=True)


@dataclass(frozen=True)
class Measured:
    """A number of a table. metric: what it is; share, loss, ``seconds`` or ``bytes``. why: where there is none.

    samples: that it is a score of. folder: of the run that it was measured on, below the table's own.
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
class FittedRow:
    """A row with its numbers by figure. here: which encoders it has; difference: to the best row, paired."""

    cells: Mapping[str, Cell]
    encoders: str | None
    here: str | None
    measured: Mapping[str, Measured]
    note: str | None
    difference: Interval | None = None


@dataclass(frozen=True)
class FittedTable:
    """What a table shows, and is kept of it in ``table.json``.

    paired: the figure by which the rows are sorted and compared on the same samples, where they can be.
    """

    title: str | None
    source: str | None
    columns: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[FittedRow, ...]
    notes: tuple[str, ...]
    paired: str | None = None


@dataclass(frozen=True)
class _Fitted:
    """What is left of a fitted head once it is recorded: numbers. samples: scored, by split; digests: of their ids.

    draws: of the headline metric on each bootstrap resample of a split.
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


def prepare_table(table: Table, cache: str | Path = "cache") -> PreparedTable:
    """Open features and make splits for every row, on the samples that all rows have; fits nothing.

    Raises what ``prepare`` raises.
    """
    tasks = _on_common_samples([prepare(config, cache) for config in table.configs], cache)
    for figure in table.figures.values():
        _check_score(figure, tasks)
    scored = ("train", *SCORED_SPLITS) if table.scores_training else SCORED_SPLITS
    return PreparedTable(table, tuple(replace(task, scored=scored) for task in tasks))


def _on_common_samples(tasks: Sequence[Task], cache: str | Path) -> list[Task]:
    """The tasks again, those of one data set on the samples that all of these have."""
    by_dataset: dict[str, Rows] = {}
    own = [shared_rows(task.sets) for task in tasks]
    for task, rows in zip(tasks, own, strict=True):
        before = by_dataset.get(task.dataset.name, rows)
        by_dataset[task.dataset.name] = np.intersect1d(before, rows)
    return [
        task if len(rows) == len(common) else prepare(task.config, cache, within=common)
        for task, rows in zip(tasks, own, strict=True)
        for common in (by_dataset[task.dataset.name],)
    ]


def fit_table(
    prepared: PreparedTable,
    out: Path,
    *,
    name: str = "table",
    progress: bool = False,
    searches: Path | None = None,
    checkpoints: Mapping[str, str] | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> tuple[Path, FittedTable]:
    """Fit every head, each recorded when it is done; the table's folder, and the table.

    name: of the folder, behind the time and the data set. checkpoints: by feature set, where an encoder came from a
    path, for sizes. said: is told what is done.
    """
    table, tasks = prepared.table, prepared.tasks
    names = list(dict.fromkeys(task.dataset.name for task in tasks))
    folder = record.new_folder(out, "-".join(names) or "report", name)
    _write_document(folder, table, names)
    fitted: list[_Fitted] = []
    for number, (config, task) in enumerate(prepared.items(), 1):
        shown = label(table, config)
        began = time.perf_counter()
        *parts, run = fit(task, progress=progress, searches=searches, name=shown)
        own = folder / f"{number:02d}-{record.slug(shown)}"
        _record(own, task, run)
        size = _size(own, checkpoints or {}) if _shows(table, "size") else None
        fitted.append(_kept(task, run, own.name, size, sum(one.seconds for one in (*parts, run))))
        said(f"{number} of {len(tasks)} done in {time.perf_counter() - began:.1f} s: {shown}")
    found = _assembled(table, fitted)
    write_json(folder / TABLE, asdict(found))
    record.point_latest(out, folder)
    return folder, found


def read_table(folder: Path) -> FittedTable | None:
    """The table that a folder keeps; None where it keeps another kind of run."""
    path = folder / TABLE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    lists = {name: tuple(found[name]) for name in ("columns", "figures", "notes")}
    return FittedTable(**{**found, **lists, "rows": tuple(_read_row(row) for row in found["rows"])})


def _read_row(row: Mapping[str, Any]) -> FittedRow:
    measured = {name: Measured(**one) for name, one in row["measured"].items()}
    gap = row["difference"]
    return FittedRow(**{**row, "measured": measured, "difference": None if gap is None else Interval(**gap)})


def _check_score(figure: Figure, tasks: Sequence[Task]) -> None:
    for task in tasks:
        if figure.score not in (None, HEADLINE, *task.kind.metric_names):
            raise unknown_name("score of a table's column:", str(figure.score), task.kind.metric_names)


def _write_document(folder: Path, table: Table, datasets: Sequence[str]) -> None:
    """The table as a grid file that repeats it; each head's own folder has its configuration resolved."""
    named = {"dataset": datasets[0]} if len(datasets) == 1 and not table.document.get("dataset") else {}
    with replacing(folder / record.CONFIG) as beside:
        beside.write_text(configs.dump({**named, **table.document}), encoding="utf-8")


def _record(folder: Path, task: Task, run: FittedRun) -> None:
    record.write_run(folder, task, run)
    record.write_config(folder, record.of_one(record.resolved(task), run.features))
    report.write(folder, task, [run], None)
    record.drop_journal(run)


def label(table: Table, config: HeadConfig) -> str:
    """The name of the first row that has this head: what tells it from others.

    All of its texts where the first is not unique, and a figure where other figures of the row have another head.
    """
    row = next(row for row in table.rows if config in row.configs.values())
    own = [name for name, one in row.configs.items() if one == config]
    names = [name_of(one, table.config) for one in table.rows]
    name = names[table.rows.index(row)]
    parts = [name] if names.count(name) == 1 else [str(row.cells[column]) for column in table.config.columns]
    heads = [one for place, one in enumerate(row.configs.values()) if one not in list(row.configs.values())[:place]]
    return ", ".join([*parts, *([own[0]] if len(heads) > 1 else [])])


def _shows(table: Table, what: str) -> bool:
    return any(figure.takes == what for figure in table.figures.values())


def _size(folder: Path, checkpoints: Mapping[str, str]) -> int | None:
    """Bytes of a recorded head with its backbones and tokenizers; None where one of them is not known."""
    parts = sizes.of_run(folder, checkpoints)
    return None if any(part.nbytes is None for part in parts) else sizes.total(parts)


def _kept(task: Task, run: FittedRun, folder: str, size: int | None, training: float) -> _Fitted:
    """training: seconds, with those of the heads that it fuses."""
    scored = {split: one for split, one in run.scored.items() if one.scores}
    headline = next((name for one in scored.values() for name in one.own), task.kind.headline)
    thresholds, seed = run.head.thresholds, task.config.seed
    draws = {
        split: task.kind.draws(one.truth, one.probabilities, thresholds, seed, one.own)[headline]
        for split, one in scored.items()
        if split != "train"
    }
    return _Fitted(
        folder,
        headline,
        {split: one.scores for split, one in scored.items()},
        {split: len(one.truth) for split, one in scored.items()},
        {split: xxhash.xxh3_64_intdigest("\0".join(one.ids).encode()) for split, one in scored.items()},
        draws,
        _encoders(run),
        training,
        _seconds_to_predict(task, run),
        size,
    )


def _encoders(run: FittedRun) -> str:
    """``frozen``, and of the words of a head that reads them whether they were trained."""
    found = ["frozen"] if any(one.dim for one in run.features.sets) else []
    if not all(one.dim for one in run.features.sets):
        found.append("words frozen" if run.parameters.get("freeze_embedding") else "words trained")
    return ", ".join(found) or "none"


def _seconds_to_predict(task: Task, run: FittedRun) -> float | None:
    """Seconds for the test split from its files on: items at the speed of their extraction, and the head's own time."""
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


def _assembled(table: Table, fitted: Sequence[_Fitted]) -> FittedTable:
    """The rows with their numbers; where they can be compared on the same samples, best first, with differences."""
    heads = table.configs
    own = [{name: fitted[heads.index(config)] for name, config in row.configs.items()} for row in table.rows]
    rows = [_row(table, row, one) for row, one in zip(table.rows, own, strict=True)]
    config, figures = table.config, table.figures
    paired = _pairable(table, own)
    if paired is not None:
        order = sorted(range(len(rows)), key=lambda place: -_value(rows[place], paired))
        gaps = _gaps([own[place][paired] for place in order], [rows[place].measured[paired] for place in order])
        rows = [replace(rows[place], difference=gap) for place, gap in zip(order, gaps, strict=True)]
    return FittedTable(
        config.title, config.source, tuple(config.columns), tuple(figures), tuple(rows), tuple(config.notes), paired
    )


def _row(table: Table, row: Row, own: Mapping[str, _Fitted]) -> FittedRow:
    measured = {name: _measured(table.figures[name], one) for name, one in own.items()}
    for name, figure in table.figures.items():
        if figure.mean is not None and own:
            measured[name] = _mean([measured[other] for other in figure.mean])
    here = next(iter(own.values())).encoders if own else None
    return FittedRow(row.cells, row.encoders, here, measured, row.note)


def _measured(figure: Figure, one: _Fitted) -> Measured:
    """One number of a fitted head, or why there is none."""
    if figure.takes is not None:
        value = {"training": one.training, "predict": one.predict, "size": one.size}[figure.takes]
        why = "the speed or the size of an encoder is not known" if value is None else None
        return Measured("bytes" if figure.takes == "size" else "seconds", value, folder=one.folder, why=why)
    split: str = figure.split or next((name for name in SCORED_SPLITS[::-1] if name in one.scores), "test")
    metric = one.headline if figure.score == HEADLINE else str(figure.score)
    found = one.scores.get(split, {}).get(metric)
    if found is None:
        why = f"no {metric} on {split}" if split in one.scores else f"no rows of {split} are scored"
        return Measured(metric, None, split=split, folder=one.folder, why=why)
    return Measured(metric, found.value, found.low, found.high, split, one.samples[split], one.folder)


def _mean(parts: Sequence[Measured]) -> Measured:
    values = [one.value for one in parts if one.value is not None]
    if len(values) < len(parts):
        return Measured(parts[0].metric, None, why="one of its parts is not known")
    return Measured(parts[0].metric, sum(values) / len(values))


def _pairable(table: Table, own: Sequence[Mapping[str, _Fitted]]) -> str | None:
    """The only score of a table without reported numbers, if all rows have it on the same samples."""
    scores = [name for name, figure in table.figures.items() if figure.score is not None]
    if table.config.source is not None or len(scores) != 1 or len(own) < 2 or not all(scores[0] in one for one in own):
        return None
    (name,) = scores
    found = [_measured(table.figures[name], one[name]) for one in own]
    same = {(one.split, one.metric, row[name].digests.get(str(one.split))) for one, row in zip(found, own, strict=True)}
    comparable = len(same) == 1 and found[0].split != "train" and found[0].metric == own[0][name].headline
    return name if comparable and all(one.value is not None for one in found) else None


def _value(row: FittedRow, figure: str) -> float:
    value = row.measured[figure].value
    assert value is not None
    return value


def _gaps(own: Sequence[_Fitted], measured: Sequence[Measured]) -> list[Interval | None]:
    """Each row's score less that of the first, with its paired bootstrap interval; None for the first."""
    split = str(measured[0].split)
    best, draws = measured[0].value or 0.0, own[0].draws[split]
    gaps = [
        interval((one.value or 0.0) - best, kept.draws[split] - draws) for one, kept in zip(measured, own, strict=True)
    ]
    return [None, *gaps[1:]]
