"""What is to be said of a fit besides its scores: notes of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heads.base import weight_parameter
from heads.fitting import history_of, trained
from heads.grid import SearchResult
from heads.searching import of_head
from heads.task import Ready, Task, repeated


def without_effect(task: Task) -> list[str]:
    """What the configuration states and nothing reads: of a search where there is none, and parameters of the head."""
    config, notes = task.config, []
    for_search = {"search": config.search != "grid", "score": bool(config.scores), "refit": config.refit is not None}
    if not config.searches and any(for_search.values()):
        stated = ", ".join(f"'{name}'" for name, so in for_search.items() if so)
        notes.append(f"without effect, as there is no 'grid' to search: {stated}")
    read = set().union(*(task.head.canonical({**config.fixed, **of_head(point)}) for point in task.found.points))
    if unread := sorted(set(config.fixed) - read):
        notes.append(f"parameters without effect on the result here: {', '.join(unread)}")
    return notes


def of_search(found: SearchResult | None) -> list[str]:
    """What is to be said of a search: the best scores, what it did not repeat, did not converge or failed, and why."""
    if found is None:
        return []
    means = (f"{name} {mean}" for name, mean in found.means(found.rows[found.best]).items())
    best = f"mean score of the best candidate in the search: {', '.join(means)}"
    resumed = f"{found.resumed} of {found.fits} fits of the search were finished before and are not repeated"
    ended = f"{found.unconverged} fits of the search ended at max_iter before they converged"
    failed = f"{len(found.failed)} of {len(found.rows)} candidates could not be fitted: {listed(found.failed, 3, '; ')}"
    told = ((found.resumed, resumed), (found.unconverged, ended), (found.failed, failed))
    return [best, *(note for so, note in told if so)]


def of_other_classes(task: Task) -> list[str]:
    """Of a search that is scored on validation rows some of which no candidate can get right."""
    if not task.config.searches or task.config.cv is not None or task.targets.kind == "multi":
        return []
    held = task.codes[task.splits.validation]
    other = int((~np.isin(held, task.codes[task.splits.train])).sum())
    if not other:
        return []
    loss = "; in neg_log_loss each has probability 0, clipped" if "neg_log_loss" in task.scores else ""
    return [f"search: {other:,} of {len(held):,} validation rows have a class that no training row has: wrong{loss}"]


def of_epochs(estimator: Any, parameters: Mapping[str, Any]) -> list[str]:
    """Where early stopping, or convergence, ended the training, and which weights are kept."""
    found = trained(estimator[-1], parameters)
    ended = found is not None and (found.epochs < found.asked or found.kept != found.epochs)
    return [found.said] if found is not None and ended else []


def of_history(ready: Ready, estimator: Any) -> list[str]:
    """Validation rows that a history leaves out: the head cannot predict their label."""
    lines, codes = history_of(estimator), ready.codes[ready.rows["validation"]]
    if not lines or "validation_score" not in lines[-1] or codes.ndim != 1:
        return []
    unknown = int((~np.isin(codes, estimator[-1].classes_)).sum())
    without = f"without {unknown:,} of {len(codes):,} validation rows, whose labels no training row has"
    return [f"validation losses and scores by epoch (history.csv) are {without}"] if 0 < unknown < len(codes) else []


def of_weights(task: Task, ready: Ready, parameters: Mapping[str, Any]) -> list[str]:
    """Whether the data set's sample weights are used."""
    if ready.weights is None:
        return []
    used = weight_parameter(task.head.build(parameters, task.config.seed)) is not None
    return [
        "training samples are weighted" if used else "the data set's sample weights are not used: the head has none"
    ]


def of_oversampling(task: Task, ready: Ready) -> list[str]:
    """How many training rows there are, with those that are repeated."""
    most, train = task.config.oversample, ready.rows["train"]
    if most == 1:
        return []
    return [f"{len(train):,} training rows, {len(repeated(task, ready, train)):,} with those of rare labels repeated"]


def listed(names: Sequence[str], most: int = 8, between: str = ", ") -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more
