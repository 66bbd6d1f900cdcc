"""From an image's bytes to the array that a backbone takes: one executor for every family.

Decoding and resizing are Pillow's, which lets go of the interpreter while it works. The arithmetic
(rescaling, mean, standard deviation) is left to the device that runs the model, on whole batches.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from embedcache.backbones.base import BackboneSettings, Prepared
from embedcache.errors import ItemError

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True)
class ImagePreprocessing:
    """Everything done to an image before the first layer; all of it is in the key.

    shortest_edge: pixels of the shorter side after resizing (aspect kept); or size: (height, width), squashed.
    crop: (height, width) of the centre crop, its corner rounded to the nearest pixel or down.
    mean, std: per channel, on values in [0, 1] (after ``scale``).
    exif: turn the image upright as its EXIF tag says (transformers does, timm does not).
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
        if image.mode not in EIGHT_BIT_MODES:
            raise ItemError(
                f"its pixels are {image.mode!r}, not 8-bit: state what they range over with --value-range LOW,HIGH"
            )
        if self.exif:
            image = ImageOps.exif_transpose(image)
        return image.convert("RGB")

    def _stated_planes(self, payload: bytes) -> list[Image.Image]:
        """One float plane per stated channel, scaled so that the value range becomes [0, 255]."""
        pixels = read_pixels(payload)
        channels = self.channels or tuple(range(pixels.shape[2]))
        if len(channels) not in (1, 3) or max(channels) >= pixels.shape[2]:
            raise ItemError(f"it has {pixels.shape[2]} channels: state one or three of them with --channels")
        low, high = self.value_range or (0.0, 255.0)
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
    """A decoded Pillow image. Raises ItemError on damage, truncation and decompression bombs."""
    if not payload:
        raise ItemError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(payload))
            image.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ItemError(f"it may be a decompression bomb: {error}") from error
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError) as error:
            raise ItemError(f"it cannot be decoded: {_one_line(error)}") from error
    return image


def read_pixels(payload: bytes) -> npt.NDArray[Any]:
    """Raw numbers of an image of any depth, (height, width, channels). TIFF needs the extra ``[tiff]``."""
    if payload[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        pixels = _read_tiff(payload)
    else:
        pixels = np.asarray(open_image(payload))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.dtype.kind not in "uif":
        raise ItemError(f"it holds {pixels.dtype} {pixels.shape}, not (height, width, channels)")
    if pixels.shape[0] <= 16 < min(pixels.shape[1:]):
        pixels = pixels.transpose(1, 2, 0)
    return pixels


def _read_tiff(payload: bytes) -> npt.NDArray[Any]:
    try:
        import tifffile
    except ImportError:
        return np.asarray(open_image(payload))
    try:
        return np.asarray(tifffile.imread(io.BytesIO(payload)))
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise ItemError(f"it cannot be decoded: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def stated(preprocessing: ImagePreprocessing, settings: BackboneSettings) -> ImagePreprocessing:
    """The checkpoint's own preprocessing with what the user stated about pixels and size in its place."""
    from dataclasses import replace

    changed = replace(preprocessing, value_range=settings.value_range, channels=settings.channels)
    if settings.image_size is None:
        return changed
    side = settings.image_size
    was = (preprocessing.crop or preprocessing.size or (side, side))[0]
    edge = preprocessing.shortest_edge
    return replace(
        changed,
        shortest_edge=None if edge is None else round(edge * side / was),
        size=None if preprocessing.size is None else (side, side),
        crop=None if preprocessing.crop is None else (side, side),
    )
