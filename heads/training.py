"""Training a torch module on rows of arrays: optimisers, schedules, early stopping, a history.

What a module reads is an ``Inputs``: a matrix, or ragged word ids, or both. Batches are drawn from it by row numbers,
which stay on the host: no step of an epoch waits for the device.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from embedcache.errors import UsageError, unknown_name
from heads.parameters import check
from heads.rows import RowsOf

Rows: TypeAlias = npt.NDArray[np.int64]
Tensor: TypeAlias = torch.Tensor

EVALUATED_BYTES = 4 << 20
SCORED_ROWS = 500, 2000
"""Training loss and score are of a twentieth of the rows, fixed ones, but of so many at least and at most: all of them
would cost a third of an epoch."""
SHARE_OF_DEVICE = 0.6
BLOCK_BYTES = 64 << 20
LOOKED_AT_BYTES = 4 << 20
"""What is looked at before training is looked at in such blocks, so that no copy of a matrix is made for it."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a module is trained.

    schedule: of the learning rate. ``constant``; ``cosine`` to zero; ``step``: times ``gamma`` each ``step_size``
    epochs; ``one-cycle`` (Smith & Topin, 2018); ``adaptive``: a fifth, as scikit-learn's, when the loss has not fallen
    for ``patience`` // 2 epochs. warmup_epochs: of a linear rise before ``constant``, ``cosine`` and ``step``.
    patience: epochs without a better validation loss after which early stopping ends; the best weights are restored.
    label_smoothing: as in torch's ``cross_entropy``. Raises UsageError for values outside ``parameters.RULES``.
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    step_size: int = 10
    gamma: float = 0.1
    batch_size: int = 400
    epochs: int = 20
    early_stopping: bool = False
    patience: int = 5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check(vars(self))


class Inputs(Protocol):
    """Rows that a module reads. Row numbers are int64, on the host."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Any:
        """What the module is called with for some rows, on the device."""

    def epoch(self, rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """All of ``rows`` once, in a new order, as batches of ``size``."""

    def pieces(self, rows: Tensor) -> Sequence[Tensor]:
        """Places in ``rows``, each once, in the pieces in which they are evaluated."""


def moved(part: Tensor, device: torch.device) -> Tensor:
    """The part on the device, without waiting for it: to a GPU by way of pinned memory."""
    if device.type == "cuda" and part.device.type == "cpu":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


class Matrix:
    """A matrix of features as ``Inputs``: on the device whole where it fits, in its stored type; else read by blocks.

    x: (n, dim) numpy, a map too, or rows of one; float16 and float32 are not copied on a CPU.
    """

    def __init__(self, x: npt.NDArray[Any] | RowsOf, device: torch.device) -> None:
        self.device = device
        matrix, rows = (x.matrix, x.rows) if isinstance(x, RowsOf) else (x, None)
        source = matrix if matrix.dtype in (np.float16, np.float32) else matrix.astype(np.float32)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writ")  # read only, and only read
            self._host = torch.from_numpy(source)
        self._rows = None if rows is None else torch.from_numpy(np.ascontiguousarray(rows))
        self.whole = device.type == "cpu" or _fits(len(self) * source[:1].nbytes, device)
        self._x = self._host
        if self.whole and device.type != "cpu":
            self._x, self._rows = self._copied(), None

    def __len__(self) -> int:
        return len(self._host) if self._rows is None else len(self._rows)

    def _places(self, rows: Tensor) -> Tensor:
        """Where rows of ours lie in the matrix on the host."""
        return rows if self._rows is None else self._rows[rows]

    def _copied(self) -> Tensor:
        """Our rows on the device, by blocks."""
        found = torch.empty(len(self), self._host.shape[1], dtype=self._host.dtype, device=self.device)
        for block in torch.arange(len(self)).split(max(1, BLOCK_BYTES // max(1, self._host[:1].nbytes))):  # type: ignore[no-untyped-call]
            found[block[0] : block[-1] + 1] = self._host.index_select(0, self._places(block))
        return found

    def batch(self, rows: Tensor) -> Tensor:
        """(rows, dim) float32 on the device."""
        if self.whole:
            return self._x.index_select(0, moved(self._places(rows), self.device)).float()
        return moved(self._host.index_select(0, self._places(rows)), self.device).float()

    def epoch(self, rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Shuffled; where the matrix is not on the device, by shuffled blocks of rows that lie together."""
        if self.whole:
            order = rows[torch.randperm(len(rows), generator=generator)]
        else:
            width = max(size, BLOCK_BYTES // max(1, self._host.shape[1] * self._host.element_size()))
            blocks = rows.sort().values.split(width)  # type: ignore[no-untyped-call]
            turns = torch.randperm(len(blocks), generator=generator).tolist()
            order = torch.cat([blocks[b][torch.randperm(len(blocks[b]), generator=generator)] for b in turns])
        yield from order.split(size)  # type: ignore[no-untyped-call]

    def pieces(self, rows: Tensor) -> Sequence[Tensor]:
        """In order, each of about EVALUATED_BYTES of float32."""
        width = max(1, EVALUATED_BYTES // max(1, self._host.shape[1] * 4))
        return torch.arange(len(rows)).split(width)  # type: ignore[no-untyped-call,no-any-return]


def _fits(nbytes: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes < SHARE_OF_DEVICE * free


@dataclass
class Progress:
    """Where a training stands: all that is needed to go on with it.

    history: a mapping per epoch: ``epoch``, ``learning_rate``, ``seconds``, ``train_loss``, ``train_score``; the same
    for ``validation``. best: the weights of the epoch with the lowest validation loss, with early stopping; best_epoch:
    which one that is, 0 where it is not known.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_loss: float = math.inf
    best_epoch: int = 0
    waited: int = 0
    optimizer: dict[str, Any] | None = None

    @property
    def epochs(self) -> int:
        """Epochs that were trained."""
        return len(self.history)


Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Outputs (n, k) and targets to one loss per row, (n,)."""


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """Of class codes, int64 (n,)."""
    return lambda outputs, codes: functional.cross_entropy(
        outputs, codes, reduction="none", label_smoothing=label_smoothing
    )


def binary_cross_entropy(positive_weight: Tensor | None = None, label_smoothing: float = 0.0) -> Loss:
    """Of indicators, float (n, labels): the mean over labels. positive_weight: (labels,)."""

    def loss(outputs: Tensor, truth: Tensor) -> Tensor:
        smoothed = truth * (1 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            outputs, smoothed, pos_weight=positive_weight, reduction="none"
        ).mean(1)

    return loss


def train(
    module: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    rows: Rows,
    options: TrainingOptions,
    loss: Loss,
    *,
    weights: Tensor | None = None,
    validation: tuple[Inputs, Tensor, Rows] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] = lambda line: None,
) -> Progress:
    """Train ``module`` in place for ``options.epochs`` epochs more; nothing waits for the device inside an epoch.

    targets: codes (n,) or indicators (n, labels), on the device. weights: (n,) or None. rows: those to train on.
    validation: inputs, targets and rows of their own. progress: of an earlier call, to go on with.
    """
    state = progress or Progress()
    chosen = torch.from_numpy(np.ascontiguousarray(rows))
    steps = max(1, math.ceil(len(rows) / options.batch_size))
    optimizer = _optimizer(module, options)
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)
    schedule = _schedule(optimizer, options, steps, state.epochs)
    generator = torch.Generator().manual_seed(seed + 7919 * state.epochs)
    least, most = SCORED_ROWS
    scored = chosen[:: max(1, len(chosen) // min(most, max(least, len(chosen) // 20)))]
    for _ in range(options.epochs):
        began = time.perf_counter()
        rate = optimizer.param_groups[0]["lr"]
        batches = inputs.epoch(chosen, options.batch_size, generator)
        _pass_over(batches, module, inputs, targets, weights, loss, optimizer, schedule)
        line = {"epoch": state.epochs + 1, "learning_rate": rate, "seconds": 0.0}
        line |= _named("train", evaluate(module, inputs, targets, scored, loss))
        if validation is not None:
            held, truth, held_rows = validation
            line |= _named("validation", evaluate(module, held, truth, torch.from_numpy(held_rows), loss))
        line["seconds"] = time.perf_counter() - began
        watched = line.get("validation_loss", line["train_loss"])
        if not schedule.each_step:
            schedule.step(watched)
        state.history.append(line)
        on_epoch(line)
        if not math.isfinite(line["train_loss"]):
            raise UsageError(
                f"The training loss is not finite after epoch {state.epochs}: lower learning_rate ({rate:g}), or "
                "standardize the features."
            )
        if options.early_stopping and _stops(module, state, watched, options.patience):
            break
    state.optimizer = optimizer.state_dict()
    if options.early_stopping and state.best is not None:
        module.load_state_dict(state.best)
    module.eval()
    return state


def _pass_over(
    batches: Iterator[Tensor],
    module: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    weights: Tensor | None,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: _Schedule,
) -> None:
    """One epoch of steps."""
    module.train()
    for batch in batches:
        if len(batch) == 1 and _normalises(module):
            continue  # a batch of one has no variance
        rows = moved(batch, targets.device)
        each = loss(module(inputs.batch(batch)), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        _mean(each, None if weights is None else weights[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if schedule.each_step:
            schedule.step()


def _mean(each: Tensor, weights: Tensor | None) -> Tensor:
    """The mean loss of a batch; weighted, over the sum of the weights, as torch's own."""
    return each.mean() if weights is None else (each * weights).sum() / weights.sum().clamp(min=1e-12)


def _normalises(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _named(split: str, pair: tuple[float, float]) -> dict[str, float]:
    return {f"{split}_loss": pair[0], f"{split}_score": pair[1]}


def _stops(module: nn.Module, state: Progress, loss: float, patience: int) -> bool:
    """Keep the best weights; whether it is time to stop."""
    if loss < state.best_loss:
        state.best, state.best_loss, state.waited = copy.deepcopy(module.state_dict()), loss, 0
        state.best_epoch = state.epochs
    else:
        state.waited += 1
    return state.waited >= patience


def _optimizer(module: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=options.momentum, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=decay, fused=True)


class _Schedule:
    """A torch schedule and when it is to be stepped: after each batch, or after each epoch with its loss."""

    def __init__(self, scheduler: Any, each_step: bool) -> None:
        self._scheduler, self.each_step = scheduler, each_step

    def step(self, *loss: float) -> None:
        self._scheduler.step(*loss)


def _schedule(optimizer: torch.optim.Optimizer, options: TrainingOptions, steps: int, done: int) -> _Schedule:
    """done: epochs before these; cosine, step and one-cycle run over all epochs, the earlier ones included."""
    from torch.optim import lr_scheduler

    if options.schedule == "adaptive":
        patience = max(1, options.patience // 2)
        return _Schedule(lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2, patience=patience), each_step=False)
    total, first = max(1, options.epochs + done) * steps, done * steps
    if options.schedule == "one-cycle":
        scheduler: Any = lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=total + 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # steps of an earlier training
            for _ in range(first):
                scheduler.step()
        return _Schedule(scheduler, each_step=True)
    warmup = options.warmup_epochs * steps

    def factor(step: int) -> float:
        step += first
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if options.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
        return float(options.gamma ** (step // steps // options.step_size)) if options.schedule == "step" else 1.0

    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = options.learning_rate
    return _Schedule(lr_scheduler.LambdaLR(optimizer, factor), each_step=True)


@torch.inference_mode()
def outputs(module: nn.Module, inputs: Inputs, rows: Tensor) -> Tensor:
    """The module's outputs (rows, k) in evaluation mode, float32, on the device. rows: on the host."""
    module.eval()
    pieces = inputs.pieces(rows)
    if not len(rows):
        return torch.zeros((0, 0))
    found = torch.cat([module(inputs.batch(rows[piece])).float() for piece in pieces])
    return torch.empty_like(found).index_copy_(0, moved(torch.cat(list(pieces)), found.device), found)


@torch.inference_mode()
def evaluate(module: nn.Module, inputs: Inputs, targets: Tensor, rows: Tensor, loss: Loss) -> tuple[float, float]:
    """Mean loss and score in evaluation mode: accuracy of codes, share of right labels of indicators.

    rows: on the host. The device is asked for the two numbers once.
    """
    if not len(rows):
        return math.nan, math.nan
    loss_and_score = _loss_and_score(outputs(module, inputs, rows), targets[moved(rows, targets.device)], loss)
    mean, score = loss_and_score.tolist()
    return mean, score


def _loss_and_score(found: Tensor, truth: Tensor, loss: Loss) -> Tensor:
    """Both means, (2,), on the device."""
    right = (found.argmax(1) == truth) if truth.ndim == 1 else ((found > 0) == (truth > 0.5))
    return torch.stack([loss(found, truth).mean(), right.float().mean()])


def chosen_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one. Raises UsageError for a device that torch does not see."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def by_blocks(rows: Rows, row_bytes: int) -> Iterator[Rows]:
    """Row numbers in blocks of about LOOKED_AT_BYTES of numbers."""
    width = max(1, LOOKED_AT_BYTES // max(1, row_bytes))
    return (rows[start : start + width] for start in range(0, len(rows), width))


ACTIVATIONS: Final[Mapping[str, type[nn.Module]]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "identity": nn.Identity
}  # fmt: skip


def dense(widths: Sequence[int], activation: str, *, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Fully connected layers: linear, batch norm, activation, dropout; the last one linear alone.

    widths: of the input, of each hidden layer, of the output.
    """
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must be in [0, 1), got {dropout}.")
    if any(not isinstance(width, int | np.integer) or width < 1 for width in widths):
        raise UsageError(f"Widths of layers must be positive whole numbers, got {list(widths)}.")
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths[:-1]):
        layers.append(nn.Linear(narrow, wide))
        layers += [nn.BatchNorm1d(wide)] if batch_norm else []
        layers.append(ACTIVATIONS[activation]())
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class Standardized(nn.Module):
    """A network that sees each number with zero mean and unit variance, as the training rows have it."""

    def __init__(self, width: int, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def learn(self, read: Callable[[Rows], npt.NDArray[Any]], rows: Rows) -> None:
        """Mean and deviation of ``read(rows)``, (n, dim), by blocks: no second matrix is made.

        A number that is the same in all rows is only centred.
        """
        blocks = list(by_blocks(rows, 8 * len(self.mean)))
        mean = sum(read(block).sum(0, dtype=np.float64) for block in blocks) / len(rows)
        squares = sum(((read(block) - mean) ** 2).sum(0) for block in blocks)
        deviation = np.sqrt(squares / len(rows))
        self.mean.copy_(torch.from_numpy(np.asarray(mean, np.float32)))
        self.scale.copy_(torch.from_numpy((1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) to the network's outputs."""
        return self.network((x - self.mean) * self.scale)  # type: ignore[no-any-return]
