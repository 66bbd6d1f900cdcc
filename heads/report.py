"""One HTML page for a run: scores, comparison, search and confusion. Every text that it shows is escaped."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from embedcache.files import replacing
from heads import curves
from heads.fit import FittedRun, Scored
from heads.metrics import ClassCounts, Codes, Interval, class_counts, confusion
from heads.multilabel import LabelRow
from heads.record import Comparison, confusions, label_tables
from heads.repeats import Repeats
from heads.task import Task

PAGE: Final = "report.html"
_SHOWN_CLASSES: Final = 30
_SHOWN_POINTS: Final = 20
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2433}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}p.sub{color:#5b6478;margin-top:0}
table{border-collapse:collapse;margin:.5rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #e3e7ef}
th:first-child,td:first-child{text-align:left}th{color:#5b6478;font-weight:600}
th.text,td.text{text-align:left}
body.wide{max-width:80rem}body.wide div{overflow-x:auto}body.wide td,body.wide th{padding:.3rem .5rem}
tr.best td{background:#eef6f0}img{max-width:100%}ul{padding-left:1.2rem}code{background:#f2f4f8;padding:0 .2rem}
"""


def percent(score: Interval) -> str:
    """``82.0 % (74.0 to 89.0)``."""
    return f"{100 * score.value:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def shown(metric: str, score: Interval) -> str:
    """A score as people read it: shares in per cent, losses in nats."""
    if metric == "log_loss":
        return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
    return percent(score)


def signed(difference: Interval | None) -> str:
    """A difference in percentage points with its interval; the best has none."""
    if difference is None:
        return "best"
    return f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def write(folder: Path, task: Task, runs: Sequence[FittedRun], comparison: Comparison | None) -> Path:
    """Write ``report.html`` into a run's folder."""
    title = f"{task.dataset.name}: {task.config.head}"
    parts = [f"<h1>{_text(title)}</h1>", f"<p class=sub>target {_text(_target(task))}</p>"]
    parts.append(facts(_of_task(task)))
    if comparison is not None:
        parts += _comparison(comparison)
    for run in runs:
        parts += _run(run, task.splits.notes, task.unseen)
    page = document(title, "\n".join(parts))
    with replacing(folder / PAGE) as beside:
        beside.write_text(page, encoding="utf-8")
    return folder / PAGE


def _target(task: Task) -> str:
    what = {"single": "classes", "multi": "labels, any number of them per sample"}[task.targets.kind]
    return f"{task.target}, {len(task.classes)} {what}"


def document(title: str, body: str, *, wide: bool = False) -> str:
    """A whole page. wide: for a table of many columns."""
    start = "<body class=wide>" if wide else "<body>"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>{start}\n{body}\n</body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], best: int | None = None) -> str:
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = [
        f"<tr{' class=best' if index == best else ''}>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for index, row in enumerate(rows)
    ]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _of_task(task: Task) -> list[str]:
    """What is the same for every choice of features: samples by split, left out, notes."""
    splits = {name: len(getattr(task.splits, name)) for name in ("train", "validation", "test")}
    return [
        *(f"{count:,} samples in {split}" for split, count in splits.items() if count),
        *(f"{count:,} samples left out: {reason}" for reason, count in task.left_out.items()),
        *task.splits.notes,
    ]


def facts(said: Iterable[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{_text(one)}</li>" for one in said) + "</ul>"


def _comparison(found: Comparison) -> list[str]:
    rows = [(row.label, row.dims, percent(row.score), signed(row.difference)) for row in found.rows]
    head = ("features", "dims", f"{found.split} {found.metric}", "difference to the best")
    return [
        "<h2>Comparison</h2>",
        _table(head, rows, best=0),
        f"<p class=sub>{found.samples:,} samples that all feature sets have; 95 % bootstrap intervals, "
        "differences paired on the same samples.</p>",
        _picture(_comparison_plot(found), "scores with their intervals"),
    ]


def _run(run: FittedRun, shared: Sequence[str], unseen: Sequence[Any]) -> list[str]:
    parts = [f"<h2>{_text(run.label)}</h2>"]
    scored = {split: one for split, one in run.scored.items() if one.scores}
    if scored:
        metrics = list(next(iter(scored.values())).scores)
        rows = [
            (metric.replace("_", " "), *(shown(metric, one.scores[metric]) for one in scored.values()))
            for metric in metrics
        ]
        head = ("score", *(f"{split} ({len(one.truth):,})" for split, one in scored.items()))
        parts.append(_table(head, rows))
    if run.repeats is not None:
        parts += _repeats(run.repeats)
    said = [
        f"parameters: {_pairs(run.parameters) or 'defaults'}",
        *(f"{one.name}: {one.dim} numbers, fingerprint {one.fingerprint}" for one in run.head.features),
        *(note for note in run.notes if note not in shared),
    ]
    parts.append(facts(said))
    if run.search is not None:
        parts += _search_table(run)
    if run.curve:
        parts += _learning_curve(run)
    last = next((split for split in ("test", "validation") if split in scored), None)
    if last is not None and run.head.kind == "multi":
        parts += _label_table(label_tables(run)[last], last)
    elif last is not None:
        parts += [_by_type(name, rows) for name, rows in scored[last].by_type.items()]
        parts.append(_picture(_confusion_plot(run, scored[last], last), f"confusion matrix of {last}"))
        parts += _worst_pairs(confusions(run, unseen)[last], last)
    return parts


def _learning_curve(run: FittedRun) -> list[str]:
    """Scores by number of training rows, as a table and as a picture."""
    head = ("training rows", f"{run.curve[0].split} {curves.headline(run.curve)}", "seconds")
    return [
        "<h3>Learning curve</h3>",
        _table(head, curve_cells(run)),
        _picture(curves.plot(run.curve), "score by number of training rows"),
    ]


def curve_cells(run: FittedRun) -> list[tuple[str, str, str]]:
    """A row of text per point of the learning curve: rows, first score with its interval, seconds."""
    name = curves.headline(run.curve) if run.curve else ""
    return [(f"{one.rows:,}", shown(name, one.scores[name]), f"{one.seconds:.1f}") for one in run.curve]


def _worst_pairs(pairs: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    """The most frequent confusions; nothing where there is no error."""
    if not pairs:
        return []
    head = ("truth", "predicted", "samples", "share of the class")
    return [f"<p class=sub>The most frequent confusions on {_text(split)}:</p>", _table(head, map(pair_cells, pairs))]


def pair_cells(pair: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Of a confusion: the truth, what is predicted instead, how often, and in what share of the class."""
    return (str(pair["truth"]), str(pair["predicted"]), f"{pair['count']:,}", f"{100 * pair['share']:.1f} %")


def _repeats(found: Repeats) -> list[str]:
    """Mean and deviation over the seeds."""
    metrics = list(next(iter(found.scores.values()), {}))
    rows = [(name.replace("_", " "), *(own[name].shown(name) for own in found.scores.values())) for name in metrics]
    head = ("mean ± deviation", *found.scores)
    return [f"<h3>{len(found.seeds)} seeds</h3>", _table(head, rows)]  # which ones, a note says


LABEL_COLUMNS: Final = ("label", "threshold", "TP", "FP", "FN", "TN", "F1", "AP")


def label_cells(row: LabelRow) -> tuple[str, ...]:
    """A label's row of a table as people read it; a dash where there is nothing to divide."""
    shares = ("-" if value is None else f"{100 * value:.1f} %" for value in (row.f1, row.average_precision))
    return (str(row.label), f"{row.threshold:.3f}", *map(str, (row.tp, row.fp, row.fn, row.tn)), *shares)


def _label_table(rows: Sequence[LabelRow], split: str) -> list[str]:
    return [f"<h3>Labels on {_text(split)}, worst F1 first</h3>", _table(LABEL_COLUMNS, map(label_cells, rows))]


def _by_type(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each type, the most frequent first."""
    scores = [key for key in rows[0] if key not in ("type", "count")]
    lines = [(row["type"], f"{row['count']:,}", *(f"{100 * row[key]:.1f} %" for key in scores)) for row in rows]
    head = (name.replace("_", " "), "samples", *(key.replace("_", " ") for key in scores))
    return f"<h3>By {_text(name.replace('_', ' '))}</h3>" + _table(head, lines)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _search_table(run: FittedRun) -> list[str]:
    assert run.search is not None
    order = sorted(run.search.rows, key=lambda row: row["rank_test_score"])
    names = list(dict.fromkeys(name for row in order for name in row if name.startswith("param_")))
    rows = [
        (
            row["rank_test_score"],
            *(row.get(name, "") for name in names),
            *run.search.means(row).values(),
            f"{row['mean_fit_time']:.2f} s",
        )
        for row in order[:_SHOWN_POINTS]
    ]
    more = len(order) - len(rows)
    means = (f"mean {name}" for name in run.search.scores)
    head = ("rank", *(name.removeprefix("param_") for name in names), *means, "fit")
    rest = f"<p class=sub>{more} more in cv_results.csv</p>" if more > 0 else ""
    return [f"<h3>Search ({_text(run.splitter)})</h3>", _table(head, rows, best=0), rest]


def _comparison_plot(found: Comparison) -> Any:
    rows = found.rows[::-1]
    names = [_plain(row.label, 60) for row in rows]
    figure, axes = _figure(5.0 + _width(names), 0.8 + 0.45 * len(rows))
    values = np.array([row.score.value for row in rows]) * 100
    low = values - np.array([row.score.low for row in rows]) * 100
    high = np.array([row.score.high for row in rows]) * 100 - values
    axes.errorbar(values, np.arange(len(rows)), xerr=[low, high], fmt="o", color="#2f6f4f", capsize=3)
    axes.set_yticks(np.arange(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{found.split} {found.metric}, %")
    axes.grid(axis="x", color="#e3e7ef")
    return figure


def _confusion_plot(run: FittedRun, scored: Scored, split: str) -> Any:
    """Shares of each true class; the counts too where there is room for them."""
    classes = len(run.head.classes)
    known = scored.truth < classes
    truth, predicted = scored.truth[known], scored.probabilities.argmax(1)[known]
    counts = class_counts(truth, predicted, classes)
    kept = _most_confused(counts)
    part = _confusion_of(kept, truth, predicted, classes)
    names = [_plain(run.head.classes[code]) for code in kept]
    side = max(1.6, 0.26 * len(kept)) + _width(names) + 0.8
    figure, axes = _figure(side, side)
    shares = part / np.maximum(counts.truth[kept, None], 1)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    axes.set_xticks(np.arange(len(kept)), names, rotation=90)
    axes.set_yticks(np.arange(len(kept)), names)
    axes.set_xlabel(f"predicted, {split}")
    axes.set_ylabel("truth")
    if len(kept) <= 15:
        for row, column in np.argwhere(part > 0):
            colour = "white" if shares[row, column] > 0.5 else "#1d2433"
            axes.text(column, row, str(part[row, column]), ha="center", va="center", fontsize=9, color=colour)
    if len(kept) < classes:
        axes.set_title(f"the {len(kept)} most confused of {classes:,} classes", fontsize=10)
    return figure


def _most_confused(counts: ClassCounts) -> Codes:
    """The classes with the most errors, in class order; all where there are few."""
    if len(counts.truth) <= _SHOWN_CLASSES:
        return np.arange(len(counts.truth))
    errors = counts.truth + counts.predicted - 2 * counts.hits
    return np.sort(np.argsort(-errors, kind="stable")[:_SHOWN_CLASSES])


def _confusion_of(kept: Codes, truth: Codes, predicted: Codes, classes: int) -> Codes:
    """The rows and columns of some classes, (kept, kept); all classes' cells are never counted."""
    place = np.full(classes, -1)
    place[kept] = np.arange(len(kept))
    both = (place[truth] >= 0) & (place[predicted] >= 0)
    return confusion(place[truth[both]], place[predicted[both]], len(kept))


def _plain(label: Any, longest: int = 28) -> str:
    """A label for a plot: on one line, short, and never read as mathematics."""
    text = " ".join(str(label).split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _width(names: Sequence[str]) -> float:
    """About the width of the longest name in a plot, inches."""
    return 0.085 * max(map(len, names))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of its own, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _picture(figure: Any, what: str) -> str:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib's own font lacks some scripts: it draws boxes
        figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{_text(what)}" src="data:image/png;base64,{data}"></p>'
