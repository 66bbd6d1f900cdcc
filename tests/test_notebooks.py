"""Every notebook runs from top to bottom, offline, in a folder of its own, and is stored without outputs."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = "SPECIES, IMAGES = 6, 8"
"""Put after the cell with the tag ``parameters``: enough birds for every cell to have something to do."""
PNG = b"\x89PNG\r\n\x1a\n"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    """The one cell that has a tag."""
    (found,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))
    return found


def made_quick(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """With small numbers in place of the notebook's own."""
    after = notebook.cells.index(tagged(notebook, "parameters")) + 1
    notebook.cells.insert(after, nbformat.v4.new_code_cell(QUICK))
    return notebook


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelSpecManager:
    """The kernel ``python3`` as this very interpreter, whatever kernels are installed; nothing in the home folder."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
        # one thread: more of them fight where tests run beside each other
        "env": {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    }
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return KernelSpecManager(kernel_dirs=[str(folder.parent)], ensure_native_kernel=False)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def run(notebook: nbformat.NotebookNode, folder: Path, kernels: KernelSpecManager) -> nbformat.NotebookNode:
    """Execute in ``folder``; an error in a cell raises."""
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def pngs(cell: nbformat.NotebookNode) -> list[bytes]:
    """The figures that a cell drew."""
    data = (output.get("data", {}) for output in cell.outputs)
    return [base64.b64decode(one["image/png"]) for one in data if "image/png" in one]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_a_notebook_is_stored_without_outputs_and_without_paths_of_a_machine(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert not re.search(r"(?<![\w.:/])[/~](home|Users|root|tmp|work|mnt|data)\b", path.read_text(encoding="utf-8"))


@every_notebook
def test_a_notebook_runs_from_nothing_and_leaves_its_file_alone(
    path: Path, work: Path, kernels: KernelSpecManager
) -> None:
    before = path.read_bytes()
    done = run(made_quick(read(path)), work, kernels)
    assert all(cell.execution_count for cell in code_cells(done))
    (figure,) = pngs(tagged(done, "confusion-matrix"))
    assert figure.startswith(PNG)
    assert len(figure) > 2_000
    assert path.read_bytes() == before


@every_notebook
def test_a_notebook_takes_the_cache_that_it_finds(path: Path, work: Path, kernels: KernelSpecManager) -> None:
    """As ``python cli.py demo`` leaves it, but without the pictures: neither drawn nor extracted."""
    import embedcache as ec
    from embedcache.demo.birds import draw_cub

    draw_cub(work / "elsewhere", species=4, images_per_species=6)
    ec.extract("cub", work / "elsewhere", backbones=["demo-image", "demo-text"], cache=work / "demo" / "cache")
    made = {file: file.stat().st_mtime_ns for file in (work / "demo").rglob("*")}
    run(made_quick(read(path)), work, kernels)
    assert {file: file.stat().st_mtime_ns for file in (work / "demo").rglob("*")} == made
