"""Preprocessing of images: equal to the libraries' own, and nothing unusual passes in silence."""

from __future__ import annotations

import io
import random
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.hf_images import preprocessing_of as of_folder
from embedcache.backbones.images import ImagePreprocessing, stated
from embedcache.backbones.timm_family import preprocessing_of as of_config
from embedcache.errors import CheckpointError, ItemError, UsageError
from tests.tiny_checkpoints import VIT_PROCESSOR, deep_png, encoded, picture, write_json

AS_IT_IS = ImagePreprocessing("bilinear", None, None, None, (0.0,) * 3, (1.0,) * 3)
SIZES = [(301, 397), (397, 301), (257, 257), (100, 333), (333, 100), (64, 50), (500, 501), (7, 9), (224, 224), (1, 40)]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
ORIENTATION = 0x0112
"""EXIF's tag; 6 is a photo to be turned by a quarter."""

TIMM_CONFIGS: dict[str, dict[str, Any]] = {
    "imagenet": {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"},
    "odd crop": {"input_size": (3, 225, 225), "crop_pct": 0.9, "interpolation": "bilinear"},
    "no crop": {"input_size": (3, 96, 96), "crop_pct": 1.0, "interpolation": "bicubic", "mean": (0.5,) * 3},
    "squash": {"input_size": (3, 64, 80), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {**VIT_PROCESSOR, "size": {"height": 224, "width": 224}},
    "vit of long ago": {
        "do_resize": True, "size": 96, "resample": 2, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "feature_extractor_type": "ViTFeatureExtractor",
    },
    "bit": {
        **VIT_PROCESSOR, **IMAGENET, "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
        "do_center_crop": True, "crop_size": {"height": 225, "width": 225}, "resample": 3,
    },
    "mobilenet": {
        **VIT_PROCESSOR, "image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 256},
        "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
    },
    "no rescaling": {**VIT_PROCESSOR, "do_rescale": False, "image_mean": [127.0] * 3, "image_std": [60.0] * 3},
    "no mean": {**VIT_PROCESSOR, "do_normalize": False},
}  # fmt: skip


def normalised(preprocessing: ImagePreprocessing, payload: bytes) -> npt.NDArray[np.float32]:
    """What the model sees: the encoder's arithmetic, in numpy."""
    pixels = preprocessing(payload).array.astype(np.float32) * preprocessing.scale
    shape = (3, 1, 1)
    return np.asarray(
        (pixels - np.reshape(preprocessing.mean, shape)) / np.reshape(preprocessing.std, shape), np.float32
    )


def processor_folder(folder: Path, document: dict[str, Any]) -> Path:
    write_json(folder / "preprocessor_config.json", document)
    write_json(folder / "config.json", {"model_type": "vit"})
    return folder


def photos(shared_data: Path) -> list[bytes]:
    """Four real photos, and crops of odd sizes from one."""
    paths = sorted((shared_data / "coco33" / "images").glob("*.jpg"))[:4]
    whole = Image.open(paths[0]).convert("RGB")
    return [path.read_bytes() for path in paths] + [encoded(whole.resize(size)) for size in SIZES]


@pytest.mark.parametrize("config", TIMM_CONFIGS.values(), ids=TIMM_CONFIGS)
def test_pixels_equal_timms_own_transform(shared_data: Path, config: dict[str, Any]) -> None:
    data = resolve_data_config({}, pretrained_cfg=config)
    transform = create_transform(**data, is_training=False)
    ours = of_config(config)
    for payload in photos(shared_data):
        theirs = transform(Image.open(io.BytesIO(payload)).convert("RGB")).numpy()
        np.testing.assert_allclose(normalised(ours, payload), theirs, atol=1e-5)


@pytest.mark.parametrize("document", PROCESSORS.values(), ids=PROCESSORS)
def test_pixels_equal_the_image_processors_own(tmp_path: Path, shared_data: Path, document: dict[str, Any]) -> None:
    """Within two grey levels at any pixel and a quarter on average: they resize tensors, we resize with Pillow."""
    folder = processor_folder(tmp_path, document)
    processor, ours = AutoImageProcessor.from_pretrained(folder), of_folder(folder, "tiny")
    level = ours.scale * 1.0001 / np.reshape(ours.std, (3, 1, 1))
    for payload in photos(shared_data):
        image = Image.open(io.BytesIO(payload)).convert("RGB")
        theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        found = normalised(ours, payload)
        assert found.shape == theirs.shape
        off = np.abs(found - theirs) / level
        assert off.max() <= 2.01
        assert off.mean() <= 0.25


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}, CheckpointError),
        ({"image_processor_type": "NoSuchImageProcessor"}, CheckpointError),
    ],
)
def test_a_processor_that_does_more_is_refused(tmp_path: Path, change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="tiny"):
        of_folder(processor_folder(tmp_path, {**VIT_PROCESSOR, **change}), "tiny")


def test_images_that_would_keep_their_shape_need_a_size(tmp_path: Path) -> None:
    document = {**PROCESSORS["bit"], "do_center_crop": False}
    own = of_folder(processor_folder(tmp_path, document), "tiny")
    with pytest.raises(UsageError, match="--image-size"):
        stated(own, BackboneSettings())
    sized = stated(own, BackboneSettings(image_size=64))
    assert {sized(encoded(picture(*size))).array.shape for size in SIZES} == {(3, 64, 64)}


@pytest.mark.parametrize("config", TIMM_CONFIGS.values(), ids=TIMM_CONFIGS)
def test_image_size_scales_the_whole_transform(config: dict[str, Any]) -> None:
    changed = stated(of_config(config), BackboneSettings(image_size=64))
    assert changed(encoded(picture(90, 120))).array.shape == (3, 64, 64)
    if changed.shortest_edge is not None:
        own = of_config(config)
        assert own.shortest_edge is not None
        assert own.crop is not None
        assert changed.shortest_edge == pytest.approx(64 * own.shortest_edge / own.crop[0], abs=0.5)


@pytest.mark.parametrize(
    "change", [{"crop_mode": "border"}, {"input_size": (1, 32, 32)}, {"input_size": (3, 32, 48)}], ids=str
)
def test_a_timm_transform_that_is_not_known_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="not one that is known|not known here"):
        of_config({**TIMM_CONFIGS["imagenet"], **change})


def rotated_photo(kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(picture(48, 64), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_followed_as_each_library_does(tmp_path: Path, kind: str) -> None:
    payload = rotated_photo(kind)
    path = tmp_path / "photo"
    path.write_bytes(payload)
    as_transformers = np.asarray(load_image(str(path))).transpose(2, 0, 1)
    as_timm = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert as_transformers.shape == (3, 64, 48)
    np.testing.assert_array_equal(replace(AS_IT_IS, exif=True)(payload).array, as_transformers)
    np.testing.assert_array_equal(AS_IT_IS(payload).array, as_timm)


@pytest.mark.parametrize("tag", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_followed_with_a_value_range_too(tag: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    payload = encoded(picture(48, 64), kind, exif=exif)
    plain = replace(AS_IT_IS, exif=True)
    np.testing.assert_array_equal(replace(plain, value_range=(0.0, 255.0))(payload).array, plain(payload).array)
    as_stored = replace(AS_IT_IS, value_range=(0.0, 255.0))(payload).array
    np.testing.assert_array_equal(as_stored, AS_IT_IS(payload).array)


def test_timm_does_not_rotate_and_transformers_does(tmp_path: Path) -> None:
    assert not of_config(TIMM_CONFIGS["imagenet"]).exif
    assert of_folder(processor_folder(tmp_path, VIT_PROCESSOR), "tiny").exif


def modes() -> dict[str, Image.Image]:
    colours = Image.fromarray(picture(20, 24))
    transparent = colours.copy()
    transparent.putalpha(Image.fromarray(picture(20, 24, seed=1)[:, :, 0]))
    grey = colours.convert("L")
    grey_alpha = grey.convert("LA")
    palette = colours.quantize(32)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    return {
        "RGB": colours, "RGBA": transparent, "L": grey, "LA": grey_alpha, "P": palette, "P with alpha": see_through,
        "1": grey.convert("1"), "CMYK": colours.convert("CMYK"),
    }  # fmt: skip


@pytest.mark.parametrize("mode", modes())
def test_alpha_grey_palette_and_cmyk_become_colours_as_the_libraries_make_them(mode: str) -> None:
    payload = encoded(modes()[mode], "TIFF" if mode == "CMYK" else "PNG")
    theirs = np.asarray(Image.open(io.BytesIO(payload)).convert("RGB")).transpose(2, 0, 1)
    found = AS_IT_IS(payload).array
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, theirs)
    assert theirs.std() > 10


def test_cmyk_jpeg_is_read_in_its_own_colours() -> None:
    payload = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG")
    red, green, blue = AS_IT_IS(payload).array.mean((1, 2))
    assert red < 10
    assert min(green, blue) > 240


DEEP = np.linspace(0, 65535, 20 * 24).reshape(20, 24).astype(np.uint16)
PLANES = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1], DEEP // 2, DEEP // 3], -1)


def tiff(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


CHANNELS_LAST: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
EIGHT = (PLANES >> 8).astype(np.uint8)
BEYOND_RGB: dict[str, tuple[Any, tuple[float, float], tuple[int, ...], npt.NDArray[Any]]] = {
    "16-bit grey PNG": (lambda: deep_png(DEEP), (0, 65535), (0,), PLANES[:, :, :1] / 65535),
    "16-bit colour PNG": (lambda: deep_png(PLANES[:, :, :3]), (0, 65535), (0, 1, 2), PLANES[:, :, :3] / 65535),
    "16-bit PNG with alpha": (lambda: deep_png(PLANES[:, :, :4]), (0, 65535), (2, 1, 0), PLANES[:, :, 2::-1] / 65535),
    "16-bit grey TIFF": (lambda: tiff(DEEP), (0, 65535), (0,), PLANES[:, :, :1] / 65535),
    "16-bit colour TIFF": (lambda: tiff(PLANES[:, :, :3]), (0, 65535), (0, 1, 2), PLANES[:, :, :3] / 65535),
    "12 of 16 bits": (lambda: tiff(DEEP // 16), (0, 4095), (0,), (PLANES[:, :, :1] // 16) / 4095),
    "32-bit integers": (lambda: tiff(DEEP.astype(np.int32) - 100), (-100, 65435), (0,), PLANES[:, :, :1] / 65535),
    "float TIFF": (lambda: tiff((DEEP / 65535).astype(np.float32)), (0, 1), (0,), PLANES[:, :, :1] / 65535),
    "clipped floats": (lambda: tiff((DEEP / 30000).astype("f4")), (0, 1), (0,), np.clip(PLANES[:, :, :1] / 3e4, 0, 1)),
    "five channels": (lambda: tiff(PLANES, **CHANNELS_LAST), (0, 65535), (4, 2, 0), PLANES[:, :, [4, 2, 0]] / 65535),
    "five pages": (
        lambda: tiff(PLANES.transpose(2, 0, 1), photometric="minisblack"), (0, 65535), (4, 3, 1),
        PLANES[:, :, [4, 3, 1]] / 65535,
    ),
    "five 8-bit channels": (lambda: tiff(EIGHT, **CHANNELS_LAST), (0, 255), (4, 2, 0), EIGHT[:, :, [4, 2, 0]] / 255),
    "five 8-bit pages": (
        lambda: tiff(EIGHT.transpose(2, 0, 1), photometric="minisblack"), (0, 255), (4, 3, 1),
        EIGHT[:, :, [4, 3, 1]] / 255,
    ),
    "four channels without alpha": (
        lambda: tiff(EIGHT[:, :, :4], photometric="rgb", extrasamples=["unspecified"]), (0, 255), (0, 1, 2),
        EIGHT[:, :, :3] / 255,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BEYOND_RGB)
def test_deep_float_and_many_channel_images_need_a_stated_range(case: str) -> None:
    write, value_range, channels, expected = BEYOND_RGB[case]
    payload = write()
    with pytest.raises(ItemError, match="--value-range"):
        AS_IT_IS(payload)
    settings = BackboneSettings(value_range=value_range, channels=channels)
    found = stated(replace(AS_IT_IS, size=(20, 24)), settings)(payload).array
    assert (found.shape, found.dtype) == ((3, 20, 24), np.float32)
    planes = np.broadcast_to(expected, (20, 24, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(found / 255, planes, atol=1e-5)


def test_grey_with_alpha_of_16_bits_is_refused_with_a_way_out() -> None:
    payload = deep_png(PLANES[:, :, :2])
    with pytest.raises(ItemError, match="--value-range"):
        AS_IT_IS(payload)
    with pytest.raises(ItemError, match="save it as a TIFF"):
        replace(AS_IT_IS, value_range=(0.0, 65535.0), channels=(0,))(payload)


def test_rgba_tiff_is_a_photo() -> None:
    payload = encoded(modes()["RGBA"], "TIFF")
    np.testing.assert_array_equal(AS_IT_IS(payload).array, np.asarray(modes()["RGB"]).transpose(2, 0, 1))


def test_channels_must_be_stated_and_there() -> None:
    wide = replace(AS_IT_IS, value_range=(0.0, 65535.0))
    with pytest.raises(ItemError, match="5 channels: state one or three"):
        wide(tiff(PLANES, **CHANNELS_LAST))
    with pytest.raises(ItemError, match="1 channels"):
        replace(wide, channels=(0, 1, 2))(tiff(DEEP))


def test_an_8_bit_image_among_deep_ones_is_a_failure_and_not_black() -> None:
    wide = replace(AS_IT_IS, value_range=(0.0, 65535.0))
    with pytest.raises(ItemError, match="8-bit as decoded.*65535"):
        wide(encoded(picture(8, 8)))


def test_with_its_own_range_an_8_bit_image_is_itself() -> None:
    ranged = replace(AS_IT_IS, value_range=(0.0, 255.0))
    for mode in ("RGB", "L", "P", "1"):
        payload = encoded(modes()[mode])
        np.testing.assert_allclose(ranged(payload).array, AS_IT_IS(payload).array)


def bomb(side: int) -> bytes:
    """A small file that promises ``side`` × ``side`` pixels."""
    header = bytearray(deep_png(np.zeros((1, 1), np.uint16)))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    return bytes(header)


BAD = {
    "truncated": (lambda: encoded(picture(64, 64), "JPEG")[:900], "cannot be decoded: .*truncated"),
    "empty": (lambda: b"", "the file is empty"),
    "no image": (lambda: b"<html>Not found</html>", "no image of a known format"),
    "a program's document": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image"),
    "a large bomb": (lambda: bomb(30_000), "decompression bomb"),
    "a smaller bomb": (lambda: bomb(10_000), "decompression bomb"),
    "half a header": (lambda: encoded(picture(8, 8))[:20], "cannot be decoded"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("ranged", [False, True])
def test_what_is_no_whole_image_is_a_failure_with_its_reason(case: str, ranged: bool) -> None:
    write, reason = BAD[case]
    preprocessing = replace(AS_IT_IS, value_range=(0.0, 255.0), channels=(0,)) if ranged else AS_IT_IS
    with pytest.raises(ItemError, match=reason):
        preprocessing(write())


def test_a_tiff_that_promises_too_much_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = tiff(np.zeros((64, 64), np.uint16))
    ranged = replace(AS_IT_IS, value_range=(0.0, 65535.0))
    assert ranged(payload).array.shape == (3, 64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.raises(ItemError, match="decompression bomb"):
        ranged(payload)
    stack = tiff(np.zeros((70, 8, 8), np.uint16), photometric="minisblack", metadata=None)
    with pytest.raises(ItemError, match="70 pages"):
        ranged(stack)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "deep TIFF"])
@pytest.mark.parametrize("ranged", [False, True])
def test_damage_never_raises_anything_but_an_item_error(kind: str, ranged: bool) -> None:
    rng = random.Random(7)
    whole = tiff(PLANES[:, :, :3]) if kind == "deep TIFF" else encoded(picture(20, 24), kind)
    preprocessing = replace(AS_IT_IS, size=(8, 8), exif=True)
    if ranged:
        preprocessing = replace(preprocessing, value_range=(0.0, 255.0), channels=(0,))
    outcomes = set()
    for _ in range(120):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(min(len(damaged), 300))
            damaged[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        try:
            outcomes.add(preprocessing(bytes(damaged)).array.shape)
        except ItemError as error:
            outcomes.add("failed" if "\n" not in str(error) else str(error))
    assert "failed" in outcomes
    assert outcomes <= {"failed", (3, 8, 8)}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_threads_do_not_disturb_the_processes_warning_filters() -> None:
    payloads = [bomb(10_000), encoded(picture(40, 40), "JPEG")] * 200
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(outcome, payloads))
    assert warnings.filters == before
    assert found == ["bomb", "image"] * 200


def outcome(payload: bytes) -> str:
    try:
        AS_IT_IS(payload)
    except ItemError as error:
        return "bomb" if "bomb" in str(error) else str(error)
    return "image"


def test_every_timm_config_is_known_or_refused_by_name() -> None:
    """All of timm's registered checkpoints: the transform is ours, or a CheckpointError says what it is."""
    refused = []
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        try:
            assert (of_config(config.to_dict()).crop or (0, 0))[0] > 0
        except CheckpointError:
            refused.append(name)
    assert len(refused) < 0.05 * len(timm.list_pretrained())
