"""A classifier chain: each label's regression also sees the labels before it (Read et al., 2011)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from heads.linear import SURE


class Tolerant(LogisticRegression):  # type: ignore[misc]
    """Logistic regression that a label on all rows or on none is a constant to, not an error."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Tolerant:  # noqa: N803
        """``LogisticRegression.fit`` where there are two classes."""
        if len(np.unique(y)) > 1:
            super().fit(X, y, sample_weight)
            return self
        self.classes_, self.n_features_in_ = np.array([0, 1]), X.shape[1]
        self.coef_ = np.zeros((1, X.shape[1]))
        self.intercept_ = np.array([SURE if y[0] else -SURE])
        self.n_iter_ = np.zeros(1, np.int32)
        return self


def chained(estimator: LogisticRegression, order: npt.NDArray[np.int64], seed: int) -> Any:
    """An unfitted scikit-learn ``ClassifierChain`` of such regressions. order: labels, the first one first."""
    from sklearn.multioutput import ClassifierChain

    return ClassifierChain(Tolerant(**estimator.get_params()), order=order.tolist(), random_state=seed)


def plain(chain: Any) -> Any:
    """The fitted chain, in place, of scikit-learn's own regressions: no type of ours is kept with a head."""
    chain.estimators_ = [_plain(one) for one in chain.estimators_]
    for name in ("estimator", "base_estimator"):
        if isinstance(getattr(chain, name, None), Tolerant):
            setattr(chain, name, _plain(getattr(chain, name)))
    return chain


def _plain(one: Any) -> LogisticRegression:
    made = LogisticRegression(**one.get_params())
    vars(made).update(vars(one))
    return made


def by_frequency(flags: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Labels from the most frequent to the rarest, (labels,). flags: indicators (n, labels), 1 for yes."""
    return np.argsort(-(flags > 0).sum(0), kind="stable")
