"""``mlp``: our own perceptron in torch, by its own parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads import parameters as parameter_rules
from heads.base import constructor_parameters

_ONLY_WITH = {"sgd": {"momentum"}, "step": {"step_size", "gamma"}}
"""Parameters that only one optimizer or schedule reads."""


class Mlp:
    """``MLPHead``: widths, batch norm, dropout, schedules, early stopping.

    streams: it reads the features in their stored type where they lie; it standardizes them itself.
    """

    name = "mlp"
    streams = True

    def estimator(self) -> Any:
        """The class of the estimator."""
        from heads.torch_mlp import MLPHead

        return MLPHead

    def defaults(self) -> dict[str, Any]:
        """Its parameters and their defaults."""
        return constructor_parameters(self.estimator())

    def parameters(self) -> set[str]:
        """The estimator's names but ``random_state``, which the configuration's ``seed`` sets."""
        return set(self.defaults()) - {"random_state"}

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise UsageError for values that no fit can use, alone or together."""
        parameter_rules.check(_tuples(parameters))
        parameter_rules.check_training({**self.defaults(), **parameters})

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted estimator."""
        return self.estimator()(**_tuples(parameters), random_state=seed)

    def several_labels(self, estimator: Any) -> Any:
        """As it is: indicators make it a network with one output per label."""
        return estimator

    def restore(self, document: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
        """The fitted head that its ``state`` described."""
        return self.estimator().from_state(document, tensors)

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Without what the optimizer or the schedule does not read."""
        full = {**self.defaults(), **_tuples(parameters)}
        unread = set().union(*(names for own, names in _ONLY_WITH.items() if own not in full.values()))
        if full["schedule"] in ("one-cycle", "adaptive"):
            unread.add("warmup_epochs")
        if not full["early_stopping"]:
            unread |= {"validation_fraction"} | ({"patience"} if full["schedule"] != "adaptive" else set())
        return {name: value for name, value in full.items() if name not in unread}

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """Epochs at most."""
        return max(1, int(self.canonical(parameters)["epochs"]))

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """So many epochs."""
        return self.build({**parameters, "epochs": passes, "early_stopping": False}, seed)

    def slim(self, estimator: Any) -> Any:
        """Nothing to drop: it is kept by ``state``, without its optimizer."""
        return estimator


def _tuples(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples, and one width as a tuple of it."""
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()}
    sizes = found.get("hidden_layer_sizes", ())
    if "hidden_layer_sizes" in found and not isinstance(sizes, tuple):
        found["hidden_layer_sizes"] = (sizes,)
    return found
