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

from embedcache.backbones import checkpoints, statedicts
from embedcache.backbones.base import LAST_LAYER, BackboneSettings, layer_numbers
from embedcache.backbones.checkpoints import Checkpoint
from embedcache.backbones.hf_images import preprocessing_of
from embedcache.backbones.images import ImagePreprocessing, stated
from embedcache.backbones.poolings import OF_IMAGES, OF_TEXTS, concatenated, place_of, pool_patches, pool_text
from embedcache.backbones.statedicts import Fitted
from embedcache.backbones.towers import TOWERS, Tower
from embedcache.errors import CheckpointError, CheckpointNotFoundError, UsageError
from embedcache.provenance import EncoderIdentity, Modality

if TYPE_CHECKING:
    import torch

    from embedcache.backbones.encoders import ImageEncoder, TextEncoder

AUTO_POOLING = {
    "vit": "cls", "deit": "cls", "dinov2": "cls", "dinov2_with_registers": "cls", "dinov3_vit": "cls",
    "beit": "mean", "swin": "mean", "swinv2": "mean",
    "clip_vision_model": "pooler", "siglip_vision_model": "pooler", "clip_text_model": "pooler",
    "bert": "mean", "roberta": "mean", "albert": "mean", "xlm-roberta": "mean", "camembert": "mean", "mpnet": "mean",
    "distilbert": "mean", "electra": "mean", "deberta-v2": "mean", "modernbert": "mean", "qwen3": "last",
    "mobilenet_v2": "pre-logits", "resnet": "pre-logits", "convnext": "pre-logits", "convnextv2": "pre-logits",
    "efficientnet": "pre-logits", "regnet": "pre-logits", "dinov3_convnext": "pooler",
}  # fmt: skip
"""What ``auto`` means for a ``model_type``. Text models that are not listed: mean; image models: must be stated."""

OF_THE_LAST_LAYER = ("pooler", "pre-logits", "projection")
"""What is made of the last layer alone."""

NO_ENCODERS = {
    "vit_mae": "it hides most of a photo at random, each time anew; timm has its encoder (vit_base_patch16_224.mae)",
    "siglip2": "it keeps each photo's shape (NaFlex); SigLIP 2 of a fixed resolution gives one vector an item",
}
"""Types that cannot give one vector an item, and why."""

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
    """A transformers model, or one tower of it, as an encoder: hidden states, pooled.

    local: whether its folder is the user's own and not the hub's.
    """

    name: str
    settings: BackboneSettings
    folder: Path
    checkpoint: str
    commit: str | None
    config: Mapping[str, Any]
    modality: Modality
    tower: Tower | None = None
    local: bool = False

    @property
    def pooling(self) -> str:
        """The settings' pooling, with ``auto`` resolved for this architecture. Raises UsageError where it has none."""
        pooling = self._own_pooling() if self.settings.pooling == "auto" else self.settings.pooling
        if self.settings.layer != LAST_LAYER and pooling in OF_THE_LAST_LAYER:
            raise UsageError(
                f"{self.name}: {pooling!r} is made of the last layer, and --layer {self.settings.layer} names others. "
                f"State what to pool of them with --pooling {', '.join(self._poolings())}."
            )
        known = (*self._poolings(), *OF_THE_LAST_LAYER[: 1 if self.modality == "text" else 2])
        if pooling not in known and pooling != "projection":
            raise UsageError(
                f"{self.name}: {self.modality} models have no {pooling}"
                f"{' (their first token has seen no other)' if 'cls' in pooling else ''}. Use auto, {', '.join(known)}."
            )
        return pooling

    def _own_pooling(self) -> str:
        if self.tower is not None:
            return self.tower.pooling
        model_type = str(self.config.get("model_type"))
        if model_type in AUTO_POOLING:
            return AUTO_POOLING[model_type]
        if self.modality == "text":
            return "mean"
        raise UsageError(
            f"{self.name}: what to pool of a {model_type!r} is not known. State it with --pooling cls, mean or pooler."
        )

    def _poolings(self) -> tuple[str, ...]:
        """What can be made of any layer. The first token of a causal model has seen no other: it says nothing."""
        if self.modality == "image":
            return OF_IMAGES
        causal = AUTO_POOLING.get(str(self.config.get("model_type"))) == "last" or self.tower is not None
        return tuple(one for one in OF_TEXTS if "cls" not in one) if causal else OF_TEXTS

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The weight files, or the one that the settings name in their place."""
        if self.settings.weights is not None:
            return (Path(self.settings.weights).expanduser(),)
        return tuple(checkpoints.weight_files(self.folder))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All weights of the files; of a two-tower model those of this tower."""
        return {name: one for name, one in checkpoints.read_tensors(self.files).items() if self._is_own(name)}

    def _is_own(self, weight: str) -> bool:
        """Whether a weight is not another tower's, whatever it is wrapped in."""
        return self.tower is None or any(f".{prefix}" in f".{weight}" for prefix in self.tower.prefixes)

    @cached_property
    def image_preprocessing(self) -> ImagePreprocessing:
        """The checkpoint's own image processor, as one of ours."""
        return stated(preprocessing_of(self.folder, self.name), self.settings)

    @cached_property
    def max_length(self) -> int:
        """Tokens: the settings', or as many as tokenizer and position embeddings allow."""
        limit = position_limit(self.folder, self.config if self.tower is None else self._library_config.to_dict())
        asked = self.settings.max_length
        if asked is not None and asked > limit:
            raise UsageError(f"{self.name} reads {limit} tokens at most; --max-length asks for {asked}.")
        return asked or limit

    @cached_property
    def _library_config(self) -> Any:
        """The configuration as transformers reads it; of a two-tower model this tower's part."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.name}: transformers knows no model for its config.json: {error}") from error
        if self.tower is None:
            return config
        part = getattr(config, self.tower.config)
        if self.tower.projected:
            part.projection_dim = config.projection_dim
        return part

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Reads configuration files and digests the weights; builds no model."""
        return EncoderIdentity(
            modality=self.modality,
            family="hf",
            weights=checkpoints.digest_of_files(self.files, self._tensors, self.tower),
            architecture=self._configuration(),
            pooling=self.pooling,
            preprocessing=self._preprocessing(),
            layer=self.settings.layer,
        )

    def _configuration(self) -> dict[str, Any]:
        """What of ``config.json`` can change a number."""
        if self.tower is None:
            return {key: value for key, value in self.config.items() if key not in NEUTRAL_CONFIG}
        found = {key: self.config[key] for key in ("model_type", "projection_dim") if key in self.config}
        for key in (self.tower.config, f"{self.tower.config}_dict"):  # old files have both, and the second one wins
            if part := self.config.get(key):
                found[key] = {name: value for name, value in part.items() if name not in NEUTRAL_CONFIG}
        return found

    def _preprocessing(self) -> dict[str, Any]:
        if self.modality == "image":
            return self.image_preprocessing.to_dict()
        padded = {"padded_to": self._padded_to()} if self.tower is not None and self.tower.padded else {}
        return {
            "tokenizer": tokenizer_digests(self.folder),
            "lowercase": self.settings.lowercase,
            "prompt": self.settings.prompt or "",
            "max_length": self.max_length,
            **padded,
        }

    def _padded_to(self) -> int:
        return int(self._library_config.max_position_embeddings)

    @property
    def record(self) -> dict[str, Any]:
        """Names that cannot change a number."""
        tower = f".{self.tower.modality}" if self.tower is not None else ""
        return {"checkpoint": f"hf:{self.checkpoint}{tower}", "commit": self.commit}

    def load(self, device: str) -> ImageEncoder | TextEncoder:
        """The model without a pooler (unless that is the pooling), every weight from the checkpoint."""
        from embedcache.backbones.encoders import ImageEncoder, TextEncoder

        model, notes = self._build()
        if self.modality == "image":
            return ImageEncoder(model, self.image_preprocessing, self._image_vectors(model), device, notes)
        tokenizer = load_tokenizer(self.folder)
        return TextEncoder(
            model,
            tokenizer,
            self._text_vectors(model, tokenizer),
            device,
            max_length=self.max_length,
            lowercase=self.settings.lowercase,
            prompt=self.settings.prompt or "",
            notes=notes,
        )

    def _build(self) -> tuple[Any, tuple[str, ...]]:
        """The model, and what is to be said of its weights."""
        import torch

        config, kind = self._library_config, self._kind()
        if getattr(config, "use_cache", False):
            config.use_cache = False
        options = self._pooler_option(kind)
        fitted = self._fitted(kind, options)
        if fitted is not None:
            options["state_dict"] = fitted.tensors
        try:
            with quiet_progress():
                model, report = kind.from_pretrained(
                    None if fitted is not None else self.folder,
                    config=config,
                    dtype=torch.float32,
                    local_files_only=True,
                    output_loading_info=True,
                    **options,
                )
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.name}: transformers cannot load it: {error}{self._described()}") from error
        self._refuse_missing(report)
        return model, self._notes(fitted, report)

    def _kind(self) -> Any:
        """The class of the model without a head, or of the tower alone."""
        import transformers
        from transformers import AutoModel

        if self.tower is not None:
            projected = self.tower.projected if self.pooling == "projection" else None
            return getattr(transformers, projected[0] if projected else self.tower.kind)
        try:
            kind = AutoModel._model_mapping[type(self._library_config)]
        except KeyError as error:
            raise CheckpointError(f"{self.name}: transformers knows no model for its config.json: {error}") from error
        return kind[0] if isinstance(kind, tuple | list) else kind

    def _fitted(self, kind: Any, options: Mapping[str, Any]) -> Fitted | None:
        """A user's own weights under the model's names; None where transformers reads the folder itself.

        The names of the folder's own weights are known ones too: transformers renames old ones while it loads.
        """
        import torch

        if self.settings.weights is None and not self.local:
            return None
        tensors = self._tensors()
        with torch.device("meta"), quiet_progress():
            expected = statedicts.shapes(kind(self._library_config, **options).state_dict())
        fitted = statedicts.fit(tensors, expected)
        own = fitted.prefix in ("", f"{kind.base_model_prefix}.")
        return None if own and self.settings.weights is None else fitted

    def _notes(self, fitted: Fitted | None, report: Mapping[str, Any]) -> tuple[str, ...]:
        """What was left out of a user's own weights. A pooler that is not used is no news, nor are a hub's heads."""
        if self.settings.weights is None and not self.local:
            return ()
        unexpected = sorted(map(str, report.get("unexpected_keys", ())))
        names = [*(fitted.left_out if fitted is not None else ()), *unexpected]
        told = [one for one in names if self._is_own(one) and {"pooler", "position_ids"}.isdisjoint(one.split("."))]
        return statedicts.note_of(self.name, Fitted({}, fitted.prefix if fitted is not None else "", tuple(told)))

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
            names = statedicts.listed([*missing, *mismatched])
            raise CheckpointError(
                f"{self.name}: {len(missing)} weights are missing from the checkpoint and {len(mismatched)} have "
                f"another shape ({names}); they would be random numbers. Use a checkpoint of this architecture"
                f"{', or another --pooling' if self.pooling == 'pooler' else ''}.{self._described()}"
            )

    def _described(self) -> str:
        """What the user's weight file is; nothing where there is none."""
        return "" if self.settings.weights is None else f" {statedicts.describe(self._tensors())}"

    def _image_vectors(self, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        pooling = self.pooling
        options: dict[str, Any] = {}
        if self.settings.image_size and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            options["interpolate_pos_encoding"] = True
        prefix, has_class = _prefix_tokens(model)

        def of_layer(hidden: torch.Tensor) -> torch.Tensor:
            way = "mean" if pooling == "pre-logits" else pooling
            if hidden.ndim == 4:
                return pool_patches(hidden, None, way, self.name)
            return pool_patches(hidden[:, prefix:], hidden[:, 0] if has_class else None, way, self.name)

        def vectors(pixels: torch.Tensor) -> torch.Tensor:
            output = model(pixel_values=pixels, **options, **self._hidden_option)
            if pooling == "projection":
                return self._projected(output)
            if pooling == "pooler" or (pooling == "pre-logits" and output.get("pooler_output") is not None):
                return _pooler_output(output, self.name).flatten(1).float()
            return concatenated([of_layer(hidden) for hidden in self._hidden(output)])

        return vectors

    def _text_vectors(self, model: Any, tokenizer: Any = None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        pooling = self.pooling
        padded = self.tower is not None and self.tower.padded

        def vectors(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if padded:
                ids, mask = _padded(ids, mask, self._padded_to(), tokenizer)
            output = model(input_ids=ids, attention_mask=None if padded else mask, **self._hidden_option)
            if pooling == "projection":
                return self._projected(output)
            if pooling == "pooler":
                return _pooler_output(output, self.name).float()
            return concatenated([pool_text(hidden, mask, pooling) for hidden in self._hidden(output)])

        return vectors

    @property
    def _hidden_option(self) -> dict[str, bool]:
        return {"output_hidden_states": True} if self.settings.layer != LAST_LAYER else {}

    def _hidden(self, output: Any) -> list[torch.Tensor]:
        """The hidden states of the layers that are asked for.

        The last one is the model's ``last_hidden_state``, with the final normalisation of those that have one; all
        others are as they leave their layer, without it.
        """
        if self.settings.layer == LAST_LAYER:
            return [output.last_hidden_state]
        states = output.get("hidden_states")
        if not states:
            raise UsageError(f"{self.name} gives no layers but the last; leave --layer out.")
        places = [place_of(number, len(states), self.name) for number in layer_numbers(self.settings.layer)]
        return [output.last_hidden_state if place == len(states) - 1 else states[place] for place in places]

    def _projected(self, output: Any) -> torch.Tensor:
        assert self.tower is not None
        assert self.tower.projected is not None
        vectors: torch.Tensor = output[self.tower.projected[1]]
        return vectors.float()


def _padded(ids: torch.Tensor, mask: torch.Tensor, length: int, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask with padding up to ``length``, on the side that the tokenizer pads."""
    import torch

    more = length - ids.shape[1]
    if tokenizer.padding_side == "right":
        return (
            torch.nn.functional.pad(ids, (0, more), value=tokenizer.pad_token_id),
            torch.nn.functional.pad(mask, (0, more)),
        )
    full = torch.full((len(ids), length), tokenizer.pad_token_id, dtype=ids.dtype, device=ids.device)
    own = torch.zeros_like(full)
    for row, kept in enumerate(mask.bool()):
        n = int(kept.sum())
        full[row, length - n :], own[row, length - n :] = ids[row][kept], 1
    return full, own


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


def _prefix_tokens(model: Any) -> tuple[int, bool]:
    """Tokens before the patches (class, distillation, registers), and whether the first of them is a class token."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    pooled_first = getattr(model.config, "model_type", "") == "dinov3_convnext"  # which puts the mean there itself
    has_class = pooled_first or not names.isdisjoint({"cls_token", "class_embedding"})
    registers = int(getattr(model.config, "num_register_tokens", 0) or 0)
    return int(has_class) + int("distillation_token" in names) + registers, has_class


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


def resolve(name: str, checkpoint: str, settings: BackboneSettings) -> HfBackbone:
    """A transformers backbone of one modality, by hub name or local folder."""
    found = resolve_towers(name, checkpoint, settings, None)
    if len(found) > 1:
        raise UsageError(f"{name} has two towers: name {' or '.join(one.name for one in found)}.")
    return found[0]


def resolve_towers(name: str, checkpoint: str, settings: BackboneSettings, tower: Modality | None) -> list[HfBackbone]:
    """A transformers backbone, or both towers of a two-tower model, or the one that is asked for."""
    found = _found(name, checkpoint, settings)
    path = found.folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"The folder {found.folder} has no config.json: it is no transformers checkpoint.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if "model_type" not in config and "architecture" in config:
        named = f"its config.json names timm's {config['architecture']!r}. As such it is timm:{checkpoint}"
        raise CheckpointError(f"{found.folder} is no transformers checkpoint: {named}.")
    common = (settings, found.folder, found.name, found.commit, config)
    local = checkpoints.is_local(checkpoint)
    model_type = str(config.get("model_type"))
    if model_type in NO_ENCODERS:
        raise CheckpointError(f"{name} is a {model_type!r}, and that is no encoder: {NO_ENCODERS[model_type]}.")
    if model_type in TOWERS:
        return [
            HfBackbone(f"{name}.{one.modality}", *common, one.modality, one, local)
            for one in TOWERS[model_type]
            if tower in (None, one.modality)
        ]
    if tower is not None:
        raise UsageError(f"{name} is a {model_type!r}: it has one tower, and so no {name}.{tower}.")
    return [HfBackbone(name, *common, _modality(found.folder, name, model_type), local=local)]


def _found(name: str, checkpoint: str, settings: BackboneSettings) -> Checkpoint:
    """The folder; where there is none, what the weight file is that was to be loaded with it."""
    try:
        return checkpoints.find(checkpoint, settings.revision, name)
    except CheckpointNotFoundError as error:
        if settings.weights is None:
            raise
        tensors = checkpoints.read_tensors([Path(settings.weights).expanduser()])
        raise CheckpointNotFoundError(f"{error} {statedicts.describe(tensors)}") from error


def _modality(folder: Path, name: str, model_type: str) -> Modality:
    for modality, ending in (("image", "_vision_model"), ("text", "_text_model")):
        if model_type.endswith(ending):
            return "image" if modality == "image" else "text"
    image = any((folder / file).exists() for file in ("preprocessor_config.json", "processor_config.json"))
    text = any((folder / file).exists() for file in TOKENIZER_FILES)
    if image and text:
        raise CheckpointError(
            f"{name} has an image processor and a tokenizer, and a {model_type!r} is no model with two towers that is "
            f"known here ({', '.join(TOWERS)})."
        )
    if not image and not text:
        raise CheckpointError(f"{name}: {folder} has neither preprocessor_config.json nor a tokenizer.")
    return "image" if image else "text"
