"""Recorded runs as people read them: lines and tables made of what ``metrics.json`` and ``comparison.json`` say.

What ``fit-head`` prints and what ``report`` prints later is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from heads.metrics import Interval
from heads.multilabel import LabelRow
from heads.record import COMPARISON, METRICS_FILE, read_metrics
from heads.repeats import Spread
from heads.report import LABEL_COLUMNS, label_cells, pair_cells, percent, shown, signed

Document: TypeAlias = Mapping[str, Any]
MOST_LABELS: Final = 20
MOST_PAIRS: Final = 5


@dataclass(frozen=True)
class Line:
    """A paragraph. start: what it begins with; its further lines stand below its end."""

    text: str
    start: str = ""


@dataclass(frozen=True)
class Cells:
    """A table of text. texts: how many columns are words, to the left; the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1


Part: TypeAlias = Line | Cells


def of_folder(folder: Path, said: Sequence[str] = ()) -> list[Part]:
    """What is to be shown of a run's folder: one head, or several beside each other. said: notes that are known."""
    if (folder / METRICS_FILE).is_file():
        return of_run(read_metrics(folder), said)
    compared = folder / COMPARISON
    if compared.is_file():
        comparison = json.loads(compared.read_text(encoding="utf-8"))
        return of_comparison(comparison, [read_metrics(folder / row["folder"]) for row in comparison["rows"]], said)
    return [part for one in _members(folder) for part in (Line(one.name), *of_run(read_metrics(one), said))]


def heading(folder: Path) -> Line:
    """What a run is: data set, target, head, features, samples."""
    own = (folder / METRICS_FILE).is_file()
    document = read_metrics(folder if own else _members(folder)[0])
    features = " + ".join(one["name"] for one in document["features"])
    on = (f" on {features}" if features else "") if own else ", several choices of features"
    samples = ", ".join(f"{count:,} {split}" for split, count in document["samples"].items() if count)
    return Line(f"{document['dataset']}, target {document['target']}: {document['head']}{on}; {samples} samples")


def _members(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob(f"*/{METRICS_FILE}"))]


def of_run(document: Document, said: Sequence[str] = ()) -> list[Part]:
    """One head: its scores, all that they are made of, and the notes that were not ``said`` before."""
    scores = document["scores"]
    last = next((split for split in ("test", "validation") if split in scores), None)
    parts: list[Part] = [*_search(document), _scores(scores), *_repeats(document)]
    parts += [
        Line(f"{split}, {one['type']}: vqa_accuracy {one['vqa_accuracy']:.1%} of {one['count']:,}")
        for split, by in document.get("by_type", {}).items()
        for one in by.get("answer_type", ())
    ]
    if last is not None:
        parts += [*_labels(document, last), *_confusions(document, last)]
    return [*parts, *_curve(document), *(Line(note, "note: ") for note in document["notes"] if note not in said)]


def of_comparison(comparison: Document, members: Sequence[Document], said: Sequence[str] = ()) -> list[Part]:
    """Several choices of features, best first. members: their documents, in the order of the rows.

    A note that all members have is shown once, others with the names of those that have them.
    """
    rows, metric = comparison["rows"], f"{comparison['split']} {comparison['metric']}"
    cells = [
        (row["label"], str(row["dims"]), percent(Interval(**row["score"])), signed(_interval(row["difference"])))
        for row in rows
    ]
    parts: list[Part] = [
        Cells(("features", "dims", metric, "to the best"), tuple(cells)),
        Line(f"{comparison['samples']:,} samples that all have; 95 % intervals, differences paired"),
        Line(", ".join(row["folder"] for row in rows), "runs, best first: "),
    ]
    for row, one in zip(rows, members, strict=True):
        if "repeats" in one:
            spread = _spread(one["repeats"]["scores"][comparison["split"]][comparison["metric"]])
            over = f"over {len(one['repeats']['seeds'])} seeds"
            parts.append(Line(f"{row['label']}: {metric} {spread.shown(comparison['metric'])} {over}"))
        parts += _curve(one, row["label"])
    return [*parts, *_notes([row["label"] for row in rows], members, said)]


def _notes(labels: Sequence[str], members: Sequence[Document], said: Sequence[str]) -> list[Line]:
    own = {
        label: [note for note in one["notes"] if note not in said] for label, one in zip(labels, members, strict=True)
    }
    return [Line(note, "note: ") for note in by_owner(own, labels)]


def by_owner(notes: Mapping[str, Sequence[str]], everyone: Sequence[str]) -> list[str]:
    """Each note once: what all of ``everyone`` have as it is, else behind the names of those that have it."""
    owners = {note: [name for name, own in notes.items() if note in own] for own in notes.values() for note in own}
    return [note if set(everyone) <= set(names) else f"{'; '.join(names)}: {note}" for note, names in owners.items()]


def _search(document: Document) -> list[Line]:
    found = document.get("search")
    if not found or "best" not in found:  # runs of earlier releases do not say it
        return []
    best = ", ".join(f"{name} {value}" for name, value in found["best"].items())
    return [Line(f"best of {found['candidates']:,} candidates: {best}")]


def _scores(scores: Document) -> Cells:
    metrics: Document = next(iter(scores.values()), {})
    rows = ((name, *(shown(name, Interval(**own[name])) for own in scores.values())) for name in metrics)
    return Cells(("score", *scores), tuple(rows))


def _repeats(document: Document) -> list[Part]:
    """Mean and deviation over the seeds."""
    found = document.get("repeats")
    if not found:
        return []
    metrics: Document = next(iter(found["scores"].values()), {})
    rows = ((name, *(_spread(own[name]).shown(name) for own in found["scores"].values())) for name in metrics)
    return [Cells((f"{len(found['seeds'])} seeds", *found["scores"]), tuple(rows))]


def _spread(found: Document) -> Spread:
    return Spread(tuple(found["values"]))


def _labels(document: Document, split: str) -> list[Part]:
    """The 2 × 2 table of each label, worst F1 first."""
    rows = [LabelRow(**row) for row in document.get("by_label", {}).get(split, ())]
    if not rows:
        return []
    more = [Line(f"{len(rows) - MOST_LABELS:,} more in {METRICS_FILE}")] if len(rows) > MOST_LABELS else []
    shown_rows = tuple(label_cells(row) for row in rows[:MOST_LABELS])
    return [Line(f"labels on {split}, worst F1 first"), Cells(LABEL_COLUMNS, shown_rows), *more]


def _confusions(document: Document, split: str) -> list[Part]:
    """What is taken for what most often."""
    pairs = document.get("confusions", {}).get(split, ())[:MOST_PAIRS]
    if not pairs:
        return []
    columns = ("truth", "predicted", "samples", "of the class")
    return [Line(f"most frequent confusions on {split}"), Cells(columns, tuple(map(pair_cells, pairs)), texts=2)]


def _curve(document: Document, label: str = "") -> list[Part]:
    """Scores by number of training rows, where they were asked for."""
    points = document.get("learning_curve", ())
    if not points:
        return []
    name = next(key for key in points[0] if key not in ("rows", "split"))
    rows = tuple(
        (
            f"{one['rows']:,}",
            shown(name, Interval(one[name], one[f"{name}_low"], one[f"{name}_high"])),
            f"{one['seconds']:.1f}",
        )
        for one in points
    )
    above = [Line(f"learning curve of {label}")] if label else []
    return [*above, Cells(("training rows", f"{points[0]['split']} {name}", "seconds"), rows, texts=0)]


def _interval(found: Document | None) -> Interval | None:
    return None if found is None else Interval(**found)
