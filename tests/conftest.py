"""Fixtures that several modules use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; threads that wait for each other are slow

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights, ``../shared/data`` from the repository; skips where it is not there."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data (../shared/data) is not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with a tiny checkpoint of every kind; nothing in it is changed by a test."""
    from tests.tiny_checkpoints import image_checkpoint, sentence_checkpoint, text_checkpoint, timm_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in ("bert", "roberta"):
        text_checkpoint(folder / kind, kind)
    for kind in ("vit", "swin"):
        image_checkpoint(folder / kind, kind)
    sentence_checkpoint(folder / "sentences")
    timm_checkpoint(folder / "cnn")
    timm_checkpoint(folder / "timm_vit", "test_vit")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the hub, and no network."""
    import huggingface_hub

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache
