"""The seams between extraction and the families of backbones.

A ``Backbone`` is a checkpoint found on disk: it knows its identity and has loaded nothing. ``load`` gives
an ``Encoder``: frozen, in ``eval()``, on a device, items in, vectors out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy.typing as npt

from embedcache.errors import ItemError, UsageError
from embedcache.provenance import EncoderIdentity, FloatType, Modality

if TYPE_CHECKING:
    import torch

POOLINGS = ("auto", "cls", "mean", "cls+mean", "max", "last", "pooler", "pre-logits")
LAST_LAYER = "last"


@dataclass(frozen=True)
class BackboneSettings:
    """What a user may state about an encoder. Defaults are the checkpoint's own.

    weights: a weight file in place of the checkpoint's. revision: branch, tag or commit on the hub.
    layer: ``last``, the number of a layer (``-2``: the one before the last), or several whose vectors are
    concatenated (``-4,-3,-2,-1``); see ``layer_numbers``. pooling: one of POOLINGS. image_size: pixels, of a square
    input. value_range: (low, high) of the numbers in an image that is not 8-bit; channels: which of them become red,
    green and blue (one: all three).
    lowercase: lower-case texts first. prompt: put before every text ("" for none at all). max_length: tokens.
    min_count, max_words: of a vocabulary of word ids: how often a word must occur, how many have an id at most.
    """

    weights: str | None = None
    revision: str | None = None
    layer: str = LAST_LAYER
    pooling: str = "auto"
    image_size: int | None = None
    value_range: tuple[float, float] | None = None
    channels: tuple[int, ...] | None = None
    lowercase: bool = False
    prompt: str | None = None
    max_length: int | None = None
    min_count: int = 1
    max_words: int | None = None

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UsageError(f"Unknown pooling {self.pooling!r}. Known: {', '.join(POOLINGS)}.")
        object.__setattr__(self, "layer", canonical_layer(self.layer))
        for name in ("image_size", "max_length", "min_count", "max_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be positive, got {value}.")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise UsageError(f"value_range must be (low, high) with low < high, got {self.value_range}.")
        if self.channels is not None and (len(self.channels) not in (1, 3) or min(self.channels) < 0):
            raise UsageError(f"channels must name one or three channels, counted from 0, got {self.channels}.")

    def stated(self) -> dict[str, Any]:
        """The settings that are not defaults, as JSON."""
        defaults = {item.name: item.default for item in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def canonical_layer(layer: str | int | Sequence[int]) -> str:
    """The one way to write a choice of layers: ``-1`` alone is ``last``, a list is joined by commas.

    Raises UsageError for anything but whole numbers, and for a layer that is named twice.
    """
    text = layer if isinstance(layer, str) else ",".join(map(str, [layer] if isinstance(layer, int) else layer))
    if text == LAST_LAYER:
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        known = "'last', a number such as -2, or several such as -4,-3,-2,-1"
        raise UsageError(f"layer is {known}; got {text!r}.") from error
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"layer names one layer twice: {text!r}.")
    return LAST_LAYER if numbers == [-1] else ",".join(map(str, numbers))


def layer_numbers(layer: str) -> tuple[int, ...]:
    """The layers of a canonical choice: -1 is the last, 1 the first, 0 what goes into it (embeddings)."""
    return (-1,) if layer == LAST_LAYER else tuple(int(part) for part in layer.split(","))


@dataclass(frozen=True, slots=True)
class Prepared:
    """One item, ready to be put into a batch.

    array: uint8 or float32 (channels, height, width) for an image, int64 (tokens,) for a text.
    """

    array: npt.NDArray[Any]
    truncated: bool = False

    @property
    def length(self) -> int:
        """Tokens of a text; 1 for an image, as all images of a backbone are of one size."""
        return len(self.array) if self.array.ndim == 1 else 1


class Encoder(Protocol):
    """A frozen encoder on its device.

    notes: what is worth saying of its loading, such as the weights of a file that were left out.
    """

    device: torch.device
    notes: tuple[str, ...]

    def prepare(self, payloads: Sequence[bytes]) -> list[Prepared | ItemError]:
        """Items' bytes to arrays, on worker threads. A bad item gives its ItemError and stops no other."""

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Vectors (n, dim) on the device, without gradients; the caller copies them back."""

    def cast(self, dtype: FloatType) -> None:
        """Compute in ``dtype`` from now on."""


class Backbone(Protocol):
    """A checkpoint on this machine: identified, not loaded.

    name: as users name it (``vit-large``, ``timm:resnet50``). record: names and versions worth keeping
    that cannot change a number (hub name, commit).
    """

    @property
    def name(self) -> str: ...

    @property
    def modality(self) -> Modality: ...

    @property
    def settings(self) -> BackboneSettings: ...

    @property
    def identity(self) -> EncoderIdentity: ...

    @property
    def record(self) -> Mapping[str, Any]: ...

    def load(self, device: str) -> Encoder:
        """Read the weights in float32 onto ``device``, frozen and in ``eval()``."""


SHIPPED = Path(__file__).parent.parent / "demo" / "backbones"
"""Where the checkpoints lie that come with the package."""


@dataclass(frozen=True)
class Alias:
    """One line of the table of backbones.

    checkpoint: whole name on the Hugging Face hub. modality: ``both`` of a model with a tower for each. dim: numbers
    in a vector, parameters: millions that are loaded (of both towers), without poolers and classifiers that are not
    used; both are for the reader: what counts comes from a forward pass. input: pixels, or tokens at most, as the
    checkpoint's own settings have it. settings: what the alias means beside the checkpoint; the user's win. prompts:
    those that the checkpoint's card names, by their purpose. gated: its terms must be accepted on the hub first.
    """

    family: str
    checkpoint: str
    modality: Modality | Literal["both"]
    dim: int
    parameters: float
    licence: str
    input: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    used_by: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False

    @property
    def ships(self) -> bool:
        """Whether its files come with the package."""
        return self.checkpoint.startswith(str(SHIPPED))
