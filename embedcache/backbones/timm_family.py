"""timm image models: by hub name, by a local folder, or by architecture with a weight file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.backbones import checkpoints
from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.checkpoints import Checkpoint
from embedcache.backbones.images import RESAMPLING, ImagePreprocessing, stated
from embedcache.errors import CheckpointError, CheckpointNotFoundError, UsageError, unknown_name
from embedcache.provenance import EncoderIdentity, Modality

if TYPE_CHECKING:
    import torch

    from embedcache.backbones.encoders import ImageEncoder


@dataclass(frozen=True)
class TimmBackbone:
    """A timm model without its classifier.

    architecture, arguments: what ``timm.create_model`` is given. config: timm's own ``pretrained_cfg``.
    """

    name: str
    settings: BackboneSettings
    architecture: str
    arguments: Mapping[str, Any]
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    commit: str | None = None
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
            weights=checkpoints.digest_tensors(checkpoints.read_tensors(self.files)),
            architecture={"name": self.architecture.split(".")[0], "arguments": dict(self.arguments)},
            pooling=self.pooling,
            preprocessing=self.preprocessing.to_dict(),
        )

    @property
    def pooling(self) -> str:
        """``auto`` is what timm itself hands to the classifier."""
        if self.settings.pooling == "pooler":
            raise UsageError(f"{self.name}: timm models have no pooler. Use auto, cls, mean or pre-logits.")
        return "pre-logits" if self.settings.pooling == "auto" else self.settings.pooling

    @property
    def record(self) -> dict[str, Any]:
        """Names that cannot change a number."""
        return {"checkpoint": f"timm:{self.architecture}", "commit": self.commit}

    def load(self, device: str) -> ImageEncoder:
        """Build the model and load every weight, strictly: a missing one is an error, never random numbers."""
        from embedcache.backbones.encoders import ImageEncoder

        model = self._build(checkpoints.read_tensors(self.files))
        return ImageEncoder(model, self.preprocessing, _pool(model, self.pooling, self.name), device)

    def _build(self, tensors: dict[str, torch.Tensor]) -> Any:
        import timm

        overlay = {"state_dict": tensors, "num_classes": 0, "source": "", "label_offset": 0, "custom_load": False}
        arguments = dict(self.arguments)
        if self.settings.image_size and self._takes_size():
            arguments["img_size"] = self.settings.image_size
        for classifier in _names(self.config.get("classifier")):
            for part in ("weight", "bias"):
                tensors.pop(f"{classifier}.{part}", None)
        try:
            model: Any = timm.create_model(
                self.architecture,
                pretrained=True,
                num_classes=0,
                pretrained_cfg=dict(self.config),
                pretrained_cfg_overlay=overlay,
                **arguments,
            )
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{self.name}: the weights in {', '.join(file.name for file in self.files)} are not those of timm's "
                f"{self.architecture} without its classifier. {_shortened(error)}"
            ) from error
        model.pretrained_cfg = None  # it would keep a second copy of the weights
        return model

    def _takes_size(self) -> bool:
        return bool(self.config.get("fixed_input_size"))


def _names(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _shortened(error: BaseException, limit: int = 600) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " …"


def _pool(model: Any, pooling: str, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """From pixels to vectors by timm's own ``forward_features`` and ``forward_head``."""
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def pool(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = model.forward_features(pixels)
        if pooling == "pre-logits":
            vectors: torch.Tensor = model.forward_head(features, pre_logits=True)
            return vectors.float()
        if pooling == "cls":
            if features.ndim != 3 or not prefix:
                raise UsageError(f"{name} has no class token. Use --pooling mean or pre-logits.")
            return features[:, 0].float()
        if features.ndim == 3:
            return features[:, prefix:].float().mean(1)
        return features.float().mean((1, 2) if channels_last else (2, 3))

    return pool


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
    return _from_folder(checkpoints.find(hub_name, settings.revision, name), name, settings)


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

    _refuse_unknown(architecture)
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    known = config.to_dict() if config is not None else {}
    if not file.is_file():
        raise CheckpointNotFoundError(f"There is no weight file {file}.")
    return TimmBackbone(name, settings, architecture, {}, known, (file,))


def _from_folder(found: Checkpoint, name: str, settings: BackboneSettings) -> TimmBackbone:
    """A folder as timm publishes them: ``config.json`` with the architecture, and its weights beside it."""
    path = found.folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"The folder {found.folder} has no config.json, so it names no timm architecture.")
    document = json.loads(path.read_text(encoding="utf-8"))
    config = document.get("pretrained_cfg") or document
    architecture = str(document.get("architecture", config.get("architecture")))
    _refuse_unknown(architecture)
    files = (Path(settings.weights),) if settings.weights else tuple(checkpoints.weight_files(found.folder))
    arguments = {key: value for key, value in document.get("model_args", {}).items() if key != "num_classes"}
    return TimmBackbone(name, settings, architecture, arguments, config, files, found.commit)


def _refuse_unknown(architecture: str) -> None:
    import timm

    bare = architecture.split(".")[0]
    if not timm.is_model(bare):
        raise unknown_name("timm architecture", bare, timm.list_models())
