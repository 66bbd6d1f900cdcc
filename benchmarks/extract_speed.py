"""Extraction: photos a second, beside what decoding alone and the forward pass alone allow together.

The peer is the bound 1 / (1/F + 1/D): F is the rate of the plain model on tensors that are ready, at its best batch
size and memory layout, and D the rate of the backbone's own preprocessing on bytes that are read, each with all cores
to itself. On a CPU both need the same cores, so nothing can be faster; the goal is 0.9 of it, reading, digesting,
storing and syncing included. The photos and weights beside the repository are used where they are, else drawn birds
with the shipped ``demo-image``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch

import embedcache as ec
from benchmarks.rounds import Figure, alternating, seconds, speed_figure
from embedcache.backbones import resolve
from embedcache.backbones.base import Encoder
from embedcache.backbones.encoders import ImageEncoder
from embedcache.datasets.base import walk_images
from embedcache.errors import ItemError
from embedcache.options import usable_cores

SHARED = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "timm_mobilenetv2_100.safetensors"
BATCHES = (2, 4, 8, 16, 32)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
TRIED = 32
SMALL = 112
REPEATS = 7


@dataclass(frozen=True)
class PlainModel:
    """A timm model, how many images it is given at once, and how their numbers lie in memory."""

    module: torch.nn.Module
    batch: int
    layout: torch.memory_format


@dataclass(frozen=True)
class Work:
    """A folder of photos and the backbone that encodes them."""

    photos: Path
    backbone: str
    settings: ec.BackboneSettings


def run(repeats: int | None = None) -> list[Figure]:
    with photos() as work:
        return [_figure(work, repeats or REPEATS), _two_at_once(work, repeats or REPEATS)]


@contextmanager
def photos() -> Iterator[Work]:
    """Real photos and weights where they lie, else drawn ones."""
    if WEIGHTS.is_file() and (SHARED / "clothing").is_dir():
        settings = ec.BackboneSettings(weights=str(WEIGHTS))
        yield Work(SHARED / "clothing", "timm:mobilenetv2_100", settings)
        return
    from embedcache.demo.birds import draw_cub

    with TemporaryDirectory() as folder:
        root = draw_cub(Path(folder) / "birds", species=10, images_per_species=30)
        yield Work(root, "demo-image", ec.BackboneSettings())


def _figure(work: Work, repeats: int) -> Figure:
    payloads = [(work.photos / name).read_bytes() for name in walk_images(work.photos)]
    encoder = resolve(work.backbone, work.settings).load("cpu")
    pixels = _pixels(encoder, payloads)
    plain = _best(work, pixels)
    pixels = pixels.contiguous(memory_format=plain.layout)

    def bound() -> float:
        return seconds(lambda: _decode(encoder, payloads)) + seconds(lambda: _forward(plain, pixels))

    extract_photos(work)
    rounds = alternating(lambda: extract_photos(work), bound, repeats)
    note = (
        f"{len(payloads)} photos, {work.backbone}, {usable_cores()} cores; "
        f"the plain model is at its best with {plain.batch} a batch, {str(plain.layout).removeprefix('torch.')}"
    )
    return speed_figure("extract_speed", "bound", rounds, lambda took: f"{len(payloads) / took:.1f}/s", 0.9, note)


def _two_at_once(work: Work, repeats: int) -> Figure:
    """Two backbones in one command, which decode each photo once, beside one command for each."""
    sizes = (SMALL, 2 * SMALL)
    small, large = (replace(work, settings=replace(work.settings, image_size=size)) for size in sizes)
    together = partial(extract_photos, small, beside=large)
    rounds = alternating(together, lambda: extract_photos(small) + extract_photos(large), repeats)
    note = f"{work.backbone} at {sizes[0]} and {sizes[1]} pixels: decoding shared"
    return speed_figure("two backbones", "in turn", rounds, lambda took: f"{took:.2f} s", None, note)


def extract_photos(work: Work, *, sync: bool = True, beside: Work | None = None) -> float:
    """Seconds of encoding and writing through the real path, of all backbones; loading a model is not in them."""
    with TemporaryDirectory() as cache:
        options = ec.Options(device="cpu", sync=sync)
        backbones = [resolve(one.backbone, one.settings) for one in (work, beside) if one is not None]
        found = ec.extract("folder", work.photos, backbones=backbones, name="photos", cache=cache, options=options)
        return sum(one.seconds for one in found)


def _decode(encoder: Encoder, payloads: Sequence[bytes]) -> None:
    """The backbone's own preprocessing on all cores; nothing is kept."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(lambda payload: len(encoder.prepare([payload])), payloads):
            pass


@torch.inference_mode()
def _forward(plain: PlainModel, pixels: torch.Tensor) -> None:
    """The plain model on tensors that are ready, nothing else."""
    for start in range(0, len(pixels), plain.batch):
        plain.module(pixels[start : start + plain.batch])


def _best(work: Work, pixels: torch.Tensor) -> PlainModel:
    """The batch size and memory layout at which the plain model is fastest: the best of four turns of each."""
    models = {layout: _model(work).to(memory_format=layout) for layout in LAYOUTS}
    plain = [PlainModel(models[layout], batch, layout) for layout in LAYOUTS for batch in BATCHES]
    ready = {layout: pixels[:TRIED].contiguous(memory_format=layout) for layout in LAYOUTS}
    turns = [[seconds(partial(_forward, one, ready[one.layout])) for one in plain] for _ in range(4)]
    fastest = np.argmin(np.min(turns, axis=0))
    return plain[int(fastest)]


def _model(work: Work) -> torch.nn.Module:
    """The timm model as the family loads it, in the default layout."""
    module = cast(ImageEncoder, resolve(work.backbone, work.settings).load("cpu")).module
    return module.to(memory_format=torch.contiguous_format)


def _pixels(encoder: Encoder, payloads: Sequence[bytes]) -> torch.Tensor:
    """Tensors of the right shape, ready to go in: what is in them does not change the time."""
    first = next(item for item in encoder.prepare(payloads[:16]) if not isinstance(item, ItemError))
    return torch.randn(len(payloads), *first.array.shape)
