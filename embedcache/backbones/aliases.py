"""One word for each checkpoint that a report used, or that a user of today would reach for first.

Every name is the whole name on the hub: timm's bare ``resnet50`` means another training recipe from release to
release, ``resnet50.tv_in1k`` does not. ``dim`` and ``parameters`` are held by a test that builds each architecture
from its published configuration, without memory for weights.
"""

from __future__ import annotations

from typing import Final

from embedcache.backbones.base import SHIPPED, Alias

_CUB, _VQA, _LABELS = "CUB report", "VQA report", "COMP5329 report"
_APACHE, _MIT, _BSD = "Apache-2.0", "MIT", "BSD-3-Clause"
_DINOV3, _NC = "DINOv3 License", "CC-BY-NC-4.0"
_E5: Final = {"prompt": "query: "}
_E5_PROMPTS: Final = {"query": "query: ", "passage": "passage: "}
_BGE_PROMPTS: Final = {"query": "Represent this sentence for searching relevant passages: "}
_QWEN_PROMPTS: Final = {
    "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
}

ALIASES: Final[dict[str, Alias]] = {
    # images, convolutional
    "vgg16": Alias("timm", "timm/vgg16.tv_in1k", "image", 4096, 134, _BSD, "224 px", used_by=_VQA),
    "resnet18": Alias("timm", "timm/resnet18.tv_in1k", "image", 512, 11.2, _BSD, "224 px", used_by=_VQA),
    "resnet50": Alias("timm", "timm/resnet50.tv_in1k", "image", 2048, 23.5, _BSD, "224 px", used_by=_VQA),
    "efficientnet-b3": Alias(
        "timm", "timm/efficientnet_b3.ra2_in1k", "image", 1536, 10.7, _APACHE, "288 px", used_by=_LABELS
    ),
    "convnextv2-tiny": Alias("timm", "timm/convnextv2_tiny.fcmae_ft_in22k_in1k", "image", 768, 27.9, _NC, "224 px"),
    "convnextv2-base": Alias("timm", "timm/convnextv2_base.fcmae_ft_in22k_in1k", "image", 1024, 87.7, _NC, "224 px"),
    # images, transformers
    "swin-tiny": Alias(
        "hf", "microsoft/swin-tiny-patch4-window7-224", "image", 768, 27.5, _APACHE, "224 px", used_by=_CUB
    ),
    "vit-large": Alias("hf", "google/vit-large-patch32-384", "image", 1024, 306, _APACHE, "384 px", used_by=_CUB),
    "vit-large-in21k": Alias(
        "hf", "google/vit-large-patch32-224-in21k", "image", 1024, 306, _APACHE, "224 px", used_by=_CUB
    ),
    "dinov2-small": Alias("hf", "facebook/dinov2-small", "image", 384, 22.1, _APACHE, "224 px"),
    "dinov2-base": Alias("hf", "facebook/dinov2-base", "image", 768, 86.6, _APACHE, "224 px"),
    "dinov2-large": Alias("hf", "facebook/dinov2-large", "image", 1024, 304, _APACHE, "224 px"),
    "dinov2-small-reg": Alias("hf", "facebook/dinov2-with-registers-small", "image", 384, 22.1, _APACHE, "224 px"),
    "dinov2-base-reg": Alias("hf", "facebook/dinov2-with-registers-base", "image", 768, 86.6, _APACHE, "224 px"),
    "dinov2-large-reg": Alias("hf", "facebook/dinov2-with-registers-large", "image", 1024, 304, _APACHE, "224 px"),
    "dinov3-small": Alias(
        "hf", "facebook/dinov3-vits16-pretrain-lvd1689m", "image", 384, 21.6, _DINOV3, "224 px", gated=True
    ),
    "dinov3-base": Alias(
        "hf", "facebook/dinov3-vitb16-pretrain-lvd1689m", "image", 768, 85.7, _DINOV3, "224 px", gated=True
    ),
    "dinov3-large": Alias(
        "hf", "facebook/dinov3-vitl16-pretrain-lvd1689m", "image", 1024, 303, _DINOV3, "224 px", gated=True
    ),
    "dinov3-convnext-tiny": Alias(
        "hf", "facebook/dinov3-convnext-tiny-pretrain-lvd1689m", "image", 768, 27.8, _DINOV3, "224 px", gated=True
    ),
    "dinov3-convnext-base": Alias(
        "hf", "facebook/dinov3-convnext-base-pretrain-lvd1689m", "image", 1024, 87.6, _DINOV3, "224 px", gated=True
    ),
    "eva02-base": Alias(
        "timm", "timm/eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", "image", 768, 86.3, _MIT, "448 px"
    ),
    "eva02-large": Alias(
        "timm", "timm/eva02_large_patch14_448.mim_m38m_ft_in22k_in1k", "image", 1024, 304, _MIT, "448 px"
    ),
    # images and texts in one space
    "clip-base": Alias("hf", "openai/clip-vit-base-patch32", "both", 512, 151, _MIT, "224 px, 77 tokens"),
    "clip-large": Alias("hf", "openai/clip-vit-large-patch14", "both", 768, 428, _MIT, "224 px, 77 tokens"),
    "siglip2-base": Alias("hf", "google/siglip2-base-patch16-224", "both", 768, 375, _APACHE, "224 px, 64 tokens"),
    "siglip2-so400m": Alias(
        "hf", "google/siglip2-so400m-patch14-384", "both", 1152, 1136, _APACHE, "384 px, 64 tokens"
    ),
    # texts, in English
    "bert": Alias("hf", "bert-base-uncased", "text", 768, 109, _APACHE, "512 tokens", used_by=_CUB),
    "roberta": Alias("hf", "roberta-base", "text", 768, 124, _MIT, "512 tokens", used_by=_CUB),
    "albert": Alias("hf", "albert-base-v2", "text", 768, 11.1, _APACHE, "512 tokens", used_by=_LABELS),
    "mpnet": Alias(
        "st", "sentence-transformers/all-mpnet-base-v2", "text", 768, 109, _APACHE, "384 tokens", used_by=_CUB
    ),
    "bge-base": Alias("st", "BAAI/bge-base-en-v1.5", "text", 768, 109, _MIT, "512 tokens", prompts=_BGE_PROMPTS),
    "bge-large": Alias("st", "BAAI/bge-large-en-v1.5", "text", 1024, 334, _MIT, "512 tokens", prompts=_BGE_PROMPTS),
    "gte-base": Alias("st", "thenlper/gte-base", "text", 768, 109, _MIT, "512 tokens"),
    "gte-large": Alias("st", "thenlper/gte-large", "text", 1024, 334, _MIT, "512 tokens"),
    "gte-modernbert": Alias("st", "Alibaba-NLP/gte-modernbert-base", "text", 768, 149, _APACHE, "8192 tokens"),
    # texts, in Spanish or in many languages
    "bert-spanish": Alias("hf", "dccuchile/bert-base-spanish-wwm-uncased", "text", 768, 109, "CC-BY-4.0", "512 tokens"),
    "bert-multilingual": Alias("hf", "bert-base-multilingual-cased", "text", 768, 177, _APACHE, "512 tokens"),
    "use-multilingual": Alias(
        "st",
        "sentence-transformers/distiluse-base-multilingual-cased-v2",
        "text",
        512,
        135,
        _APACHE,
        "128 tokens",
        used_by=f"{_VQA}, for GUSE",
    ),
    "multilingual-e5-base": Alias(
        "st", "intfloat/multilingual-e5-base", "text", 768, 277, _MIT, "512 tokens", _E5, prompts=_E5_PROMPTS
    ),
    "multilingual-e5-large": Alias(
        "st", "intfloat/multilingual-e5-large", "text", 1024, 559, _MIT, "512 tokens", _E5, prompts=_E5_PROMPTS
    ),
    "bge-m3": Alias("st", "BAAI/bge-m3", "text", 1024, 567, _MIT, "8192 tokens"),
    "qwen3-embedding": Alias(
        "st", "Qwen/Qwen3-Embedding-0.6B", "text", 1024, 596, _APACHE, "32768 tokens", prompts=_QWEN_PROMPTS
    ),
    # what the demo uses
    "demo-image": Alias("timm", str(SHIPPED / "image"), "image", 1024, 0.57, _MIT, "112 px", used_by="demo"),
    "demo-text": Alias("hf", str(SHIPPED / "text"), "text", 128, 0.34, _MIT, "64 tokens", used_by="demo"),
}
"""Alias, to what it means. A new line needs its published configuration in ``tests/tiny_hub.py``."""
