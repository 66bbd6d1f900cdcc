"""Drawn birds in the published layout of CUB-200-2011: pictures, captions and the lists that join them.

Everything follows from a seed. Layout: https://www.vision.caltech.edu/datasets/cub_200_2011/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from embedcache.demo.captions import describe
from embedcache.demo.drawing import draw_bird
from embedcache.demo.genera import demo_species
from embedcache.demo.species import Species
from embedcache.errors import UsageError

IMAGE_FOLDER: Final = "CUB_200_2011"
CAPTION_FOLDER: Final = "text_c10"
JPEG_QUALITY: Final = 85


class DataExistsError(UsageError, FileExistsError):
    """The data set would be drawn over files that are already there."""


@dataclass(frozen=True)
class Sheet:
    """One picture of the data set: its ids, its split and its name below the folders."""

    image_id: int
    class_id: int
    kind: str
    stem: str
    train: bool


def draw_cub(folder: Path, *, species: int = 20, images_per_species: int = 40, seed: int = 0) -> Path:
    """Draws the data set under ``folder`` and gives ``folder`` back.

    Pictures and lists go to ``CUB_200_2011``, ten captions per picture to ``text_c10``; half of each species is
    train, half test. The same numbers draw the same bytes. Raises :class:`DataExistsError` where either folder
    already has files, :class:`UsageError` for numbers that cannot be.
    """
    if images_per_species < 2:
        raise UsageError(f"Got {images_per_species} images per species; 2 are the fewest to split.")
    kinds = demo_species(species, seed)
    for name in (IMAGE_FOLDER, CAPTION_FOLDER):
        _refuse_existing(folder / name)
    sheets = list(_sheets(kinds, images_per_species, seed))
    for sheet in sheets:
        _write_sheet(folder, sheet, kinds[sheet.kind], seed)
    _write_lists(folder / IMAGE_FOLDER, sheets)
    return folder


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise DataExistsError(
            f"{folder} already has files, and the demo draws only into an empty folder. "
            "Choose another folder, or remove this one to draw it again."
        )


def _sheets(kinds: Iterable[str], per_species: int, seed: int) -> Iterator[Sheet]:
    rng = np.random.default_rng((seed, 1))
    for index, kind in enumerate(kinds):
        train = rng.permutation(per_species) < (per_species + 1) // 2
        for number in range(per_species):
            image_id = index * per_species + number + 1
            stem = f"{index + 1:03d}.{kind}/{kind}_{number + 1:04d}"
            yield Sheet(image_id, index + 1, kind, stem, bool(train[number]))


def _write_sheet(folder: Path, sheet: Sheet, species: Species, seed: int) -> None:
    rng = np.random.default_rng((seed, 2, sheet.image_id))
    picture = folder / IMAGE_FOLDER / "images" / f"{sheet.stem}.jpg"
    captions = folder / CAPTION_FOLDER / f"{sheet.stem}.txt"
    for path in (picture, captions):
        path.parent.mkdir(parents=True, exist_ok=True)
    draw_bird(species, rng).save(picture, quality=JPEG_QUALITY)
    captions.write_text("\n".join(describe(species, rng)) + "\n", encoding="utf-8")


def _write_lists(root: Path, sheets: Sequence[Sheet]) -> None:
    classes = {sheet.class_id: sheet.stem.partition("/")[0] for sheet in sheets}
    _write_list(root / "images.txt", ((s.image_id, f"{s.stem}.jpg") for s in sheets))
    _write_list(root / "image_class_labels.txt", ((s.image_id, s.class_id) for s in sheets))
    _write_list(root / "train_test_split.txt", ((s.image_id, int(s.train)) for s in sheets))
    _write_list(root / "classes.txt", classes.items())


def _write_list(path: Path, rows: Iterable[tuple[int, int | str]]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in rows), encoding="utf-8")
