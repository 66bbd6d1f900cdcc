"""The small world that is extracted again and again: images whose bytes are their name, and the right answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BLOCK = 8
DIM = 8
WEIGHTS = "0" * 32


@dataclass(frozen=True)
class World:
    """A folder with ``photos/``, the data set, and ``right.npz``, what an uninterrupted run makes of it.

    n: images, of which ``bad`` cannot be encoded. block: rows in a block of the feature file. answers: the name
    of ``right.npz`` where a run begins with something, which decides the order of the rows.
    """

    folder: str
    n: int = 40
    bad: tuple[int, ...] = (3, 4, 21)
    block: int = BLOCK
    answers: str = "right.npz"

    @property
    def photos(self) -> Path:
        """The data set on disk."""
        return Path(self.folder) / "photos"

    @property
    def right(self) -> Path:
        """Arrays of the uninterrupted run."""
        return Path(self.folder) / self.answers

    @property
    def n_good(self) -> int:
        """Forward passes that an uninterrupted run takes."""
        return self.n - len(self.bad)

    def payload(self, row: int) -> bytes:
        """The bytes of one image."""
        return (b"BAD image %d" if row in self.bad else b"image %d") % row

    def write(self) -> World:
        """Write the images; names that are not ASCII among them."""
        for row in range(self.n):
            path = self.photos / f"zwölf{row % 3}" / f"{row:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.payload(row))
        return self
