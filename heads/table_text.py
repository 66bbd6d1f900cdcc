"""A fitted table as people read it: cells of text, a Markdown file, an HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Final

from embedcache.files import replacing
from heads import report, run_text, sizes
from heads.config import different
from heads.metrics import Interval
from heads.table import HEADLINE
from heads.table_measure import BYTES, SECONDS, Measured
from heads.table_run import FittedRow, FittedTable

MARKDOWN: Final = "table.md"
NOTHING: Final = "–"
LONG: Final = 14
"""Letters of a word that stay together on a narrow terminal."""
NARROW: Final = 9
"""The width of a heading above numbers that are no longer."""


@dataclass(frozen=True)
class Column:
    """A heading, and whether its cells are numbers."""

    heading: str
    number: bool


@dataclass(frozen=True)
class Lines:
    """A table as text: its columns, its rows, the folders of the rows' runs, and what is to be said below."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    folders: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def lines(table: FittedTable, *, intervals: bool = True, stacked: bool = False) -> Lines:
    """Columns and rows: of each figure what was reported and our number, where someone reported the table.

    intervals: beside our numbers, where a row has one score. stacked: ours below the reported one, not beside it.
    """
    reported = table.source is not None
    columns = [Column(name, number=False) for name in table.columns]
    for name in table.figures:
        ends = [" (reported)", " (here)"] if reported and not stacked else [""]
        columns += [Column(_heading(table, name) + end, number=True) for end in ends]
    encoders = [_encoders(row) for row in table.rows]
    alike = len(set(encoders)) == 1
    columns += [Column("encoders", number=False)] if reported and not alike else []
    columns += [Column("to the best", number=True)] if table.paired else []
    rows = []
    for row, own in zip(table.rows, encoders, strict=True):
        cells = [str(row.cells[name]) for name in table.columns]
        for pair in _numbers(table, row, intervals=intervals):
            cells += ["\n".join(pair)] if stacked else pair
        cells += [own] if reported and not alike else []
        cells += [report.signed(row.difference)] if table.paired else []
        rows.append(tuple(cells))
    folders = [different(one.folder for one in row.measured.values() if one.folder) for row in table.rows]
    notes = ["of two numbers the upper one is the reported one"] if reported and stacked else []
    notes += [f"encoders: {encoders[0]}"] if reported and alike else []
    return Lines(tuple(columns), tuple(rows), tuple(map(tuple, folders)), (*notes, *_notes(table)))


def for_width(table: FittedTable, width: int) -> Lines:
    """The lines for a terminal of that many columns: stacked where both numbers do not fit side by side."""
    wide = lines(table, intervals=table.paired is not None)
    return wide if table.source is None or _width(wide) <= width else lines(table, intervals=False, stacked=True)


def headings(found: Lines) -> list[str]:
    """The headings in several lines each, broken between words and behind underscores, as wide as their numbers."""
    return [_folded(column, [row[place] for row in found.rows]) for place, column in enumerate(found.columns)]


def _folded(column: Column, cells: Sequence[str]) -> str:
    width = max([NARROW, *map(_longest, cells)]) if column.number else LONG
    words = column.heading.replace("_", "_ ")
    return fill(words, width, break_long_words=False, break_on_hyphens=False).replace("_ ", "_")


def _longest(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _width(found: Lines) -> int:
    """What the columns need at least: text is folded between words, and long words too; numbers never are."""
    needed = []
    for place, heading in enumerate(headings(found)):
        cells = [row[place] for row in found.rows]
        words = cells if found.columns[place].number else [word[:LONG] for cell in cells for word in cell.split()]
        needed.append(max([_longest(heading), *map(len, words)]))
    return sum(needed) + 2 * (len(needed) - 1)


def _heading(table: FittedTable, name: str) -> str:
    """The figure's own name; of the headline what it turned out to be, where that is the same in all rows."""
    splits = {row.measured[name].split for row in table.rows if name in row.measured}
    metric = table.figures[name]
    return f"{splits.pop()} {metric}" if name == HEADLINE and metric != HEADLINE and len(splits) == 1 else name


def _numbers(table: FittedTable, row: FittedRow, *, intervals: bool) -> list[list[str]]:
    """Of each figure what was reported, where the table has a source, and our number."""
    one_score = sum(one.low is not None for one in row.measured.values()) == 1
    pairs = []
    for name in table.figures:
        stated = row.cells.get(name)
        pair = [] if table.source is None else [NOTHING if stated is None else str(stated)]
        shares = name in table.shares
        pairs.append([*pair, _measured(row.measured.get(name), shares=shares, interval=intervals and one_score)])
    return pairs


def _measured(found: Measured | None, *, shares: bool, interval: bool) -> str:
    if found is None or found.value is None:
        return NOTHING
    if not interval or found.low is None or found.high is None:
        return _shown(found.metric, found.value, shares=shares)
    if not shares:
        return report.shown(found.metric, Interval(found.value, found.low, found.high))
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _shown(metric: str, value: float, *, shares: bool) -> str:
    """A score in per cent or as a share, a loss as it is, seconds and bytes with their unit."""
    if metric == SECONDS:
        return f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"
    if metric == BYTES:
        return sizes.readable(value)
    return f"{value:.3f}" if shares or metric == "log_loss" else f"{100 * value:.1f} %"


def _encoders(row: FittedRow) -> str:
    """What the report's encoders were, and ours where they are something else."""
    if row.encoders is None or row.here is None:
        return row.encoders or row.here or NOTHING
    return row.here if row.encoders == row.here else f"{row.encoders}; here {row.here}"


def _notes(table: FittedTable) -> list[str]:
    """What the numbers are of, why some are missing, what was said of the fits, and what the table's author says."""
    found = [one for row in table.rows for one in row.measured.values()]
    counts = {str(one.split): one.samples for one in found if one.split and one.samples}
    same = all(one.samples in (None, counts.get(str(one.split))) for one in found)
    notes = []
    if counts and same:
        notes.append("scored on " + ", ".join(f"{count:,} samples of {split}" for split, count in counts.items()))
    if table.paired:
        notes.append("95 % intervals; differences paired on the same samples, in points")
    of_rows = {row.name: [one.why for one in row.measured.values() if one.why] for row in table.rows}
    of_rows = {row.name: [*of_rows[row.name], *row.said, *([row.note] if row.note else [])] for row in table.rows}
    fitted = [row.name for row in table.rows if row.measured]
    notes += run_text.by_owner(of_rows, fitted if len(fitted) > 1 else list(of_rows))
    notes += [f"{name} could not be fitted: {why}" for name, why in (table.failed or {}).items()]
    return [*notes, *([f"reported: {table.source}"] if table.source else []), *table.notes]


def markdown(table: FittedTable) -> str:
    """The table as Markdown, for a README."""
    found = lines(table)
    rows = [[one.heading for one in found.columns], *found.rows]
    rules = ["--:" if one.number else ":--" for one in found.columns]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    title = [f"**{table.title}**", ""] if table.title else []
    notes = ["", *(f"- {note}" for note in found.notes)] if found.notes else []
    return "\n".join([*title, body[0], "|" + "|".join(rules) + "|", *body[1:], *notes, ""])


def write(folder: Path, table: FittedTable) -> Path:
    """Write ``table.md`` and ``report.html`` into the table's folder; the page."""
    with replacing(folder / MARKDOWN) as beside:
        beside.write_text(markdown(table), encoding="utf-8")
    found = lines(table)
    title = table.title or folder.name
    parts = [f"<h1>{html.escape(title)}</h1>", _html(found), report.facts(found.notes)]
    with replacing(folder / report.PAGE) as beside:
        beside.write_text(report.document(title, "\n".join(parts), wide=True), encoding="utf-8")
    return folder / report.PAGE


def _html(found: Lines) -> str:
    """The rows, each with a link to the pages of its heads."""
    kinds = ["" if one.number else " class=text" for one in found.columns]
    head = "".join(f"<th{kind}>{html.escape(one.heading)}</th>" for kind, one in zip(kinds, found.columns, strict=True))
    body = ""
    for row, folders in zip(found.rows, found.folders, strict=True):
        cells = "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        body += f"<tr>{cells}<td>{_links(folders)}</td></tr>"
    return f"<div><table><tr>{head}<th>runs</th></tr>{body}</table></div>"


def _links(folders: Sequence[str]) -> str:
    return ", ".join(
        f"<a href='{html.escape(one, quote=True)}/{report.PAGE}'>{html.escape(one.partition('-')[0])}</a>"
        for one in folders
    )
