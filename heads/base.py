"""What a kind of head is: how it is built, what of its parameters matters, how it is made fit to save."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, Protocol

from embedcache.errors import UsageError, unknown_name

VECTORS: Final = "vectors"
TOKENS: Final = "tokens"
TEXTS: Final = "texts"


class Head(Protocol):
    """A kind of head. One file each, one line in the table of ``heads``."""

    name: str

    def parameters(self) -> set[str]:
        """Names that ``fixed`` and ``grid`` may set."""

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted scikit-learn estimator."""

    def several_labels(self, estimator: Any) -> Any:
        """What ``build`` or ``brief`` made, unfitted, for indicators (n, labels) instead of codes.

        Fitted, its ``predict_proba`` gives (n, labels), whatever labels training lacks.
        """

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that have an effect, defaults filled in: candidates that agree are fitted once."""

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """Equal parts of a fit that there are at most, epochs for instance; for the estimate of time."""

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """The same estimator for so many of them."""

    def slim(self, estimator: Any) -> Any:
        """The fitted estimator without what only training needed, safe to save without pickle."""


def reads(head: Head) -> str:
    """What a head is fitted on: ``vectors``, a matrix, or what its ``reads`` says.

    ``texts``: the samples' own texts; ``tokens``: word ids, with a matrix beside or not.
    """
    return str(getattr(head, "reads", VECTORS))


def innermost(head: Any) -> Any:
    """A kind of head without what is put around it for a task."""
    while hasattr(head, "inner"):
        head = head.inner
    return head


def keeps_rows(head: Head) -> bool:
    """Whether the training rows are the head: what it takes, and what a prediction costs, grows with them."""
    return bool(getattr(innermost(head), "keeps_rows", False))


def constructor_parameters(kind: type) -> dict[str, Any]:
    """A scikit-learn estimator's parameters and defaults."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    return {name: item.default for name, item in signature.parameters.items() if name != "self"}


def check_parameters(head: Head, names: set[str]) -> None:
    """Raise UnknownNameError for a parameter that the head does not have."""
    for name in sorted(names - head.parameters()):
        raise unknown_name(f"parameter of the head {head.name!r}:", name, head.parameters())


def check_values(head: Head, parameters: Mapping[str, Any]) -> None:
    """Raise UsageError for values that the head refuses before anything is read.

    Our own heads have a ``check``; scikit-learn looks at the values of its estimators when they are fitted.
    """
    if (check := getattr(head, "check", None)) is None:
        return
    try:
        check(parameters)
    except UsageError as error:
        raise UsageError(f"The head {head.name!r} cannot be fitted: {error}") from error


def check_enough(head: Head, parameters: Mapping[str, Any], rows: int) -> None:
    """Raise UsageError where the head needs more training rows than there are: neighbours that it is to look at."""
    if (check := getattr(head, "check_rows", None)) is not None:
        check(parameters, rows)


def weight_parameter(estimator: Any) -> str | None:
    """What ``fit`` calls sample weights; of a pipeline, its last step's. None where it takes none."""
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import has_fit_parameter

    if not isinstance(estimator, Pipeline):
        return "sample_weight" if has_fit_parameter(estimator, "sample_weight") else None
    inner = weight_parameter(estimator[-1])
    return None if inner is None else f"{estimator.steps[-1][0]}__{inner}"
