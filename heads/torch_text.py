"""Networks that learn from word ids, alone or beside cached vectors, as classifiers: ``LSTMHead`` and ``CNNHead``.

Sources: Antol et al. 2015, VQA: Visual Question Answering (last hidden and cell states, product with the image);
Kim 2014, Convolutional Neural Networks for Sentence Classification; Bahdanau et al. 2015, Neural Machine Translation by
Jointly Learning to Align and Translate (additive attention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from embedcache.errors import UsageError, unknown_name
from embedcache.words import PADDING_ID, embedding_matrix, read_vectors
from heads.sequences import SequenceInputs, Sequences, WordBatch
from heads.torch_mlp import TorchHead
from heads.training import ACTIVATIONS, Standardized, dense

Tensor = torch.Tensor


# ------------------------------------------------------------------------------------------------------- modules


class Words(nn.Module):
    """Word ids to vectors; padding is zeros. activation: behind the embedding; dropout: of their numbers."""

    def __init__(self, n_words: int, size: int, activation: str = "identity", dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, size, padding_idx=PADDING_ID)
        self.activation = _activation(activation)
        self.dropout = nn.Dropout(dropout)

    def begin_with(self, vectors: npt.NDArray[np.float32], *, frozen: bool) -> None:
        """Start from these vectors, (n_words, size); frozen, they stay."""
        with torch.no_grad():
            self.embedding.weight.copy_(torch.from_numpy(vectors))
        self.embedding.weight.requires_grad_(not frozen)

    def forward(self, tokens: Tensor) -> Tensor:
        """int32 (n, length) to (n, length, size)."""
        return self.dropout(self.activation(self.embedding(tokens)))  # type: ignore[no-any-return]


class LSTMChannel(nn.Module):
    """A text as the last hidden and the last cell states of all layers and directions, one behind the other.

    Last is the last word's, not the padding's. image: numbers of the vector that ``initial_state`` or ``attention``
    reads. With attention the text is the mean of the outputs at its words instead, weighted by a softmax of
    ``v · tanh(W output [+ U image])``.
    """

    def __init__(
        self,
        size: int,
        hidden: int,
        layers: int,
        *,
        bidirectional: bool,
        initial_state: str,
        attention: str,
        image: int,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, hidden, layers, batch_first=True, bidirectional=bidirectional)
        directions = 1 + bidirectional
        self._states = layers * directions
        self.initial = nn.Linear(image, 2 * self._states * hidden) if initial_state == "image" else None
        self.output_keys = nn.Linear(directions * hidden, hidden) if attention != "none" else None
        self.image_keys = nn.Linear(image, hidden, bias=False) if attention == "image" else None
        self.score = nn.Linear(hidden, 1, bias=False) if attention != "none" else None
        self.width = directions * hidden if attention != "none" else 2 * self._states * hidden

    def forward(self, words: Tensor, batch: WordBatch, image: Tensor) -> Tensor:
        """Vectors of words (n, length, size) and images (n, dim) to (n, width)."""
        outputs, states = self._run(words, batch, image)
        if self.score is None:
            return torch.cat([part.transpose(0, 1).flatten(1) for part in states], 1)
        weights = self._weights(outputs, batch, image)
        return (weights[:, None] @ outputs)[:, 0]

    def weights(self, words: Tensor, batch: WordBatch, image: Tensor) -> Tensor:
        """Attention to each word, (n, length); zero at padding, each row's sum is 1."""
        return self._weights(self._run(words, batch, image)[0], batch, image)

    def _run(self, words: Tensor, batch: WordBatch, image: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs (n, length, directions × hidden) and last states, each (layers × directions, n, hidden)."""
        start = self._start(image)
        length = words.shape[1]
        if int(batch.host_lengths.min()) == length:  # nothing is padded: the faster path
            outputs, states = self.lstm(words, start)
            return outputs, states
        descending = bool((batch.host_lengths[1:] <= batch.host_lengths[:-1]).all())
        packed = pack_padded_sequence(words, batch.host_lengths, batch_first=True, enforce_sorted=descending)
        outputs, states = self.lstm(packed, start)
        if self.score is None:
            return words, states
        return pad_packed_sequence(outputs, batch_first=True, total_length=length)[0], states

    def _start(self, image: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.initial is None:
            return None
        both = self.initial(image).tanh().view(len(image), 2, self._states, -1).permute(1, 2, 0, 3).contiguous()
        return both[0], both[1]

    def _weights(self, outputs: Tensor, batch: WordBatch, image: Tensor) -> Tensor:
        if self.output_keys is None or self.score is None:
            raise UsageError("The head has no attention: fit it with attention 'words' or 'image'.")
        keys = self.output_keys(outputs)
        if self.image_keys is not None:
            keys = keys + self.image_keys(image)[:, None]
        scores = self.score(keys.tanh())[..., 0]
        return scores.masked_fill(~_inside(batch), -torch.inf).softmax(1)  # type: ignore[no-any-return]


class CNNChannel(nn.Module):
    """A text as the largest answer of each filter over its words.

    widths: words that a filter sees; filters: how many of each width. A window lies within the text; a text that is
    shorter than the window is seen once, zeros behind it.
    """

    def __init__(self, size: int, filters: int, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv1d(size, filters, width) for width in widths])
        self.activation = _activation(activation)
        self.width = filters * len(widths)

    def forward(self, words: Tensor, batch: WordBatch, image: Tensor) -> Tensor:
        """Vectors of words (n, length, size) to (n, width)."""
        across = words.transpose(1, 2)
        return self.activation(torch.cat([self._largest(one, across, batch) for one in self.convolutions], 1))  # type: ignore[no-any-return]

    def _largest(self, convolution: Any, across: Tensor, batch: WordBatch) -> Tensor:
        """The largest answer of each filter, (n, filters), before its activation."""
        (width,) = convolution.kernel_size
        answers = convolution(functional.pad(across, (0, max(0, width - across.shape[2]))))
        windows = (batch.lengths - width + 1).clamp(min=1)
        outside = torch.arange(answers.shape[2], device=answers.device) >= windows[:, None]
        return answers.masked_fill(outside[:, None], -torch.inf).amax(2)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Fusion:
    """How a text's vector and the cached vector beside it become one.

    kind: ``concat``, ``product`` (elementwise), or ``none``: the vector beside is read by the text's channel alone.
    size: both are projected to that many numbers first, ``activation`` behind; None takes them as they are, but for the
    product projects the vector beside to the text's width where that is another.
    """

    kind: str
    size: int | None
    activation: str


class TextNetwork(nn.Module):
    """Words, their channel, the vector beside them, dense layers."""

    def __init__(
        self,
        words: Words,
        channel: LSTMChannel | CNNChannel,
        *,
        numbers: int,
        fusion: Fusion,
        widths: Sequence[int],
        activation: str,
        batch_norm: bool,
        dropout: float,
        standardize: bool,
        l2: bool,
    ) -> None:
        super().__init__()
        self.words, self.channel, self._l2 = words, channel, l2
        self._fusion = fusion.kind if numbers else "none"
        self.standardized = Standardized(numbers, nn.Identity()) if numbers and standardize else None
        text, beside = self._projections(channel.width, numbers, fusion)
        self.text = nn.Sequential(text, nn.Dropout(dropout))
        self.beside = beside
        fused = _width(text, channel.width)
        if self._fusion == "concat":
            fused += _width(beside, numbers)
        self.classifier = dense([fused, *widths], activation, batch_norm=batch_norm, dropout=dropout)

    def _projections(self, text: int, numbers: int, fusion: Fusion) -> tuple[nn.Module, nn.Module]:
        if self._fusion == "none":
            return nn.Identity(), nn.Identity()
        if fusion.size is not None:
            return tuple(_projection(width, fusion.size, fusion.activation) for width in (text, numbers))  # type: ignore[return-value]
        if self._fusion == "product" and numbers != text:
            return nn.Identity(), _projection(numbers, text, fusion.activation)
        return nn.Identity(), nn.Identity()

    def forward(self, batch: WordBatch) -> Tensor:
        """Logits, (n, outputs)."""
        image = self.image(batch)
        text = self.text(self.channel(self.words(batch.tokens), batch, image))
        if self._fusion == "concat":
            text = torch.cat([text, self.beside(image)], 1)
        elif self._fusion == "product":
            text = text * self.beside(image)
        return self.classifier(text)  # type: ignore[no-any-return]

    def image(self, batch: WordBatch) -> Tensor:
        """The vectors beside the words, as the network reads them, (n, dim)."""
        numbers = batch.numbers if self.standardized is None else self.standardized(batch.numbers)
        return functional.normalize(numbers) if self._l2 else numbers

    def attention(self, batch: WordBatch) -> Tensor:
        """The channel's weights, (n, length). Raises UsageError where it has none."""
        if not isinstance(self.channel, LSTMChannel):
            raise UsageError("Filters have no attention.")
        return self.channel.weights(self.words(batch.tokens), batch, self.image(batch))


def _projection(narrow: int, wide: int, activation: str) -> nn.Sequential:
    return nn.Sequential(nn.Linear(narrow, wide), _activation(activation))


def _width(module: nn.Module, narrow: int) -> int:
    first = module[0] if isinstance(module, nn.Sequential) else None
    return first.out_features if isinstance(first, nn.Linear) else narrow


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def _inside(batch: WordBatch) -> Tensor:
    """Where there are words and not padding, bool (n, length)."""
    return torch.arange(batch.tokens.shape[1], device=batch.tokens.device) < batch.lengths[:, None]


# ---------------------------------------------------------------------------------------------------- estimators


class TextHead(TorchHead):
    """What the two kinds share: rows are ``Sequences``, or word ids in a matrix (n, length) padded with 0 behind."""

    embedding_size: int
    vectors: str | None
    freeze_embedding: bool
    embedding_dropout: float
    max_length: int | None
    fusion: str
    fusion_size: int | None
    standardize: bool
    l2: bool
    hidden_layer_sizes: Sequence[int]
    activation: str
    batch_norm: bool
    dropout: float

    def attention_weights(self, X: Any) -> npt.NDArray[np.float32]:
        """Weight of each word, (n, words of the longest row); 0 behind a row's end. Raises UsageError without any."""
        check_is_fitted(self)
        x = self._features(X)
        device = next(self.module_.parameters()).device
        inputs = self._inputs(x, device)
        out = np.zeros((len(x), int(inputs.longest)), np.float32)
        with torch.inference_mode():
            for piece in inputs.pieces(torch.arange(len(x))):
                found = self.module_.attention(inputs.batch(piece)).cpu().numpy()
                out[piece.numpy(), : found.shape[1]] = found
        return out

    # --------------------------------------------------------------------------------------------- inside

    def _channel(self, size: int) -> LSTMChannel | CNNChannel:
        """What reads vectors of words with ``size`` numbers."""
        raise NotImplementedError

    def _pair(self, X: Any, y: Any) -> tuple[Any, npt.NDArray[Any]]:
        x = _sequences(X)
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        check_consistent_length(x, y)
        _check_finite(x)
        self.n_features_in_, self.n_words_ = x.dim, x.n_words
        self.vocabulary_, self.fingerprint_ = x.vocabulary, x.fingerprint
        self.embedding_size_ = self.embedding_size if self.vectors is None else self._vectors(0).shape[1]
        self._check_options()
        return x, y

    def _check_options(self) -> None:
        """Raise UsageError for what cannot be."""
        if self.freeze_embedding and self.vectors is None:
            raise UsageError("freeze_embedding keeps the vectors of words as they are: say which ones (vectors).")

    def _features(self, X: Any) -> Sequences:
        """The rows. Raises UsageError for other words, or other vectors, than those of ``fit``."""
        x = _sequences(X)
        if x.dim != self.n_features_in_:
            raise UsageError(f"The head was fitted with {self.n_features_in_} numbers beside the words; got {x.dim}.")
        if x.fingerprint and self.fingerprint_ and x.fingerprint != self.fingerprint_:
            raise UsageError(
                f"The head was fitted on word ids @{self.fingerprint_} and is given @{x.fingerprint}: those are other "
                "words. Extract with the same vocabulary, or fit a head on these."
            )
        if x.n_words > self.n_words_:
            raise UsageError(f"The head knows {self.n_words_:,} words; got ids up to {x.n_words - 1:,}.")
        _check_finite(x)
        return x

    def _inputs(self, x: Sequences, device: torch.device) -> SequenceInputs:
        return SequenceInputs(x, device, self.max_length)

    def _network(self) -> TextNetwork:
        sizes = self.hidden_layer_sizes
        hidden = [sizes] if isinstance(sizes, int | np.integer) else list(sizes)
        size = self.embedding_size_
        words = Words(self.n_words_, size, self._embedding_activation(), self.embedding_dropout)
        return TextNetwork(
            words,
            self._channel(size),
            numbers=self.n_features_in_,
            fusion=Fusion(self.fusion, self.fusion_size, self.activation),
            widths=[*hidden, len(self.classes_)],
            activation=self.activation,
            batch_norm=self.batch_norm,
            dropout=self.dropout,
            standardize=self.standardize,
            l2=self.l2,
        )

    def _embedding_activation(self) -> str:
        return "identity"

    def _built(self, x: Sequences, rows: npt.NDArray[np.int64]) -> TextNetwork:
        network = self._network()
        if self.vectors is not None:
            network.words.begin_with(self._vectors(self._seed), frozen=self.freeze_embedding)
        if network.standardized is not None:
            network.standardized.learn(x.numbers, rows)
        return network

    def _vectors(self, seed: int) -> npt.NDArray[np.float32]:
        """The pretrained vectors of the vocabulary, (n_words, dim); words without one are drawn (Kim 2014)."""
        if not self.vocabulary_:
            raise UsageError("'vectors' needs the words behind the ids: fit on word ids from a cache.")
        path = Path(str(self.vectors)).expanduser()
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        return _looked_up(path, stamp, self.vocabulary_, seed)

    def _learnt(self) -> dict[str, Any]:
        return {
            "n_words": self.n_words_,
            "embedding_size": self.embedding_size_,
            "fingerprint": self.fingerprint_,
            "vocabulary": list(self.vocabulary_),
        }

    def _recall(self, document: Mapping[str, Any]) -> None:
        self.n_words_, self.embedding_size_ = int(document["n_words"]), int(document["embedding_size"])
        self.fingerprint_, self.vocabulary_ = str(document["fingerprint"]), tuple(document["vocabulary"])


class LSTMHead(TextHead):
    """A word embedding and an LSTM: the last hidden and the last cell states, concatenated, then dense layers.

    embedding_size: numbers of a word's vector, learnt; vectors: a file of GloVe or word2vec to begin with instead
    (words that it lacks are drawn by the seed); freeze_embedding: keep those as they are. embedding_activation: tanh or
    identity behind the embedding. embedding_dropout: of the words' numbers. hidden_size, layers, bidirectional: of the
    LSTM. max_length: words that are read of a text; None reads all.

    With cached vectors beside the words: fusion, ``concat`` or ``product`` (``none``: only what follows reads them);
    fusion_size: both are projected to that many numbers; None takes them as they are. initial_state: ``zeros``, or the
    LSTM begins with the ``image`` vector. attention: over the words' outputs in place of the last states, by the
    ``words`` alone or by the ``image`` too. standardize, l2: of those vectors.

    hidden_layer_sizes, activation, batch_norm, dropout: of the dense layers; dropout also of the text's vector. The
    others are those of ``MLPHead``.
    """

    def __init__(
        self,
        embedding_size: int = 300,
        hidden_size: int = 512,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        embedding_activation: str = "identity",
        embedding_dropout: float = 0.0,
        vectors: str | None = None,
        freeze_embedding: bool = False,
        max_length: int | None = None,
        initial_state: str = "zeros",
        attention: str = "none",
        fusion: str = "concat",
        fusion_size: int | None = None,
        standardize: bool = False,
        l2: bool = False,
        hidden_layer_sizes: Sequence[int] = (),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
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
        batch_size: int = 64,
        epochs: int = 20,
        early_stopping: bool = False,
        patience: int = 5,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.layers = layers
        self.bidirectional = bidirectional
        self.embedding_activation = embedding_activation
        self.embedding_dropout = embedding_dropout
        self.vectors = vectors
        self.freeze_embedding = freeze_embedding
        self.max_length = max_length
        self.initial_state = initial_state
        self.attention = attention
        self.fusion = fusion
        self.fusion_size = fusion_size
        self.standardize = standardize
        self.l2 = l2
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.dropout = dropout
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

    def _channel(self, size: int) -> LSTMChannel:
        return LSTMChannel(
            size,
            self.hidden_size,
            self.layers,
            bidirectional=self.bidirectional,
            initial_state=self.initial_state,
            attention=self.attention,
            image=self.n_features_in_,
        )

    def _embedding_activation(self) -> str:
        return self.embedding_activation

    def _check_options(self) -> None:
        super()._check_options()
        reads = "image" in (self.initial_state, self.attention)
        if reads and not self.n_features_in_:
            raise UsageError("initial_state or attention 'image' reads a vector beside the words, and there is none.")
        if self.n_features_in_ and self.fusion == "none" and not reads:
            raise UsageError("With fusion 'none' nothing reads the vectors beside the words: leave them out.")


class CNNHead(TextHead):
    """Filters over word vectors, the largest answer of each over the text, then dense layers.

    filters: how many of each width; filter_widths: words that a filter sees. dropout: of the text's vector and behind
    each dense layer. The other parameters are those of ``LSTMHead``.
    """

    def __init__(
        self,
        embedding_size: int = 300,
        filters: int = 100,
        filter_widths: Sequence[int] = (3, 4, 5),
        *,
        embedding_dropout: float = 0.0,
        vectors: str | None = None,
        freeze_embedding: bool = False,
        max_length: int | None = None,
        fusion: str = "concat",
        fusion_size: int | None = None,
        standardize: bool = False,
        l2: bool = False,
        hidden_layer_sizes: Sequence[int] = (),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.5,
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
        batch_size: int = 64,
        epochs: int = 20,
        early_stopping: bool = False,
        patience: int = 5,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.embedding_size = embedding_size
        self.filters = filters
        self.filter_widths = filter_widths
        self.embedding_dropout = embedding_dropout
        self.vectors = vectors
        self.freeze_embedding = freeze_embedding
        self.max_length = max_length
        self.fusion = fusion
        self.fusion_size = fusion_size
        self.standardize = standardize
        self.l2 = l2
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.dropout = dropout
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

    def _channel(self, size: int) -> CNNChannel:
        return CNNChannel(size, self.filters, _widths(self.filter_widths), self.activation)

    def _check_options(self) -> None:
        super()._check_options()
        if self.n_features_in_ and self.fusion == "none":
            raise UsageError("With fusion 'none' nothing reads the vectors beside the words: leave them out.")


def _widths(widths: Any) -> list[int]:
    return [int(widths)] if isinstance(widths, int | np.integer) else list(widths)


def _sequences(X: Any) -> Sequences:
    return X if isinstance(X, Sequences) else Sequences.from_padded(X)


def _check_finite(x: Sequences) -> None:
    if x.dim and not all(np.isfinite(x.numbers(slice(at, at + 4096))).all() for at in range(0, len(x), 4096)):
        raise ValueError("Vectors beside the words hold NaN or infinity.")


@lru_cache(maxsize=4)
def _looked_up(path: Path, stamp: int, vocabulary: tuple[str, ...], seed: int) -> npt.NDArray[np.float32]:
    """``embedding_matrix`` of a file, read once for the fits of a search. stamp: when it was changed."""
    return embedding_matrix(vocabulary, read_vectors(path), unknown="random", seed=seed).matrix
