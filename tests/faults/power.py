"""A disk that loses power: the log of a run's calls, replayed up to a cut, each unsynced one kept with chance one half.

A write is durable once its file was synced after it. A change of names (create, rename, link, unlink, mkdir) is durable
once its folder was synced after it. What is not durable at the cut is kept or lost, each by itself, whatever
came before or after it; a write may also be kept in some of its 512-byte sectors only. That is harsher
than any journalling file system.
"""

# The calls themselves, and thousands of names as texts: pathlib would be in the way.
# ruff: noqa: PTH120

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR = 512
Event = tuple[Any, ...]


@dataclass
class Disk:
    """Contents by inode, and names; a name without an inode is a folder (-1)."""

    contents: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def write(self, inode: int, offset: int, data: bytes) -> None:
        """Bytes at their place; what lies between is zeros."""
        content = self.contents.setdefault(inode, bytearray())
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data

    def apply(self, event: Event) -> None:
        """One event, kept."""
        kind, *rest = event
        if kind == "write":
            self.write(*rest)
        elif kind == "size":
            content = self.contents.setdefault(rest[0], bytearray())
            content.extend(bytes(max(0, rest[1] - len(content))))
        elif kind in ("create", "link"):
            self.names[rest[0]] = rest[1]
        elif kind == "mkdir":
            self.names.setdefault(rest[0], -1)
        elif kind == "unlink":
            self.names.pop(rest[0], None)
        elif kind == "rename":
            self.names.pop(rest[0], None)
            self.names[rest[1]] = rest[2]

    def store(self, below: str, folder: Path) -> None:
        """Write the tree that stands at ``below`` to ``folder``; what lies in a folder that was lost is lost."""
        for name in sorted(self.names):
            if self.names[name] >= 0 or not self._reachable(name, below):
                continue
            (folder / os.path.relpath(name, below)).mkdir(parents=True, exist_ok=True)
        for name, inode in self.names.items():
            if inode >= 0 and self._reachable(os.path.dirname(name), below):
                (folder / os.path.relpath(name, below)).write_bytes(self.contents.get(inode, b""))

    def _reachable(self, folder: str, below: str) -> bool:
        while folder != below:
            if self.names.get(folder) != -1:
                return False
            folder = os.path.dirname(folder)
        return True


def standing(folder: str) -> Disk:
    """A tree that is there, all of it durable."""
    disk = Disk()
    for inode, path in enumerate(sorted(Path(folder).rglob("*")), 1):
        disk.names[str(path)] = -1 if path.is_dir() else inode
        if path.is_file():
            disk.contents[inode] = bytearray(path.read_bytes())
    return disk


def inodes_in(events: list[Event], known: dict[str, int]) -> list[Event]:
    """The same events with a rename's inode in it: names are by inode, whatever is lost in between."""
    names = dict(known)
    found: list[Event] = []
    for event in events:
        if event[0] in ("create", "link"):
            names[event[1]] = event[2]
        elif event[0] == "unlink":
            names.pop(event[1], None)
        elif event[0] == "rename":
            names[event[2]] = names.pop(event[1])
            event = (*event, names[event[2]])
        found.append(event)
    return found


def cut(events: list[Event], at: int, seed: int, base: Disk | None = None) -> Disk:
    """The disk as it may stand when the power fails before event ``at``."""
    chance = random.Random(seed)
    disk = Disk({inode: bytearray(data) for inode, data in base.contents.items()}, dict(base.names)) if base else Disk()
    pending: list[Event] = []
    for event in events[:at]:
        if event[0] in ("sync", "syncdir"):
            durable = [one for one in pending if _synced(one, event)]
            pending = [one for one in pending if not _synced(one, event)]
            for one in durable:
                disk.apply(one)
        elif event[0] not in ("forward", "committed"):
            pending.append(event)
    for event in pending:
        if chance.random() < 0.5:
            for part in _torn(event, chance):
                disk.apply(part)
    return disk


def _synced(event: Event, sync: Event) -> bool:
    kind, what = sync
    if kind == "sync":
        return event[0] in ("write", "size") and event[1] == what
    names = event[1:3] if event[0] == "rename" else event[1:2]
    return event[0] not in ("write", "size") and any(os.path.dirname(name) == what for name in names)


def _torn(event: Event, chance: random.Random) -> list[Event]:
    """A write that is kept; one in four is torn, each of its sectors kept with chance one half."""
    if event[0] != "write" or chance.random() < 0.75:
        return [event]
    _, inode, offset, data = event
    parts: list[Event] = []
    start = 0
    while start < len(data):
        end = min(len(data), start + SECTOR - (offset + start) % SECTOR)
        if chance.random() < 0.5:
            parts.append(("write", inode, offset + start, data[start:end]))
        start = end
    return parts
