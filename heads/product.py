"""The elementwise product of feature sets, as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import validate_data

from embedcache.errors import UsageError, unknown_name
from heads.transforms import build

if TYPE_CHECKING:
    from heads.config import Fusion

_STEP = "product"


class Product(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """(n, sets · width) side by side to (n, width) multiplied number by number. It learns nothing."""

    def __init__(self, sets: int = 1) -> None:
        self.sets = sets

    def __sklearn_tags__(self) -> Any:
        """Nothing is learnt, and floats stay as wide as they are."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = ["float16", "float32", "float64"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Product:  # noqa: N803
        """Raises ValueError where the columns are no equal parts."""
        x = validate_data(self, X, dtype="numeric")
        if x.shape[1] % self.sets:
            raise ValueError(f"{x.shape[1]} columns are not {self.sets} sets of one width")
        return self

    def transform(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """The product of the parts."""
        x = validate_data(self, X, dtype="numeric", reset=False)
        return np.asarray(x.reshape(len(x), self.sets, -1).prod(1))


def product_steps(
    transform: Any, names: Sequence[str], dims: Sequence[int], fusion: Fusion, seed: int
) -> list[tuple[str, Any]]:
    """Unfitted steps from feature sets side by side to their transformed product.

    Each set: its own transform, principal components to the common width where its own is another one, and with
    ``l2`` unit length. Then the product; then a transform that is for the fused matrix. The common width is ``width``
    of the configuration, or the smallest there is.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    by_set = transform if isinstance(transform, Mapping) else {}
    for name in (*by_set, *(fusion.l2 if isinstance(fusion.l2, list) else ())):
        if name not in names:
            raise unknown_name("feature set in the fusion:", name, names)
    own = [list(by_set.get(name, ())) for name in names]
    widths = [_width(steps, dim) for steps, dim in zip(own, dims, strict=True)]
    common = fusion.width or min(widths)
    if any(width < common for width in widths):
        raise UsageError(f"The product has width {common}, and a feature set has {min(widths)} numbers only.")
    columns, start = [], 0
    for index, (name, dim) in enumerate(zip(names, dims, strict=True)):
        steps = [*own[index], *([{"pca": common}] if widths[index] != common else [])]
        steps += ["l2"] if fusion.l2 is True or (isinstance(fusion.l2, list) and name in fusion.l2) else []
        made = Pipeline(build(steps, [name], [dim], seed)) if steps else "passthrough"
        columns.append((f"set_{index}", made, list(range(start, start + dim))))
        start += dim
    after = [] if isinstance(transform, Mapping) else build(transform, names, dims, seed)
    return [("sets", ColumnTransformer(columns)), (_STEP, Product(len(names))), *after]


def _width(steps: Sequence[Any], dim: int) -> int:
    """Numbers that a set's own transform leaves."""
    for step in steps:
        if isinstance(step, Mapping) and "pca" in step:
            if not isinstance(step["pca"], int):
                raise UsageError(f"Sets to be multiplied need a known width: 'pca: {step['pca']}' states none.")
            dim = step["pca"]
    return dim


def without_product(pipeline: Any) -> tuple[Any, dict[str, Any] | None]:
    """The fitted pipeline with nothing but scikit-learn's own types, and what ``with_product`` needs."""
    from sklearn.pipeline import Pipeline

    sets = next((step.sets for _, step in pipeline.steps if isinstance(step, Product)), None)
    if sets is None:
        return pipeline, None
    steps = [(name, "passthrough" if name == _STEP else step) for name, step in pipeline.steps]
    return Pipeline(steps), {"kind": "product", "sets": sets}


def with_product(pipeline: Any, document: Mapping[str, Any]) -> Any:
    """The pipeline that ``without_product`` was given."""
    from sklearn.pipeline import Pipeline

    product = Product(int(document["sets"]))
    return Pipeline([(name, product if name == _STEP else step) for name, step in pipeline.steps])
