"""What an extraction has to do: a pure decision on what is wanted and what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from embedcache.items import Digests, ItemStates, positions
from embedcache.store import FAILED, PENDING

Action = Literal["reuse", "resume", "grow", "extract"]
ENCODE = -1


class Rows(Protocol):
    """The part of a feature file that a plan looks at."""

    @property
    def ids(self) -> npt.NDArray[np.bytes_]: ...

    @property
    def content(self) -> Digests: ...

    @property
    def status(self) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Plan:
    """What to do, and where each row comes from.

    ids: the item ids of the file to be, (n,). donor: int8 (n,), which donor a row is copied from, or -1 for a
    row to encode. donor_row: int64 (n,), its row there. state: int64 (n,), its row among the wanted items, -1
    for a row that only the old file has. n_committed: rows that a partial file holds already.
    """

    action: Action
    reason: str
    ids: npt.NDArray[np.bytes_]
    donor: npt.NDArray[np.int8]
    donor_row: npt.NDArray[np.int64]
    state: npt.NDArray[np.int64]
    n_committed: int = 0

    @property
    def n_encode(self) -> int:
        """Rows that need a forward pass, those a partial file holds left out."""
        return int(np.count_nonzero(self.donor == ENCODE)) if self.action != "reuse" else 0

    @property
    def n_copied(self) -> int:
        """Rows whose vectors are there already, sealed or committed."""
        return len(self.ids) - self.n_encode


def doubtful(states: ItemStates, files: Sequence[Rows]) -> npt.NDArray[np.int64]:
    """Wanted items whose digest must be known before anything of ``files`` is reused: rows, int64."""
    there = np.zeros(len(states), bool)
    for file in files:
        there |= positions(states.ids, file.ids) >= 0
    return np.flatnonzero(there & ~states.known)


def plan(
    states: ItemStates,
    sealed: Rows | None,
    partial: Rows | None,
    *,
    retry_failed: bool = False,
) -> Plan:
    """Decide. Donor 0 is ``sealed``, donor 1 is ``partial``; every doubtful digest is known by now.

    reuse: all wanted items are in ``sealed`` with the content they have now. resume: ``partial`` holds exactly
    the rows to be, and what it has committed is still true. grow: a new file is laid out and takes over
    what is still true. extract: nothing can be taken over.
    """
    rows = positions(states.ids, sealed.ids) if sealed is not None else np.full(len(states), -1, np.int64)
    same = _same(states, rows, sealed, retry_failed)
    if sealed is not None and same.all():
        return _reuse(states, rows)
    ids, donor, donor_row, state = _union(states, rows, same, sealed)
    if partial is None:
        action: Action = "grow" if sealed is not None else "extract"
        return Plan(action, _growth(states, rows, same, sealed), ids, donor, donor_row, state)
    return _with_partial(Plan("grow", "", ids, donor, donor_row, state), states, partial, retry_failed)


def _same(
    states: ItemStates, rows: npt.NDArray[np.int64], file: Rows | None, retry_failed: bool
) -> npt.NDArray[np.bool_]:
    """Which wanted items a file holds with the content that they have now."""
    same = rows >= 0
    if file is None:
        return same
    found = rows[same]
    true = (file.content[found] == states.content[same]).all(1) & states.known[same]
    status = file.status[found]
    true &= (status != PENDING) & ((status != FAILED) | (not retry_failed))
    same[same] = true
    return same


def _reuse(states: ItemStates, rows: npt.NDArray[np.int64]) -> Plan:
    n = len(states)
    return Plan("reuse", "all vectors are there", states.ids, np.zeros(n, np.int8), rows, np.arange(n))


def _union(
    states: ItemStates, rows: npt.NDArray[np.int64], same: npt.NDArray[np.bool_], sealed: Rows | None
) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Old rows first, in their order, then new ones: ids, donors, donor rows, rows among the wanted."""
    if sealed is None:
        n = len(states)
        return states.ids, np.full(n, ENCODE, np.int8), np.full(n, -1, np.int64), np.arange(n)
    new = np.flatnonzero(rows < 0)
    n_old, n = len(sealed.ids), len(sealed.ids) + len(new)
    width = max(sealed.ids.dtype.itemsize, states.ids.dtype.itemsize)
    ids = np.concatenate([sealed.ids.astype(f"S{width}"), states.ids[new].astype(f"S{width}")])
    donor = np.full(n, ENCODE, np.int8)
    donor[:n_old] = 0
    donor[rows[(rows >= 0) & ~same]] = ENCODE
    donor_row = np.where(donor == 0, np.arange(n), -1)
    state = np.full(n, -1, np.int64)
    state[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    state[n_old:] = new
    return ids, donor, donor_row, state


def _growth(states: ItemStates, rows: npt.NDArray[np.int64], same: npt.NDArray[np.bool_], sealed: Rows | None) -> str:
    if sealed is None:
        return "no vectors of this encoder are there"
    new, changed = int((rows < 0).sum()), int(((rows >= 0) & ~same).sum())
    return f"{new} items are new, {changed} changed"


def _with_partial(found: Plan, states: ItemStates, partial: Rows, retry_failed: bool) -> Plan:
    """Take over what a partial file has committed: by going on with it, or as a donor where it differs."""
    wanted = np.flatnonzero(found.state >= 0)
    rows = np.full(len(found.ids), -1, np.int64)
    rows[wanted] = positions(states.ids[found.state[wanted]], partial.ids)
    same = np.zeros(len(found.ids), bool)
    sorted_states = ItemStates(
        found.ids[wanted],
        states.content[found.state[wanted]],
        states.known[found.state[wanted]],
        states.size[found.state[wanted]],
        states.mtime_ns[found.state[wanted]],
    )
    same[wanted] = _same(sorted_states, rows[wanted], partial, retry_failed)
    committed = partial.status != PENDING
    resumable = np.array_equal(found.ids, partial.ids) and bool((same | (found.state < 0))[committed].all())
    take = (found.donor == ENCODE) & same
    donor = np.where(take, np.int8(1), found.donor)
    donor_row = np.where(take, rows, found.donor_row)
    n_committed = int(committed.sum())
    action: Action = "resume" if resumable else "grow"
    reason = (
        f"{n_committed} rows are committed"
        if resumable
        else "an unfinished file holds other items: it is set aside, and what is still true of it is copied"
    )
    return Plan(action, reason, found.ids, donor, donor_row, found.state, n_committed)
