"""The image processors of transformers, translated into the one executor of all families."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedcache.backbones.images import RESAMPLING, ImagePreprocessing
from embedcache.errors import CheckpointError


def preprocessing_of(folder: Path, name: str) -> ImagePreprocessing:
    """A folder's image processor as one of ours, checked against the processor itself on a test image.

    Raises CheckpointError where it does something that ours does not (padding, tiling, cropping by ratio).
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: its image processor cannot be loaded: {error}") from error
    preprocessing = _translated(processor)
    if not _agrees(processor, preprocessing):
        raise CheckpointError(
            f"{name}: its {type(processor).__name__} does more than resize, crop and normalise; that is not known "
            "here. The same network under timm: may be."
        )
    return preprocessing


def _translated(processor: Any) -> ImagePreprocessing:
    size = dict(processor.size or {}) if processor.do_resize else {}
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    names = {int(value): key for key, value in RESAMPLING.items()}
    mean = processor.image_mean if processor.do_normalize else (0.0,) * 3
    std = processor.image_std if processor.do_normalize else (1.0,) * 3
    return ImagePreprocessing(
        interpolation=names[int(processor.resample)],
        shortest_edge=size.get("shortest_edge"),
        size=_height_width(size),
        crop=_height_width(crop),
        mean=tuple(float(value) for value in np.broadcast_to(mean, 3)),
        std=tuple(float(value) for value in np.broadcast_to(std, 3)),
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        crop_rounding="down",
        exif=True,
    )


def _height_width(size: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = size.get("height"), size.get("width")
    return (int(height), int(width)) if height and width else None


def _agrees(processor: Any, preprocessing: ImagePreprocessing) -> bool:
    """Whether both make the same pixels of a smooth test image, within a grey level or two."""
    rows, columns = np.mgrid[0:301, 0:397]
    planes = [rows * 255 / 300, columns * 255 / 396, (rows + columns) * 255 / 696]
    image = Image.fromarray(np.stack(planes, -1).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    ours = preprocessing(buffer.getvalue()).array.astype(np.float32) * preprocessing.scale
    ours = (ours - np.reshape(preprocessing.mean, (3, 1, 1))) / np.reshape(preprocessing.std, (3, 1, 1))
    tolerance = 3 * 255 * preprocessing.scale / 255 / min(preprocessing.std)
    return theirs.shape == ours.shape and float(np.abs(theirs - ours).max()) <= tolerance
