"""Fit one pipeline: transforms, then the head with whatever it can use of weights and validation rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import UsageError
from embedcache.view import Features
from heads.base import weight_parameter
from heads.epochs import watched
from heads.grid import UNFIT
from heads.rows import RowsOf

Rows = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
WEIGHT = "weight"


def fit_pipeline(
    name: str,
    steps: Sequence[tuple[str, Any]],
    estimator: Any,
    x: Any,
    codes: npt.NDArray[Any],
    rows: Rows,
    *,
    weights: Weights | None = None,
    held: Rows | None = None,
    shown: str | None = None,
) -> Any:
    """A fitted scikit-learn pipeline. name: the head's; steps: unfitted transforms; estimator: unfitted.

    rows: of ``x`` and ``codes`` to train on. weights: of the rows of ``x``, for a head that takes them. held:
    validation rows, for a head that stops early by them. shown: the name before its bar of epochs; None shows none.
    Raises UsageError where it cannot be fitted.
    """
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import has_fit_parameter

    transforms = clone(Pipeline(list(steps))) if steps else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            if transforms is None:
                own = lent(x, rows, estimator)
            else:
                own = transforms.fit_transform(taken(x, rows), codes[rows])
            options: dict[str, Any] = {}
            if weights is not None and (weight := weight_parameter(estimator)) is not None:
                options[weight] = weights[rows]
            if held is not None and len(held) and has_fit_parameter(estimator, "validation"):
                options["validation"] = (
                    lent(x, held, estimator) if transforms is None else transforms.transform(x[held]),
                    codes[held],
                )
            with watched(estimator, shown) as watching:
                estimator.fit(own, codes[rows], **options, **watching)
        except UNFIT as error:
            raise UsageError(f"The head {name!r} cannot be fitted: {error}") from error
    return Pipeline([*(transforms.steps if transforms is not None else []), ("head", estimator)])


def taken(x: Any, rows: Rows) -> Any:
    """Some rows of a matrix: a view where they lie together, so that nothing is copied."""
    return x[rows[0] : rows[-1] + 1] if _together(rows) else x[rows]


def lent(x: Any, rows: Rows, estimator: Any) -> Any:
    """The same without a copy wherever they lie, for an estimator that reads rows where they are."""
    if _together(rows) or not (getattr(estimator, "reads_rows", False) and isinstance(x, np.ndarray)):
        return taken(x, rows)
    return RowsOf(x, rows)


def _together(rows: Rows) -> bool:
    return len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())


def continue_pipeline(
    pipeline: Any,
    x: Any,
    codes: npt.NDArray[Any],
    rows: Rows,
    epochs: int,
    *,
    weights: Weights | None = None,
    held: Rows | None = None,
    shown: str | None = None,
) -> None:
    """Train the head of a fitted pipeline ``epochs`` epochs more, behind its transforms as they are.

    rows, weights, held, shown: as in ``fit_pipeline``. Raises UsageError for a head that is not trained by epochs.
    """
    estimator = pipeline[-1]
    if not hasattr(estimator, "continue_fit"):
        kind = type(estimator).__name__
        raise UsageError(f"A {kind} is not trained by epochs: there is nothing to go on with. Fit it again instead.")
    transforms = pipeline[:-1] if len(pipeline) > 1 else None
    parts = [rows] if held is None or not len(held) else [rows, held]
    if transforms is None:
        own, *validation = (lent(x, part, estimator) for part in parts)
    else:  # of float32: float16 would stay float16
        own, *validation = (transforms.transform(np.asarray(taken(x, part), np.float32)) for part in parts)
    options: dict[str, Any] = {}
    if weights is not None and (weight := weight_parameter(estimator)) is not None:
        options[weight] = weights[rows]
    if validation:
        options["validation"] = validation[0], codes[held]
    with watched(estimator, shown, epochs) as watching:
        estimator.continue_fit(own, codes[rows], epochs, **options, **watching)


def weights_of(features: Features) -> Weights | None:
    """The units' sample weights, float32 (units,), 1 where there is none; None where the data set states none."""
    if WEIGHT not in features.table.samples.column_names:
        return None
    found = np.array([1.0 if weight is None else weight for weight in features.column(WEIGHT)], np.float32)
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise UsageError("Sample weights must be finite and not negative.")
    return None if (found == 1).all() else found


def history_of(estimator: Any) -> list[dict[str, float]]:
    """What the head of a fitted pipeline says of its epochs; empty for a fusion, whose members say it."""
    from sklearn.pipeline import Pipeline

    return history(estimator[-1]) if isinstance(estimator, Pipeline) else []


@dataclass(frozen=True)
class Trained:
    """Epochs of a head that is trained by epochs. asked: at most; kept: whose weights it has, None if not known."""

    epochs: int
    asked: int
    kept: int | None

    @property
    def said(self) -> str:
        """In words."""
        kept = "" if self.kept is None else f", weights of epoch {self.kept}"
        trained = f"stopped after {self.epochs} of" if self.epochs < self.asked else "trained for all of"
        return f"{trained} {self.asked} epochs{kept}"


def trained(estimator: Any, parameters: Mapping[str, Any]) -> Trained | None:
    """What a fitted head says of its epochs; None for one that is not trained by them. parameters: those stated."""
    if hasattr(estimator, "history_"):
        return Trained(estimator.n_iter_, int(parameters.get("epochs", estimator.epochs)), estimator.kept_epoch_)
    if not hasattr(estimator, "loss_curve_"):
        return None
    scores = getattr(estimator, "validation_scores_", None)
    kept = 1 + int(np.argmax(scores)) if scores else int(estimator.n_iter_)
    return Trained(int(estimator.n_iter_), int(estimator.max_iter), kept)


def history(estimator: Any) -> list[dict[str, float]]:
    """What an iterative head says of its epochs; empty for one that says nothing."""
    if (own := getattr(estimator, "history_", None)) is not None:
        return list(own)
    return [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(getattr(estimator, "loss_curve_", []), 1)]
