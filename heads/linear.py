"""What linear heads with margins share: labels that training could not learn."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

SURE: Final = 40.0
"""A margin whose sigmoid is 0 or 1 to every digit that is shown."""


def constants_of_same_kind(estimator: Any) -> Any:
    """One classifier per label, in place: where all rows agreed, one of the same kind that always says so.

    ``OneVsRestClassifier`` puts a private type there, which is not safe to load, with the margins 0 and 1, of which the
    sigmoid is neither. Any other estimator is left as it is.
    """
    from sklearn.multiclass import OneVsRestClassifier

    if not isinstance(estimator, OneVsRestClassifier):
        return estimator
    own = type(estimator.estimator)
    for label, one in enumerate(estimator.estimators_):
        if not isinstance(one, own):
            always = bool(one.decision_function([[0.0]])[0] > 0)
            estimator.estimators_[label] = _constant(estimator.estimator, one.n_features_in_, always)
    return estimator


def _constant(kind: Any, width: int, always: bool) -> Any:
    from sklearn.base import clone

    made = clone(kind)
    made.coef_, made.intercept_ = np.zeros((1, width)), np.array([SURE if always else -SURE])
    made.n_features_in_ = width
    return made
