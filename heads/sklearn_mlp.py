"""scikit-learn's ``MLPClassifier``, by its own parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.base import constructor_parameters

_ONLY_WITH = {
    "sgd": {"learning_rate", "power_t", "momentum", "nesterovs_momentum"},
    "adam": {"beta_1", "beta_2", "epsilon"},
    "lbfgs": {"max_fun"},
}
"""Parameters that only one solver reads (MLPClassifier's documentation)."""
_STOCHASTIC = {"batch_size", "learning_rate_init", "shuffle", "early_stopping", "n_iter_no_change"}


class SklearnMlp:
    """The multi-layer perceptron of the CUB report's grid search."""

    name = "sklearn-mlp"

    def parameters(self) -> set[str]:
        """scikit-learn's own names but ``random_state``, which the configuration's ``seed`` sets."""
        return set(_defaults()) - {"random_state"}

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted ``MLPClassifier``."""
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier(**{**parameters, "hidden_layer_sizes": _layers(parameters)}, random_state=seed)

    def several_labels(self, estimator: Any) -> Any:
        """The same: ``MLPClassifier`` fitted on indicators has a logistic output per label."""
        return estimator

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Without what the solver does not read: ``learning_rate: adaptive`` does nothing under Adam."""
        full = {**_defaults(), **parameters, "hidden_layer_sizes": _layers(parameters)}
        solver = full["solver"]
        unread = set().union(*(names for own, names in _ONLY_WITH.items() if own != solver))
        if solver == "lbfgs":
            unread |= _STOCHASTIC
        if not full["early_stopping"] or solver == "lbfgs":
            unread.add("validation_fraction")
        return {name: value for name, value in full.items() if name not in unread}

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """Epochs at most."""
        return int(parameters.get("max_iter", _defaults()["max_iter"]))

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """So many epochs at most."""
        return self.build({**parameters, "max_iter": passes, "early_stopping": False}, seed)

    def slim(self, estimator: Any) -> Any:
        """Without the optimiser's state, which is as large as the network and no type that is safe to load."""
        for name in ("_optimizer", "_random_state", "_no_improvement_count"):
            vars(estimator).pop(name, None)
        return estimator


def _layers(parameters: Mapping[str, Any]) -> Any:
    """The widths as a tuple, one number too; what is neither is left for scikit-learn to refuse."""
    layers = parameters.get("hidden_layer_sizes", _defaults()["hidden_layer_sizes"])
    if isinstance(layers, int):
        return (layers,)
    return tuple(layers) if isinstance(layers, list) else layers


def _defaults() -> dict[str, Any]:
    from sklearn.neural_network import MLPClassifier

    return constructor_parameters(MLPClassifier)
