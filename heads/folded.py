"""A fitted torch head with its transforms as one torch module: features in, probabilities out."""

from __future__ import annotations

import copy
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedcache.errors import UsageError
from heads.saved import FittedHead


class Affine(nn.Module):
    """``(x - shift) * scale``, each number by its own."""

    def __init__(self, shift: npt.NDArray[Any], scale: npt.NDArray[Any]) -> None:
        super().__init__()
        self.shift: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("shift", torch.from_numpy(np.asarray(shift, np.float32)))
        self.register_buffer("scale", torch.from_numpy(np.asarray(scale, np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, dim)."""
        return (x - self.shift) * self.scale


class UnitRows(nn.Module):
    """Each row to unit length; a row of zeros stays."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, dim)."""
        length = (x * x).sum(1, keepdim=True).sqrt()
        return x / torch.where(length > 0, length, torch.ones_like(length))


class Components(nn.Module):
    """Principal components: ``(x - mean) @ components.T``."""

    def __init__(self, mean: npt.NDArray[Any], components: npt.NDArray[Any]) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.components: torch.Tensor
        self.register_buffer("mean", torch.from_numpy(np.asarray(mean, np.float32)))
        self.register_buffer("components", torch.from_numpy(np.ascontiguousarray(components.T, np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, dim) to (n, components)."""
        return (x - self.mean) @ self.components


class BySet(nn.Module):
    """Each feature set through its own transforms, side by side again."""

    def __init__(self, spans: list[tuple[int, int]], parts: list[nn.Module]) -> None:
        super().__init__()
        self.spans, self.parts = spans, nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, dims)."""
        found = [part(x[:, start:stop]) for (start, stop), part in zip(self.spans, self.parts, strict=True)]
        return torch.cat(found, 1)


class Multiplied(nn.Module):
    """Feature sets of one width, side by side, multiplied number by number: ``heads.product.Product``."""

    def __init__(self, sets: int) -> None:
        super().__init__()
        self.sets = sets

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, sets · width) to (n, width)."""
        return reduce(torch.mul, x.chunk(self.sets, 1))


class Probabilities(nn.Module):
    """The network's outputs as probabilities of all of the head's classes; those that training lacked get zero."""

    def __init__(self, several: bool, codes: npt.NDArray[np.int64], classes: int) -> None:
        super().__init__()
        self.several, self.whole = several, len(codes) == classes
        self.place: torch.Tensor
        self.register_buffer("place", torch.eye(classes)[torch.from_numpy(codes)])

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, outputs) to (n, classes)."""
        if self.several:
            return outputs.sigmoid()
        found = outputs.softmax(1)
        return found if self.whole else found @ self.place


def folded(head: FittedHead) -> nn.Module:
    """Float32 features (n, sum of dims) to probabilities (n, classes), as ``head.predict_proba`` gives them.

    Raises UsageError for a head that is no torch network over a matrix, and for transforms that have no torch form.
    """
    from heads.torch_mlp import MLPHead

    network = head.last
    if network is None:
        raise UsageError("The answers of several heads are fused: export a run of one of them alone.")
    if not isinstance(network, MLPHead):
        raise UsageError(f"The head {head.head!r} is no multi-layer perceptron in torch: only 'mlp' can be exported.")
    parts = [_module(step) for _, step in head.estimator.steps[:-1]]
    codes = np.asarray(network.classes_, np.int64)
    last = Probabilities(bool(network.multilabel_), codes, len(head.classes))
    return nn.Sequential(*parts, copy.deepcopy(network.module_).cpu().float(), last).eval()


def _module(step: Any) -> nn.Module:
    """One fitted scikit-learn transform as torch."""
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

    from heads.product import Product

    if step == "passthrough" or (isinstance(step, FunctionTransformer) and step.func is None):
        return nn.Identity()
    if isinstance(step, StandardScaler):
        width = step.n_features_in_
        shift = step.mean_ if step.with_mean else np.zeros(width)
        return Affine(shift, 1 / step.scale_ if step.with_std else np.ones(width))
    if isinstance(step, Normalizer) and step.norm == "l2":
        return UnitRows()
    if isinstance(step, PCA) and not step.whiten:
        return Components(step.mean_, step.components_)
    if isinstance(step, Product):
        return Multiplied(step.sets)
    if isinstance(step, Pipeline):
        return nn.Sequential(*(_module(one) for _, one in step.steps))
    if isinstance(step, ColumnTransformer):
        found = [(_span(columns), _module(one)) for _, one, columns in step.transformers_ if len(columns)]
        return BySet([span for span, _ in found], [module for _, module in found])
    raise UsageError(f"The transform {type(step).__name__} has no torch form: the head cannot be exported with it.")


def _span(columns: Any) -> tuple[int, int]:
    """Neighbouring columns, as ``transforms.build`` names them."""
    first, last = int(columns[0]), int(columns[-1])
    if list(columns) != list(range(first, last + 1)):
        raise UsageError("The columns of a feature set do not lie together: the head cannot be exported.")
    return first, last + 1
