"""A classifier chain: each label's regression also sees the labels before it (Read et al., 2011)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import ClassifierChain

from heads.per_label import Weights, fitted_or_constant, for_label, weighted_rows, with_state_of


class Chain(ClassifierChain):  # type: ignore[misc]
    """``ClassifierChain`` in a given order, with sample weights and safe constants."""

    def fit(self, X: Any, Y: Any, sample_weight: Weights | None = None) -> Chain:  # noqa: N803
        """X: (n, dims). Y: indicators (n, labels). sample_weight: (n,); one of weight 0 is left out."""
        X, Y, sample_weight = weighted_rows(X, Y, sample_weight)  # noqa: N806
        own = Y[:, self.order]
        seen = sparse.hstack((X, own), format="csr") if sparse.issparse(X) else np.hstack((X, own))
        self.order_, self.chain_method_, self.n_features_in_ = self.order, self.chain_method, X.shape[1]
        self.estimators_ = [
            fitted_or_constant(
                for_label(self.estimator, label), seen[:, : X.shape[1] + place], own[:, place], sample_weight
            )
            for place, label in enumerate(self.order)
        ]
        self.classes_ = [one.classes_ for one in self.estimators_]
        return self


def chained(estimator: LogisticRegression, order: npt.NDArray[np.int64], seed: int) -> Any:
    """An unfitted ``ClassifierChain`` of such regressions. order: labels, the first one first."""
    return Chain(estimator, order=order.tolist(), random_state=seed)


def plain(chain: Chain) -> ClassifierChain:
    """The fitted chain as scikit-learn's own type: none of ours is kept with a head."""
    own = {name: value for name, value in chain.get_params(deep=False).items() if name != "base_estimator"}
    return with_state_of(ClassifierChain(**own), chain)


def by_frequency(flags: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Labels from the most frequent to the rarest, (labels,). flags: indicators (n, labels), 1 for yes."""
    return np.argsort(-(flags > 0).sum(0), kind="stable")
