"""What differs between one label per sample and several: the two kinds of task, each in one place.

Truth is class codes, int64 (n,), or indicators, int8 (n, labels); -1 stands for a sample without a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from embedcache.errors import UsageError, unknown_name
from heads import metrics, multilabel, vqa
from heads.base import Head, reads
from heads.metrics import Interval, RowScores

KindName = Literal["single", "multi"]
Truth = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """What is to be predicted of n samples.

    kind: one class per sample, or any number of labels. classes: the classes or labels, in order. codes: int64 (n,)
    class of each sample, or int8 (n, labels) who has which label; -1 without a target. strata: int64 (n,), what
    carved splits keep in proportion; -1 without a target.
    """

    kind: KindName
    classes: tuple[Any, ...]
    codes: Truth
    strata: npt.NDArray[np.int64]


class Kind(Protocol):
    """A kind of task. default_score: what a search maximises. headline: the metric that comparisons are sorted by.

    metric_names: what ``scores`` may hold.
    """

    name: ClassVar[KindName]
    default_score: ClassVar[str]
    headline: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]

    def check_score(self, name: str) -> None:
        """Raise UsageError for a score that scikit-learn does not have, or not for this kind."""

    def head(self, head: Head) -> Head:
        """The head as this kind of task needs it."""

    def strata(self, codes: Truth, least: int) -> npt.NDArray[np.int64]:
        """What parts are to hold in proportion, int64 (n,), in strata of ``least`` rows where that is possible."""

    def prior(self, codes: Truth, classes: int) -> Floats:
        """Share of the samples that have each class, (classes,)."""

    def scores(
        self, truth: Truth, probabilities: Floats, thresholds: Sequence[float], seed: int, own: RowScores
    ) -> Mapping[str, Interval]:
        """Every metric with its interval; own: more scores of single labels, one number a row."""

    def draws(
        self, truth: Truth, probabilities: Floats, thresholds: Sequence[float], seed: int, own: RowScores
    ) -> Mapping[str, Floats]:
        """Every metric on each bootstrap resample."""


class SingleLabel:
    """One class per sample; the most probable one is predicted."""

    name: ClassVar[KindName] = "single"
    default_score: ClassVar[str] = "accuracy"
    headline: ClassVar[str] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = (vqa.METRIC, *metrics.METRICS)

    def check_score(self, name: str) -> None:
        """Any of scikit-learn's scorers."""
        _known_score(name)

    def head(self, head: Head) -> Head:
        """As it is."""
        return head

    def strata(self, codes: Truth, least: int) -> npt.NDArray[np.int64]:
        """The classes, however few rows they have."""
        return codes

    def prior(self, codes: Truth, classes: int) -> Floats:
        """Class frequencies."""
        return np.bincount(codes, minlength=classes) / len(codes)

    def scores(
        self, truth: Truth, probabilities: Floats, thresholds: Sequence[float], seed: int, own: RowScores
    ) -> Mapping[str, Interval]:
        """``metrics.scores``; there are no thresholds."""
        return metrics.scores(truth, probabilities, seed, own)

    def draws(
        self, truth: Truth, probabilities: Floats, thresholds: Sequence[float], seed: int, own: RowScores
    ) -> Mapping[str, Floats]:
        """``metrics.bootstrap``."""
        return metrics.bootstrap(truth, probabilities, seed, own)


class MultiLabel:
    """Any number of labels per sample; those are predicted whose probability reaches their threshold."""

    name: ClassVar[KindName] = "multi"
    default_score: ClassVar[str] = "f1_micro"
    headline: ClassVar[str] = "f1_micro"
    metric_names: ClassVar[tuple[str, ...]] = multilabel.METRICS

    def check_score(self, name: str) -> None:
        """Those of scikit-learn's scorers that take indicators."""
        _known_score(name)
        if name not in SCORES:
            known = ", ".join(SCORES)
            raise UsageError(f"The score {name!r} is not for several labels per sample. Those that are: {known}.")

    def head(self, head: Head) -> Head:
        """The head in its form for several labels."""
        return SeveralLabels(head)

    def strata(self, codes: Truth, least: int) -> npt.NDArray[np.int64]:
        """``multilabel.strata``: rarest labels."""
        return multilabel.strata(codes, least)

    def prior(self, codes: Truth, classes: int) -> Floats:
        """Label frequencies."""
        return np.asarray(codes.mean(0), np.float64)

    def scores(
        self, truth: Truth, probabilities: Floats, thresholds: Sequence[float], seed: int, own: RowScores
    ) -> Mapping[str, Interval]:
        """``multilabel.scores`` at the thresholds."""
        return multilabel.scores(truth > 0, probabilities, thresholds, seed)

    def draws(
        self, truth: Truth, probabilities: Floats, thresholds: Sequence[float], seed: int, own: RowScores
    ) -> Mapping[str, Floats]:
        """``multilabel.bootstrap``."""
        return multilabel.bootstrap(truth > 0, probabilities, thresholds, seed)


KINDS: Final[Mapping[KindName, Kind]] = {"single": SingleLabel(), "multi": MultiLabel()}

SCORES: Final = (
    "accuracy",
    "average_precision",
    *(f"{name}_{average}" for name in ("f1", "precision", "recall", "jaccard")
      for average in ("micro", "macro", "samples", "weighted")),
)  # fmt: skip
"""scikit-learn's scorers for indicators. ``accuracy`` is exact match; the search scores predictions at 0.5."""


def _known_score(name: str) -> None:
    from sklearn.metrics import get_scorer_names

    if name not in get_scorer_names():
        raise unknown_name("score", name, get_scorer_names())


class SeveralLabels:
    """A kind of head that is fitted on indicators, int8 (n, labels), instead of codes.

    order: labels, the first one first, of a chain in which each label's classifier sees those before it; None without.
    """

    def __init__(self, inner: Head, order: npt.NDArray[np.int64] | None = None) -> None:
        self.order = order
        self.inner, self.name, self.reads = inner, inner.name, reads(inner)

    def parameters(self) -> set[str]:
        """Those of the head."""
        return self.inner.parameters()

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted estimator for several labels."""
        return self._several(self.inner.build(parameters, seed), seed)

    def several_labels(self, estimator: Any) -> Any:
        """What ``build`` has done already."""
        return estimator

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """As the head has it."""
        return self.inner.canonical(parameters)

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """As the head has it."""
        return self.inner.passes(parameters)

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """The head's, for several labels."""
        return self._several(self.inner.brief(parameters, seed, passes), seed)

    def _several(self, estimator: Any, seed: int) -> Any:
        if self.order is None:
            return self.inner.several_labels(estimator)
        return self.inner.chained(estimator, self.order, seed)  # type: ignore[attr-defined]

    def slim(self, estimator: Any) -> Any:
        """As the head has it."""
        return self.inner.slim(estimator)
