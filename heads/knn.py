"""Nearest neighbours: scikit-learn's ``KNeighborsClassifier``, brute force, by its own parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedcache.errors import UsageError
from heads.base import constructor_parameters
from heads.parameters import is_whole

BRUTE = {"algorithm": "brute"}
"""A tree is no type that is safe to load, and is slower than matrix products in hundreds of dimensions."""
_OF_TREES = {"algorithm", "leaf_size"}


class Knn:
    """Neighbours by brute force. It learns nothing: the training vectors are kept with the head."""

    name = "knn"
    keeps_rows = True

    def parameters(self) -> set[str]:
        """scikit-learn's own names but those of trees."""
        return set(_defaults()) - _OF_TREES

    def check_rows(self, parameters: Mapping[str, Any], rows: int) -> None:
        """Raise UsageError for more neighbours than there are training rows. rows: of the smallest fold."""
        wanted = self.canonical(parameters)["n_neighbors"]
        if is_whole(wanted) and wanted > rows:
            raise UsageError(
                f"The head {self.name!r} cannot be fitted: n_neighbors is {wanted:,}, and there are {rows:,} training "
                f"rows, folds counted. Set n_neighbors to at most {rows}."
            )

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted ``KNeighborsClassifier``; nothing in it is random."""
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(**parameters, **BRUTE)

    def several_labels(self, estimator: Any) -> Any:
        """As it is: the share of the neighbours that have a label."""
        return estimator

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Without ``p``, which the Minkowski metric alone reads, and ``n_jobs``."""
        full = {name: value for name, value in {**_defaults(), **parameters}.items() if name not in _OF_TREES}
        full.pop("n_jobs")
        if full["metric"] != "minkowski":
            full.pop("p")
        return full

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """One."""
        return 1

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """The whole of it: a fit only keeps the rows."""
        return self.build(parameters, seed)

    def slim(self, estimator: Any) -> Any:
        """Nothing to drop: the rows are the head."""
        return estimator


def _defaults() -> dict[str, Any]:
    from sklearn.neighbors import KNeighborsClassifier

    return constructor_parameters(KNeighborsClassifier)
