"""Training of heads: rows a second through ``fit``, beside plain loops over the same arithmetic.

Ours is the whole of ``fit``: checks, shuffling, training, and after each epoch loss and score of a twentieth of the
rows and of a validation tenth. The peers of ``mlp`` train as many epochs on the same rows and do nothing else: the
matrix products of forward and backward passes alone, which is the arithmetic limit (goal: 0.8 of it), a torch loop with
fused Adam over tensors in memory, scikit-learn's MLPClassifier, and a torch DataLoader whose data set reads rows of an
HDF5 file with h5py. The peer of ``lstm`` and of ``cnn`` is the same module trained on batches that are padded and in
memory beforehand (goal: 0.5 of it).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.rounds import Figure, alternating, seconds, speed_figure
from embedcache.options import usable_cores
from heads.sequences import SequenceInputs, Sequences
from heads.torch_mlp import MLPHead, TorchHead
from heads.torch_text import CNNHead, LSTMHead

REPEATS = 5
EPOCHS = 1
BATCH = 400
VALIDATION = 0.1
TEXTS, VOCABULARY, LONGEST = 2048, 5000, 24
CPU = torch.device("cpu")

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Funnel:
    """A head of the reports. widths: from the input to the classes; rows: to train on."""

    name: str
    widths: tuple[int, ...]
    rows: int

    @property
    def shown(self) -> str:
        return "-".join(map(str, self.widths))


FUNNELS = (
    Funnel("mlp vqa", (4608, 1024, 512, 20), 20_000),
    Funnel("mlp cub", (1792, 1000, 500, 200), 20_000),
)


def run(repeats: int | None = None) -> list[Figure]:
    n = repeats or REPEATS
    figures = [figure for funnel in FUNNELS for figure in _funnel(funnel, n)]
    return [*figures, _text("lstm", LSTMHead(epochs=EPOCHS), n), _text("cnn", CNNHead(epochs=EPOCHS), n)]


# ------------------------------------------------------------------------------------------------------------ mlp


def _funnel(funnel: Funnel, repeats: int) -> list[Figure]:
    rng = np.random.default_rng(0)
    held = int(funnel.rows * VALIDATION)
    x = rng.standard_normal((funnel.rows + held, funnel.widths[0])).astype(np.float32)
    y = rng.integers(0, funnel.widths[-1], len(x))
    y[: funnel.widths[-1]] = np.arange(funnel.widths[-1])
    own = MLPHead(funnel.widths[1:-1], batch_size=BATCH, epochs=EPOCHS, device="cpu", random_state=0)
    train, validation = (x[: funnel.rows], y[: funnel.rows]), (x[funnel.rows :], y[funnel.rows :])

    def ours() -> None:
        clone(own).fit(*train, validation=validation)

    note = f"{funnel.shown}, {funnel.rows:,} rows, batch {BATCH}, {EPOCHS} epoch, {usable_cores()} cores"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.h5"
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = train
        peers: dict[str, tuple[Callable[[], object], float | None]] = {
            "products": (lambda: _products(funnel), 0.8),
            "torch loop": (lambda: _loop(funnel, *train), None),
            "MLPClassifier": (lambda: _scikit_learn(funnel, *train), None),
            "h5py rows": (lambda: _loader(funnel, path), None),
        }
        return [
            _figure(funnel.name, named, ours, peer, funnel.rows * EPOCHS, repeats, goal, note)
            for named, (peer, goal) in peers.items()
        ]


def _figure(
    name: str,
    named: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    rows: int,
    repeats: int,
    goal: float | None,
    note: str,
) -> Figure:
    ours(), peer()
    rounds = alternating(lambda: seconds(ours), lambda: seconds(peer), repeats)
    return speed_figure(name, named, rounds, lambda took: f"{rows / took:,.0f}/s", goal, note)


def _products(funnel: Funnel) -> None:
    """What every step has to multiply: outputs, gradients of weights, and of inputs but for the first layer."""
    layers = [(torch.randn(BATCH, i), torch.randn(i, o), torch.randn(BATCH, o)) for i, o in pairwise(funnel.widths)]
    for _ in range(EPOCHS * -(-funnel.rows // BATCH)):
        for place, (x, weights, gradient) in enumerate(layers):
            x @ weights
            x.T @ gradient
            if place:
                gradient @ weights.T


def _loop(funnel: Funnel, x: Matrix, y: npt.NDArray[np.int64]) -> None:
    rows, codes = torch.from_numpy(x), torch.from_numpy(y)
    orders = (part for _ in range(EPOCHS) for part in torch.randperm(len(rows)).split(BATCH))  # type: ignore[no-untyped-call]
    _descend(_perceptron(funnel), ((rows[part], codes[part]) for part in orders))


def _loader(funnel: Funnel, path: Path) -> None:
    with h5py.File(path, "r") as file:
        loader = DataLoader(_Rows(file), batch_size=BATCH, shuffle=True)
        _descend(_perceptron(funnel), (batch for _ in range(EPOCHS) for batch in loader))


class _Rows(Dataset[tuple[Matrix, int]]):
    """A row of an HDF5 file at a time, as tutorials have it."""

    def __init__(self, file: h5py.File) -> None:
        self.x, self.y = file["x"], file["y"]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Matrix, int]:
        return self.x[row], int(self.y[row])


def _scikit_learn(funnel: Funnel, x: Matrix, y: npt.NDArray[np.int64]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        MLPClassifier(funnel.widths[1:-1], batch_size=BATCH, max_iter=EPOCHS).fit(x, y)


def _perceptron(funnel: Funnel) -> torch.nn.Module:
    from heads.training import dense

    return dense(funnel.widths, "relu", batch_norm=False, dropout=0.0)


def _descend(module: torch.nn.Module, batches: Iterable[tuple[Any, torch.Tensor]]) -> None:
    """The plain loop: forward, backward, step."""
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    for inputs, codes in batches:
        loss = functional.cross_entropy(module(inputs), codes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


# ------------------------------------------------------------------------------------------------------ lstm, cnn


def _text(name: str, own: TorchHead, repeats: int) -> Figure:
    x, y = _questions(TEXTS + int(TEXTS * VALIDATION))
    own.set_params(device="cpu", random_state=0)
    train, validation = (x[:TEXTS], y[:TEXTS]), (x[TEXTS:], y[TEXTS:])
    module = clone(own).set_params(epochs=0).fit(*train).module_
    inputs, codes = SequenceInputs(train[0], CPU), torch.from_numpy(train[1])
    size = own.get_params()["batch_size"]
    generator = torch.Generator().manual_seed(0)
    ready = [
        (inputs.batch(part), codes[part])
        for _ in range(EPOCHS)
        for part in inputs.epoch(torch.arange(TEXTS), size, generator)
    ]
    note = (
        f"{TEXTS:,} texts of up to {LONGEST} words, {VOCABULARY:,} words, batch {size}, {EPOCHS} epoch, "
        f"{usable_cores()} cores"
    )
    return _figure(
        name,
        "its module",
        lambda: clone(own).fit(*train, validation=validation),
        lambda: _descend(module, ready),
        TEXTS * EPOCHS,
        repeats,
        0.5,
        note,
    )


def _questions(n: int) -> tuple[Sequences, npt.NDArray[np.int64]]:
    """Texts of drawn words, as frequent as Zipf's law has it, of 77 classes."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(3, LONGEST + 1, n))]).astype(np.int64)
    chance = 1 / np.arange(1, VOCABULARY - 1)
    tokens = rng.choice(np.arange(2, VOCABULARY), offsets[-1], p=chance / chance.sum()).astype(np.int32)
    return Sequences.of(tokens, offsets, VOCABULARY, np.zeros((n, 0), np.float32)), np.arange(n) % 77
