"""Class weights are stated by the names of classes; heads are fitted on codes: the one becomes the other here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from embedcache.errors import UsageError, unknown_name
from heads.base import Head, reads
from heads.parameters import is_number

NAME: Final = "class_weight"


class ByClassName:
    """A kind of head whose ``class_weight`` names classes. classes: in the order of the codes; of several, labels."""

    def __init__(self, inner: Head, classes: Sequence[Any], *, several: bool) -> None:
        self.inner, self.name, self.reads = inner, inner.name, reads(inner)
        self._classes, self._several = classes, several

    def coded(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with weights by code: of every class, or of the stated labels.

        Raises UsageError for a name that is no class, and for a weight that is none.
        """
        stated = parameters.get(NAME)
        if not isinstance(stated, Mapping):
            return dict(parameters)
        own = {_code(name, self._classes): _weight(name, weight) for name, weight in stated.items()}
        if not self._several:
            return {**parameters, NAME: {code: own.get(code, 1.0) for code in range(len(self._classes))}}
        return {**parameters, NAME: own}

    def parameters(self) -> set[str]:
        """Those of the head."""
        return self.inner.parameters()

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """The head's, by codes."""
        return self.inner.build(self.coded(parameters), seed)

    def several_labels(self, estimator: Any) -> Any:
        """As the head has it."""
        return self.inner.several_labels(estimator)

    def chained(self, estimator: Any, order: Any, seed: int) -> Any:
        """As the head has it, where it has it."""
        return self.inner.chained(estimator, order, seed)  # type: ignore[attr-defined]

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """As the head has it, by names."""
        return self.inner.canonical(parameters)

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """As the head has it."""
        return self.inner.passes(parameters)

    def brief(self, parameters: Mapping[str, Any], *options: Any, **named: Any) -> Any:
        """The head's, by codes."""
        return self.inner.brief(self.coded(parameters), *options, **named)

    def slim(self, estimator: Any) -> Any:
        """As the head has it."""
        return self.inner.slim(estimator)


def _code(name: Any, classes: Sequence[Any]) -> int:
    """The place of a class: by itself, or by its text, as YAML and JSON may have read another type."""
    found = [code for code, one in enumerate(classes) if type(one) is type(name) and one == name]
    if found := found or [code for code, one in enumerate(classes) if str(one) == str(name)]:
        return found[0]
    raise unknown_name(f"class in {NAME!r}:", str(name), map(str, classes))


def _weight(name: Any, weight: Any) -> float:
    if not is_number(weight) or weight < 0:
        raise UsageError(f"The weight of {name!r} in {NAME!r} must be a number that is not negative, got {weight!r}.")
    return float(weight)
