"""A torch head as one ONNX file, its transforms folded in, and a check that both give the same numbers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import EmbedCacheError, UsageError
from embedcache.files import replacing
from heads.saved import FittedHead

INPUT, OUTPUT = "features", "probabilities"
OPSET: Final = 17
TOLERANCE: Final = 1e-4
"""Largest difference of a probability that is put down to the order of additions."""
_CHECKED_ROWS: Final = 64


@dataclass(frozen=True)
class Exported:
    """What was written. checked_with: what ran the file; difference: the largest one of a probability."""

    path: Path
    rows: int
    checked_with: str
    difference: float


def export(head: FittedHead, path: Path) -> Exported:
    """Write ``path``: float32 features (n, sum of dims) in, probabilities (n, classes) out, any n.

    The file's metadata name the classes, the thresholds, and the feature sets with their fingerprints. Raises
    UsageError where the package ``onnx`` is not installed, or the head is no torch network; EmbedCacheError, with
    nothing written, where the file's numbers are not the head's.
    """
    from heads.folded import folded

    module = folded(head)
    _need_onnx()
    x = _rows(head)
    with replacing(path) as beside:
        _write(module, x, beside)
        _describe(head, beside)
        found, checked_with = _run(beside, x)
        difference = float(np.abs(found - head.predict_proba(x)).max())
        if not difference <= TOLERANCE:
            raise EmbedCacheError(
                f"The exported head and the head itself differ by up to {difference:.2g} ({checked_with}, "
                f"{len(x)} rows), more than {TOLERANCE:g}: {path} is not written."
            )
    return Exported(path, len(x), checked_with, difference)


def _need_onnx() -> None:
    if find_spec("onnx") is None:
        raise UsageError(
            "To write ONNX, torch needs the package onnx, which is not installed here: pip install embedcache[onnx] "
            "(with onnxruntime, which then checks the file; without it onnx's own reference evaluator does)."
        )


def _rows(head: FittedHead) -> npt.NDArray[np.float32]:
    """Made-up features to compare on: around the training rows' mean, a row of zeros among them."""
    width = sum(one.dim for one in head.features)
    mean = np.array(head.mean or np.zeros(width), np.float32)
    x = (mean + np.random.default_rng(0).normal(size=(_CHECKED_ROWS, width))).astype(np.float32)
    x[0] = 0
    return x


def _write(module: Any, x: npt.NDArray[np.float32], path: Path) -> None:
    """By torch's own exporter: the one by tracing, which needs no package but onnx."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (torch.from_numpy(x),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _describe(head: FittedHead, path: Path) -> None:
    """Say in the file what it was fitted on."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, described(head))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def described(head: FittedHead) -> Mapping[str, str]:
    """The file's metadata: JSON texts."""
    features = [{"name": one.name, "dim": one.dim, "fingerprint": one.fingerprint} for one in head.features]
    facts = {
        "classes": list(head.classes),
        "kind": head.kind,
        "thresholds": list(head.thresholds),
        "features": features,
        "dataset": head.dataset,
        "target": head.target,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def _run(path: Path, x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], str]:
    """Probabilities (n, classes) by what is there to run the file, and its name."""
    if find_spec("onnxruntime") is not None:
        return by_onnxruntime(path, x), "onnxruntime"
    return by_onnx(path, x), "onnx's reference evaluator"


def by_onnxruntime(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Probabilities (n, classes) as most users of the file will get them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], {INPUT: x})[0])


def by_onnx(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Probabilities (n, classes) by the definition of each operator, in numpy."""
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(str(path)).run([OUTPUT], {INPUT: x})[0])
