"""Files are replaced in one step, and locks die with their process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedcache.errors import LockedError
from embedcache.files import locked, replacing, write_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_process_is_refused_and_the_lock_dies_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    script = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom embedcache.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=False):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match="Another process is writing"), locked(path, wait=False):
            pass
        other.kill()
        other.wait()
    with locked(path, wait=False):
        pass
