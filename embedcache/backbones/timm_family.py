"""timm image models: by hub name, by a local folder, or by architecture with a weight file."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.backbones import checkpoints, statedicts
from embedcache.backbones.base import LAST_LAYER, BackboneSettings, layer_numbers
from embedcache.backbones.checkpoints import Checkpoint
from embedcache.backbones.images import RESAMPLING, ImagePreprocessing, stated
from embedcache.backbones.poolings import OF_IMAGES, concatenated, place_of, pool_patches
from embedcache.backbones.statedicts import Fitted, Shapes
from embedcache.errors import CheckpointError, CheckpointNotFoundError, UnknownNameError, UsageError, unknown_name
from embedcache.provenance import EncoderIdentity, Modality

if TYPE_CHECKING:
    import torch

    from embedcache.backbones.encoders import ImageEncoder


@dataclass(frozen=True)
class TimmBackbone:
    """A timm model without its classifier.

    architecture, arguments: what ``timm.create_model`` is given. config: timm's own ``pretrained_cfg``. local: whether
    the weights are the user's own and not the hub's.
    """

    name: str
    settings: BackboneSettings
    architecture: str
    arguments: Mapping[str, Any]
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    commit: str | None = None
    local: bool = False
    modality: Modality = "image"

    @cached_property
    def preprocessing(self) -> ImagePreprocessing:
        """The checkpoint's own evaluation transform, with what the settings change."""
        return stated(preprocessing_of(self.config), self.settings)

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Reads and digests the weights; builds no model."""
        return EncoderIdentity(
            modality="image",
            family="timm",
            weights=checkpoints.digest_of_files(self.files, lambda: checkpoints.read_tensors(self.files)),
            architecture={"name": self.architecture.split(".")[0], "arguments": dict(self.arguments)},
            pooling=self.pooling,
            preprocessing=self.preprocessing.to_dict(),
            layer=self.settings.layer,
        )

    @property
    def pooling(self) -> str:
        """``auto`` is what timm itself hands to the classifier; of other layers than the last, the mean of patches."""
        pooling, last = self.settings.pooling, self.settings.layer == LAST_LAYER
        if pooling == "auto":
            return "pre-logits" if last else "mean"
        if pooling == "pre-logits" and not last:
            raise UsageError(
                f"{self.name}: {pooling!r} is made of the last layer, and --layer {self.settings.layer} names others. "
                f"State what to pool of them with --pooling {', '.join(OF_IMAGES)}."
            )
        if pooling not in (*OF_IMAGES, "pre-logits"):
            raise UsageError(
                f"{self.name}: timm models have no {pooling}. Use auto, {', '.join(OF_IMAGES)} or pre-logits."
            )
        return pooling

    @property
    def record(self) -> dict[str, Any]:
        """Names that cannot change a number."""
        return {"checkpoint": f"timm:{self.architecture}", "commit": self.commit}

    def load(self, device: str) -> ImageEncoder:
        """Build the model and load every weight, strictly: a missing one is an error, never random numbers."""
        from embedcache.backbones.encoders import ImageEncoder

        tensors = checkpoints.read_tensors(self.files)
        fitted = self._fitted(tensors)
        try:
            model = self._build(fitted.tensors)
        except (RuntimeError, KeyError) as error:
            raise self._misfit(tensors, fitted) from error
        notes = statedicts.note_of(self.name, fitted) if self.local else ()
        vectors = _vectors(model, self.pooling, self.settings.layer, self.name)
        return ImageEncoder(model, self.preprocessing, vectors, device, notes)

    def _fitted(self, tensors: dict[str, torch.Tensor]) -> Fitted:
        """The weights under the architecture's names, without a classifier."""
        expected = _shapes_of(self.architecture, self._own_arguments())
        found = statedicts.fit(tensors, expected)
        named = [f"{one}.{part}" for one in _names(self.config.get("classifier")) for part in ("weight", "bias")]
        classifier = [name for name in named if name in found.tensors and name not in expected]
        kept = {name: tensor for name, tensor in found.tensors.items() if name not in classifier}
        return Fitted(kept, found.prefix, (*found.left_out, *(found.prefix + name for name in classifier)))

    def _own_arguments(self) -> dict[str, Any]:
        arguments = dict(self.arguments)
        if self.settings.image_size and self._takes_size():
            arguments["img_size"] = self.settings.image_size
        return arguments

    def _build(self, tensors: dict[str, torch.Tensor]) -> Any:
        """The model, its weights loaded strictly. Raises RuntimeError or KeyError where they do not fit."""
        import timm

        overlay = {"state_dict": tensors, "num_classes": 0, "source": "", "label_offset": 0, "custom_load": False}
        model: Any = timm.create_model(
            self.architecture,
            pretrained=True,
            num_classes=0,
            pretrained_cfg=dict(self.config),
            pretrained_cfg_overlay=overlay,
            **self._own_arguments(),
        )
        model.pretrained_cfg = None  # it would keep a second copy of the weights
        return model

    def _misfit(self, tensors: Mapping[str, torch.Tensor], fitted: Fitted) -> CheckpointError:
        wrong = statedicts.misfits(fitted.tensors, _shapes_of(self.architecture, self._own_arguments()))
        names = ", ".join(file.name for file in self.files)
        return CheckpointError(
            f"{self.name}: the weights in {names} are not those of timm's {self.architecture} without its classifier: "
            f"{'; '.join(wrong)}. {_described(tensors, self.files[0], self.architecture)}"
        )

    def _takes_size(self) -> bool:
        return bool(self.config.get("fixed_input_size"))


def _names(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _shapes_of(architecture: str, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an architecture's weights without a classifier; no memory is taken for them."""
    import timm
    import torch

    with torch.device("meta"):
        return statedicts.shapes(timm.create_model(architecture, num_classes=0, **arguments).state_dict())


COMMON = (
    "resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "mobilenetv2_100", "mobilenetv3_large_100",
    "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip
_NEAR = 6


def _described(tensors: Mapping[str, torch.Tensor], file: Path, architecture: str) -> str:
    """What the file is; the architectures, of common ones and those of a like name, whose weights it holds."""
    described = statedicts.describe(tensors)
    if statedicts.looks_like(statedicts.shapes(tensors)):
        return described
    fitting = [name for name in _like(file.stem, architecture) if _fits(tensors, name)]
    found = f"It holds the weights of {', '.join(f'timm:{name}' for name in fitting)}." if fitting else ""
    return f"{described} {found}".strip()


def _like(*names: str) -> list[str]:
    import timm

    known = timm.list_models()
    near = [one for name in names for one in difflib.get_close_matches(name, known, n=_NEAR, cutoff=0.6)]
    return list(dict.fromkeys([*near, *COMMON]))


@cache
def _plain_shapes(architecture: str) -> Shapes:
    return _shapes_of(architecture, {})


def _fits(tensors: Mapping[str, torch.Tensor], architecture: str) -> bool:
    expected = _plain_shapes(architecture)
    return not statedicts.misfits(statedicts.fit(tensors, expected).tensors, expected)


def _vectors(model: Any, pooling: str, layer: str, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """From pixels to vectors by timm's own ``forward_features`` and ``forward_head``, or ``forward_intermediates``."""
    if layer != LAST_LAYER:
        return _layers(model, pooling, layer, name)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    has_class = getattr(model, "cls_token", None) is not None
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def vectors(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = model.forward_features(pixels)
        if pooling == "pre-logits":
            penultimate: torch.Tensor = model.forward_head(features, pre_logits=True)
            return penultimate.float()
        if features.ndim == 4:
            return pool_patches(features, None, pooling, name, channels_last=channels_last)
        return pool_patches(features[:, prefix:], features[:, 0] if has_class else None, pooling, name)

    return vectors


def _layers(model: Any, pooling: str, layer: str, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same of several layers of a vision transformer. Layers are counted from 1, as transformers does.

    The last one comes with the final normalisation, as ``forward_features`` gives it; others as they leave their block.
    """
    if "return_prefix_tokens" not in inspect.signature(getattr(model, "forward_intermediates", len)).parameters:
        raise UsageError(
            f"{name} is no vision transformer, and --layer is for those: what it gives without --layer is its "
            "penultimate layer, the vector that its classifier would get."
        )
    n, prefix = len(model.feature_info), int(getattr(model, "num_prefix_tokens", 0))
    has_class = getattr(model, "cls_token", None) is not None
    places = [place_of(number, n, name, first=1) for number in layer_numbers(layer)]
    inner = sorted(set(places) - {n - 1})

    def vectors(pixels: torch.Tensor) -> torch.Tensor:
        final, found = model.forward_intermediates(
            pixels, indices=inner or [0], return_prefix_tokens=True, norm=False, output_fmt="NLC"
        )
        if not prefix:
            found = [(patches, None) for patches in found]
        states = dict(zip(inner, found, strict=False))
        states[n - 1] = (final[:, prefix:], final[:, :prefix])
        return concatenated(
            [
                pool_patches(states[place][0], states[place][1][:, 0] if has_class else None, pooling, name)
                for place in places
            ]
        )

    return vectors


def preprocessing_of(config: Mapping[str, Any]) -> ImagePreprocessing:
    """Timm's evaluation transform for a ``pretrained_cfg``, as one of ours.

    Source: ``timm.data.create_transform`` (resize to floor(size / crop_pct), centre crop, ImageNet's or the
    checkpoint's mean and standard deviation).
    """
    from timm.data import resolve_data_config

    data = resolve_data_config({}, pretrained_cfg=dict(config))
    channels, height, width = data["input_size"]
    scaled = tuple(math.floor(side / data["crop_pct"]) for side in (height, width))
    squash = data["crop_mode"] == "squash"
    if channels != 3 or data["interpolation"] not in RESAMPLING or data["crop_mode"] not in ("center", "squash"):
        raise CheckpointError(f"timm's preprocessing is not one that is known here: {data}.")
    if not squash and height != width:
        raise CheckpointError(f"A centre crop of {height} × {width} is not square; that is not known here.")
    return ImagePreprocessing(
        interpolation=data["interpolation"],
        shortest_edge=None if squash else scaled[0],
        size=(scaled[0], scaled[1]) if squash else None,
        crop=(height, width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def resolve(name: str, checkpoint: str, settings: BackboneSettings) -> TimmBackbone:
    """A timm backbone by hub name (``timm/resnet50.tv_in1k`` or without ``timm/``), folder, or architecture.

    A bare architecture takes its weights from ``settings.weights``; without them its default checkpoint on
    the hub is meant, under its full name.
    """
    if checkpoints.is_local(checkpoint):
        return _from_folder(checkpoints.find(checkpoint, None, name), name, settings)
    architecture = checkpoint.removeprefix("timm/")
    if settings.weights is not None:
        return _from_file(Path(settings.weights).expanduser(), architecture, name, settings)
    hub_name = f"timm/{full_name(architecture)}"
    return _from_folder(checkpoints.find(hub_name, settings.revision, name), name, settings, local=False)


def full_name(architecture: str) -> str:
    """With the training recipe: timm's bare names mean a default that a new release may change."""
    import timm

    _refuse_unknown(architecture)
    if "." in architecture:
        return architecture
    bare = architecture
    config = timm.get_pretrained_cfg(bare, allow_unregistered=False)
    if config is None or not config.tag:
        raise UsageError(f"timm has no weights for {bare!r}: state them with --weights FILE.")
    return f"{bare}.{config.tag}"


def _from_file(file: Path, architecture: str, name: str, settings: BackboneSettings) -> TimmBackbone:
    import timm

    if not file.is_file():
        raise CheckpointNotFoundError(f"There is no weight file {file}.")
    try:
        _refuse_unknown(architecture)
    except UnknownNameError as error:
        described = _described(checkpoints.read_tensors([file]), file, architecture)
        raise UnknownNameError(f"{error} Of {file.name}: {described}") from error
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    known = config.to_dict() if config is not None else {}
    return TimmBackbone(name, settings, architecture, {}, known, (file,), local=True)


def _from_folder(found: Checkpoint, name: str, settings: BackboneSettings, *, local: bool = True) -> TimmBackbone:
    """A folder as timm publishes them: ``config.json`` with the architecture, and its weights beside it."""
    path = found.folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"The folder {found.folder} has no config.json, so it names no timm architecture.")
    document = json.loads(path.read_text(encoding="utf-8"))
    config = document.get("pretrained_cfg") or document
    architecture = str(document.get("architecture", config.get("architecture", "")))
    if not architecture:
        raise CheckpointError(f"{found.folder} is no timm checkpoint: {_of_others(found.folder, document)}.")
    _refuse_unknown(architecture)
    files = (
        (Path(settings.weights).expanduser(),) if settings.weights else tuple(checkpoints.weight_files(found.folder))
    )
    arguments = {key: value for key, value in document.get("model_args", {}).items() if key != "num_classes"}
    local = local or settings.weights is not None
    return TimmBackbone(name, settings, architecture, arguments, config, files, found.commit, local)


def _of_others(folder: Path, document: Mapping[str, Any]) -> str:
    """What a folder is whose ``config.json`` names no timm architecture, and how it is read."""
    if "model_type" in document:
        return f"its config.json is that of a transformers {document['model_type']!r}. As such it is hf:{folder}"
    return "its config.json names no 'architecture'"


def _refuse_unknown(architecture: str) -> None:
    import timm

    bare = architecture.split(".")[0]
    if not timm.is_model(bare):
        raise unknown_name("timm architecture", bare, timm.list_models())
