"""From an image's bytes to the array that a backbone takes: one executor for every family.

Decoding and resizing are Pillow's, which lets go of the interpreter while it works. The arithmetic
(rescaling, mean, standard deviation) is left to the device that runs the model, on whole batches.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from embedcache.backbones.base import BackboneSettings, Prepared
from embedcache.errors import ItemError, UsageError

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded, whatever a file is called. Pillow knows more, and runs another program for some (EPS)."""
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
MOST_PAGES = 64
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class ImagePreprocessing:
    """Everything done to an image before the first layer; all of it is in the key.

    shortest_edge: pixels of the shorter side after resizing (aspect kept); or size: (height, width), squashed.
    crop: (height, width) of the centre crop, its corner rounded to the nearest pixel or down.
    mean, std: per channel, on values in [0, 1] (after ``scale``).
    exif: turn the image upright as its EXIF tag says (transformers does, timm does not); a TIFF with a value range
    stays as it is stored.
    """

    interpolation: str
    shortest_edge: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    crop_rounding: Literal["nearest", "down"] = "nearest"
    exif: bool = False
    value_range: tuple[float, float] | None = None
    channels: tuple[int, ...] | None = None
    decoder: str = "pillow"

    def to_dict(self) -> dict[str, Any]:
        """JSON for the key."""
        return asdict(self)

    def __call__(self, payload: bytes) -> Prepared:
        """Bytes of an image file to (3, height, width): uint8, or float32 in [0, 255] with a value range.

        Raises ItemError on anything that is not an image that this preprocessing can read whole.
        """
        planes = self._stated_planes(payload) if self.value_range else [self._rgb(payload)]
        arrays = [np.asarray(self._cropped(self._resized(plane))) for plane in planes]
        if len(arrays) == 1 and arrays[0].ndim == 3:
            return Prepared(np.ascontiguousarray(arrays[0].transpose(2, 0, 1)))
        return Prepared(np.stack(arrays if len(arrays) == 3 else arrays * 3))

    def _rgb(self, payload: bytes) -> Image.Image:
        image = open_image(payload)
        try:
            if reason := beyond_rgb(image, payload):
                raise ItemError(f"{reason}: state what its numbers range over with --value-range LOW,HIGH")
            upright = ImageOps.exif_transpose(image) if self.exif else image
            return upright.convert("RGB")
        except ItemError:
            raise
        except Exception as error:
            raise ItemError(f"it cannot be decoded: {_one_line(error)}") from error

    def _stated_planes(self, payload: bytes) -> list[Image.Image]:
        """One float plane per stated channel, scaled so that the value range becomes [0, 255]."""
        pixels = read_pixels(payload)
        if self.exif:
            pixels = upright(pixels, payload)
        channels = self.channels or tuple(range(pixels.shape[2]))
        if len(channels) not in (1, 3) or max(channels) >= pixels.shape[2]:
            raise ItemError(f"it has {pixels.shape[2]} channels: state one or three of them with --channels")
        low, high = self.value_range or (0.0, 255.0)
        if pixels.dtype == np.uint8 and high > 255:
            raise ItemError(f"its pixels are 8-bit as decoded, and the value range goes to {high:g}")
        scaled = np.clip((pixels.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
        return [Image.fromarray(np.ascontiguousarray(scaled[:, :, channel])) for channel in channels]

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.size is not None:
            target = self.size[::-1]
        elif self.shortest_edge is not None:
            short = min(width, height)
            target = (
                (self.shortest_edge, int(self.shortest_edge * height / width))
                if width == short
                else (int(self.shortest_edge * width / height), self.shortest_edge)
            )
        else:
            return image
        return image if target == image.size else image.resize(target, RESAMPLING[self.interpolation])

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.crop is None:
            return image
        height, width = self.crop
        left, top = (image.width - width) / 2, (image.height - height) / 2
        corner = (round(left), round(top)) if self.crop_rounding == "nearest" else (int(left // 1), int(top // 1))
        box = (*corner, corner[0] + width, corner[1] + height)
        return image if box == (0, 0, *image.size) else image.crop(box)


def open_image(payload: bytes) -> Image.Image:
    """A decoded Pillow image. Raises ItemError on damage, truncation and decompression bombs.

    Runs on threads, so it looks at the size itself: warning filters are the whole process's.
    """
    if not payload:
        raise ItemError("the file is empty")
    try:
        image = Image.open(io.BytesIO(payload), formats=_formats())
        _refuse_bomb(image.width * image.height)
        image.load()
    except ItemError:
        raise
    except Image.DecompressionBombError as error:
        raise ItemError(f"it may be a decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise ItemError(_unidentified(payload)) from error
    except Exception as error:  # decoders meet damage with errors of many kinds (struct, zlib, index, key)
        raise ItemError(f"it cannot be decoded: {_one_line(error)}") from error
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_bomb(numbers: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and numbers > limit:
        raise ItemError(f"it may be a decompression bomb: {numbers:,} pixels, more than {limit:,}")


def _unidentified(payload: bytes) -> str:
    if payload[:4] in TIFF_STARTS:
        return "it is a TIFF that is no photo: state its --value-range LOW,HIGH and --channels"
    return f"it is no image of a known format ({', '.join(FORMATS)})"


def beyond_rgb(image: Image.Image, payload: bytes) -> str | None:
    """Why a decoded image is more than 8-bit RGB or grey; None where it is not.

    Pillow's mode does not say it all: colours of 16 bits, channels beyond alpha and pages after the first are
    dropped on the way to it.
    """
    if image.mode not in EIGHT_BIT_MODES:
        return f"its pixels are {image.mode!r}, not 8-bit"
    if _is_deep_png(payload):
        return "its pixels are 16-bit"
    if image.format != "TIFF":
        return None
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if bits > 8:
        return f"its pixels are {bits}-bit"
    if 0 in tags.get(TiffImagePlugin.EXTRASAMPLES, ()):
        return "it has channels that are neither colour nor alpha"
    return "it holds several pages" if getattr(image, "is_animated", False) else None


def _is_deep_png(payload: bytes) -> bool:
    """Whether a PNG's header says 16 bits."""
    return payload[:8] == b"\x89PNG\r\n\x1a\n" and payload[24:25] == b"\x10"


def read_pixels(payload: bytes) -> npt.NDArray[Any]:
    """Raw numbers of an image of any depth, (height, width, channels), as stored: EXIF is not followed.

    TIFF needs the extra ``[tiff]``.
    """
    if payload[:4] in TIFF_STARTS:
        pixels = _read_tiff(payload)
    elif _is_deep_png(payload):
        pixels = _read_deep_png(payload)
    else:
        image = open_image(payload)
        pixels = np.asarray(image.convert({"P": "RGB", "PA": "RGBA", "1": "L"}.get(image.mode, image.mode)))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.dtype.kind not in "uif":
        raise ItemError(f"it holds {pixels.dtype} {pixels.shape}, not (height, width, channels)")
    if pixels.shape[0] <= 16 < min(pixels.shape[1:]):
        pixels = pixels.transpose(1, 2, 0)
    return pixels


TURNED = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
"""What makes pixels (height, width, channels) upright, by EXIF's tag for orientation (CIPA DC-008, 4.6.4)."""


def upright(pixels: npt.NDArray[Any], payload: bytes) -> npt.NDArray[Any]:
    """Raw pixels turned as the file's EXIF tag says. A TIFF's are left alone: Pillow and tifffile differ on them."""
    if payload[:4] in TIFF_STARTS:
        return pixels
    tag = Image.open(io.BytesIO(payload), formats=_formats()).getexif().get(ExifTags.Base.Orientation, 1)
    return TURNED[tag](pixels) if tag in TURNED else pixels


def _read_tiff(payload: bytes) -> npt.NDArray[Any]:
    try:
        import tifffile
    except ImportError:
        return np.asarray(open_image(payload))
    try:
        with tifffile.TiffFile(io.BytesIO(payload), _multifile=False) as file:
            if len(file.pages) > MOST_PAGES:
                raise ItemError(f"it holds {len(file.pages)} pages; more than {MOST_PAGES} are not read")
            series = file.series[0]
            _refuse_bomb(max(math.prod(sorted(series.shape)[-2:]), series.size // MOST_PAGES))
            return np.asarray(series.asarray())
    except ItemError:
        raise
    except Exception as error:  # as above
        raise ItemError(f"it cannot be decoded: {_one_line(error)}") from error


def _read_deep_png(payload: bytes) -> npt.NDArray[Any]:
    """16-bit PNG. Of colours Pillow keeps the upper bytes alone; read as if low bytes came last, it keeps those."""
    upper = open_image(payload)
    if upper.mode not in ("RGB", "RGBA"):
        return np.asarray(upper)
    try:
        lower = Image.open(io.BytesIO(payload), formats=("PNG",))
        if any(part.args != f"{lower.mode};16B" for part in lower.tile):
            raise ItemError("16-bit grey with alpha is not read from a PNG: save it as a TIFF")
        lower.tile = [part._replace(args=f"{lower.mode};16L") for part in lower.tile]
        lower.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise ItemError(f"it cannot be decoded: {_one_line(error)}") from error
    return np.asarray(np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def stated(preprocessing: ImagePreprocessing, settings: BackboneSettings) -> ImagePreprocessing:
    """The checkpoint's own preprocessing with what the user stated about pixels and size in its place."""
    from dataclasses import replace

    value_range = (
        None if settings.value_range is None else (float(settings.value_range[0]), float(settings.value_range[1]))
    )
    changed = replace(preprocessing, value_range=value_range, channels=settings.channels)
    shapeless = preprocessing.crop is None and preprocessing.size is None
    if settings.image_size is None:
        if shapeless:
            raise UsageError("This checkpoint keeps each image's own shape: state the one to use with --image-size.")
        return changed
    side = settings.image_size
    if shapeless:
        return replace(changed, shortest_edge=side, crop=(side, side))
    was = (preprocessing.crop or preprocessing.size or (side, side))[0]
    edge = preprocessing.shortest_edge
    return replace(
        changed,
        shortest_edge=None if edge is None else round(edge * side / was),
        size=None if preprocessing.size is None else (side, side),
        crop=None if preprocessing.crop is None else (side, side),
    )
