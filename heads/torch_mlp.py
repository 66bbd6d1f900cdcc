"""Classifiers in torch that scikit-learn knows: what all share (``TorchHead``), and the perceptron (``MLPHead``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_random_state, validate_data

from embedcache.errors import UsageError
from heads.parameters import check
from heads.rows import RowsOf

if TYPE_CHECKING:
    import torch

    from heads.epochs import OnEpoch
    from heads.training import TrainingOptions

OPTIONS = (
    "optimizer", "learning_rate", "weight_decay", "momentum", "schedule", "warmup_epochs", "step_size", "gamma",
    "batch_size", "epochs", "early_stopping", "patience", "label_smoothing",
)  # fmt: skip

_FLOATS = {"dtype": [np.float32, np.float16], "ensure_all_finite": False}


class TorchHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A network in torch as a scikit-learn classifier: training, probabilities, keeping it.

    A kind of head states its parameters in ``__init__`` and says what its rows are, what reads them, and what network
    they go through. After ``fit``: ``classes_``, ``n_features_in_``, ``history_`` (a mapping per epoch), ``n_iter_``,
    ``module_``.
    """

    class_weight: str | Mapping[Any, float] | None
    early_stopping: bool
    validation_fraction: float
    random_state: Any
    device: str

    def __sklearn_tags__(self) -> Any:
        """A classifier that also takes several labels a row."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation: tuple[Any, Any] | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Self:
        """Train on all rows of ``X``: of a matrix (n, dim), numpy (a map too) or a torch tensor, float16 is not copied.

        y: classes (n,), or indicators (n, labels). validation: ``(X, y)`` for early stopping and the history. on_epoch:
        is told each line of the history.
        """
        from heads.training import Progress, chosen_device

        x, targets = self._checked(X, y)
        weights = _weights(sample_weight, targets)
        device = chosen_device(self.device)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        inputs, rows = self._inputs(x, device), np.arange(len(x))
        held = None
        if validation is not None:
            held = self._held(*validation, device)
        elif self.early_stopping:
            rows, held_rows = self._carved(targets)
            held = inputs, self._targets(targets, device), held_rows
        with _seeded(self._seed, device):
            self.module_ = self._built(x, rows).to(device)
            self._progress = Progress()
            self._train(inputs, targets, rows, weights, held, on_epoch=on_epoch)
        return self

    def continue_fit(
        self,
        X: Any,
        y: Any,
        epochs: int,
        sample_weight: Any = None,
        *,
        validation: tuple[Any, Any] | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Self:
        """Train ``epochs`` epochs more on the same kind of rows: weights, optimiser and history go on.

        Early stopping waits anew: what ended the training before does not end it again.
        """
        from heads.training import chosen_device

        check_is_fitted(self)
        x = self._features(X)
        targets = self._encoded(np.asarray(y))
        weights = _weights(sample_weight, targets)
        device = chosen_device(self.device)
        held = self._held(*validation, device) if validation is not None else None
        self.module_.to(device)
        self._progress.waited = 0
        with _seeded(self._seed + len(self.history_), device):
            self._train(self._inputs(x, device), targets, np.arange(len(x)), weights, held, epochs, on_epoch)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities (n, classes); of several labels, each label's own."""
        import torch

        from heads.training import outputs

        check_is_fitted(self)
        x = self._features(X)
        device = next(self.module_.parameters()).device
        found = outputs(self.module_, self._inputs(x, device), torch.arange(len(x))).double()
        probabilities = found.sigmoid() if self.multilabel_ else found.softmax(1)
        return np.asarray(probabilities.cpu().numpy())

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The most probable class (n,), or indicators (n, labels) of what is more probable than not."""
        probabilities = self.predict_proba(X)
        if self.multilabel_:
            return (probabilities > 0.5).astype(np.int64)
        return np.asarray(self.classes_[probabilities.argmax(1)])

    @property
    def history_(self) -> list[dict[str, float]]:
        """A mapping per epoch."""
        return self._progress.history

    @property
    def n_iter_(self) -> int:
        """Epochs that were trained."""
        return self._progress.epochs

    @property
    def kept_epoch_(self) -> int | None:
        """The epoch whose weights it has: the last one, or with early stopping the best; None where it is not known."""
        return self._progress.best_epoch or None if self.early_stopping else self.n_iter_

    # ------------------------------------------------------------------------------------------ keeping it

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The fitted head as JSON and tensors, without pickle: for safetensors."""
        check_is_fitted(self)
        document = {
            "parameters": {**self.get_params(), "random_state": None, "class_weight": _pairs(self.class_weight)},
            "classes": self.classes_.tolist(),
            "n_features_in": self.n_features_in_,
            "multilabel": self.multilabel_,
            "history": self.history_,
            "seed": self._seed,
            **self._learnt(),
        }
        return document, {name: tensor.detach().cpu() for name, tensor in self.module_.state_dict().items()}

    @classmethod
    def from_state(cls, document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """The head that ``state`` described, on the CPU. Raises ValueError where the two do not agree."""
        from heads.training import Progress

        weights = document["parameters"]["class_weight"]
        weights = dict(map(tuple, weights)) if isinstance(weights, list) else weights
        head = cls(**{**document["parameters"], "class_weight": weights})
        head.classes_ = np.asarray(document["classes"])
        head.n_features_in_, head.multilabel_ = int(document["n_features_in"]), bool(document["multilabel"])
        head._seed, head._progress = int(document["seed"]), Progress(history=list(document["history"]))
        head._recall(document)
        head.module_ = head._network()
        try:
            head.module_.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(f"the weights are not of this head: {error}") from error
        head.module_.eval()
        return head

    # --------------------------------------------------------------------------------- what a kind of head says

    def _pair(self, X: Any, y: Any) -> tuple[Any, npt.NDArray[Any]]:
        """Rows and targets, checked; sets what ``fit`` learns of the rows, ``n_features_in_`` among it."""
        raise NotImplementedError

    def _features(self, X: Any) -> Any:
        """Rows, checked to be of the kind that the head was fitted on."""
        raise NotImplementedError

    def _inputs(self, x: Any, device: torch.device) -> Any:
        """The rows as ``training.Inputs``."""
        raise NotImplementedError

    def _network(self) -> Any:
        """A module with fresh weights."""
        raise NotImplementedError

    def _built(self, x: Any, rows: npt.NDArray[np.int64]) -> Any:
        """The module to train, with what it learns of the rows of ``x`` to train on beforehand."""
        return self._network()

    def _learnt(self) -> dict[str, Any]:
        """What ``_pair`` learnt besides, as JSON."""
        return {}

    def _recall(self, document: Mapping[str, Any]) -> None:
        """Take up what ``_learnt`` gave."""

    # --------------------------------------------------------------------------------------------- inside

    def _options(self, epochs: int | None = None) -> TrainingOptions:
        from heads.training import TrainingOptions

        values = {name: getattr(self, name) for name in OPTIONS}
        stated = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
        return TrainingOptions(**stated if epochs is None else {**stated, "epochs": epochs})

    def _checked(self, X: Any, y: Any) -> tuple[Any, npt.NDArray[Any]]:
        """Features and encoded targets; sets what ``fit`` learns of them."""
        check(self.get_params())
        x, y = self._pair(X, y)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        self.multilabel_ = kind == "multilabel-indicator"
        if self.multilabel_:
            self.classes_ = np.arange(y.shape[1])
        else:
            y = _column(y)
            self.classes_ = np.unique(y)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"This classifier needs at least two classes; y has one class only: {self.classes_[0]!r}."
                )
        return x, self._encoded(y)

    def _encoded(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Codes int64 (n,), or indicators float32 (n, labels)."""
        if self.multilabel_:
            return np.asarray(y, np.float32)
        codes = np.searchsorted(self.classes_, y)
        if (codes >= len(self.classes_)).any() or (self.classes_[codes] != y).any():
            raise UsageError("y holds classes that the head was not fitted on.")
        return codes.astype(np.int64)

    def _held(self, X: Any, y: Any, device: torch.device) -> tuple[Any, Any, npt.NDArray[np.int64]] | None:
        """Validation rows; those of a class that training lacks are left out, and None where none is left."""
        x, y = self._features(X), np.asarray(y)
        known = np.ones(len(x), bool) if self.multilabel_ else np.isin(y, self.classes_)
        if not known.any():
            return None
        targets = self._encoded(y if known.all() else np.where(known, y, self.classes_[0]))
        return self._inputs(x, device), self._targets(targets, device), np.flatnonzero(known)

    def _carved(self, targets: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows to train on and rows to stop by."""
        from sklearn.model_selection import train_test_split

        stratify = None if self.multilabel_ or np.bincount(targets).min() < 2 else targets
        rows = np.arange(len(targets))
        try:
            kept, held = train_test_split(
                rows, test_size=self.validation_fraction, random_state=self._seed, stratify=stratify
            )
        except ValueError:  # fewer held rows than classes
            kept, held = train_test_split(rows, test_size=self.validation_fraction, random_state=self._seed)
        return np.sort(kept), np.sort(held)

    def _targets(self, targets: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(targets)).to(device)

    def _train(
        self,
        inputs: Any,
        targets: npt.NDArray[Any],
        rows: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float32] | None,
        held: Any,
        epochs: int | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        import torch

        from heads.training import binary_cross_entropy, cross_entropy, train

        options = self._options(epochs)
        if self.multilabel_:
            positive = self._positive_weights(targets[rows])
            loss = binary_cross_entropy(
                None if positive is None else torch.from_numpy(positive).to(inputs.device), options.label_smoothing
            )
        else:
            loss = cross_entropy(options.label_smoothing)
            weights = self._row_weights(targets, rows, weights)
        self._progress = train(
            self.module_,
            inputs,
            self._targets(targets, inputs.device),
            rows,
            options,
            loss,
            weights=None if weights is None else torch.from_numpy(weights).to(inputs.device),
            validation=held,
            seed=self._seed,
            progress=self._progress,
            **({} if on_epoch is None else {"on_epoch": on_epoch}),
        )

    def _row_weights(
        self, codes: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], weights: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32] | None:
        """Sample weights times class weights, (n,)."""
        from sklearn.utils.class_weight import compute_class_weight

        if self.class_weight is None:
            return weights
        seen = np.unique(codes[rows])
        by_class = np.ones(len(self.classes_), np.float32)
        if isinstance(self.class_weight, Mapping):
            for label, weight in self.class_weight.items():
                by_class[self.classes_ == label] = weight
        else:
            by_class[seen] = compute_class_weight(self.class_weight, classes=seen, y=codes[rows])
        own = by_class[codes]
        return own if weights is None else own * weights

    def _positive_weights(self, indicators: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """Negatives over positives of each label with ``balanced``; those of a mapping from label to weight."""
        if self.class_weight is None:
            return None
        found = np.ones(indicators.shape[1], np.float32)
        if isinstance(self.class_weight, Mapping):
            for label, weight in self.class_weight.items():
                found[int(label)] = weight
            return found
        positives = indicators.sum(0)
        return np.asarray((len(indicators) - positives) / np.maximum(positives, 1), np.float32)


class MLPHead(TorchHead):
    """A multi-layer perceptron in torch: cross-entropy for one label, binary cross-entropy for several.

    hidden_layer_sizes: widths; ``(1024, 512)`` on 4,608 numbers and 20 classes is the funnel 4608-1024-512-20.
    activation: relu, tanh, gelu or identity. class_weight: ``balanced`` (inverse frequency), a mapping from class to
    weight, or None; for several labels it weighs the positives. validation_fraction: carved from the rows for early
    stopping, stratified, unless ``fit`` is given validation rows. standardize: zero mean and unit variance of each
    number, learnt from the training rows inside ``fit`` and kept in the network, so that no second matrix is made. The
    others are ``TrainingOptions``.
    """

    reads_rows = True
    """``fit`` takes ``RowsOf`` a matrix too, and does not copy them."""

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (1024, 512),
        activation: str = "relu",
        *,
        batch_norm: bool = False,
        dropout: float = 0.0,
        standardize: bool = False,
        class_weight: str | Mapping[Any, float] | None = None,
        label_smoothing: float = 0.0,
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        schedule: str = "constant",
        warmup_epochs: float = 0.0,
        step_size: int = 10,
        gamma: float = 0.1,
        batch_size: int = 400,
        epochs: int = 20,
        early_stopping: bool = False,
        patience: int = 5,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.dropout = dropout
        self.standardize = standardize
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.step_size = step_size
        self.gamma = gamma
        self.batch_size = batch_size
        self.epochs = epochs
        self.early_stopping = early_stopping
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def _pair(self, X: Any, y: Any) -> tuple[Any, npt.NDArray[Any]]:
        if isinstance(X, RowsOf):
            self._assert_finite(X)
            self.n_features_in_ = X.shape[1]
            return X, np.asarray(y)
        x, y = validate_data(self, _array(X), _array(y), multi_output=True, ensure_min_samples=2, **_FLOATS)
        self._assert_finite(x)
        return x, y

    def _features(self, X: Any) -> Any:
        if isinstance(X, RowsOf):
            if X.shape[1] != self.n_features_in_:
                raise ValueError(f"X has {X.shape[1]} features, but {self.n_features_in_} are expected.")
            self._assert_finite(X)
            return X
        x = np.asarray(validate_data(self, _array(X), reset=False, **_FLOATS))
        self._assert_finite(x)
        return x

    def _assert_finite(self, x: Any) -> None:
        """As scikit-learn does, but by blocks: of float16 it makes a mask as long as the matrix."""
        from heads.training import by_blocks

        for block in by_blocks(np.arange(len(x)), x[:1].nbytes):
            rows = x[block[0] : block[-1] + 1]
            assert_all_finite(rows, estimator_name=type(self).__name__, input_name="X")

    def _inputs(self, x: Any, device: torch.device) -> Any:
        from heads.training import Matrix

        return Matrix(x, device)

    def _network(self) -> Any:
        from heads.training import Standardized, dense

        sizes = self.hidden_layer_sizes
        hidden = [sizes] if isinstance(sizes, int | np.integer) else list(sizes)
        widths = [self.n_features_in_, *hidden, len(self.classes_)]
        network = dense(widths, self.activation, batch_norm=self.batch_norm, dropout=self.dropout)
        return Standardized(self.n_features_in_, network) if self.standardize else network

    def _built(self, x: Any, rows: npt.NDArray[np.int64]) -> Any:
        network = self._network()
        if self.standardize:
            network.learn(x.__getitem__, rows)
        return network


def _weights(weights: Any, targets: npt.NDArray[Any]) -> npt.NDArray[np.float32] | None:
    """One weight for each row, (n,), none of them negative; None where none are given."""
    if weights is None:
        return None
    return np.asarray(_check_sample_weight(weights, targets, dtype=np.float32, ensure_non_negative=True))


def _pairs(weights: Any) -> Any:
    """A mapping as pairs: JSON would make texts of codes."""
    return [list(pair) for pair in weights.items()] if isinstance(weights, Mapping) else weights


def _array(values: Any) -> Any:
    """Tensors as numpy; anything else as it is, for scikit-learn to look at."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _column(y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n, 1) as (n,), with scikit-learn's own warning."""
    from sklearn.utils.validation import column_or_1d

    return np.asarray(column_or_1d(y, warn=True))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global dice set for the block, and as they were after it."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
