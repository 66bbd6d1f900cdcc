"""Each kind of fault, tried many times: what befell the run, what the judge found, and the count."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection, forkserver
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from embedcache.store import DONE, FeatureFile
from tests.faults import child, power
from tests.faults.calls import Fault
from tests.faults.child import FAILED, LOCKED, Spec, Verdict, read_told
from tests.faults.world import World

ROOT = Path(__file__).parents[2]
BLOCKS_LOST = 2
PATIENCE = 120
"""Seconds after which a process counts as hung."""
_STARTING = threading.Lock()
"""Starting a process also asks the others whether they have ended, and an exit code can be read but once."""


@dataclass
class Count:
    """One row of the table. lost: what went wrong, in words, by fault; most: forward passes taken again at worst."""

    kind: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    most: int = 0
    skipped: str = ""

    @property
    def survived(self) -> int:
        """Faults after which everything was right."""
        return self.tried - len(self.lost)


class Processes:
    """Starts children from a fork server that has imported everything once."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.child", "cli", "pandas"])
        added = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        before = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def start(self, target: Callable[..., None], *args: Any) -> Any:
        """A process that runs ``target``."""
        process = self._context.Process(target=target, args=args)
        with _STARTING:
            process.start()
        return process

    def call(self, target: Callable[..., None], *args: Any) -> int:
        """Run ``target`` to its end; its exit code, minus the signal where one ended it."""
        return finish(self.start(target, *args))


def finish(process: Any) -> int:
    """Wait for a process; its exit code."""
    ended = connection.wait([process.sentinel], PATIENCE)
    with _STARTING:
        if not ended:
            process.kill()
        process.join()
    if not ended:
        raise RuntimeError(f"A child did not end within {PATIENCE} seconds.")
    return int(process.exitcode)


@dataclass(frozen=True)
class Beginning:
    """What a run begins with. disk: the tree, none for an empty one; spent: forward passes that it took."""

    name: str = ""
    disk: str = ""
    spent: int = 0
    committed: frozenset[str] = frozenset()
    interruptions: int = 0


class Campaign:
    """A world, what a run begins with, its right answers, and processes to try faults in."""

    def __init__(
        self, folder: Path, world: World | None = None, processes: Processes | None = None,
        beginning: Beginning | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.world = world or World(str(folder)).write()
        self.processes = processes or Processes()
        self.beginning = beginning or Beginning()
        if code := self.processes.call(child.answers, self.spec("right")):
            raise RuntimeError(f"The uninterrupted run ended with {code}.")
        began = time.perf_counter()
        self.processes.call(child.run, self.spec("timed"))
        self.seconds = time.perf_counter() - began

    def grown(self, limit: int) -> Campaign:
        """The same, where a sealed file of fewer items is there already."""
        return self._after("grown", limit, Fault())

    def other_items(self, limit: int) -> Campaign:
        """The same, where an unfinished file of fewer items is there already: its last block was not committed."""
        _, names, _, _ = self.calls_of(limit=limit)
        last = len(names) - 1 - names[::-1].index("_write_hdf5")
        writes = [at for at, name in enumerate(names) if name == "fdatasync" and at > last]
        return self._after("other items", limit, Fault("kill", writes[-3]))

    def _after(self, name: str, limit: int, fault: Fault) -> Campaign:
        spec = self.spec("beginning", fault=fault, limit=limit)
        self.processes.call(child.run, spec)
        spent, committed, _ = read_told(spec.told)
        for lock in Path(spec.disk).rglob(".*.lock"):
            lock.unlink()
        beginning = Beginning(name, spec.disk, spent, frozenset(committed), int(fault.kind == "kill"))
        world = replace(self.world, answers=f"{name}.npz")
        return Campaign(self.folder, world, self.processes, beginning)

    def spec(self, name: str, **changes: Any) -> Spec:
        """A request on a disk of its own, as the beginning has it."""
        disk = Path(mkdtemp(prefix=f"{name}.", dir=self.folder))
        (disk / "disk").mkdir()
        if self.beginning.disk:
            shutil.copytree(self.beginning.disk, disk / "disk", dirs_exist_ok=True)
        return replace(Spec(self.world, str(disk / "disk"), str(disk / "told")), **changes)

    def count(self, kind: str) -> Count:
        """A row of the table, by what the runs begin with."""
        return Count(f"{kind}, {self.beginning.name}" if self.beginning.name else kind)

    def calls_of(self, **changes: Any) -> tuple[int, list[str], list[power.Event], Spec]:
        """The calls of an uninterrupted run: how many, their names, their log."""
        spec = self.spec("log", **changes)
        log = spec.told + ".log"
        known = power.standing(spec.disk).names
        spec = replace(spec, fault=Fault("log", log=log), known=known)
        if code := self.processes.call(child.run, spec):
            raise RuntimeError(f"The logged run ended with {code}.")
        count, names, events = pickle.loads(Path(log).read_bytes())
        return count, names, power.inodes_in(events, known), spec

    def judged(
        self, spec: Spec, count: Count, what: str, *, committed: set[str], spent: int, may_refuse: bool = False,
        interruptions: int = 1, extra: str = "", again: int | None = None,
    ) -> Verdict:  # fmt: skip
        """Let the judge look, and count. spent: forward passes up to the fault."""
        out = spec.told + ".verdict"
        after = replace(spec, fault=Fault(), cli=False, wait=False, known={})
        there = frozenset(committed) | self.beginning.committed
        code = self.processes.call(child.judge, after, out, there, may_refuse)
        verdict = Verdict([f"the judge ended with {code}"]) if code else Verdict(**json.loads(Path(out).read_text()))
        begun = self.beginning
        taken_again = begun.spent + spent + verdict.encoded - self.world.n_good
        allowed = BLOCKS_LOST * self.world.block * (interruptions + begun.interruptions) if again is None else again
        if taken_again > allowed:
            verdict.wrong.append(f"{taken_again} forward passes were taken again, {allowed} may be")
        if taken_again < 0:
            verdict.wrong.append(f"{-taken_again} items were never encoded")
        if extra:
            verdict.wrong.append(extra)
        count.tried += 1
        count.refused += bool(verdict.refused)
        count.most = max(count.most, taken_again)
        if verdict.wrong:
            count.lost.append(f"{what}: {'; '.join(verdict.wrong)}")
        else:
            shutil.rmtree(Path(spec.disk).parent)
        return verdict

    # ---------------------------------------------------------------------------------------- kinds of fault

    def one_fault(self, count: Count, fault: Fault, expected: Callable[[int], bool], **changes: Any) -> None:
        """One run with one fault at one call."""
        spec = self.spec("fault", fault=fault, **changes)
        code = self.processes.call(child.run, spec)
        spent, committed, errors = read_told(spec.told)
        extra = "" if expected(code) else f"the run ended with {code} {errors}"
        self.judged(spec, count, str(fault), committed=committed, spent=spent, extra=extra)

    def kills(self, stride: int = 1, first: int = 0) -> Count:
        """SIGKILL before, in the middle of and after every call."""
        count = self.count("killed at a call")
        faults = list(self._kills_at_calls())[first::stride]
        _together(lambda fault: self.one_fault(count, fault, lambda code: code == -signal.SIGKILL), faults)
        return count

    def _kills_at_calls(self) -> Iterator[Fault]:
        n, names, _, _ = self.calls_of()
        for at in range(n):
            yield Fault("kill", at, "before")
            if names[at] == "pwrite":
                yield Fault("kill", at, "half")
            yield Fault("kill", at, "after")

    def errors(self, code: int, stride: int = 1, first: int = 0) -> Count:
        """Each call fails once with ``code``."""
        count = self.count(f"{errno.errorcode[code]} at a call")
        n, names, _, _ = self.calls_of()
        faults = [
            Fault("error", at, moment, code)
            for at in range(n)
            for moment in (("before", "half") if names[at] == "pwrite" else ("before",))
        ]
        _together(lambda fault: self.one_fault(count, fault, lambda code: code in (0, FAILED)), faults[first::stride])
        return count

    def signals(self, code: signal.Signals, stride: int = 1, first: int = 0) -> Count:
        """SIGINT or SIGTERM at every call, through the command line: 130, and a rerun goes on."""
        count = self.count(f"{code.name} through the CLI")
        n, _, _, _ = self.calls_of()
        faults = [Fault("signal", at, "after", int(code)) for at in range(n)][first::stride]
        _together(lambda fault: self.one_fault(count, fault, lambda code: code == 130, cli=True), faults)
        return count

    def random_kills(self, times: int, seed: int = 0) -> Count:
        """SIGKILL at random times of a run."""
        count = self.count("killed at a random time")
        chance = random.Random(seed)

        def one(seconds: float) -> None:
            spec = self.spec("random")
            process = self.processes.start(child.run, spec)
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            code = finish(process)
            timer.cancel()
            spent, committed, errors = read_told(spec.told)
            extra = "" if code in (0, -signal.SIGKILL) else f"the run ended with {code} {errors}"
            self.judged(spec, count, f"after {seconds:.3f} s", committed=committed, spent=spent, extra=extra)

        _together(one, [chance.uniform(0, 1.2 * self.seconds) for _ in range(times)])
        return count

    def kills_in_a_row(self, times: int, seed: int = 0) -> Count:
        """Killed at a random call again and again until it is through: each time at most two blocks are lost."""
        count = self.count("killed again and again")
        n, _, _, _ = self.calls_of()

        def one(number: int) -> None:
            chance = random.Random(seed + number)
            spec = self.spec("row")
            interruptions = 0
            while interruptions < 12:
                fault = Fault("kill", chance.randrange(n), chance.choice(["before", "half", "after"]))
                if self.processes.call(child.run, replace(spec, fault=fault)) == 0:
                    break
                interruptions += 1
            spent, committed, _ = read_told(spec.told)
            self.judged(
                spec, count, f"seed {seed + number}", committed=committed, spent=spent, interruptions=interruptions
            )

        _together(one, list(range(times)))
        return count

    def power_losses(self, times: int, seed: int = 0, every_sync: bool = False, sync: bool = True) -> Count:
        """The power fails at every sync, and at random calls; what was not synced is kept with chance one half."""
        count = self.count(f"power lost, {self.world.n:,} images")
        _, _, events, logged = self.calls_of(sync=sync)
        base = power.standing(self.beginning.disk) if self.beginning.disk else power.Disk()
        base.names = {name.replace(self.beginning.disk, logged.disk): inode for name, inode in base.names.items()}
        chance = random.Random(seed)
        syncs = [at for at, event in enumerate(events) if event[0].startswith("sync")]
        cuts = [(at + after, seed + at) for at in syncs for after in (0, 1)] if every_sync else []
        cuts += [(chance.randrange(len(events) + 1), seed + number) for number in range(times)]

        def one(where: tuple[int, int]) -> None:
            at, dice = where
            spec = self.spec("power")
            shutil.rmtree(spec.disk)
            Path(spec.disk).mkdir()
            power.cut(events, at, dice, base).store(logged.disk, Path(spec.disk))
            spent = sum(event[1] for event in events[:at] if event[0] == "forward")
            committed = {name for event in events[:at] if event[0] == "committed" for name in event[1]}
            what = f"cut before event {at}, seed {dice}"
            self.judged(spec, count, what, committed=committed, spent=spent, may_refuse=True)

        _together(one, cuts)
        return count

    def full_disk(self, sizes: range) -> Count:
        """A file system that is really full: a tmpfs of so many KiB. Then room is made, and the rerun finishes."""
        count = self.count("tmpfs really full")
        for kib in sizes:
            spec = self.spec("full")
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", spec.disk], capture_output=True, check=False
            )
            if mounted.returncode:
                count.skipped = "mounting is not permitted here"
                return count
            try:
                code = self.processes.call(child.run, spec)
                spent, committed, errors = read_told(spec.told)
                left = [path.name for path in Path(spec.disk).rglob("*") if path.name.endswith((".layout", ".tmp"))]
                subprocess.run(["mount", "-o", "remount,size=64m", spec.disk], check=True)
                extra = "" if code in (0, FAILED) else f"the run ended with {code} {errors}"
                extra += f" left behind: {left}" if left else ""
                aside = self.spec("was-full")
                shutil.copytree(spec.disk, aside.disk, dirs_exist_ok=True)
                self.judged(aside, count, f"{kib} KiB", committed=committed, spent=spent, extra=extra)
            finally:
                subprocess.run(["umount", "-l", spec.disk], check=True)
        return count

    def command_line(self, times: int, seed: int = 0) -> Count:
        """``python cli.py extract`` with a real backbone on drawn birds, interrupted: 130, and typed again it goes on.

        Batches differ after an interruption, and with them the last bits of what is encoded anew: committed rows are
        compared byte by byte, the others within a tolerance.
        """
        count = self.count("CLI, real backbone")
        place = Birds(Path(mkdtemp(prefix="birds.", dir=self.folder)))
        n = place.calls()
        for number in range(times):
            chance = random.Random(seed + number)
            code = [signal.SIGINT, signal.SIGTERM][number % 2]
            at = chance.randrange(n // 3, n)
            count.tried += 1
            if wrong := place.interrupted(Fault("signal", at, "after", int(code)), f"cache{number}"):
                count.lost.append(f"{code.name} at call {at}: {wrong}")
        return count

    def races(self, times: int, seed: int = 0, kills: bool = True) -> Count:
        """Four processes want the same; some are killed at random calls. Each row is there once, and right."""
        count = self.count("four racing, killed" if kills else "four racing")
        n, _, _, _ = self.calls_of()

        def one(number: int) -> None:
            chance = random.Random(seed + number)
            spec = self.spec("race", wait=True)
            faults = [Fault("kill", chance.randrange(2 * n)) if kills else Fault() for _ in range(4)]
            running = [self.processes.start(child.run, replace(spec, fault=fault)) for fault in faults]
            codes = [finish(process) for process in running]
            spent, committed, errors = read_told(spec.told)
            odd = [code for code in codes if code not in (0, -signal.SIGKILL)]
            self.judged(
                spec, count, f"seed {seed + number}", committed=committed, spent=spent,
                interruptions=codes.count(-signal.SIGKILL), extra=f"ended with {odd} {errors}" if odd else "",
            )  # fmt: skip

        _together(one, list(range(times)))
        return count

    def second_writers(self, stride: int = 1) -> Count:
        """A second writer, while the first stands at one of its calls, is told to leave and changes no byte; readers
        read what is there all the same; a second writer that waits goes on afterwards, and has nothing to do."""
        count = self.count("second writer and reader")
        n, names, _, _ = self.calls_of()
        held = [at for at in range(n) if "_write_hdf5" in names[:at] and at < n - 1 - names[::-1].index("pwrite")]
        _together(lambda at: self._second_writer(count, at), held[::stride])
        return count

    def _second_writer(self, count: Count, at: int) -> None:
        spec = self.spec("second")
        with _paused(self, spec, at) as first:
            before = _bytes_below(spec.disk)
            code = self.processes.call(child.run, replace(spec, told=spec.told + ".other"))
            extra = "" if code == LOCKED else f"the second writer ended with {code}"
            if _bytes_below(spec.disk) != before:
                extra += " the second writer changed bytes"
            if self.processes.call(child.read, spec):
                extra += " a reader could not read"
            waiting = self.processes.start(child.run, replace(spec, wait=True))
        codes = [finish(process) for process in (first[0], waiting)]
        spent, committed, errors = read_told(spec.told)
        extra += "" if codes == [0, 0] else f" ended with {codes} {errors}"
        self.judged(spec, count, f"first at call {at}", committed=committed, spent=spent, extra=extra, again=0)


class Birds:
    """Drawn birds, and the real command line on them, each in an interpreter of its own."""

    _SCRIPT = (
        "import os, runpy, sys\n"
        "from pathlib import Path\n"
        "from embedcache import store\n"
        "from tests.faults.calls import Calls, Fault\n"
        "store.BLOCK_ROWS['image'] = 8\n"
        "kind, at, code, log, disk, *sys.argv = sys.argv[1:]\n"
        "calls = Calls(Path(disk), Fault(kind, int(at), 'after', int(code), log))\n"
        "calls.install()\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: calls.save()\n"
    )

    def __init__(self, folder: Path) -> None:
        from embedcache.demo.birds import draw_cub

        self.folder = folder
        draw_cub(folder / "data", species=3, images_per_species=16)

    def calls(self) -> int:
        """Calls of an uninterrupted run, whose cache is kept as what is right."""
        log = self.folder / "log"
        self._extract("right", "log", str(log))
        count, _, _ = pickle.loads(log.read_bytes())
        return int(count)

    def _extract(self, cache: str, kind: str = "none", log: str = "", at: int = -1, code: int = 0) -> int:
        disk = self.folder / cache
        disk.mkdir(exist_ok=True)
        command = [sys.executable, "-c", self._SCRIPT, kind, str(at), str(code), log, str(disk), str(ROOT / "cli.py")]
        asked = ["extract", "--dataset", "cub", "--data", str(self.folder / "data"), "--backbone", "demo-image"]
        done = subprocess.run(
            [*command, *asked, "--cache", str(disk / "cache"), "--batch-size", "8"],
            cwd=ROOT, capture_output=True, check=False, timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        return done.returncode

    def interrupted(self, fault: Fault, cache: str) -> str:
        """What went wrong, in words; nothing where all was right."""
        if (code := self._extract(cache, fault.kind, "", fault.at, fault.code)) != 130:
            return f"it left with {code}, 130 was expected"
        before = {bytes(item): vector for item, vector in self._rows(cache)}
        if code := self._extract(cache):
            return f"typed again it left with {code}"
        after, right = dict(self._rows(cache)), dict(self._rows("right"))
        if list(after) != list(right):
            return "the rows are not those of an uninterrupted run"
        if any(not np.array_equal(after[item], vector) for item, vector in before.items()):
            return "a committed row has changed"
        if any(not np.allclose(after[item], right[item], rtol=1e-2, atol=1e-2) for item in right):
            return "a row differs from that of an uninterrupted run"
        return ""

    def _rows(self, cache: str) -> Iterator[tuple[bytes, np.ndarray]]:
        for path in (self.folder / cache).glob("cache/cub/image.*.h5*"):
            file = FeatureFile(path, partial=path.suffix == ".partial")
            for row in np.flatnonzero(file.status == DONE):
                yield bytes(file.ids[row]), np.array(file.features[row])


@contextmanager
def _paused(campaign: Campaign, spec: Spec, at: int) -> Iterator[list[Any]]:
    """A run that stands still at its ``at``-th call until the block is left."""
    reached, go = spec.told + ".reached", spec.told + ".go"
    os.mkfifo(reached)
    os.mkfifo(go)
    process = campaign.processes.start(child.run, replace(spec, fault=Fault("pause", at, log=f"{reached}|{go}")))
    with open(reached, "rb") as raw:
        raw.read(1)
    try:
        yield [process]
    finally:
        with open(go, "wb") as raw:
            raw.write(b".")


def _bytes_below(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def _together(act: Callable[[Any], None], each: list[Any]) -> None:
    """Two at a time: a fault spends much of its time waiting."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(act, each):
            pass
