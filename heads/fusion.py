"""Fusion of answers: one head per feature set, and what is made of their probabilities.

``late`` is a weighted mean of probabilities, ``union`` the union of predicted label sets. (``concat`` and ``product``
fuse features instead: ``view`` and ``product``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from heads.probabilities import probabilities
from heads.thresholds import DEFAULT, Flags, Per, Rule, best_threshold, tune

Floats = npt.NDArray[np.float64]
OF_ANSWERS: Final = frozenset({"late", "union"})
SWEEPS: Final = 20
_SMALL: Final = 1e-10


@dataclass(frozen=True)
class Late:
    """The weighted mean of the members' probabilities.

    members: fitted pipelines, each for its own columns. widths: how many columns each has, side by side. weights: of
    the members, not negative, 1 in all. several: whether a sample has several labels.
    """

    members: tuple[Any, ...]
    widths: tuple[int, ...]
    weights: tuple[float, ...]
    several: bool

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """Codes of the columns: the members were trained on the same samples."""
        return np.asarray(self.members[0].classes_)

    def predict_proba(self, x: npt.NDArray[Any]) -> Floats:
        """(n, classes) or (n, labels) of features side by side, (n, sum of widths)."""
        return weighted(self.weights, of_members(self.members, self.widths, x, self.several))

    def document(self) -> dict[str, Any]:
        """All but the members, as JSON."""
        weights = list(self.weights)
        return {"kind": "late", "widths": list(self.widths), "weights": weights, "several": self.several}


@dataclass(frozen=True)
class Union:
    """The union of the members' label sets.

    thresholds: of each member by label. Its "probabilities" are a member's, made to be 0.5 at the threshold (linear
    below and above it), the highest of the members': a label is in the union where that is at least 0.5.
    """

    members: tuple[Any, ...]
    widths: tuple[int, ...]
    thresholds: tuple[tuple[float, ...], ...]

    def predict_proba(self, x: npt.NDArray[Any]) -> Floats:
        """(n, labels) of features side by side, (n, sum of widths)."""
        return united(self.thresholds, of_members(self.members, self.widths, x, several=True))

    def document(self) -> dict[str, Any]:
        """All but the members, as JSON."""
        thresholds = [list(own) for own in self.thresholds]
        return {"kind": "union", "widths": list(self.widths), "thresholds": thresholds}


def from_document(document: Mapping[str, Any], members: Sequence[Any]) -> Late | Union:
    """What ``document`` described. Raises ValueError where it does not fit the members."""
    widths = tuple(map(int, document["widths"]))
    if document["kind"] == "late":
        weights = tuple(map(float, document["weights"]))
        made: Late | Union = Late(tuple(members), widths, weights, bool(document["several"]))
        parts = weights
    elif document["kind"] == "union":
        parts = tuple(tuple(map(float, own)) for own in document["thresholds"])  # type: ignore[misc]
        made = Union(tuple(members), widths, parts)  # type: ignore[arg-type]
    else:
        raise ValueError(f"no fusion is of the kind {document['kind']!r}")
    if not len(parts) == len(widths) == len(members):
        raise ValueError(f"{len(parts)} and {len(widths)} numbers for {len(members)} members")
    return made


def of_members(members: Sequence[Any], widths: Sequence[int], x: npt.NDArray[Any], several: bool) -> Floats:
    """Each member's probabilities of its own columns, (members, n, classes)."""
    ends = np.cumsum(widths)
    return np.stack([
        probabilities(one, x[:, end - width : end], several=several)
        for one, width, end in zip(members, widths, ends, strict=True)
    ])  # fmt: skip


def weighted(weights: Sequence[float], found: Floats) -> Floats:
    """The weighted mean (n, classes) of (members, n, classes)."""
    return np.asarray(np.einsum("m,mnc->nc", np.asarray(weights, np.float64), found))


def stacked_weights(truth: npt.NDArray[Any], found: Floats) -> Floats:
    """The weights (members,), not negative and 1 in all, whose mean of probabilities has the least squared error.

    Stacking as in Breiman (1996). truth: classes (n,), those beyond the columns left out, or indicators (n, labels).
    found: (members, n, classes). The error is w' G w - 2 b' w and a constant, G and b being products of probabilities
    with each other and with the truth. It is convex: solved for each choice of members that may have a weight, the
    best solution without a negative one is the minimum. Of equally good ones that with most members is taken.
    """
    if truth.ndim == 1:
        known = np.flatnonzero((truth >= 0) & (truth < found.shape[2]))
        found, own = found[:, known], np.eye(found.shape[2])[truth[known]]
    else:
        own = (truth > 0).astype(np.float64)
    cells = found.reshape(len(found), -1)
    gram, products = cells @ cells.T, cells @ own.ravel()
    best, least = np.full(len(found), 1 / len(found)), np.inf
    for chosen in _choices(len(found)):
        weights = np.zeros(len(found))
        weights[chosen] = _of_least_error(gram[np.ix_(chosen, chosen)], products[chosen])
        error = weights @ gram @ weights - 2 * products @ weights
        if (weights >= -_SMALL).all() and error < least - _SMALL * max(1.0, abs(least if np.isfinite(least) else 0)):
            best, least = np.maximum(weights, 0), error
    return np.asarray(best / best.sum())


def _choices(members: int) -> list[list[int]]:
    """Every choice of members, the largest first."""
    return [list(own) for size in range(members, 0, -1) for own in combinations(range(members), size)]


def _of_least_error(gram: Floats, products: Floats) -> Floats:
    """Weights that are 1 in all, of whatever sign: a linear system with one multiplier. Like members share equally."""
    n = len(gram)
    scale = max(float(np.trace(gram)) / n, _SMALL)
    system = np.block([[gram / scale, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    return np.asarray(np.linalg.lstsq(system, np.append(products / scale, 1.0), rcond=None)[0][:n])


def united(thresholds: Sequence[Sequence[float]], found: Floats) -> Floats:
    """(n, labels) of (members, n, labels): at least 0.5 exactly where some member reaches its own threshold."""
    at = np.asarray(thresholds, np.float64)[:, None, :]
    below = DEFAULT * found / np.where(at > 0, at, 1)
    above = DEFAULT + (1 - DEFAULT) * (found - at) / np.where(at < 1, 1 - at, 1)
    return np.asarray(np.where(found >= at, np.minimum(above, 1), below).max(0))


def union_thresholds(truth: Flags, found: Floats, rule: Rule, per: str, learned: Flags) -> Floats:
    """Thresholds (members, labels) tuned for the union on rows that were not trained on.

    truth: bool (n, labels). found: (members, n, labels). per: ``label`` gives each member one per label, ``modality``
    each member one for all its labels, ``all`` everything the same. ``all`` is an exact search: it is the threshold of
    the highest probability. The others begin at each member's own best thresholds and change one at a time, exactly,
    while that helps: a local optimum. Labels that were not learned, or are never positive here, keep 0.5.
    """
    if per == "all":
        return np.tile(tune(truth, found.max(0), rule, "all", learned).thresholds, (len(found), 1))
    inner: Per = "label" if per == "label" else "all"
    out = np.stack([tune(truth, own, rule, inner, learned).thresholds for own in found])
    if inner == "label":
        for label in np.flatnonzero(learned & truth.any(0)):
            out[:, label] = _ascended(truth[:, label], found[:, :, label], out[:, label], rule)
    elif learned.any() and truth[:, learned].any():
        first = int(np.flatnonzero(learned)[0])
        flat = found[:, :, learned].reshape(len(found), -1)
        out[:, learned] = _ascended(truth[:, learned].ravel(), flat, out[:, first], rule)[:, None]
    return out


def _ascended(truth: Flags, found: Floats, start: Floats, rule: Rule) -> Floats:
    """One threshold per member, (members,), for cells: truth (n,), found (members, n)."""
    now = start.copy()
    for _ in range(SWEEPS):
        before = now.copy()
        for member in range(len(found)):
            others = np.delete(found >= now[:, None], member, axis=0).any(0)
            if not others.all():
                given = int(truth[others].sum()), int(others.sum())
                now[member] = best_threshold(truth[~others], found[member, ~others], rule, given)
        if (now == before).all():
            break
    return now
