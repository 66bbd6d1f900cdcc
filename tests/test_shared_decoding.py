"""Several backbones of one data set: each image is decoded once, and every file is as if it were extracted alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import embedcache as ec
from embedcache.backbones import images
from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.encoders import ImageEncoder
from embedcache.backbones.images import ImagePreprocessing, SharedDecoding, decode_rgb
from embedcache.errors import ItemError
from embedcache.provenance import EncoderIdentity, Modality
from embedcache.store import FeatureFile

N = 300


class Means(torch.nn.Module):
    """The mean of each channel in each quarter of the image."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)


@dataclass(frozen=True)
class Tiny:
    """A real image encoder of a stated size. full: its device has no room while another encoder is on it."""

    name: str
    side: int
    exif: bool = False
    full: bool = False
    modality: Modality = "image"
    settings: BackboneSettings = field(default_factory=BackboneSettings)
    record: Mapping[str, Any] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)

    @property
    def preprocessing(self) -> ImagePreprocessing:
        return ImagePreprocessing("bilinear", None, (self.side,) * 2, None, (0.0,) * 3, (1.0,) * 3, exif=self.exif)

    @property
    def identity(self) -> EncoderIdentity:
        return EncoderIdentity("image", "fake", f"{self.side:032x}", {}, "mean", self.preprocessing.to_dict())

    def load(self, device: str) -> ImageEncoder:
        self.loads[self.name] += 1
        if self.full and self.loads[self.name] == 1:
            raise torch.OutOfMemoryError("no room")
        module = Means()
        return ImageEncoder(module, self.preprocessing, module, device)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(N):
        image = Image.fromarray(rng.integers(0, 255, (20, 12, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image.save(folder / f"{number:03d}.jpg", exif=exif)
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each payload was decoded."""
    counts: Counter[bytes] = Counter()

    def counting(payload: bytes) -> Image.Image:
        counts[payload] += 1
        return decode_rgb(payload)

    monkeypatch.setattr(images, "decode_rgb", counting)
    return counts


def extract(photos: Path, *backbones: Tiny, cache: str = "cache", **options: Any) -> list[ec.Extraction]:
    return ec.extract(photos, backbones=list(backbones), cache=photos.parent / cache, options=ec.Options(**options))


def arrays(done: ec.Extraction) -> dict[str, Any]:
    file = FeatureFile(Path(str(done.path)))
    return {name: np.array(getattr(file, name)) for name in ("ids", "features", "content", "status")}


BACKBONES = (Tiny("a", 8), Tiny("b", 16, exif=True), Tiny("c", 24))


def test_each_image_is_decoded_once_and_each_file_is_as_if_alone(photos: Path, decoded: Counter[bytes]) -> None:
    together = extract(photos, *BACKBONES)
    good = {payload: n for payload, n in decoded.items() if payload != b"no image"}
    assert len(good) == N
    assert set(good.values()) == {1}
    assert [one.backbone for one in together] == ["a", "b", "c"]
    alone = [extract(photos, backbone, cache="alone")[0] for backbone in BACKBONES]
    for one, other in zip(together, alone, strict=True):
        assert (one.fingerprint, one.n_encoded, one.n_failed) == (other.fingerprint, N + 1, 1)
        for name, array in arrays(one).items():
            np.testing.assert_array_equal(array, arrays(other)[name])


def test_a_backbone_that_is_there_already_takes_no_part(photos: Path, decoded: Counter[bytes]) -> None:
    extract(photos, BACKBONES[0])
    decoded.clear()
    actions = [one.action for one in extract(photos, *BACKBONES)]
    assert actions == ["reuse", "extract", "extract"]
    assert max(n for payload, n in decoded.items() if payload != b"no image") == 1


def test_where_one_fails_the_others_keep_what_they_committed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ImageEncoder.forward

    def failing(self: ImageEncoder, batch: Any) -> torch.Tensor:
        if len(batch) and batch[0].array.shape[1] == 16 and failing.calls > 60:  # type: ignore[attr-defined]
            raise RuntimeError("the device is gone")
        failing.calls += 1  # type: ignore[attr-defined]
        return forward(self, batch)

    failing.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(ImageEncoder, "forward", failing)
    with pytest.raises(RuntimeError, match="the device is gone"):
        extract(photos, *BACKBONES, batch_size=4)
    monkeypatch.undo()
    done = extract(photos, *BACKBONES)
    assert done[0].action == "resume"
    assert done[0].n_encoded < N
    for one, other in zip(done, extract(photos, *BACKBONES, cache="alone"), strict=True):
        np.testing.assert_array_equal(arrays(one)["features"], arrays(other)["features"])


def test_a_backbone_that_finds_no_room_runs_after_the_others(photos: Path) -> None:
    late = Tiny("late", 8, full=True)
    done = extract(photos, BACKBONES[1], late, BACKBONES[2])
    assert [one.action for one in done] == ["extract"] * 3
    assert late.loads["late"] == 2


def test_the_same_encoder_under_two_names_is_run_once(photos: Path) -> None:
    done = extract(photos, Tiny("a", 8), Tiny("a", 8))
    assert [(one.action, one.n_encoded) for one in done] == [("extract", N + 1), ("reuse", 0)]


def test_pixels_that_are_kept_stay_below_the_limit(decoded: Counter[bytes]) -> None:
    payloads = []
    for value in range(6):
        buffer = BytesIO()
        Image.new("RGB", (10, 10), (value, 0, 0)).save(buffer, "PNG")
        payloads.append(buffer.getvalue())
    shared = SharedDecoding(2, limit=3 * 300)
    for payload in payloads:
        shared(payload)
    assert [decoded[payload] for payload in payloads] == [1] * 6
    for payload in reversed(payloads):
        assert shared(payload).getpixel((0, 0)) == decode_rgb(payload).getpixel((0, 0))
    assert [decoded[payload] for payload in payloads] == [2, 2, 2, 1, 1, 1]
    with pytest.raises(ItemError, match="no image"):
        shared(b"no image")
