"""transformers models, image and text, by hub name or local folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcache.backbones import checkpoints
from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.images import RESAMPLING, ImagePreprocessing, stated
from embedcache.errors import CheckpointError, UsageError
from embedcache.provenance import EncoderIdentity, Modality

if TYPE_CHECKING:
    import torch

    from embedcache.backbones.encoders import ImageEncoder, TextEncoder

AUTO_POOLING = {
    "vit": "cls", "deit": "cls", "dinov2": "cls", "beit": "mean", "swin": "mean", "swinv2": "mean",
    "bert": "mean", "roberta": "mean", "albert": "mean",
    "mobilenet_v2": "pre-logits", "resnet": "pre-logits", "convnext": "pre-logits", "convnextv2": "pre-logits",
    "efficientnet": "pre-logits", "regnet": "pre-logits",
}  # fmt: skip
"""What ``auto`` means for a ``model_type``. Text models that are not listed: mean; image models: must be stated."""

NEUTRAL_CONFIG = frozenset({
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "id2label", "label2id", "num_labels", "problem_type", "output_attentions", "output_hidden_states", "return_dict",
    "classifier_dropout", "classifier_dropout_prob", "finetuning_task", "_commit_hash", "gradient_checkpointing",
    "attn_implementation", "_attn_implementation", "auto_map",
})  # fmt: skip
"""Keys of a ``config.json`` that cannot change a hidden state in evaluation; all others are in the key."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True)
class HfBackbone:
    """A transformers model as an encoder: its last hidden states, pooled."""

    name: str
    settings: BackboneSettings
    folder: Path
    checkpoint: str
    commit: str | None
    config: Mapping[str, Any]
    modality: Modality

    @property
    def pooling(self) -> str:
        """The settings' pooling, with ``auto`` resolved for this architecture."""
        if self.settings.pooling != "auto":
            return self.settings.pooling
        model_type = str(self.config.get("model_type"))
        if model_type in AUTO_POOLING:
            return AUTO_POOLING[model_type]
        if self.modality == "text":
            return "mean"
        raise UsageError(
            f"{self.name}: what to pool of a {model_type!r} is not known. State it with --pooling cls, mean or pooler."
        )

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The weight files, or the one that the settings name in their place."""
        if self.settings.weights is not None:
            return (Path(self.settings.weights).expanduser(),)
        return tuple(checkpoints.weight_files(self.folder))

    @cached_property
    def image_preprocessing(self) -> ImagePreprocessing:
        """The checkpoint's own image processor, as one of ours."""
        return stated(preprocessing_of(self.folder, self.name), self.settings)

    @cached_property
    def max_length(self) -> int:
        """Tokens: the settings', or as many as tokenizer and position embeddings allow."""
        limit = position_limit(self.folder, self.config)
        asked = self.settings.max_length
        if asked is not None and asked > limit:
            raise UsageError(f"{self.name} reads {limit} tokens at most; --max-length asks for {asked}.")
        return asked or limit

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Reads configuration files and digests the weights; builds no model."""
        return EncoderIdentity(
            modality=self.modality,
            family="hf",
            weights=checkpoints.digest_tensors(checkpoints.read_tensors(self.files)),
            architecture={key: value for key, value in self.config.items() if key not in NEUTRAL_CONFIG},
            pooling=self.pooling,
            preprocessing=self._preprocessing(),
        )

    def _preprocessing(self) -> dict[str, Any]:
        if self.modality == "image":
            return self.image_preprocessing.to_dict()
        return {
            "tokenizer": tokenizer_digests(self.folder),
            "lowercase": self.settings.lowercase,
            "prompt": self.settings.prompt or "",
            "max_length": self.max_length,
        }

    @property
    def record(self) -> dict[str, Any]:
        """Names that cannot change a number."""
        return {"checkpoint": f"hf:{self.checkpoint}", "commit": self.commit}

    def load(self, device: str) -> ImageEncoder | TextEncoder:
        """The model without a pooler (unless that is the pooling), every weight from the checkpoint."""
        from embedcache.backbones.encoders import ImageEncoder, TextEncoder

        model = self._build()
        if self.modality == "image":
            return ImageEncoder(model, self.image_preprocessing, self._image_vectors(model), device)
        return TextEncoder(
            model,
            load_tokenizer(self.folder),
            self._text_vectors(model),
            device,
            max_length=self.max_length,
            lowercase=self.settings.lowercase,
            prompt=self.settings.prompt or "",
        )

    def _build(self) -> Any:
        import torch

        config, kind = self._architecture()
        options = self._pooler_option(kind)
        if self.settings.weights is not None:
            options["state_dict"] = checkpoints.read_tensors(self.files)
        try:
            with quiet_progress():
                model, report = kind.from_pretrained(
                    None if "state_dict" in options else self.folder,
                    config=config,
                    dtype=torch.float32,
                    local_files_only=True,
                    output_loading_info=True,
                    **options,
                )
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.name}: transformers cannot load it: {error}") from error
        self._refuse_missing(report)
        return model

    def _architecture(self) -> tuple[Any, Any]:
        """The configuration as transformers reads it, and the class of the model without a head."""
        from transformers import AutoConfig, AutoModel

        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
            kind = AutoModel._model_mapping[type(config)]
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.name}: transformers knows no model for its config.json: {error}") from error
        return config, kind[0] if isinstance(kind, tuple | list) else kind

    def _pooler_option(self, kind: Any) -> dict[str, Any]:
        """``add_pooling_layer``, where the architecture has the choice: built only where it is asked for."""
        if "add_pooling_layer" not in inspect.signature(kind.__init__).parameters:
            return {}
        return {"add_pooling_layer": self.pooling == "pooler"}

    def _refuse_missing(self, report: Mapping[str, Any]) -> None:
        """Weights that the checkpoint lacks would be random numbers."""
        missing = sorted(str(key) for key in report.get("missing_keys", ()))
        mismatched = sorted(str(key) for key in report.get("mismatched_keys", ()))
        if missing or mismatched:
            listed = ", ".join([*missing, *mismatched][:6])
            raise CheckpointError(
                f"{self.name}: {len(missing)} weights are missing from the checkpoint and {len(mismatched)} have "
                f"another shape ({listed} …); they would be random numbers. Use a checkpoint of this architecture"
                f"{', or another --pooling' if self.pooling == 'pooler' else ''}."
            )

    def _image_vectors(self, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        pooling = self.pooling
        options = {}
        if self.settings.image_size and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            options["interpolate_pos_encoding"] = True
        prefix = _prefix_tokens(model)

        def vectors(pixels: torch.Tensor) -> torch.Tensor:
            output = model(pixel_values=pixels, **options)
            hidden: torch.Tensor = output.last_hidden_state
            if pooling == "pooler" or (pooling == "pre-logits" and output.get("pooler_output") is not None):
                return _pooler_output(output, self.name).flatten(1).float()
            if pooling == "cls" and (hidden.ndim == 4 or not prefix):
                raise UsageError(f"{self.name} has no class token. Use --pooling mean or pre-logits.")
            if hidden.ndim == 4:
                return hidden.float().mean((2, 3))
            return hidden[:, 0].float() if pooling == "cls" else hidden[:, prefix:].float().mean(1)

        return vectors

    def _text_vectors(self, model: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        from embedcache.backbones.encoders import mean_over_mask

        pooling = self.pooling
        if pooling == "pre-logits":
            raise UsageError(f"{self.name}: text models have no pre-logits. Use auto, mean, cls or pooler.")

        def vectors(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            output = model(input_ids=ids, attention_mask=mask)
            if pooling == "pooler":
                return _pooler_output(output, self.name).float()
            hidden = output.last_hidden_state
            return hidden[:, 0].float() if pooling == "cls" else mean_over_mask(hidden, mask)

        return vectors


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Hold back transformers' progress bar and its report of weights, which would break ours; then as it was.

    What the report says of missing weights is asked for and refused; unused ones (a pooler, a head) are no news.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _pooler_output(output: Any, name: str) -> torch.Tensor:
    pooled = output.get("pooler_output")
    if pooled is None:
        raise UsageError(f"{name} has no pooler. Use --pooling auto, mean or cls.")
    result: torch.Tensor = pooled
    return result


def _prefix_tokens(model: Any) -> int:
    """Tokens before the patches: a class token, and registers where there are some."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    registers = int(getattr(model.config, "num_register_tokens", 0) or 0)
    return int("cls_token" in names) + registers


def load_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer. Raises CheckpointError where it has none that transformers can read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"The tokenizer in {folder} cannot be loaded: {error}") from error


def tokenizer_digests(folder: Path) -> dict[str, str]:
    """Digest of each tokenizer file of a folder."""
    return {name: checkpoints.digest_file(folder / name) for name in TOKENIZER_FILES if (folder / name).exists()}


def position_limit(folder: Path, config: Mapping[str, Any]) -> int:
    """Tokens that tokenizer and position embeddings allow; RoBERTa's positions begin after its padding id."""
    limits = [512]
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.exists():
        stated_limit = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("model_max_length")
        if isinstance(stated_limit, int | float) and stated_limit < 10**6:
            limits = [int(stated_limit)]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        offset = config.get("pad_token_id") or 0
        shifted = config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet")
        limits.append(positions - offset - 1 if shifted else positions)
    return min(limits)


def preprocessing_of(folder: Path, name: str) -> ImagePreprocessing:
    """A folder's image processor as one of ours, checked against the processor itself on a test image.

    Raises CheckpointError where it does something that ours does not (padding, tiling, cropping by ratio).
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: its image processor cannot be loaded: {error}") from error
    preprocessing = _translated(processor)
    if not _agrees(processor, preprocessing):
        raise CheckpointError(
            f"{name}: its {type(processor).__name__} does more than resize, crop and normalise; that is not known "
            "here. The same network under timm: may be."
        )
    return preprocessing


def _translated(processor: Any) -> ImagePreprocessing:
    size = dict(processor.size or {}) if processor.do_resize else {}
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    names = {int(value): key for key, value in RESAMPLING.items()}
    mean = processor.image_mean if processor.do_normalize else (0.0,) * 3
    std = processor.image_std if processor.do_normalize else (1.0,) * 3
    return ImagePreprocessing(
        interpolation=names[int(processor.resample)],
        shortest_edge=size.get("shortest_edge"),
        size=_height_width(size),
        crop=_height_width(crop),
        mean=tuple(float(value) for value in np.broadcast_to(mean, 3)),
        std=tuple(float(value) for value in np.broadcast_to(std, 3)),
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        crop_rounding="down",
        exif=True,
    )


def _height_width(size: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = size.get("height"), size.get("width")
    return (int(height), int(width)) if height and width else None


def _agrees(processor: Any, preprocessing: ImagePreprocessing) -> bool:
    """Whether both make the same pixels of a smooth test image, within a grey level or two."""
    import io

    from PIL import Image

    rows, columns = np.mgrid[0:301, 0:397]
    planes = [rows * 255 / 300, columns * 255 / 396, (rows + columns) * 255 / 696]
    image = Image.fromarray(np.stack(planes, -1).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    ours = preprocessing(buffer.getvalue()).array.astype(np.float32) * preprocessing.scale
    ours = (ours - np.reshape(preprocessing.mean, (3, 1, 1))) / np.reshape(preprocessing.std, (3, 1, 1))
    tolerance = 3 * 255 * preprocessing.scale / 255 / min(preprocessing.std)
    return theirs.shape == ours.shape and float(np.abs(theirs - ours).max()) <= tolerance


def resolve(name: str, checkpoint: str, settings: BackboneSettings) -> HfBackbone:
    """A transformers backbone by hub name or local folder."""
    found = checkpoints.find(checkpoint, settings.revision, name)
    path = found.folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"The folder {found.folder} has no config.json: it is no transformers checkpoint.")
    config = json.loads(path.read_text(encoding="utf-8"))
    return HfBackbone(name, settings, found.folder, found.name, found.commit, config, _modality(found.folder, name))


def _modality(folder: Path, name: str) -> Modality:
    image = (folder / "preprocessor_config.json").exists()
    text = any((folder / file).exists() for file in TOKENIZER_FILES)
    if image and text:
        raise CheckpointError(f"{name} has two towers, an image and a text one; that is not supported yet.")
    if not image and not text:
        raise CheckpointError(f"{name}: {folder} has neither preprocessor_config.json nor a tokenizer.")
    return "image" if image else "text"
