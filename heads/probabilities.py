"""Probabilities of whatever estimator: its own, or margins made into numbers between 0 and 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def probabilities(estimator: Any, x: Any, *, several: bool) -> Floats:
    """Probabilities (n, classes) in the order of the estimator's ``classes_``, or (n, labels) of several labels.

    An estimator without ``predict_proba`` (ridge, a linear SVM) gives the softmax of its ``decision_function``; with
    two classes, or of several labels, its sigmoid. That keeps the order of the classes and is no calibration: such
    numbers are flatter or steeper than frequencies are.
    """
    if not hasattr(estimator, "predict_proba"):
        return of_margins(np.asarray(estimator.decision_function(x), np.float64), several=several)
    found = estimator.predict_proba(x)
    if isinstance(found, list):  # neighbours give a table of no and yes for each label
        pairs = zip(found, estimator.classes_, strict=True)
        return np.column_stack([_of_yes(np.asarray(own), np.asarray(classes)) for own, classes in pairs])
    return np.asarray(found, np.float64)


def of_all(estimator: Any, x: Any, classes: int, *, several: bool) -> Floats:
    """The same with a column for every class, (n, classes); one that the estimator never saw gets zero."""
    found = probabilities(estimator, x, several=several)
    if several or found.shape[1] == classes:
        return found
    full = np.zeros((len(found), classes))
    full[:, estimator.classes_] = found
    return full


def of_margins(margins: Floats, *, several: bool) -> Floats:
    """Signed distances (n,) of two classes, (n, classes) or (n, labels), as probabilities of as many columns.

    One distance a row stands for two classes, as in scikit-learn: two columns come back.
    """
    from scipy.special import expit, softmax

    if several:
        return np.asarray(expit(margins))
    if margins.ndim == 1:
        positive = expit(margins)
        return np.column_stack([1 - positive, positive])
    return np.asarray(softmax(margins, axis=1))


def _of_yes(own: npt.NDArray[Any], classes: npt.NDArray[Any]) -> Floats:
    """The column of 1; zeros where no training row had the label."""
    return np.asarray(own[:, classes == 1].sum(1), np.float64)
