"""scikit-learn's own checks for our estimators, and the ways in which scikit-learn uses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from heads.product import Product
from heads.torch_mlp import MLPHead
from heads.torch_text import CNNHead, LSTMHead

ROOT = Path(__file__).parents[1]
BINS = 8


def mlp(**changes: Any) -> MLPHead:
    chosen = {"hidden_layer_sizes": (16,), "epochs": 8, "batch_size": 16, "learning_rate": 0.02}
    return MLPHead(**{**chosen, "random_state": 0, "device": "cpu", **changes})


def of_numbers(head: Any) -> Pipeline:
    """A head of words behind what makes word ids of numbers: a word for each column and part of its range."""
    return make_pipeline(KBinsDiscretizer(BINS, encode="ordinal", strategy="uniform"), WordIds(), head)


class WordIds(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A word for each column and part of its range. (A function's address would stand in the names of the tests.)"""

    def fit(self, x: np.ndarray, y: Any = None) -> WordIds:
        self.fitted_ = True
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        return (x + 1 + BINS * np.arange(x.shape[1])).astype(np.int64)


QUICK: dict[str, Any] = {"batch_size": 16, "random_state": 0, "device": "cpu"}
CLAIMED: dict[str, Any] = {
    "MLPHead": mlp(),
    "LSTMHead": of_numbers(LSTMHead(8, 8, epochs=4, learning_rate=0.03, **QUICK)),
    "CNNHead": of_numbers(CNNHead(8, 8, 1, epochs=6, learning_rate=0.05, dropout=0.0, **QUICK)),
    "Product": Product(),
}
"""What docs/heads.md says to pass ``check_estimator``."""

SINGLE = "float32 has seven digits, the check asks for nine, and mini-batches of repeated rows are other batches"
IN_PLACE = "scikit-learn's Pipeline fits its steps in place: it excuses it too"
EXCUSED = {
    MLPHead: {"check_sample_weight_equivalence_on_dense_data": SINGLE},
    Pipeline: dict.fromkeys(("check_estimators_overwrite_params", "check_dont_overwrite_parameters"), IN_PLACE),
}


@parametrize_with_checks(
    list(CLAIMED.values()), expected_failed_checks=lambda estimator: EXCUSED.get(type(estimator), {})
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_weights_are_repetitions_in_one_batch(data: Any) -> None:
    """What the one check that ``MLPHead`` is excused from asks, to five digits."""
    x, y = data
    weights = np.arange(len(y)) % 4
    one_batch = mlp(batch_size=4 * len(y), epochs=10)
    weighted = clone(one_batch).fit(x, y, sample_weight=weights).predict_proba(x)
    repeated = clone(one_batch).fit(np.repeat(x, weights, 0), np.repeat(y, weights)).predict_proba(x)
    np.testing.assert_allclose(weighted, repeated, atol=1e-5)


def test_the_list_of_estimators_that_claim_the_checks_is_true() -> None:
    """Every estimator of ours is in the table, and those that are said to pass are just those that are checked."""
    text = (ROOT / "docs" / "heads.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+`) \| (yes|no)\b", text, re.M)
    listed = {name: claim for names, claim in rows for name in re.findall(r"\w+", names)}
    assert set(listed) == estimators()
    assert {name for name, claim in listed.items() if claim == "yes"} == set(CLAIMED)


def estimators() -> set[str]:
    """Names of our estimators that are no base of others."""
    for path in (*ROOT.glob("heads/*.py"), *ROOT.glob("embedcache/*.py")):
        if "sklearn" in path.read_text(encoding="utf-8"):
            import_module(f"{path.parent.name}.{path.stem}")
    return {one.__name__ for one in _below(BaseEstimator) if not any(_below(one))}


def _below(kind: type) -> Iterator[type]:
    """Classes of ours that inherit from it."""
    for one in kind.__subclasses__():
        if one.__module__.split(".")[0] in ("embedcache", "heads"):
            yield one
        yield from _below(one)


# ------------------------------------------------------------------------------ what scikit-learn does with a head


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    x, y = make_classification(200, 12, n_informative=8, n_classes=3, random_state=0)
    return np.ascontiguousarray(x, np.float32), np.array(["a", "b", "c"])[y]


Given = Callable[[np.ndarray, Path], Any]


def mapped(x: np.ndarray, path: Path) -> np.memmap:
    x.tofile(path)
    return np.memmap(path, x.dtype, "r", shape=x.shape)


CONTAINERS: dict[str, Given] = {
    "numpy": lambda x, path: x,
    "memmap": mapped,
    "torch": lambda x, path: torch.from_numpy(x.copy()),
}
USES: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "clone": lambda x, y: clone(mlp(epochs=5).fit(x, y)).fit(x, y).predict_proba(x),
    "pipeline": lambda x, y: make_pipeline(StandardScaler(), mlp(epochs=5)).fit(x, y).predict_proba(x),
    "cross_val_score": lambda x, y: cross_val_score(mlp(epochs=5), x, y, cv=2),
    "grid search": lambda x, y: (
        GridSearchCV(mlp(epochs=5), {"activation": ["relu", "tanh"]}, cv=2).fit(x, y).cv_results_["mean_test_score"]
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_head_is_used_as_any_classifier_whatever_holds_the_rows(
    tmp_path: Path, data: Any, container: str, dtype: str, use: str
) -> None:
    x, y = data[0].astype(dtype), data[1]
    given = CONTAINERS[container](x, tmp_path / "x")
    found, plain = USES[use](given, y), USES[use](x, y)
    loose = (container, dtype, use) == ("torch", "float16", "pipeline")  # StandardScaler computes in float64 then
    np.testing.assert_allclose(found, plain, atol=0.02 if loose else 1e-5)
    assert np.isfinite(plain).all()
    assert np.ptp(plain, axis=0).max() > 0
