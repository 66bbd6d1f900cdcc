"""Damaged feature files and bad items: what the reader and the extraction make of them, counted."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image

import embedcache as ec
from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.encoders import ImageEncoder
from embedcache.backbones.images import ImagePreprocessing
from embedcache.cache import failures
from embedcache.provenance import EncoderIdentity, Modality
from embedcache.store import DONE, FeatureFile
from embedcache.verification import verify
from tests.fakes import FakeBackbone, known_vector
from tests.faults.campaigns import Count, Processes
from tests.faults.world import DIM, World

NAME = "photos"
AT_ONCE = 100
SIDE = 24
COMPARED = ("ids", "features", "content", "status")
SHARE = 100
"""One item in so many is bad, of each kind."""

# ------------------------------------------------------------------------------------------------- damaged bytes

Edit = tuple[str, int, int]
"""``("flip", byte, bit)`` or ``("cut", length, 0)``."""


@dataclass(frozen=True)
class Sealed:
    """A cache with one sealed file, right to the last byte, and the places in it where nothing but vectors lies."""

    cache: str
    path: str
    features: tuple[int, int]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return Path(self.path).stat().st_size


def seal(folder: Path, n: int = 500) -> Sealed:
    """Extract ``n`` images, some of which fail."""
    world = World(str(folder), n=n).write()
    done = ec.extract(
        "folder",
        world.photos,
        backbones=[FakeBackbone(dim=DIM)],
        cache=folder / "cache",
        options=ec.Options(progress=False, sync=False),
    )[0]
    assert done.path is not None
    extent = FeatureFile(done.path).header.extents["features"]
    return Sealed(str(folder / "cache"), str(done.path), (extent.offset, extent.end))


def bit_flips(folder: Path, processes: Processes, times: int, seed: int = 0) -> Count:
    """One random bit each, half of them anywhere and half of them outside ``/features``: found, or nothing differs."""
    sealed, chance = seal(folder), random.Random(seed)
    start, end = sealed.features
    outside = [*range(start), *range(end, sealed.size)]
    places = [chance.randrange(sealed.size) if number % 2 else chance.choice(outside) for number in range(times)]
    edits = [("flip", place, chance.randrange(8)) for place in places]
    return _tried(Count("one bit flipped"), sealed, processes, edits, folder)


def truncations(folder: Path, processes: Processes, times: int, seed: int = 0) -> Count:
    """A file cut off at a random length, at nothing, and one byte before its end."""
    sealed, chance = seal(folder), random.Random(seed)
    lengths = [0, sealed.size - 1, *(chance.randrange(sealed.size) for _ in range(times - 2))]
    return _tried(Count("cut short"), sealed, processes, [("cut", length, 0) for length in lengths], folder)


def _tried(count: Count, sealed: Sealed, processes: Processes, edits: Sequence[Edit], folder: Path) -> Count:
    """Each edit in turn, some hundred a process: one that hangs is killed and counts as lost."""
    for start in range(0, len(edits), AT_ONCE):
        some, out = edits[start : start + AT_ONCE], folder / f"{start}.json"
        code = processes.call(read_damaged, sealed, list(some), str(out))
        wrong = json.loads(out.read_text()) if not code else [f"reading ended with {code}, of {some[0]} and the next"]
        count.tried += len(some)
        count.lost += wrong
    return count


def read_damaged(sealed: Sealed, edits: Sequence[Edit], out: str) -> None:
    """Edit the file, read it as ``verify`` and as a head would, mend it; what was read wrong goes to ``out``."""
    whole = Path(sealed.path).read_bytes()
    right = {name: np.array(getattr(FeatureFile(Path(sealed.path)), name)) for name in COMPARED}
    wrong = []
    for kind, place, bit in edits:
        damaged = bytearray(whole) if kind == "flip" else bytearray(whole[:place])
        if kind == "flip":
            damaged[place] ^= 1 << bit
        Path(sealed.path).write_bytes(damaged)
        if reason := _read_wrong(sealed, right):
            wrong.append(f"{kind} {place} {bit}: {reason}")
    Path(sealed.path).write_bytes(whole)
    Path(out).write_text(json.dumps(wrong))


def _read_wrong(sealed: Sealed, right: Mapping[str, Any]) -> str:
    """Nothing where ``verify`` finds the damage, and where there is none to find."""
    [report] = verify(ec.open(sealed.cache)[NAME])
    if report.damaged:
        return ""
    file = FeatureFile(Path(sealed.path))
    differing = [name for name in COMPARED if not np.array_equal(getattr(file, name), right[name])]
    return f"not found, and {', '.join(differing)} read otherwise" if differing else "not found"


# ----------------------------------------------------------------------------------------------------- bad items


class Colours(torch.nn.Module):
    """The logarithm of each channel's mean: known at once for a picture of one colour, not finite for a black one."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, height, width) to (n, 3)."""
        return pixels.mean((2, 3)).log()


PREPROCESSING = ImagePreprocessing("bilinear", None, (SIDE, SIDE), None, (0.0,) * 3, (1.0,) * 3)


@dataclass(frozen=True)
class ColourBackbone:
    """The real way from a file to a vector, with a model whose answer is known."""

    name: str = "colours"
    modality: Modality = "image"
    settings: BackboneSettings = field(default_factory=BackboneSettings)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> EncoderIdentity:
        """As of a checkpoint without weights."""
        return EncoderIdentity("image", "fake", "0" * 32, {}, "mean", PREPROCESSING.to_dict())

    def load(self, device: str) -> ImageEncoder:
        """Nothing to load."""
        module = Colours()
        return ImageEncoder(module, PREPROCESSING, module, device)


@dataclass(frozen=True)
class Bad:
    """A way for an item to be bad. reason: part of what its failure must say."""

    kind: str
    modality: Modality
    reason: str
    spoil: Callable[[Path], None] | None = None


def _corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200] + b"\0\xff\xd9 and something else")


def _bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that declares 60,000 × 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    whole = bytearray(buffer.getvalue())
    whole[16:24] = struct.pack(">II", 60_000, 60_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    path.write_bytes(whole)


def _black(path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(path, "PNG")


BAD = (
    Bad("corrupt JPEG", "image", "cannot be decoded", _corrupt),
    Bad("missing file", "image", "the file is missing", Path.unlink),
    Bad("zero bytes", "image", "empty", lambda path: path.write_text("") and None),
    Bad("decompression bomb", "image", "decompression bomb", _bomb),
    Bad("vector that is not finite", "image", "not finite", _black),
    Bad("text that is not UTF-8", "text", "not UTF-8"),
)


def bad_items(folder: Path, n: int) -> Count:
    """``n`` samples of a photo and a text, of which each hundredth is bad in each way: all of those are named with
    their reason, and every other row is right."""
    assert n >= SHARE * len(BAD)
    expected = {row: BAD[row % SHARE] for row in range(n) if row % SHARE < len(BAD)}
    colours = _write(folder, n, expected)
    done = ec.extract(
        "table",
        folder / "table.csv",
        backbones=[ColourBackbone(), FakeBackbone("text", "words", dim=DIM)],
        name=NAME,
        cache=folder / "cache",
        options=ec.Options(progress=False),
        id="id",
        image="image",
        text="text",
    )
    count = Count("bad items", tried=len(expected))
    dataset = ec.open(folder / "cache")[NAME]
    reasons = {key.split("@")[0]: found for key, found in failures(dataset).items()}
    items = {row: f"{row:05d}.jpg" for row in range(n)} | {row: _text_id(row) for row in expected if not _is_image(row)}
    for row, bad in expected.items():
        reason = reasons["colours" if bad.modality == "image" else "words"].pop(items[row], None)
        if reason is None or bad.reason not in reason:
            count.lost.append(f"{bad.kind}, row {row}: its reason is {reason!r}")
    count.lost += [f"{item} failed without need: {why}" for found in reasons.values() for item, why in found.items()]
    images, texts = (FeatureFile(Path(str(one.path))) for one in done)
    count.lost += [*_wrong_rows(images, colours), *_wrong_texts(texts, n)]
    return count


def _is_image(row: int) -> bool:
    return BAD[row % SHARE].modality == "image"


def _text(row: int) -> bytes:
    """What stands in the table; each hundredth is not UTF-8."""
    bad = row % SHARE < len(BAD) and not _is_image(row)
    return b"caf\xe9 %d" % row if bad else "café %d".encode() % row


def _text_id(row: int) -> str:
    return xxhash.xxh3_128_hexdigest(_text(row))


def _write(folder: Path, n: int, expected: Mapping[int, Bad]) -> dict[str, np.ndarray]:
    """The table and its photos; the colour of each photo that is as it should be."""
    colours = {}
    with open(folder / "table.csv", "wb") as table:
        table.write(b"id,image,text\n")
        for row in range(n):
            path = folder / f"{row:05d}.jpg"
            colour = (16 + row % 231, 16 + row // 231 % 231, 16 + row * 7 % 231)  # far from black, which is bad
            Image.new("RGB", (SIDE, SIDE), colour).save(path, "JPEG", quality=95)
            bad = expected.get(row)
            if bad is not None and bad.spoil is not None:
                bad.spoil(path)
            else:
                with Image.open(path) as image:
                    colours[path.name] = np.log(np.asarray(image.convert("RGB")).mean((0, 1)) / 255)
            table.write(b"s%d,%05d.jpg,%s\n" % (row, row, _text(row)))
    return colours


def _wrong_rows(file: FeatureFile, right: Mapping[str, np.ndarray]) -> list[str]:
    done = {bytes(file.ids[row]).decode(): file.features[row] for row in np.flatnonzero(file.status == DONE)}
    wrong = [f"{name} has a wrong vector" for name in right if name in done and not _near(done[name], right[name])]
    return wrong + [f"{name} was not kept" for name in right if name not in done]


def _near(found: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.allclose(found, right, rtol=2e-3, atol=2e-3))


def _wrong_texts(file: FeatureFile, n: int) -> list[str]:
    rows = {bytes(item).decode(): row for row, item in enumerate(file.ids)}
    good = [row for row in range(n) if row % SHARE >= len(BAD) or _is_image(row)]
    return [
        f"the text of row {row} has a wrong vector"
        for row in good
        if not np.array_equal(file.features[rows[_text_id(row)]], known_vector(_text(row), DIM))
    ]
