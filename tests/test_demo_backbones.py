"""The two backbones that ship with the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

import embedcache.demo

BACKBONES = Path(embedcache.demo.__file__).parent / "backbones"


def test_shipped_backbones_are_small_and_free_of_paths() -> None:
    paths = [path for path in BACKBONES.rglob("*") if path.is_file()]
    files = {path.relative_to(BACKBONES).as_posix(): path.read_bytes() for path in paths}
    assert {"image/config.json", "image/model.safetensors"} <= files.keys()
    assert {"text/config.json", "text/model.safetensors", "text/tokenizer.json"} <= files.keys()
    assert sum(map(len, files.values())) < 4_000_000
    for name, content in files.items():
        if name.endswith(".json"):
            assert not any(word in content for word in (b"/home", b"/work", b"/tmp", b"/root"))


def test_shipped_image_backbone_loads_as_timm_loads() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(f"local-dir:{BACKBONES / 'image'}", pretrained=True)
    assert model.num_classes == 0
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 112, 112)


def test_shipped_text_backbone_loads_without_missing_keys() -> None:
    transformers = pytest.importorskip("transformers")
    folder = BACKBONES / "text"
    _, loading = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(loading.values())
    tokens = transformers.AutoTokenizer.from_pretrained(folder).tokenize("A Crimson bird of 1907")
    assert "crimson" in tokens
    assert "[UNK]" not in tokens
