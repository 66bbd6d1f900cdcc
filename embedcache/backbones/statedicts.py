"""State dicts as users have them: wrappers in front of the names, classifiers left over, other networks' weights.

Pure functions on names and shapes; nothing here builds a model of a library or reads a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from embedcache.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

CLASSIFIERS = frozenset({
    "head", "heads", "head_dist", "fc", "classifier", "cls_classifier", "last_linear", "linear", "logits", "lm_head",
    "cls", "predictions", "qa_outputs", "score", "AuxLogits", "aux_classifier",
})  # fmt: skip
"""Modules that come after the vector that is wanted."""

_DEPTH = 3


@dataclass(frozen=True)
class Fitted:
    """A state dict under the names of a model.

    tensors: what the model takes. prefix: what was taken off the names. left_out: names, as the file has them, that
    the model has no use for.
    """

    tensors: dict[str, torch.Tensor]
    prefix: str
    left_out: tuple[str, ...]


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def wrapper_of(names: Iterable[str], expected: Iterable[str]) -> str:
    """What stands before the names of a file that are meant to be ``expected``, such as ``module.``.

    Whatever the wrapper is called: of all beginnings, the one without which the most names are expected ones; the
    shortest of equals. It must stand before half of the names, or hide half of the expected ones: some names of
    another network always fit by chance.
    """
    wanted, all_names = frozenset(expected), list(names)
    found: Counter[str] = Counter({"": 0})
    for name in all_names:
        parts = name.split(".")
        for depth in range(min(len(parts), _DEPTH + 1)):
            if ".".join(parts[depth:]) in wanted:
                found["".join(f"{part}." for part in parts[:depth])] += 1
    best = max(found, key=lambda prefix: (found[prefix], -len(prefix)))
    below = sum(name.startswith(best) for name in all_names)
    return best if 2 * below >= len(all_names) or 2 * found[best] >= len(wanted) else ""


def fit(tensors: Mapping[str, torch.Tensor], expected: Shapes) -> Fitted:
    """Take the wrapper off, and leave out what is not below it and what is a classifier that the model lacks.

    Other weights that the model lacks stay in: whoever loads them strictly refuses them.
    """
    prefix = wrapper_of(tensors, expected)
    below = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    tops = {name.split(".")[0] for name in expected}
    kept = {name: one for name, one in below.items() if name in expected or not _comes_after(name, tops)}
    left_out = [name for name in tensors if not (name.startswith(prefix) and name.removeprefix(prefix) in kept)]
    return Fitted(kept, prefix, tuple(left_out))


def _comes_after(name: str, tops: set[str]) -> bool:
    """Whether a weight is a classifier's, and none inside of the network (a block's ``fc``)."""
    top = name.split(".")[0]
    return top in CLASSIFIERS or (top not in tops and is_classifier(name))


def is_classifier(name: str) -> bool:
    """Whether a weight belongs to a module that is called as classifiers are, whatever it is wrapped in."""
    return not CLASSIFIERS.isdisjoint(name.split(".")[:-1])


def misfits(tensors: Mapping[str, torch.Tensor], expected: Shapes) -> list[str]:
    """In words, what keeps ``tensors`` from being the weights of a model; empty where they are.

    Counters of batches that batch normalisation has seen may be missing: they change no vector.
    """
    have = shapes(tensors)
    missing = [name for name in expected if name not in have and not name.endswith("num_batches_tracked")]
    extra = [name for name in have if name not in expected]
    other = [name for name in have if name in expected and have[name] != tuple(expected[name])]
    found = [f"{len(missing)} are missing ({listed(missing)})"] if missing else []
    found += [f"{len(extra)} have no place in it ({listed(extra)})"] if extra else []
    described = [f"{name} {_size(have[name])} instead of {_size(expected[name])}" for name in other]
    return found + ([f"{len(other)} have another shape ({listed(described)})"] if other else [])


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], name: str) -> Fitted:
    """Load a state dict into a module, all of it. Raises CheckpointError with names where it does not fit."""
    expected = shapes(module.state_dict())
    fitted = fit(tensors, expected)
    if wrong := misfits(fitted.tensors, expected):
        raise CheckpointError(f"{name}: the weights are not its module's: {'; '.join(wrong)}. {describe(tensors)}")
    module.load_state_dict(fitted.tensors)
    return fitted


def note_of(name: str, fitted: Fitted) -> tuple[str, ...]:
    """What is to be said of what was taken off and left out: at most one note."""
    said = [f"the prefix {fitted.prefix!r} of the names was taken off"] if fitted.prefix else []
    if fitted.left_out:
        heads = all(is_classifier(one) for one in fitted.left_out)
        kind = "a classifier" if heads else "the model has no such weights"
        said.append(f"left out: {listed(fitted.left_out)} ({kind})")
    return (f"weights of {name}: {'; '.join(said)}",) if said else ()


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")


def describe(tensors: Mapping[str, torch.Tensor]) -> str:
    """In a sentence or two, what a file of weights is, as far as names and shapes tell."""
    have = shapes(tensors)
    facts = [f"The file holds {len(have)} tensors ({listed(list(have), 3)})"]
    first = next((shape for shape in have.values() if len(shape) == 4 and shape[1] == 3), None)
    if first is not None:
        facts.append(f"its first convolution goes from 3 to {first[0]} channels, {first[2]} × {first[3]}")
    if classes := _classifier(have):
        facts.append(f"its classifier {classes[0]} tells {classes[1]} classes from {classes[2]} numbers")
    looks = looks_like(have)
    return "; ".join(facts) + "." + (f" {looks}" if looks else "")


def _classifier(have: Shapes) -> tuple[str, int, int] | None:
    """Name, classes and width of the last matrix, where its name is a classifier's."""
    found = [(name, shape) for name, shape in have.items() if len(shape) == 2 and name.endswith("weight")]
    if not found or not is_classifier(found[-1][0]):
        return None
    name, shape = found[-1]
    return name, shape[0], shape[1]


def looks_like(have: Shapes) -> str:
    """The network that the names and shapes look like, where it is a well-known one that no family here has.

    A CIFAR ResNet (He et al. 2016, arXiv:1512.03385, section 4.2) has three stages of n blocks of two convolutions on
    16, 32 and 64 channels: 6 n + 2 layers. timm's and transformers' ResNets have four stages.
    """
    clean = {re.sub(r"^(module|_orig_mod|model|backbone)\.", "", name): shape for name, shape in have.items()}
    stages = Counter(match[1] for name in clean if (match := re.fullmatch(r"layer(\d)\.\d+\.conv1\.weight", name)))
    if clean.get("conv1.weight") != (16, 3, 3, 3) or set(stages) != {"1", "2", "3"}:
        return ""
    two = Counter(name.rpartition(".conv")[2] for name in clean if name.startswith("layer") and ".conv" in name)
    if set(two) != {"1.weight", "2.weight"} or len(set(stages.values())) != 1:
        return ""
    return (
        f"It looks like a CIFAR ResNet-{6 * stages['1'] + 2}, for photos of 32 × 32 pixels; neither timm nor "
        "transformers has this network. What is needed is its code: make the torch module in Python and wrap it with "
        "embedcache.torch_backbone(name, module, preprocessing, weights=FILE), which gives a backbone for "
        "embedcache.extract."
    )


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "scalar"
