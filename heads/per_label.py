"""One classifier per label, and chains of them, which sample weights reach; what is kept of them is scikit-learn's own.

scikit-learn's ``OneVsRestClassifier`` and ``ClassifierChain`` take weights with its metadata routing alone, and give a
label that all training rows have, or none, a private type or an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import LabelBinarizer

SURE: Final = 40.0
"""A margin whose sigmoid is 0 or 1 to every digit that is shown."""

Weights = npt.NDArray[Any]


class PerLabel(OneVsRestClassifier):  # type: ignore[misc]
    """``OneVsRestClassifier`` of linear classifiers, one after the other, with sample weights and safe constants."""

    def fit(self, X: Any, y: Any, sample_weight: Weights | None = None) -> PerLabel:  # noqa: N803
        """X: (n, dims). y: indicators (n, labels). sample_weight: (n,); one of weight 0 is left out."""
        X, y, sample_weight = weighted_rows(X, y, sample_weight)  # noqa: N806
        self.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(y)
        self.classes_ = self.label_binarizer_.classes_
        self.estimators_ = [
            fitted_or_constant(for_label(self.estimator, label), X, own, sample_weight) for label, own in enumerate(y.T)
        ]
        self.n_features_in_ = X.shape[1]
        return self


def for_label(estimator: Any, label: int) -> Any:
    """An unfitted classifier for one label: of weights by label, that of its positives against 1."""
    own = clone(estimator)
    weights = own.class_weight
    return own.set_params(class_weight={0: 1.0, 1: weights.get(label, 1.0)}) if isinstance(weights, Mapping) else own


def weighted_rows(x: Any, y: Any, weights: Weights | None) -> tuple[Any, npt.NDArray[Any], Weights | None]:
    """The rows that have some weight."""
    y = np.asarray(y)
    if weights is None or (weights > 0).all():
        return x, y, weights
    kept = np.flatnonzero(weights > 0)
    return x[kept], y[kept], weights[kept]


def fitted_or_constant(estimator: Any, x: Any, y: npt.NDArray[Any], weights: Weights | None) -> Any:
    """A linear classifier fitted on 0 and 1, (n,), in place; where all rows agree, one that always says so."""
    if len(np.unique(y)) > 1:
        return estimator.fit(x, y, **({} if weights is None else {"sample_weight": weights}))
    estimator.classes_, estimator.n_features_in_ = np.array([0, 1]), x.shape[1]
    estimator.coef_, estimator.intercept_ = np.zeros((1, x.shape[1])), np.array([SURE if y[0] else -SURE])
    return estimator


def plain(estimator: Any) -> Any:
    """A fitted ``PerLabel`` as scikit-learn's own type: none of ours is kept with a head. Others stay."""
    if not isinstance(estimator, PerLabel):
        return estimator
    return with_state_of(OneVsRestClassifier(**estimator.get_params(deep=False)), estimator)


def with_state_of(made: Any, other: Any) -> Any:
    """``made`` with all that ``other`` has learned."""
    vars(made).update(vars(other))
    return made
