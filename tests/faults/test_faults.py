"""Some faults of each kind, each at the n-th call and with its dice fixed; ``make faults`` tries them all."""

from __future__ import annotations

import errno
import fcntl
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from embedcache import store
from embedcache.errors import LockedError
from embedcache.failures import append_failures, failures_path, read_failures
from embedcache.files import locked
from embedcache.store import FeatureFile
from tests.faults import child, damage, power
from tests.faults.calls import Fault
from tests.faults.campaigns import Campaign, Count
from tests.faults.child import read_told

FEWER = 28


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def items(small: Campaign) -> Campaign:
    return small.other_items(FEWER)


def all_survived(count: Count, at_least: int) -> None:
    assert count.lost == []
    assert count.tried >= at_least or count.skipped
    assert count.refused == 0


def test_a_process_that_is_killed_at_any_call_loses_nothing(small: Campaign) -> None:
    all_survived(small.kills(stride=41, first=7), 6)


def test_rows_of_an_unfinished_file_of_other_items_outlive_every_kill(items: Campaign) -> None:
    all_survived(items.kills(stride=47, first=9), 6)


def test_a_power_loss_takes_nothing_that_was_committed(small: Campaign, items: Campaign) -> None:
    all_survived(small.power_losses(6), 6)
    all_survived(items.power_losses(4), 4)


def test_a_run_without_syncs_is_seen_to_lose(small: Campaign) -> None:
    """The proof that the model of the disk can find a loss at all."""
    assert small.power_losses(3, sync=False).lost


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_call_that_fails_is_an_error_and_a_rerun_finishes(small: Campaign, code: int) -> None:
    all_survived(small.errors(code, stride=33, first=code), 4)


@pytest.mark.parametrize("code", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_with_130_and_the_same_command_goes_on(small: Campaign, code: signal.Signals) -> None:
    all_survived(small.signals(code, stride=40, first=int(code)), 3)


def test_a_second_writer_leaves_or_waits_while_readers_read(small: Campaign) -> None:
    all_survived(small.grown(FEWER).second_writers(stride=21), 2)


def test_four_processes_racing_give_each_row_once(small: Campaign) -> None:
    all_survived(small.races(1, kills=False), 1)
    all_survived(small.races(2), 2)


# ------------------------------------------------------------------------------------ resume that cannot lie


def interrupted(small: Campaign, **changes: object) -> child.Spec:
    """A run that was killed with blocks committed."""
    _, names, _, _ = small.calls_of()
    syncs = [at for at, name in enumerate(names) if name == "fdatasync"]
    spec = replace(small.spec("resume", **changes), fault=Fault("kill", syncs[6]))
    assert small.processes.call(child.run, spec) == -signal.SIGKILL
    return replace(spec, fault=Fault())


def partials(spec: child.Spec) -> list[Path]:
    return sorted(spec.cache.rglob("*.h5.partial*"))


def test_an_unfinished_file_of_another_encoder_is_left_alone(small: Campaign) -> None:
    spec = interrupted(small, weights="1" * 32)
    [other] = partials(spec)
    before = other.read_bytes()
    told = replace(spec, weights="0" * 32, told=spec.told + ".again")
    assert small.processes.call(child.run, told) == 0
    assert read_told(told.told)[0] == small.world.n_good
    assert partials(spec) == [other]
    assert other.read_bytes() == before


def test_an_unfinished_file_that_stands_under_a_foreign_name_is_set_aside_not_resumed(small: Campaign) -> None:
    mine, theirs = interrupted(small), interrupted(small, weights="1" * 32)
    [path], [foreign] = partials(mine), partials(theirs)
    shutil.copy(foreign, path)
    told = replace(mine, told=mine.told + ".again")
    assert small.processes.call(child.run, told) == 0
    assert read_told(told.told)[0] == small.world.n_good
    [aside] = partials(mine)
    assert aside.name.endswith(".partial.set-aside-1")
    assert aside.read_bytes() == foreign.read_bytes()


@pytest.mark.parametrize("where", ["userblock", "ids", "metadata"])
def test_a_damaged_unfinished_file_is_refused_and_set_aside(small: Campaign, where: str) -> None:
    spec = interrupted(small)
    [path] = partials(spec)
    file = FeatureFile(path, partial=True)
    offset = {"userblock": 17, "ids": file.ids_of(slice(2, 3)).offset, "metadata": store.USERBLOCK + 9}[where]
    with open(path, "r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ 1]))
    told = replace(spec, told=spec.told + ".again")
    assert small.processes.call(child.run, told) == 0
    assert read_told(told.told)[0] == small.world.n_good
    assert [path.name[-11:] for path in partials(spec)] == ["set-aside-1"]


def test_other_items_are_set_aside_and_what_is_true_of_them_is_carried_over(items: Campaign) -> None:
    spec = items.spec("carried")
    assert items.processes.call(child.run, spec) == 0
    spent, _, _ = read_told(spec.told)
    bad = {f"zwölf{row % 3}/{row:05d}.jpg" for row in items.world.bad}
    assert spent == items.world.n_good - len(items.beginning.committed - bad)
    assert [path.name[-11:] for path in partials(spec)] == ["set-aside-1"]


# ----------------------------------------------------------------------- file systems that cannot do everything


@pytest.mark.parametrize(("call", "code"), [("posix_fallocate", errno.EOPNOTSUPP), ("fsync of a folder", errno.EINVAL)])
def test_where_space_cannot_be_reserved_or_folders_not_synced_a_run_goes_on(
    small: Campaign, call: str, code: int
) -> None:
    _, names, _, _ = small.calls_of()
    layout = names.index("posix_fallocate")
    at = layout if call == "posix_fallocate" else names.index("fsync", names.index("replace", layout))
    count = Count(call)
    small.one_fault(count, Fault("error", at, "before", code), lambda ended: ended == 0)
    all_survived(count, 1)


def test_where_there_are_no_locks_a_file_stands_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    path = tmp_path / "a.h5"
    dying = (
        "import errno, fcntl, os, sys\nfrom pathlib import Path\nfrom embedcache.files import locked\n"
        "def no_locks(*_): raise OSError(errno.EOPNOTSUPP, 'Operation not supported')\n"
        "fcntl.flock = no_locks\n"
        "with locked(Path(sys.argv[1]), wait=False): os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", dying, path], check=False).returncode == 9
    assert (tmp_path / ".a.h5.softlock").exists()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(path, wait=False), pytest.raises(LockedError), locked(path, wait=False):
        pass
    with locked(path, wait=False):
        pass


# --------------------------------------------------------------------------------------- what the harness is made of


def test_what_was_synced_is_kept_and_what_was_not_is_kept_or_lost() -> None:
    events: list[power.Event] = [
        ("mkdir", "/d/a"), ("syncdir", "/d"), ("create", "/d/a/x", 1), ("write", 1, 0, b"old"), ("sync", 1),
        ("syncdir", "/d/a"), ("write", 1, 0, b"new"), ("rename", "/d/a/x", "/d/a/y", 1),
    ]  # fmt: skip
    found = set()
    for seed in range(40):
        disk = power.cut(events, len(events), seed)
        found.add(tuple((name, bytes(disk.contents[1])) for name in disk.names if name != "/d/a"))
    assert found == {((name, content),) for name in ("/d/a/x", "/d/a/y") for content in (b"old", b"new")}
    assert power.cut(events, 1, 0).names in ({}, {"/d/a": -1})


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "image.fake.abc.h5"
    append_failures(path, {"a\u2028b": "gone"})
    with open(failures_path(path), "ab") as raw:
        raw.write('{"id": "c", "reason": "zwölf'.encode()[:-3])
    append_failures(path, {"d": "bad"})
    assert read_failures(path) == {"a\u2028b": "gone", "d": "bad"}


def test_rows_can_be_known_before_their_block_is(tmp_path: Path) -> None:
    layout = store.Layout(np.array([b"a", b"b", b"c"]), 2, "float32", {"modality": "image"}, 2)
    status = np.array([store.DONE, store.PENDING], np.uint8)
    with store.create(tmp_path / "x.h5", layout, {}) as writer:
        writer.write_rows(0, np.ones((2, 2), "f4"), np.zeros((2, 16), "u1"), status)
        assert writer.pending_blocks() == [0, 1]
    assert FeatureFile(tmp_path / "x.h5.partial", partial=True).status.tolist() == [1, 0, 0]


def test_a_flipped_bit_or_a_cut_is_found_wherever_it_is(tmp_path: Path, small: Campaign) -> None:
    for name, attempt, times in (("bits", damage.bit_flips, 60), ("cut", damage.truncations, 12)):
        (tmp_path / name).mkdir()
        all_survived(attempt(tmp_path / name, small.processes, times), times)


def test_damage_that_nobody_looks_for_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that the count can find something: a ``verify`` that sees nothing."""
    sealed = damage.seal(tmp_path, n=40)
    monkeypatch.setattr(damage, "verify", lambda dataset: [SimpleNamespace(damaged=False)])
    damage.read_damaged(sealed, [("flip", sealed.features[0], 6)], str(tmp_path / "out"))
    assert "features read otherwise" in (tmp_path / "out").read_text()


def test_every_bad_item_is_named_and_every_good_row_is_right(tmp_path: Path) -> None:
    all_survived(damage.bad_items(tmp_path, 600), 36)
