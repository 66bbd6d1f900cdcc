"""Ridge regression on the classes: scikit-learn's ``RidgeClassifier``, by its own parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.base import constructor_parameters


class Ridge:
    """Least squares with a penalty on targets of -1 and 1: solved, not iterated. Its probabilities are of margins."""

    name = "ridge"

    def parameters(self) -> set[str]:
        """scikit-learn's own names but ``random_state``, which the configuration's ``seed`` sets."""
        return set(_defaults()) - {"random_state"}

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted ``RidgeClassifier``."""
        from sklearn.linear_model import RidgeClassifier

        return RidgeClassifier(**parameters, random_state=seed)

    def several_labels(self, estimator: Any) -> Any:
        """All labels in one solution; with class weights, which differ by label, one regression per label."""
        from heads.per_label import PerLabel

        return estimator if estimator.class_weight is None else PerLabel(estimator)

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Without how the features are held while it is fitted."""
        full = {**_defaults(), **parameters}
        return {name: value for name, value in full.items() if name != "copy_X"}

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """One."""
        return 1

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """The whole of it."""
        return self.build(parameters, seed)

    def slim(self, estimator: Any) -> Any:
        """One per label: scikit-learn's own type."""
        from heads.per_label import plain

        return plain(estimator)


def _defaults() -> dict[str, Any]:
    from sklearn.linear_model import RidgeClassifier

    return constructor_parameters(RidgeClassifier)
