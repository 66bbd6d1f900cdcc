"""A linear support vector machine: scikit-learn's ``LinearSVC``, by its own parameter names.

Linear, because its time grows with the rows and not with their square as that of ``SVC``: on frozen features of
hundreds of numbers a kernel rarely earns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.base import constructor_parameters

DEFAULTS = {"dual": "auto"}
PROBE_ITERATIONS = 10


class Svm:
    """``LinearSVC``, one against the rest, squared hinge loss unless stated. Its probabilities are of margins."""

    name = "svm"

    def parameters(self) -> set[str]:
        """scikit-learn's own names but ``random_state``, which the configuration's ``seed`` sets."""
        return set(_defaults()) - {"random_state"}

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted ``LinearSVC``."""
        from sklearn.svm import LinearSVC

        return LinearSVC(**{**DEFAULTS, **parameters}, random_state=seed)

    def several_labels(self, estimator: Any) -> Any:
        """One machine per label; a label on all or on none of the training rows gets that constant."""
        from heads.per_label import PerLabel

        return PerLabel(estimator)

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Without ``verbose``; without ``intercept_scaling`` where there is no intercept."""
        full = {**_defaults(), **DEFAULTS, **parameters}
        unread = {"verbose"} | (set() if full["fit_intercept"] else {"intercept_scaling"})
        return {name: value for name, value in full.items() if name not in unread}

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """Iterations that it rarely passes on standardized features, in units of the probe's."""
        return max(1, min(int(self.canonical(parameters)["max_iter"]), 200) // PROBE_ITERATIONS)

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """Ten iterations for each pass."""
        return self.build({**parameters, "max_iter": PROBE_ITERATIONS * passes}, seed)

    def slim(self, estimator: Any) -> Any:
        """One per label: scikit-learn's own type."""
        from heads.per_label import plain

        return plain(estimator)


def _defaults() -> dict[str, Any]:
    from sklearn.svm import LinearSVC

    return constructor_parameters(LinearSVC)
