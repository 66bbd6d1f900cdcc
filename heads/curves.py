"""Learning curves: what a head would score with fewer training rows, and so whether more of them would pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from embedcache.errors import UsageError
from embedcache.samples import nested_subset
from heads.metrics import Interval

if TYPE_CHECKING:
    from heads.fit import FittedRun
    from heads.task import Task


@dataclass(frozen=True)
class CurvePoint:
    """A fit on some of the training rows. split: what is scored; seconds: of the fit and its scores."""

    rows: int
    split: str
    scores: Mapping[str, Interval]
    seconds: float


def read_sizes(text: str) -> tuple[int, ...]:
    """``100,1000`` as rising numbers of rows. Raises UsageError."""
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UsageError(f"--learning-curve takes numbers of rows, 100,1000,5000, got {text!r}.") from error
    if sizes[0] < 2:
        raise UsageError(f"--learning-curve: a head needs two rows to learn from, got {sizes[0]}.")
    return sizes


def check(task: Task, sizes: Sequence[int] = ()) -> None:
    """Raise UsageError for a fusion of answers, as a curve fits one head, and for sizes too small for that head."""
    from heads.task import check_rows

    if task.fuses_answers:
        kind = task.config.fusion.kind
        raise UsageError(
            f"A learning curve is of one head, and 'fusion: {kind}' is made of several: ask for it with each feature "
            "set alone, or with 'fusion: concat' or 'product'."
        )
    for size in sizes:
        if size < len(task.splits.train) and not task.config.searches:
            check_rows(smaller(task, size))


def smaller(task: Task, rows: int) -> Task:
    """The task with that many of its training rows: seeded, classes in proportion, nested; all else as it is."""
    train = task.splits.train
    kept = nested_subset(task.targets.strata[train], len(train), rows, task.config.seed)
    return replace(task, splits=replace(task.splits, train=train[kept]))


def learning_curve(task: Task, run: FittedRun, sizes: Sequence[int], *, progress: bool = False) -> FittedRun:
    """The run with its curve: fitted on each number of training rows, by the run's own parameters, and on all.

    A search is not repeated: what it chose on all training rows is used on fewer. Test rows are the same throughout.
    Numbers that are not below that of all training rows are left out, and that is noted. Raises UsageError where
    nothing is scored, or no size is left.
    """
    from heads.fit import fit
    from heads.grid import candidates

    check(task)
    n = len(task.splits.train)
    split = next((name for name in ("test", "validation") if name in run.scored), None)
    if split is None:
        raise UsageError("A learning curve needs a test or a validation split that is scored; there is none.")
    few, many = [size for size in sizes if size < n], [size for size in sizes if size > n]
    if not few:
        raise UsageError(
            f"There are {n:,} training rows: a learning curve needs a number below that, got {list(sizes)}."
        )
    config = task.config.model_copy(
        update={"fixed": dict(run.parameters), "grid": {}, "features": None, "transform": run.transform, "seeds": 1}
    )
    sets = (next(one for one in task.sets if one.names == run.features.names),)
    own = replace(task, config=config, sets=sets, found=candidates(task.head, config.fixed, {}))
    points = []
    for size in (*few, n):
        name = f"{size:,} rows, {task.head.name}"
        again = size < n or run.search is not None
        (fitted,) = fit(smaller(own, size), progress=progress, name=name) if again else (run,)
        points.append(CurvePoint(size, split, fitted.scored[split].scores, fitted.seconds))
    left = ", ".join(f"{size:,}" for size in many)
    notes = (*run.notes, f"learning curve: there are {n:,} training rows, not {left}") if many else run.notes
    return replace(run, curve=tuple(points), notes=notes)


def rows_of(points: Sequence[CurvePoint]) -> list[dict[str, Any]]:
    """The curve as a table: rows, split, each score with the ends of its interval, seconds."""
    return [
        {"rows": point.rows, "split": point.split}
        | {
            column: value
            for name, score in point.scores.items()
            for column, value in ((name, score.value), (f"{name}_low", score.low), (f"{name}_high", score.high))
        }
        | {"seconds": round(point.seconds, 3)}
        for point in points
    ]


def headline(points: Sequence[CurvePoint]) -> str:
    """The score that a curve is drawn and printed by: the first one."""
    return next(iter(points[0].scores))


def plot(points: Sequence[CurvePoint]) -> Any:
    """A matplotlib figure: the first score with its interval over the number of training rows, on a log scale."""
    from matplotlib.figure import Figure

    name, rows = headline(points), [point.rows for point in points]
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    values, low, high = (
        [100 * getattr(point.scores[name], part) for point in points] for part in ("value", "low", "high")
    )
    axes.fill_between(rows, low, high, color="#2f6f4f", alpha=0.15, linewidth=0)
    axes.plot(rows, values, "o-", color="#2f6f4f")
    axes.set_xscale("log")
    axes.set_xticks(rows, [f"{count:,}" for count in rows], rotation=30)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training rows")
    axes.set_ylabel(f"{points[0].split} {name}, %")
    axes.grid(color="#e3e7ef")
    return figure
