"""The checkpoint of every alias, tiny, as its authors published it: in the hub's own cache folder.

``PUBLISHED`` writes down each one's real configuration, weight file and modules. ``lay_out`` builds it with few and
random weights and everything else as it is: names of tensors, leftovers of heads, classes of tokenizers and of image
processors, number of positions. ``real_model`` builds it in full size on the meta device, without memory for weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from embedcache.backbones import ALIASES
from tests.tiny_checkpoints import SPECIAL, WORDS, into_hub, randomize, write_json, write_tokenizer

HIDDEN, PROJECTED = 32, 24
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
XLM = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}


@dataclass(frozen=True)
class Timm:
    """A timm checkpoint. tiny: arguments that make it small, where its architecture has some. side: of tiny inputs.

    initial: keeps its initial weights, as any random ones drive a deep network's numbers out of range.
    """

    tiny: Mapping[str, Any] = field(default_factory=dict)
    side: int = 64
    initial: bool = False


@dataclass(frozen=True)
class Transformer:
    """A transformers checkpoint. real: its configuration, where it is not its class's default.

    written_by: the class of model whose weights the file holds, heads included. legacy: normalisation's weights are
    named as TensorFlow had them. tokens: the tokenizer's ``model_max_length``.
    """

    config: str
    real: Mapping[str, Any]
    written_by: str
    file: Literal["model.safetensors", "pytorch_model.bin"] = "model.safetensors"
    legacy: bool = False
    tokens: int = 512


@dataclass(frozen=True)
class Sentences:
    """A sentence-transformers checkpoint. dense: numbers of its dense module, tiny and real."""

    transformer: Transformer
    pooling: Literal["mean", "cls", "lasttoken"]
    dense: tuple[int, int] | None = None
    normalize: bool = True
    length: int | None = 512


Published = Timm | Transformer | Sentences


def _bert(**real: Any) -> Transformer:
    return Transformer("BertConfig", real, "BertModel")


def _vit(size: int, written_by: str) -> Transformer:
    return Transformer("ViTConfig", {**LARGE, "image_size": size, "patch_size": 32}, written_by)


def _dinov2(size: Mapping[str, Any], registers: bool) -> Transformer:
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    return Transformer(f"{kind}Config", {**size, "image_size": 518, "patch_size": 14}, f"{kind}Model")


def _dinov3(size: Mapping[str, Any]) -> Transformer:
    real = {"intermediate_size": 4 * size["hidden_size"], "num_register_tokens": 4, "patch_size": 16, **size}
    return Transformer("DINOv3ViTConfig", real, "DINOv3ViTModel")


def _dinov3_convnext(widths: list[int], depths: list[int]) -> Transformer:
    return Transformer("DINOv3ConvNextConfig", {"hidden_sizes": widths, "depths": depths}, "DINOv3ConvNextModel")


_GEMMA = 256000
PUBLISHED: dict[str, Published] = {
    "vgg16": Timm({"mlp_ratio": 0.01}, initial=True),
    "resnet18": Timm({"channels": [8, 8, 16, 32], "stem_width": 8}, initial=True),
    "resnet50": Timm({"channels": [8, 8, 8, 8], "stem_width": 8, "layers": [1, 1, 1, 1]}),
    "efficientnet-b3": Timm(initial=True),
    "convnextv2-tiny": Timm({"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "convnextv2-base": Timm({"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "eva02-base": Timm({"embed_dim": 32, "depth": 2, "num_heads": 2}, side=56),
    "eva02-large": Timm({"embed_dim": 32, "depth": 2, "num_heads": 2}, side=56),
    "swin-tiny": Transformer("SwinConfig", {}, "SwinForImageClassification"),
    "vit-large": _vit(384, "ViTForImageClassification"),
    "vit-large-in21k": _vit(224, "ViTModel"),
    "dinov2-small": _dinov2(SMALL, registers=False),
    "dinov2-base": _dinov2(BASE, registers=False),
    "dinov2-large": _dinov2(LARGE, registers=False),
    "dinov2-small-reg": _dinov2(SMALL, registers=True),
    "dinov2-base-reg": _dinov2(BASE, registers=True),
    "dinov2-large-reg": _dinov2(LARGE, registers=True),
    "dinov3-small": _dinov3(SMALL),
    "dinov3-base": _dinov3(BASE),
    "dinov3-large": _dinov3(LARGE),
    "dinov3-convnext-tiny": _dinov3_convnext([96, 192, 384, 768], [3, 3, 9, 3]),
    "dinov3-convnext-base": _dinov3_convnext([128, 256, 512, 1024], [3, 3, 27, 3]),
    "clip-base": Transformer("CLIPConfig", {"projection_dim": 512}, "CLIPModel", tokens=77),
    "clip-large": Transformer(
        "CLIPConfig",
        {
            "projection_dim": 768,
            "vision_config": {**LARGE, "patch_size": 14, "projection_dim": 768},
            "text_config": {**BASE, "intermediate_size": 3072, "projection_dim": 768},
        },
        "CLIPModel",
        tokens=77,
    ),
    "siglip2-base": Transformer(
        "SiglipConfig", {"text_config": {"vocab_size": _GEMMA}, "vision_config": {}}, "SiglipModel", tokens=64
    ),
    "siglip2-so400m": Transformer(
        "SiglipConfig",
        {
            "text_config": {**SO400M, "vocab_size": _GEMMA},
            "vision_config": {**SO400M, "image_size": 384, "patch_size": 14},
        },
        "SiglipModel",
        tokens=64,
    ),
    "bert": Transformer("BertConfig", {}, "BertForPreTraining", legacy=True),
    "roberta": Transformer(
        "RobertaConfig",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
        "RobertaForMaskedLM",
    ),
    "albert": Transformer(
        "AlbertConfig",
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        "AlbertForMaskedLM",
    ),
    "mpnet": Sentences(
        Transformer("MPNetConfig", {"vocab_size": 30527, "max_position_embeddings": 514}, "MPNetModel"),
        "mean",
        length=384,
    ),
    "bge-base": Sentences(_bert(), "cls"),
    "bge-large": Sentences(_bert(**LARGE), "cls"),
    "gte-base": Sentences(_bert(), "mean"),
    "gte-large": Sentences(_bert(**LARGE), "mean"),
    "gte-modernbert": Sentences(
        Transformer("ModernBertConfig", {}, "ModernBertModel", tokens=8192), "cls", normalize=False, length=8192
    ),
    "bert-spanish": Transformer("BertConfig", {"vocab_size": 31002}, "BertForMaskedLM", file="pytorch_model.bin"),
    "bert-multilingual": Transformer("BertConfig", {"vocab_size": 119547}, "BertForPreTraining", legacy=True),
    "use-multilingual": Sentences(
        Transformer("DistilBertConfig", {"vocab_size": 119547}, "DistilBertModel"),
        "mean",
        dense=(PROJECTED, 512),
        normalize=False,
        length=128,
    ),
    "multilingual-e5-base": Sentences(Transformer("XLMRobertaConfig", XLM, "XLMRobertaModel"), "mean"),
    "multilingual-e5-large": Sentences(Transformer("XLMRobertaConfig", {**XLM, **LARGE}, "XLMRobertaModel"), "mean"),
    "bge-m3": Sentences(
        Transformer(
            "XLMRobertaConfig",
            {**XLM, **LARGE, "max_position_embeddings": 8194},
            "XLMRobertaModel",
            file="pytorch_model.bin",
            tokens=8192,
        ),
        "cls",
        length=8192,
    ),
    "qwen3-embedding": Sentences(
        Transformer(
            "Qwen3Config",
            {
                "vocab_size": 151669, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
            },
            "Qwen3Model",
            tokens=131072,
        ),
        "lasttoken",
        length=None,
    ),
}  # fmt: skip
"""Sources: the ``config.json``, ``modules.json`` and ``tokenizer_config.json`` beside each checkpoint on the hub."""

_SHRUNK: dict[str, Any] = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "ViTConfig": {**_SHRUNK, "image_size": 32, "patch_size": 8},
    "SwinConfig": {
        "embed_dim": HIDDEN // 2, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4,
        "image_size": 32,
    },
    "Dinov2Config": {**_SHRUNK, "image_size": 70},
    "Dinov2WithRegistersConfig": {**_SHRUNK, "image_size": 70},
    "DINOv3ViTConfig": _SHRUNK,
    "DINOv3ConvNextConfig": {"hidden_sizes": [8, 16, 24, HIDDEN], "depths": [1, 1, 1, 1]},
    "CLIPConfig": {
        "projection_dim": PROJECTED,
        "vision_config": {**_SHRUNK, "image_size": 32, "patch_size": 8, "projection_dim": PROJECTED},
        "text_config": {**_SHRUNK, "projection_dim": PROJECTED, "bos_token_id": 0, "eos_token_id": 1},
    },
    "SiglipConfig": {
        "vision_config": {**_SHRUNK, "image_size": 32, "patch_size": 8},
        "text_config": {**_SHRUNK, "projection_size": HIDDEN},
    },
    "DistilBertConfig": {"dim": HIDDEN, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "AlbertConfig": {**_SHRUNK, "embedding_size": 16},
    "ModernBertConfig": {
        **_SHRUNK, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3,
    },
    "Qwen3Config": {**_SHRUNK, "num_key_value_heads": 1, "head_dim": 16, "layer_types": None},
}  # fmt: skip
"""What makes a configuration small; text models that are not listed: ``_SHRUNK``. Positions stay as published."""

PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTConfig": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, **HALVES},
    "SwinConfig": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3, **IMAGENET,
    },
    "Dinov2Config": {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 28, "width": 28}, **IMAGENET,
    },
    "DINOv3ViTConfig": {
        "image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 32, "width": 32}, **IMAGENET,
    },
    "CLIPConfig": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, **IMAGENET,
    },
    "SiglipConfig": {
        "image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2, **HALVES,
    },
}  # fmt: skip
PROCESSORS["Dinov2WithRegistersConfig"] = PROCESSORS["Dinov2Config"]
PROCESSORS["DINOv3ConvNextConfig"] = {**PROCESSORS["DINOv3ViTConfig"], "size": {"height": 64, "width": 64}}


# ---------------------------------------------------------------- on disk, tiny


def lay_out(cache: Path, alias: str) -> Path:
    """Write an alias's checkpoint into the hub's cache folder, where it is not there; its snapshot."""
    published, seed = PUBLISHED[alias], list(ALIASES).index(alias)
    checkpoint, commit = ALIASES[alias].checkpoint, f"{seed:040x}"
    snapshot = cache / f"models--{checkpoint.replace('/', '--')}" / "snapshots" / commit
    if snapshot.exists():
        return snapshot
    write: Callable[[Path], Path]
    if isinstance(published, Timm):
        write = lambda folder: _write_timm(folder, checkpoint.removeprefix("timm/"), published, seed)  # noqa: E731
    elif isinstance(published, Sentences):
        write = lambda folder: _write_sentences(folder, published, seed)  # noqa: E731
    else:
        write = lambda folder: _write_transformer(folder, published, seed)  # noqa: E731
    return into_hub(cache, checkpoint, write, commit=commit)


def _write_timm(folder: Path, architecture: str, published: Timm, seed: int) -> Path:
    import timm
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = timm.create_model(architecture, num_classes=3, **sized(published, architecture)).eval()
    if not published.initial:
        randomize(model, seed)
    config = {**model.pretrained_cfg, "input_size": [3, published.side, published.side], "num_classes": 3}
    kept = {key: value for key, value in config.items() if key not in ("hf_hub_id", "url", "file", "pool_size")}
    document = {"architecture": architecture.split(".")[0], "num_classes": 3, "pretrained_cfg": kept}
    write_json(folder / "config.json", {**document, "model_args": sized(published, architecture)})
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def sized(published: Timm, architecture: str) -> dict[str, Any]:
    """What timm's constructor is given for the tiny model; only transformers have an image size."""
    return {**published.tiny, **({"img_size": published.side} if architecture.startswith("eva") else {})}


def _write_transformer(folder: Path, published: Transformer, seed: int) -> Path:
    folder.mkdir(parents=True)
    if published.config in PROCESSORS:
        common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
        write_json(folder / "preprocessor_config.json", {**common, **PROCESSORS[published.config]})
    words = write_vocabulary(folder, published) if published.config in VOCABULARIES else 0
    config = tiny_config(published, words)
    model = randomize(getattr(transformers, published.written_by)(config), seed)
    config.architectures = [published.written_by]
    config.save_pretrained(folder)
    tensors = {_published_name(name, published): tensor.clone() for name, tensor in model.state_dict().items()}
    save_tensors(tensors, folder / published.file)
    return folder


def _published_name(name: str, published: Transformer) -> str:
    if published.legacy and "LayerNorm." in name:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return name


def save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """As safetensors or as torch's own, by the name of the file."""
    from safetensors.torch import save_file

    if file.suffix == ".safetensors":
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        torch.save(tensors, file)


def tiny_config(published: Transformer, words: int) -> Any:
    """The published configuration, shrunk; ``words``: size of the tiny vocabulary."""
    tiny = TINY.get(published.config, _SHRUNK)
    real = {key: value for key, value in published.real.items() if key not in ("vision_config", "text_config")}
    if "text_config" in tiny:
        return getattr(transformers, published.config)(
            **{**real, **tiny, "text_config": {**tiny["text_config"], "vocab_size": words}}
        )
    return getattr(transformers, published.config)(**{**real, **tiny, **({"vocab_size": words} if words else {})})


def _write_sentences(folder: Path, published: Sentences, seed: int) -> Path:
    _write_transformer(folder, published.transformer, seed)
    modules = {"": "Transformer", "1_Pooling": "Pooling"}
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{key}": mode == published.pooling for mode, key in modes.items()}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **flags})
    if published.dense:
        modules["2_Dense"] = "Dense"
        _write_dense(folder / "2_Dense", published.dense[0], seed)
    if published.normalize:
        modules["2_Normalize"] = "Normalize"
        (folder / "2_Normalize").mkdir()
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules.items())
    ]
    write_json(folder / "modules.json", listed)
    if published.length is not None:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": published.length, "do_lower_case": False})
    return folder


def _write_dense(folder: Path, width: int, seed: int) -> None:
    folder.mkdir()
    activation = "torch.nn.modules.activation.Tanh"
    options = {"in_features": HIDDEN, "out_features": width, "bias": True, "activation_function": activation}
    write_json(folder / "config.json", options)
    layer = randomize(torch.nn.Linear(HIDDEN, width), seed)
    save_tensors(
        {f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}, folder / "model.safetensors"
    )


# ---------------------------------------------------------------- tokenizers, each of its own class


def write_vocabulary(folder: Path, published: Transformer) -> int:
    """A tiny tokenizer of the checkpoint's own class; how many ids it has."""
    tokenizer = VOCABULARIES[published.config](folder, published.tokens)
    tokenizer.save_pretrained(folder)
    return max(tokenizer.get_vocab().values()) + 1


def _of_words(kind: str, special: list[str]) -> Callable[[Path, int], Any]:
    ids = {word: index for index, word in enumerate(dict.fromkeys([*special, *map(str.lower, WORDS)]))}
    return lambda folder, tokens: getattr(transformers, kind)(vocab=ids, model_max_length=tokens)


def _of_bytes(kind: str, special: list[str], *, ends: bool = False) -> Callable[[Path, int], Any]:
    """A byte-level BPE that has merged nothing. ends: its pieces at a word's end are pieces of their own."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*special, *alphabet, *(f"{piece}</w>" for piece in alphabet if ends)]
    ids = {piece: index for index, piece in enumerate(pieces)}
    return lambda folder, tokens: getattr(transformers, kind)(vocab=ids, merges=[], model_max_length=tokens)


def _of_pieces(
    kind: str, special: list[str], *, scored: bool = True, model: str = "", **options: Any
) -> Callable[[Path, int], Any]:
    """A SentencePiece vocabulary. model: a file of its own that stands beside ``tokenizer.json`` and is not needed."""
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    scores = [*((name, 0.0) for name in special), *((f"▁{word.lower()}", -2.0) for word in dict.fromkeys(WORDS))]
    scores = list(dict([*scores, *((letter, -5.0) for letter in letters)]).items())
    vocabulary: Any = scores if scored else {piece: index for index, (piece, _) in enumerate(scores)}

    def make(folder: Path, tokens: int) -> Any:
        if model:
            (folder / model).write_bytes(b"no library here reads this")
        return getattr(transformers, kind)(vocab=vocabulary, model_max_length=tokens, **options)

    return make


def _with_end(make: Callable[[Path, int], Any]) -> Callable[[Path, int], Any]:
    """Qwen3-Embedding's tokenizer puts its end-of-text behind every text: that is the token that is pooled."""
    from tokenizers.processors import TemplateProcessing

    def ended(folder: Path, tokens: int) -> Any:
        tokenizer = make(folder, tokens)
        end = "<|endoftext|>"
        template = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))])
        tokenizer.backend_tokenizer.post_processor = template
        return tokenizer

    return ended


_BYTES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
VOCABULARIES: dict[str, Callable[[Path, int], Any]] = {
    "BertConfig": _of_words("BertTokenizer", SPECIAL),
    "DistilBertConfig": _of_words("DistilBertTokenizer", SPECIAL),
    "MPNetConfig": _of_words("MPNetTokenizer", ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]),
    "RobertaConfig": _of_bytes("RobertaTokenizer", _BYTES),
    "CLIPConfig": _of_bytes("CLIPTokenizer", ["<|startoftext|>", "<|endoftext|>"], ends=True),
    "Qwen3Config": _with_end(_of_bytes("Qwen2Tokenizer", ["<|endoftext|>"])),
    "AlbertConfig": _of_pieces("AlbertTokenizer", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], model="spiece.model"),
    "XLMRobertaConfig": _of_pieces("XLMRobertaTokenizer", _BYTES[:4], model="sentencepiece.bpe.model"),
    "SiglipConfig": _of_pieces(
        "GemmaTokenizer", ["<pad>", "<eos>", "<bos>", "<unk>"], scored=False, padding_side="right"
    ),
    "ModernBertConfig": lambda folder, tokens: write_tokenizer(folder, max_length=tokens),
}


# ---------------------------------------------------------------- on the meta device, real


def real_model(alias: str) -> torch.nn.Module:
    """An alias's model as published, in its real size, without a classifier, on the meta device."""
    published = PUBLISHED[alias]
    with torch.device("meta"):
        if isinstance(published, Timm):
            import timm

            model: torch.nn.Module = timm.create_model(ALIASES[alias].checkpoint.removeprefix("timm/"), num_classes=0)
            return model.eval()
        transformer = published.transformer if isinstance(published, Sentences) else published
        config = getattr(transformers, transformer.config)(**transformer.real)
        built: torch.nn.Module = transformers.AutoModel.from_config(config).eval()
        return built


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file that ``save_tensors`` wrote."""
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        return load_file(file)
    loaded: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return loaded


def without_one(snapshot: Path, part: str = "") -> str:
    """Take the largest tensor that is used, of a part of the model, out of a checkpoint's weight file; its name."""
    file = next(path for name in ("model.safetensors", "pytorch_model.bin") if (path := snapshot / name).exists())
    tensors = read_tensors(file)
    heads = ("pooler", "classifier", "cls", "lm_head", "predictions", "head.fc", "head", "fc")
    own = [name for name in tensors if part in name]
    used = [name for name in own if not any(name.startswith(f"{head}.") or f".{head}." in name for head in heads)]
    largest = max(used, key=lambda name: tensors[name].numel())
    target = file.resolve()
    file.unlink()
    target.unlink()
    save_tensors({name: tensor for name, tensor in tensors.items() if name != largest}, file)
    return largest


def dense_of(snapshot: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a checkpoint's dense module."""
    tensors = read_tensors(snapshot / "2_Dense" / "model.safetensors")
    return tensors["linear.weight"], tensors["linear.bias"]


def json_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
