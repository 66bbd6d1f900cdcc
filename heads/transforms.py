"""Transforms of features, fitted on training rows only: for the fused matrix, or for each feature set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from embedcache.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from heads.config import HeadConfig

TRANSFORMS: Final = {
    "standardize": "zero mean and unit variance of each number",
    "l2": "each row to unit length",
    "pca": "principal components; 'pca: 128' keeps that many, 'pca: 0.95' that share of the variance",
}

Step = str | Mapping[str, Any]


def build(
    transform: Sequence[Step] | Mapping[str, Sequence[Step]], names: Sequence[str], dims: Sequence[int], seed: int
) -> list[tuple[str, Any]]:
    """Unfitted scikit-learn steps for a matrix of feature sets side by side."""
    if not isinstance(transform, Mapping):
        return [_step(step, index, seed) for index, step in enumerate(transform)]
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline

    for name in transform:
        if name not in names:
            raise unknown_name("feature set in 'transform':", name, names)
    columns, start = [], 0
    for index, (name, dim) in enumerate(zip(names, dims, strict=True)):
        steps = [_step(step, 0, seed)[1] for step in transform.get(name, ())]
        made = make_pipeline(*steps) if steps else "passthrough"
        columns.append((f"set_{index}", made, list(range(start, start + dim))))
        start += dim
    return [("0_by_feature_set", ColumnTransformer(columns))]


def standardized_inside(config: HeadConfig) -> HeadConfig:
    """The configuration of an ``mlp`` with ``transform: [standardize]`` as the network's own first step.

    So no standardized matrix stands beside the features. Other transforms, and a search over them, stay as they are;
    so does that of a product, which is of another matrix anyway.
    """
    grids = config.grid if isinstance(config.grid, list) else [config.grid]
    searched = {"standardize", "transform"} & set().union(*grids)
    if config.transform != ["standardize"] or searched or config.fusion.kind == "product":
        return config
    if config.fixed.get("standardize", True) is not True:
        return config
    return config.model_copy(update={"transform": [], "fixed": {**config.fixed, "standardize": True}})


def for_sets(transform: Any, names: Sequence[str]) -> Any:
    """The part of a transform that concerns the named feature sets."""
    if not isinstance(transform, Mapping):
        return transform
    return {name: steps for name, steps in transform.items() if name in names}


def _step(step: Step, index: int, seed: int) -> tuple[str, Any]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import Normalizer, StandardScaler

    name, argument = (step, None) if isinstance(step, str) else _single(step)
    label = f"{index}_{name}"
    if name not in TRANSFORMS:
        raise unknown_name("transform", name, TRANSFORMS)
    if argument is not None and name != "pca":
        raise UsageError(f"The transform {name!r} takes no argument, got {argument!r}.")
    if name == "standardize":
        return label, StandardScaler()
    if name == "l2":
        return label, Normalizer()
    return label, PCA(n_components=argument, random_state=seed)


def check_components(steps: Sequence[tuple[str, Any]], width: int, rows: int, setting: str = "pca") -> None:
    """Raise UsageError for more principal components than can be made.

    steps: unfitted. width: numbers before them. rows: of the smallest training part. setting: what to set lower.
    """
    for _, step in steps:
        width = _width_after(step, width, rows, setting)


def _width_after(step: Any, width: int, rows: int, setting: str) -> int:
    """Numbers that come out of a step."""
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline

    if isinstance(step, Pipeline):
        for _, inner in step.steps:
            width = _width_after(inner, width, rows, setting)
        return width
    if isinstance(step, ColumnTransformer):
        return sum(_width_after(inner, len(columns), rows, setting) for _, inner, columns in step.transformers)
    if not isinstance(step, PCA):
        return width // getattr(step, "sets", 1)
    most, wanted = min(width, rows), step.n_components
    if isinstance(wanted, int) and wanted > most:
        raise UsageError(
            f"{wanted:,} principal components cannot be made of {width:,} numbers on {rows:,} training rows, folds "
            f"counted: set {setting} to at most {most}."
        )
    return wanted if isinstance(wanted, int) else most


def _single(step: Mapping[str, Any]) -> tuple[str, Any]:
    if len(step) != 1:
        raise UsageError(f"A transform is a name or one 'name: argument', got {dict(step)}.")
    return next((str(name), argument) for name, argument in step.items())
