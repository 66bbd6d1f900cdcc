"""``python -m tests.faults``: every kind of fault, tried in full, and the table of counts.

``python -m tests.faults kill power`` tries two kinds only; ``--seed`` moves the dice. What is lost is named on stderr,
with its folder kept; exit code 1 says that anything was.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

from tests.faults import damage
from tests.faults.campaigns import Campaign, Count, Processes
from tests.faults.world import World

FEWER = 28
"""Items of the file that is there before one grows, or is laid out anew."""
ROW = "{:<25}{:>5} {:>8} {:>4}  {}"


class Faults:
    """The campaigns, each prepared when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes()

    @cached_property
    def small(self) -> Campaign:
        """An empty disk, 40 images in 5 blocks."""
        return self._campaign("small", World(str(self.folder / "small")))

    @cached_property
    def grow(self) -> Campaign:
        """A sealed file of fewer items."""
        return self.small.grown(FEWER)

    @cached_property
    def items(self) -> Campaign:
        """An unfinished file of fewer items."""
        return self.small.other_items(FEWER)

    @cached_property
    def thousand(self) -> Campaign:
        """1,000 images in 32 blocks."""
        return self._campaign("thousand", World(str(self.folder / "thousand"), n=1000, block=32))

    def place(self, name: str) -> Path:
        """An empty folder."""
        (self.folder / name).mkdir()
        return self.folder / name

    def _campaign(self, name: str, world: World) -> Campaign:
        return Campaign(self.place(name), world.write(), self.processes)


Try = Callable[[Faults, int], Count]
KINDS: dict[str, tuple[str, Try]] = {
    "random": ("killed at a random time", lambda f, seed: f.small.random_kills(200, seed)),
    "kill": ("killed at every call", lambda f, seed: f.small.kills()),
    "kill-grow": ("… a file growing", lambda f, seed: f.grow.kills(2, seed % 2)),
    "kill-items": ("… other items unfinished", lambda f, seed: f.items.kills(2, seed % 2)),
    "again": ("killed again and again", lambda f, seed: f.small.kills_in_a_row(20, seed)),
    "power": ("power lost, 1,000 images", lambda f, seed: f.thousand.power_losses(150, seed, every_sync=True)),
    "power-grow": ("… a file growing", lambda f, seed: f.grow.power_losses(100, seed)),
    "power-items": ("… other items unfinished", lambda f, seed: f.items.power_losses(100, seed)),
    "enospc": ("ENOSPC at every call", lambda f, seed: f.small.errors(errno.ENOSPC)),
    "eio": ("EIO at every call", lambda f, seed: f.small.errors(errno.EIO)),
    "eio-items": ("… other items unfinished", lambda f, seed: f.items.errors(errno.EIO, 2, seed % 2)),
    "full": ("disk full (tmpfs)", lambda f, seed: f.small.full_disk(range(4, 132, 4))),
    "sigint": ("SIGINT, CLI, every call", lambda f, seed: f.small.signals(signal.SIGINT)),
    "sigterm": ("SIGTERM, CLI, every call", lambda f, seed: f.small.signals(signal.SIGTERM)),
    "cli": ("both, real backbone", lambda f, seed: f.small.command_line(4, seed)),
    "second": ("second writer, readers", lambda f, seed: f.grow.second_writers()),
    "bits": ("one bit flipped", lambda f, seed: damage.bit_flips(f.place("bits"), f.processes, 1000, seed)),
    "cut": ("cut short", lambda f, seed: damage.truncations(f.place("cut"), f.processes, 100, seed)),
    "bad": ("bad items of 10,000", lambda f, seed: damage.bad_items(f.place("bad"), 10_000)),
    "race": ("four racing, some killed", lambda f, seed: f.small.races(40, seed)),
}


def main() -> int:
    """Try what is asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of: {', '.join(KINDS)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if unknown := set(asked.kinds) - set(KINDS):
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    folder = Path(mkdtemp(prefix="faults."))
    faults = Faults(folder)
    began = time.perf_counter()
    print(ROW.format("fault", "tried", "survived", "lost", "command"))
    counts = [_row(faults, kind, asked.seed) for kind in asked.kinds or KINDS]
    lost = sum(len(count.lost) for count in counts)
    print(ROW.format("all", sum(count.tried for count in counts), sum(count.survived for count in counts), lost, ""))
    print(f"Files refused: {sum(count.refused for count in counts)}. Seconds: {time.perf_counter() - began:.0f}.")
    if lost:
        print(f"What was lost lies in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _row(faults: Faults, kind: str, seed: int) -> Count:
    name, attempt = KINDS[kind]
    count = attempt(faults, seed)
    dice = f" --seed {seed}" if seed else ""
    print(ROW.format(name, count.tried, count.survived, len(count.lost), f"python -m tests.faults {kind}{dice}"))
    if count.skipped:
        print(f"  skipped: {count.skipped}")
    sys.stdout.flush()
    for one in count.lost:
        print(f"  {kind}: {one}", file=sys.stderr)
    return count


if __name__ == "__main__":
    sys.exit(main())
