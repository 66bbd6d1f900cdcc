"""Go on with a recorded run: more epochs of its head, as a run of its own whose history goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedcache.errors import DataNotFoundError, UsageError
from heads import training_state
from heads.config import parse, read_grid
from heads.fit import FittedRun, continued
from heads.record import CONFIG, HEAD, read_metrics
from heads.saved import FittedHead
from heads.task import Task, prepare


def go_on(folder: Path, epochs: int, cache: str | Path = "cache", *, progress: bool = False) -> tuple[Task, FittedRun]:
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
    document = {**read_grid(folder / CONFIG), **_chosen(folder, before, head), "fixed": parameters, "seeds": 1}
    config = parse(document, str(folder / CONFIG))
    task = prepare(config, cache)
    _refuse_other_samples(task, before["samples"], folder)
    resumed = training_state.restore(estimator, folder)
    note = f"goes on from {_name(folder)} after {estimator.n_iter_} epochs{_of_seeds(before)}"
    run = continued(task, head, epochs, progress=progress)
    notes = (*run.notes, note if resumed else f"{note}, with a fresh optimiser: its state was not kept")
    return task, replace(run, notes=notes)


def _name(folder: Path) -> str:
    """The run's own name, whatever link led there; of one of several in a folder, with that folder's."""
    own = folder.resolve()
    return f"{own.parent.name}/{own.name}" if (own.parent / CONFIG).is_file() else own.name


def _of_seeds(before: Mapping[str, Any]) -> str:
    """Of a run that was fitted with several seeds, whose head it is."""
    repeats = before.get("repeats")
    return f", with the head of seed {repeats['kept']} alone, one of {len(repeats['seeds'])}" if repeats else ""


def _chosen(folder: Path, before: Mapping[str, Any], head: FittedHead) -> dict[str, Any]:
    """No search: the features and the transform that the run's own search chose, where it chose them."""
    axis = parse(read_grid(folder / CONFIG), str(folder / CONFIG)).axis("features")
    wanted = [one.fingerprint for one in head.features]
    own = [names for names in axis if [str(name).rpartition("@")[2] for name in names] == wanted]
    transform = {"transform": before["transform"]} if before.get("transform") is not None else {}
    plain: dict[str, Any] = {"grid": {}, "search": "grid", "score": None, "refit": None}
    return {**plain, **transform, **({"features": own[:1]} if own else {})}


def _refuse_other_samples(task: Task, before: dict[str, int], folder: Path) -> None:
    now = {name: len(getattr(task.splits, name)) for name in before}
    if now != before:
        raise UsageError(
            f"{folder.name} was fitted and scored on {_listed(before)}; the cache has {_listed(now)} now. Rows that "
            "the head was trained on could be scored: fit a head on these samples."
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
