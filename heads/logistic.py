"""Logistic regression: scikit-learn's ``LogisticRegression``, by its own parameter names.

For several labels per sample one binary regression per label, by ``OneVsRestClassifier``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.base import constructor_parameters

DEFAULTS = {"max_iter": 1000}
PROBE_ITERATIONS = 10


class Logistic:
    """Multinomial logistic regression, L-BFGS, ``max_iter`` 1000 unless stated."""

    name = "logistic"

    def parameters(self) -> set[str]:
        """scikit-learn's own names but ``random_state``, which the configuration's ``seed`` sets."""
        return set(_defaults()) - {"random_state"}

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted ``LogisticRegression``."""
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(**{**DEFAULTS, **parameters}, random_state=seed)

    def several_labels(self, estimator: Any) -> Any:
        """One binary regression per label; a label on all or on none of the training rows gets that constant."""
        from heads.per_label import PerLabel

        return PerLabel(estimator)

    def chained(self, estimator: Any, order: Any, seed: int) -> Any:
        """For several labels, each of which also sees those before it. order: labels, the first one first."""
        from heads.chain import chained

        return chained(estimator, order, seed)

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter has an effect."""
        return {**_defaults(), **DEFAULTS, **parameters}

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """Iterations that L-BFGS rarely passes on standardized features, in units of the probe's."""
        return max(1, min(int(self.canonical(parameters)["max_iter"]), 200) // PROBE_ITERATIONS)

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """Ten iterations for each pass."""
        return self.build({**parameters, "max_iter": PROBE_ITERATIONS * passes}, seed)

    def slim(self, estimator: Any) -> Any:
        """One regression: nothing to drop. One per label, or a chain of them: scikit-learn's own type."""
        from heads import chain, per_label

        return chain.plain(estimator) if isinstance(estimator, chain.Chain) else per_label.plain(estimator)


def _defaults() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    return constructor_parameters(LogisticRegression)
