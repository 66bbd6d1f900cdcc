"""What a torch head needs to go on training, in one safetensors file beside the head: no pickle.

``training.safetensors`` holds the optimiser's tensors and, with early stopping, the best weights; its metadata holds
the optimiser's numbers as JSON. For Adam it is twice as large as the head, so predicting does not need it and it may
be deleted; without it training goes on with a fresh optimiser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embedcache.errors import DamagedFileError
from embedcache.files import replacing

if TYPE_CHECKING:
    import torch

TRAINING: Final = "training.safetensors"
KEPT_AT_MOST: Final = 512 << 20
"""Bytes; a larger state is not kept."""
_KEY: Final = "training"


def keep(estimator: Any, folder: Path) -> bool:
    """Write the state of a torch head's training; whether there was one, and one that is not too large."""
    progress = getattr(estimator, "_progress", None)
    if progress is None or progress.optimizer is None:
        return False
    tensors, document = _flat(progress.optimizer)
    tensors |= {f"best.{name}": tensor for name, tensor in (progress.best or {}).items()}
    document |= {"best_loss": _finite(progress.best_loss), "best_epoch": progress.best_epoch, "waited": progress.waited}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) > KEPT_AT_MOST:
        return False
    from safetensors.torch import save_file

    with replacing(folder / TRAINING) as beside:
        save_file(tensors, beside, metadata={_KEY: json.dumps(document)})
    return True


def restore(estimator: Any, folder: Path) -> bool:
    """Give a head that was read back the state of its training; whether there was one.

    Raises DamagedFileError where the file is not what ``keep`` wrote.
    """
    path = folder / TRAINING
    if not path.exists():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            document = json.loads(opened.metadata()[_KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        progress = estimator._progress
        best = {name.removeprefix("best."): one for name, one in tensors.items() if name.startswith("best.")}
        progress.optimizer = _nested(document, tensors)
        progress.best = best or None
        progress.best_loss = math.inf if document["best_loss"] is None else float(document["best_loss"])
        progress.best_epoch = int(document.get("best_epoch", 0))  # earlier releases do not say it
        progress.waited = int(document["waited"])
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedFileError(
            f"{path} holds no state of a training that can be read: {error}. Without the file, training goes on with a "
            "fresh optimiser."
        ) from error
    return True


def _flat(optimizer: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A torch optimiser's ``state_dict`` as named tensors and JSON."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for number, own in optimizer["state"].items():
        for name, value in own.items():
            if hasattr(value, "detach"):
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                numbers.setdefault(str(number), {})[name] = value
    return tensors, {"groups": optimizer["param_groups"], "numbers": numbers}


def _nested(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What ``_flat`` was given."""
    state: dict[int, dict[str, Any]] = {int(number): dict(own) for number, own in document["numbers"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    return {"state": state, "param_groups": document["groups"]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
