"""Checkpoints of a few thousand random weights, written to disk as their libraries write them."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image

WORDS = [
    "a", "the", "small", "red", "blue", "bird", "with", "long", "beak", "sits", "on", "Tree", "wing", "Red", "white",
    "and", "black",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
TEXTS = ["a small red bird", "the blue bird sits on a Tree", "wing", "Red and white and black with a long red beak"]
VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip


def write_tokenizer(folder: Path, *, max_length: int | None = 24) -> Any:
    """A tokenizer of whole words that minds their case: ``[CLS] words [SEP]``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, VOCABULARY[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    limit = {} if max_length is None else {"model_max_length": max_length}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **limit)
    fast.save_pretrained(folder)
    return fast


def text_checkpoint(folder: Path, kind: str = "bert", *, pooler: bool = True, seed: int = 0, **options: Any) -> Path:
    """A BERT, RoBERTa or MPNet whose every weight is random, dropout stated in its configuration."""
    prefix = {"bert": "Bert", "roberta": "Roberta", "mpnet": "MPNet"}[kind]
    config = getattr(transformers, f"{prefix}Config")(
        **SIZES, vocab_size=len(VOCABULARY), max_position_embeddings=32, hidden_dropout_prob=0.5,
        attention_probs_dropout_prob=0.5, pad_token_id=0, **options,
    )  # fmt: skip
    model = getattr(transformers, f"{prefix}Model")(config, add_pooling_layer=pooler)
    randomize(model, seed).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def image_checkpoint(folder: Path, kind: str = "vit", *, pooler: bool = True, seed: int = 0, size: int = 32) -> Path:
    """A ViT or Swin with its image processor."""
    common: dict[str, Any] = {"image_size": size, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    if kind == "vit":
        config: Any = transformers.ViTConfig(**SIZES, patch_size=8, **common)
        model: Any = transformers.ViTModel(config, add_pooling_layer=pooler)
    else:
        swin = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
        config = transformers.SwinConfig(**common, **swin, drop_path_rate=0.5)
        model = transformers.SwinModel(config, add_pooling_layer=pooler)
    randomize(model, seed).save_pretrained(folder)
    processor = {**VIT_PROCESSOR, "size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
_VIT: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 8}
_BERT: dict[str, Any] = {**SIZES, "vocab_size": len(VOCABULARY), "max_position_embeddings": 32, "pad_token_id": 0}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 16], "depths": [1, 1, 1, 1]}
TINY: dict[str, dict[str, Any]] = {
    **{name: {**_BERT, **_DROPOUT} for name in ("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra")},
    "albert": {**_BERT, **_DROPOUT, "embedding_size": 8},
    "deberta-v2": {**_BERT, **_DROPOUT, "relative_attention": True, "position_buckets": 8, "type_vocab_size": 0},
    "distilbert": {
        "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 32, "pad_token_id": 0, "dropout": 0.5, "attention_dropout": 0.5,
    },
    "modernbert": {**_BERT, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "qwen3": {**_BERT, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3},
    "clip_text_model": {**_BERT, "bos_token_id": 2, "eos_token_id": 3},
    **{name: {**_VIT, **_DROPOUT} for name in ("vit", "deit", "dinov2", "beit")},
    "dinov2_with_registers": {**_VIT, **_DROPOUT, "num_register_tokens": 2},
    "dinov3_vit": {**_VIT, "num_register_tokens": 2},
    "dinov3_convnext": _STAGES,
    "clip_vision_model": _VIT, "siglip_vision_model": _VIT,
    "convnext": _STAGES, "convnextv2": _STAGES,
    "swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "swinv2": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "resnet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "regnet": {**_STAGES, "embedding_size": 8, "groups_width": 4},
    "mobilenet_v2": {"depth_multiplier": 0.1, "image_size": 32},
    "efficientnet": {
        "width_coefficient": 0.5, "image_size": 32, "hidden_dim": 640, "kernel_sizes": [3, 3], "in_channels": [32, 16],
        "out_channels": [16, 24], "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 6],
    },
}  # fmt: skip
"""A tiny configuration for each ``model_type`` of transformers that has a pooling of its own here."""


def typed_checkpoint(folder: Path, model_type: str, seed: int = 0) -> Path:
    """A checkpoint of any type in TINY, with the processor or the tokenizer that it takes."""
    config = transformers.CONFIG_MAPPING[model_type](**TINY[model_type])
    randomize(transformers.AutoModel.from_config(config), seed).save_pretrained(folder)
    if "image_size" in TINY[model_type] or "depths" in TINY[model_type]:
        write_json(folder / "preprocessor_config.json", VIT_PROCESSOR)
    else:
        write_tokenizer(folder)
    return folder


def tower_checkpoint(folder: Path, kind: str = "clip", seed: int = 0) -> Path:
    """A CLIP or a SigLIP: two towers of other widths and depths, image processor and tokenizer."""
    text = {**_BERT, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 16}
    vision = {**_VIT, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
    if kind == "clip":
        config: Any = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
        model: Any = transformers.CLIPModel(config)
    else:
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 12}, vision_config=vision)
        model = transformers.SiglipModel(config)
    randomize(model, seed).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", VIT_PROCESSOR)
    write_tokenizer(folder, max_length=16)
    return folder


def sentence_checkpoint(folder: Path, *, kind: str = "bert", **own: Any) -> Path:
    """A sentence-transformers folder: transformer, mean pooling, normalisation. own: of its first module."""
    text_checkpoint(folder, kind)
    modules = {"": "models.Transformer", "1_Pooling": "models.Pooling", "2_Normalize": "models.Normalize"}
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{module}"}
        for index, (path, module) in enumerate(modules.items())
    ]
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir()
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False, **own})
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    return folder


def timm_checkpoint(folder: Path, architecture: str = "test_efficientnet", seed: int = 0, **arguments: Any) -> Path:
    """A timm folder as it is published: ``config.json`` and ``model.safetensors``."""
    import timm
    from safetensors.torch import save_file

    model = randomize(timm.create_model(architecture, num_classes=3, **arguments), seed)
    folder.mkdir(parents=True)
    config = {key: value for key, value in model.pretrained_cfg.items() if key not in ("hf_hub_id", "url", "file")}
    document = {"architecture": architecture, "num_classes": 3, "pretrained_cfg": config}
    write_json(folder / "config.json", {**document, **({"model_args": arguments} if arguments else {})})
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def randomize(model: Any, seed: int) -> Any:
    """Every floating weight random, so that none is a zero or one that hides what is missing."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise + ("norm" in name.lower()))
    return model.eval()


def into_hub(cache: Path, name: str, write: Callable[[Path], Path], commit: str = "0123456789abcdef" * 2) -> Path:
    """Lay a checkpoint out as the hub's own cache folder does: blobs, links in a snapshot, a ref."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = home / "snapshots" / commit, home / "blobs"
    written = write(home / "written")
    blobs.mkdir(exist_ok=True)
    for number, file in enumerate(sorted(path for path in written.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(written)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = file.rename(blobs / f"blob{len(list(blobs.iterdir()))}-{number}")
        link.symlink_to(blob)
    shutil.rmtree(written)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    return snapshot


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes a key away."""
    document = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: value for key, value in document.items() if value is not None or key not in changes})


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> npt.NDArray[np.uint8]:
    """A picture with fine and coarse structure, uint8 (height, width, channels)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    phases = rng.uniform(0, 6, channels)
    waves = [np.sin(rows / 7 + phase) + np.cos(columns / 5 - phase) for phase in phases]
    noise = rng.normal(0, 0.3, (height, width, channels))
    return np.asarray(np.clip((np.stack(waves, -1) + noise) * 60 + 128, 0, 255)).astype(np.uint8)


def encoded(pixels: npt.NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file's bytes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png(pixels: npt.NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of (height, width) or (height, width, channels), which Pillow cannot write in colour."""
    height, width = pixels.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    ups = np.diff(lines, axis=0, prepend=np.zeros_like(lines[:1]))  # PNG's filter 2, modulo 256
    rows = b"".join(b"\2" + row.tobytes() for row in ups)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
