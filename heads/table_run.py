"""Fit the heads of a table one after the other, record each as a run, and put their numbers together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embedcache.errors import EmbedCacheError, UsageError, unknown_name
from embedcache.files import replacing, write_json
from heads import config as configs
from heads import record, report, sizes
from heads.base import TOKENS, reads
from heads.config import HeadConfig, different
from heads.fit import FittedRun, fit
from heads.metrics import Interval
from heads.sequences import check_vectors
from heads.splits import Rows
from heads.table import HEADLINE, Cell, Row, Table
from heads.table_measure import Kept, Measured, comparable, differences, keep, mean, measured, metric_of
from heads.task import SCORED_SPLITS, Task, prepare, shared_rows

TABLE: Final = "table.json"
INTERRUPTED: Final = "the table was interrupted before"


@dataclass(frozen=True)
class PreparedTable:
    """A table whose heads can be fitted: a task for each of ``table.configs``."""

    table: Table
    tasks: tuple[Task, ...]

    def items(self) -> Iterator[tuple[HeadConfig, Task]]:
        """Each of the table's different heads with its task."""
        return zip(self.table.configs, self.tasks, strict=True)


@dataclass(frozen=True)
class FittedRow:
    """A row with its numbers by figure. here: which encoders it has; difference: to the best row, paired."""

    name: str
    cells: Mapping[str, Cell]
    encoders: str | None
    here: str | None
    measured: Mapping[str, Measured]
    note: str | None
    said: tuple[str, ...] = ()
    difference: Interval | None = None


@dataclass(frozen=True)
class FittedTable:
    """What a table shows, and is kept of it in ``table.json``.

    figures: the numbers' columns, with the metric of each. shares: those of them that are not shown in per cent.
    paired: the figure by which the rows are sorted and compared on the same samples, where they can be. failed: why
    rows have no head, by row.
    """

    title: str | None
    source: str | None
    columns: tuple[str, ...]
    figures: Mapping[str, str]
    shares: tuple[str, ...]
    rows: tuple[FittedRow, ...]
    notes: tuple[str, ...]
    paired: str | None = None
    failed: Mapping[str, str] | None = None


def prepare_table(table: Table, cache: str | Path = "cache") -> PreparedTable:
    """Open features and make splits for every row, on the samples that all rows have; fits nothing.

    Raises UsageError with the name of the row that cannot be, UnknownNameError for a score that no row has.
    """
    tasks = _on_common_samples([_prepared(table, config, cache) for config in table.configs], cache)
    known = {HEADLINE}.union(*(task.kind.metric_names for task in tasks))
    for figure in table.config.figures.values():
        if figure.score is not None and tasks and figure.score not in known:
            raise unknown_name("score of a table's column:", figure.score, known)
    scored = ("train", *SCORED_SPLITS) if table.scores_training else SCORED_SPLITS
    return PreparedTable(table, tuple(replace(task, scored=scored) for task in tasks))


def _prepared(table: Table, config: HeadConfig, cache: str | Path) -> Task:
    try:
        task = prepare(config, cache)
        if reads(task.head) == TOKENS:
            check_vectors(config)
        return task
    except EmbedCacheError as error:
        raise UsageError(f"Row {label(table, config)!r}: {error}") from error


def _on_common_samples(tasks: Sequence[Task], cache: str | Path) -> list[Task]:
    """The tasks again, those of one data set on the samples that all of these have."""
    own = [shared_rows(task.sets) for task in tasks]
    common: dict[str, Rows] = {}
    for task, rows in zip(tasks, own, strict=True):
        common[task.dataset.name] = np.intersect1d(common.get(task.dataset.name, rows), rows)
    found = []
    for task, rows in zip(tasks, own, strict=True):
        shared = common[task.dataset.name]
        found.append(task if len(rows) == len(shared) else prepare(task.config, cache, within=shared))
    return found


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

    A head that cannot be fitted leaves the others be: its numbers are missing, and ``failed`` says why. Interrupted,
    the table of what is done is written before the interruption goes on. name: of the folder, behind the time and the
    data set. checkpoints: by feature set, where an encoder came from a path, for sizes. said: is told what is done.
    """
    table = prepared.table
    datasets = different(task.dataset.name for task in prepared.tasks)
    folder = record.new_folder(out, "-".join(datasets) or "report", name)
    _write_document(folder, table, datasets)
    fitted: dict[int, Kept] = {}
    failed: dict[int, str] = {}
    wants_size = any(figure.takes == "size" for figure in table.config.figures.values())
    try:
        for place, (config, task) in enumerate(prepared.items()):
            began = time.perf_counter()
            shown = label(table, config)
            own = folder / f"{place + 1:02d}-{record.slug(shown)}"
            try:
                runs = fit(task, progress=progress, searches=searches, name=shown)
            except EmbedCacheError as error:
                failed[place] = str(error)
                said(f"{place + 1} of {len(prepared.tasks)} failed: {shown}: {error}")
                continue
            _record(own, task, runs[-1])
            fitted[place] = keep(task, runs, own.name, _size(own, checkpoints or {}) if wants_size else None)
            seconds = time.perf_counter() - began
            said(f"{place + 1} of {len(prepared.tasks)} done in {seconds:.1f} s: {shown}")
    except BaseException:
        failed |= {place: INTERRUPTED for place in range(len(prepared.tasks)) if place not in {**fitted, **failed}}
        raise
    finally:
        found = _assembled(table, fitted, failed)
        write_json(folder / TABLE, asdict(found))
        record.point_latest(out, folder)
    return folder, found


def label(table: Table, config: HeadConfig) -> str:
    """The name of the first row that has this head; with the column where other columns of it have another head."""
    row = next(row for row in table.rows if config in row.configs.values())
    columns = [name for name, one in row.configs.items() if one == config]
    return row.name if len(different(row.configs.values())) == 1 else f"{row.name}, {columns[0]}"


def read_table(folder: Path) -> FittedTable | None:
    """The table that a folder keeps; None where it keeps another kind of run."""
    path = folder / TABLE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    lists = {name: tuple(found[name]) for name in ("columns", "shares", "notes")}
    return FittedTable(**{**found, **lists, "rows": tuple(_read_row(row) for row in found["rows"])})


def _read_row(row: Mapping[str, Any]) -> FittedRow:
    numbers = {name: Measured(**one) for name, one in row["measured"].items()}
    gap = None if row["difference"] is None else Interval(**row["difference"])
    return FittedRow(**{**row, "measured": numbers, "said": tuple(row["said"]), "difference": gap})


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


def _size(folder: Path, checkpoints: Mapping[str, str]) -> int | None:
    """Bytes of a recorded head with its backbones and tokenizers; None where one of them is not known."""
    parts = sizes.of_run(folder, checkpoints)
    return None if any(part.nbytes is None for part in parts) else sizes.total(parts)


def _assembled(table: Table, fitted: Mapping[int, Kept], failed: Mapping[int, str]) -> FittedTable:
    """The rows with their numbers; where they can be compared on the same samples, best first, with differences."""
    config = table.config
    kept = [
        {name: fitted[place] for name, one in row.configs.items() if (place := table.configs.index(one)) in fitted}
        for row in table.rows
    ]
    rows = [_row(table, row, own) for row, own in zip(table.rows, kept, strict=True)]
    paired = _paired(table, rows, kept)
    if paired is not None:
        order = sorted(range(len(rows)), key=lambda place: -(rows[place].measured[paired].value or 0.0))
        numbers = [rows[place].measured[paired] for place in order]
        gaps = differences(numbers, [kept[place][paired] for place in order])
        rows = [replace(rows[place], difference=gap) for place, gap in zip(order, gaps, strict=True)]
    return FittedTable(
        title=config.title,
        source=config.source,
        columns=tuple(config.columns),
        figures={name: _metric(table, rows, name) for name in config.figures},
        shares=tuple(name for name, figure in config.figures.items() if figure.shares),
        rows=tuple(rows),
        notes=(*([f"changed by --set: {', '.join(table.changed)}"] if table.changed else []), *config.notes),
        paired=paired,
        failed={label(table, table.configs[place]): why for place, why in failed.items()},
    )


def _row(table: Table, row: Row, kept: Mapping[str, Kept]) -> FittedRow:
    figures = table.config.figures
    numbers = {name: measured(figures[name], one) for name, one in kept.items()}
    for name, figure in figures.items():
        if figure.mean is not None and all(other in numbers for other in figure.mean):
            numbers[name] = mean([numbers[other] for other in figure.mean])
    said = tuple(different(note for one in kept.values() for note in one.notes))
    here = next((one.encoders for one in kept.values()), None)
    return FittedRow(row.name, row.cells, row.encoders, here, numbers, row.note, said)


def _metric(table: Table, rows: Sequence[FittedRow], name: str) -> str:
    """The metric of a column: of a headline what it turned out to be, where it is the same in all rows."""
    figure = table.config.figures[name]
    if figure.mean is not None:
        return _metric(table, rows, figure.mean[0])
    found = {row.measured[name].metric for row in rows if name in row.measured}
    return found.pop() if len(found) == 1 else metric_of(figure)


def _paired(table: Table, rows: Sequence[FittedRow], kept: Sequence[Mapping[str, Kept]]) -> str | None:
    """The only score of a table without reported numbers, if all rows have it on the same samples."""
    scores = [name for name, figure in table.config.figures.items() if figure.score is not None]
    if table.config.source is not None or len(scores) != 1 or not all(scores[0] in one for one in kept):
        return None
    (name,) = scores
    return name if comparable([row.measured[name] for row in rows], [one[name] for one in kept]) else None
