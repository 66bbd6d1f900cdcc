"""Go on with a recorded run: more epochs of its head, as a run of its own whose history goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from embedcache.errors import DataNotFoundError, UsageError
from heads import training_state
from heads.config import parse, read_grid
from heads.fit import FittedRun, Task, continued, prepare
from heads.record import CONFIG, HEAD, read_metrics
from heads.saved import FittedHead


def go_on(folder: Path, epochs: int, cache: str | Path = "cache") -> tuple[Task, FittedRun]:
    """The task of a run with its head trained ``epochs`` epochs more. folder: the run's; nothing in it changes.

    Raises UsageError for a head that is not trained by epochs, and where the data set's samples are no longer those
    that the run divided: rows that were trained on could stand among those that are scored.
    """
    if epochs < 1:
        raise UsageError(f"--epochs must be positive, got {epochs}.")
    if not (folder / HEAD).is_dir():
        several = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{HEAD}"))) or "none"
        raise DataNotFoundError(f"{folder} holds no head itself. Heads in it: {several}. Name one: {folder}/NAME.")
    head = FittedHead.load(folder / HEAD)
    estimator = head.last
    if not hasattr(estimator, "continue_fit"):
        raise UsageError(f"The head {head.head!r} of {folder} is not trained by epochs: nothing can go on.")
    before = read_metrics(folder)
    parameters = {**before["parameters"], "epochs": estimator.n_iter_ + epochs}
    config = parse({**read_grid(folder / CONFIG), "grid": {}, "fixed": parameters, "seeds": 1}, str(folder / CONFIG))
    task = prepare(config, cache)
    _refuse_other_samples(task, before["samples"], folder)
    resumed = training_state.restore(estimator, folder)
    note = f"goes on from {folder.name} after {estimator.n_iter_} epochs"
    run = continued(task, head, epochs)
    notes = (*run.notes, note if resumed else f"{note}, with a fresh optimiser: its state was not kept")
    return task, replace(run, notes=notes)


def _refuse_other_samples(task: Task, before: dict[str, int], folder: Path) -> None:
    now = {name: len(getattr(task.splits, name)) for name in before}
    if now != before:
        raise UsageError(
            f"{folder.name} was fitted and scored on {_listed(before)}; the cache has {_listed(now)} now. Rows that "
            "the head was trained on could be scored: fit a head on these samples."
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
