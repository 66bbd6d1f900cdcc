"""``doctor`` tries what a cache needs, and says what happens where it does not work."""

from __future__ import annotations

import errno
import json
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedcache import probing
from embedcache.probing import Check
from tests.test_verification import call


def states(folder: Path) -> dict[str, str]:
    return {one.name: one.state for one in probing.folder_checks(folder)}


def test_a_good_folder_works_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert set(states(tmp_path).values()) == {"works"}
    assert set(states(tmp_path)) == {"file system", *probing.PROBES}
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_not_there_yet_is_probed_where_it_will_be(tmp_path: Path) -> None:
    assert set(states(tmp_path / "a" / "cache").values()) == {"works"}
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_it_in_80_columns_and_as_json(tmp_path: Path) -> None:
    done = call("doctor", "--cache", tmp_path)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads(call("doctor", "--cache", tmp_path, "--json").stdout)
    assert {"python", "torch", "h5py", "device", "locking"} <= {one["name"] for one in found}
    assert all(one["fallback"] for one in found if one["state"] != "works")


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_without_allocation_there_is_a_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refused)
    found = probing.allocation(tmp_path)
    assert found.state == "missing"
    assert "Zeros are written first" in found.fallback
    monkeypatch.delattr(os, "posix_fallocate")
    assert probing.allocation(tmp_path).state == "missing"


def test_locks_that_do_not_hold_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(probing, "locked", lambda path, wait: nullcontext())
    found = probing.locking(tmp_path)
    assert found.state == "broken"
    assert "found the lock 'free' while it was held" in found.detail
    assert call("doctor", "--cache", tmp_path).exit_code == 1


def test_a_map_that_is_stale_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "memmap", lambda path, dtype, mode: np.fromfile(path, dtype))
    assert probing.mapping(tmp_path).state == "broken"


def test_renaming_that_copies_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copies(source: Path, target: Path) -> None:
        with open(target, "r+b") as file:
            file.write(source.read_bytes())
        source.unlink()

    monkeypatch.setattr(os, "replace", copies)
    assert probing.renaming(tmp_path).state == "broken"


@pytest.mark.parametrize("call_name", ["fsync", "fdatasync"])
def test_an_error_of_a_probe_is_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_name: str) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call_name, failing)
    found = {one.name: one for one in probing.folder_checks(tmp_path)}
    assert (found["syncing"].state, found["syncing"].detail) == ("broken", "Input/output error")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert states(tmp_path)["writing"] == "broken"


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("h5py", "ray"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(probing.importlib.metadata, "version", version)
    found = {one.name: one for one in probing.versions()}
    assert (found["h5py"].state, found["h5py"].fallback) == ("broken", "To have it: pip install h5py")
    assert found["ray"].state == "missing"


def device(monkeypatch: pytest.MonkeyPatch, *, nvidia: bool, built_for: str | None) -> Check:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=built_for))
    monkeypatch.setattr(probing, "has_nvidia", lambda: nvidia)
    return probing.torch_device()


def test_a_torch_that_cannot_use_the_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = device(monkeypatch, nvidia=True, built_for=None)
    assert found.state == "missing"
    assert "CPU-only build" in found.detail
    found = device(monkeypatch, nvidia=True, built_for="13.0")
    assert "torch (CUDA 13.0) can use no GPU" in found.detail
    assert device(monkeypatch, nvidia=False, built_for=None).state == "works"


def test_the_driver_is_found_by_its_file_or_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "DRIVER", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not probing.has_nvidia()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert probing.has_nvidia()
    (tmp_path / "nvidia-smi").unlink()
    (tmp_path / "version").write_text("driver")
    assert probing.has_nvidia()


@pytest.mark.parametrize(("kind", "network"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False)])
def test_network_file_systems_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, network: bool
) -> None:
    monkeypatch.setattr(probing, "_kind_of", lambda folder: kind)
    assert ("network" in probing.file_system(tmp_path).detail) == network
