"""An epoch of any torch head never waits for its device: it runs on one whose numbers nobody can ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from heads import training
from heads.sequences import Sequences
from heads.torch_mlp import MLPHead
from heads.torch_text import CNNHead, LSTMHead

ROWS, EPOCHS = 20, 2
ONE = np.arange(ROWS) % 3
SEVERAL = np.eye(3, dtype=np.int64)[ONE]

WIDTHS: dict[str, Any] = {"hidden_layer_sizes": (8,), "batch_norm": True, "dropout": 0.1}
CASES: list[tuple[Any, int, np.ndarray, dict[str, Any]]] = [
    (MLPHead, 5, ONE, {"standardize": True, "class_weight": "balanced", "schedule": "cosine", "warmup_epochs": 1}),
    (MLPHead, 5, SEVERAL, {"schedule": "one-cycle", "label_smoothing": 0.1, "early_stopping": True}),
    (CNNHead, 0, SEVERAL, {"filters": 4, "filter_widths": (1, 3, 9), "embedding_dropout": 0.1}),
    (CNNHead, 5, ONE, {"filters": 4, "fusion": "product", "schedule": "step", "standardize": True}),
    (LSTMHead, 0, ONE, {"hidden_size": 4, "layers": 2, "bidirectional": True}),
    (LSTMHead, 5, ONE, {"hidden_size": 4, "attention": "image", "initial_state": "image", "schedule": "adaptive"}),
]
TRAINED = [(*case, True) for case in CASES] + [(*case, False) for case in CASES if case[1]]


def rows_for(kind: Any, dim: int) -> Any:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((ROWS, dim)).astype(np.float32)
    if kind is MLPHead:
        return numbers
    lengths = rng.integers(0, 4, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Sequences.of(rng.integers(1, 20, offsets[-1]).astype(np.int32), offsets, 20, numbers)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Makes torch's device of shapes without numbers one to train on; the shapes of what is read of it at the end.

    ``item``, ``tolist``, ``cpu``, ``nonzero``, a mask as an index: on that device all of them raise an error.
    """
    read: list[torch.Size] = []

    def answers(found: Any, truth: Any, loss: Any) -> torch.Tensor:
        numbers = scored(found, truth, loss)
        read.append(numbers.shape)
        assert numbers.is_meta
        return torch.ones(2)

    scored = training._loss_and_score
    monkeypatch.setattr(training, "_loss_and_score", answers)
    monkeypatch.setattr(training, "_optimizer", unfused)
    return read


def unfused(module: Any, options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam([one for one in module.parameters() if one.requires_grad], lr=options.learning_rate)


@pytest.mark.parametrize(("kind", "dim", "y", "changes", "fits"), TRAINED)
def test_no_step_asks_the_device_for_a_number(
    monkeypatch: pytest.MonkeyPatch, asked: list[torch.Size], kind: Any, dim: int, y: Any, changes: Any, fits: bool
) -> None:
    """Whether the matrix fits the device or not."""
    monkeypatch.setattr(training, "_fits", lambda nbytes, device: fits)
    x = rows_for(kind, dim)
    head = kind(**{**WIDTHS, **changes}, epochs=EPOCHS, batch_size=8, random_state=0, device="meta")
    head.fit(x, y, validation=(x, y))
    assert head.n_iter_ == EPOCHS
    assert asked == [torch.Size([2])] * 2 * EPOCHS  # an epoch: loss and score of training rows, and of validation rows


def test_a_number_that_is_asked_for_is_found_out(monkeypatch: pytest.MonkeyPatch, asked: list[torch.Size]) -> None:
    waits = training._mean

    def waiting(each: torch.Tensor, weights: Any) -> torch.Tensor:
        each.sum().item()
        return waits(each, weights)

    monkeypatch.setattr(training, "_mean", waiting)
    with pytest.raises(RuntimeError, match="meta"):
        MLPHead((8,), epochs=1, device="meta").fit(rows_for(MLPHead, 5), ONE)
