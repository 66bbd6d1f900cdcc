"""Peak memory by the number of items: at most 300 bytes for each in an extraction; ``verify`` none; ``mlp`` its row.

A text ``table`` of 100,000 and of 1,000,000 rows goes through ``embedcache.extract`` with a stand-in backbone, each
in a process of its own; the growth of the peak (``VmHWM``) over the 900,000 additional items is held against the
promise, which is the peer: a ratio of at most 1 keeps it. What ``verify`` takes is held against what it takes for the
smaller file: a tenth more is allowed, for the maps of a byte a row and for noise.

``MLPHead`` trains on float16 features that are mapped from a file: what its peak grows by from few rows to many is held
against what the matrix grows by, which is mapped and counts once. A tenth more is allowed; a second copy would be 1.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.rounds import Figure, own_peak

FEW, MANY = 100_000, 1_000_000
DIMS = (16, 512)
PROMISED = 300
ROWS, WIDTH = (10_000, 60_000), 2048
HEADS = {
    "plain": {},
    "standardized": {"standardize": True},
    "stopped early": {"standardize": True, "early_stopping": True},
    "every other row": {"standardize": True},
}
REPEATS = 3


def run(repeats: int | None = None) -> list[Figure]:
    from benchmarks.stand_in import extract_texts, write_texts

    with TemporaryDirectory() as folder:
        for rows in (FEW, MANY):
            write_texts(Path(folder) / f"{rows}.csv", rows)
        turns = repeats or REPEATS
        figures = [_growth(Path(folder), dim, turns) for dim in DIMS]
        for rows in (FEW, MANY):
            extract_texts(Path(folder) / f"{rows}.csv", DIMS[0], _kept(Path(folder) / f"{rows}.csv"))
        for rows in ROWS:
            _write_matrix(_matrix(Path(folder), rows), rows)
        heads = [_of_head(Path(folder), kind, turns) for kind in HEADS]
        return [*figures, _of_verify(Path(folder), turns), *heads]


def _growth(folder: Path, dim: int, repeats: int) -> Figure:
    """Bytes that an extraction takes for each additional item, beside the promised ones."""
    peaks = [[_peak("extract", folder, rows, dim) for rows in (MANY, FEW)] for _ in range(repeats)]
    growth = [(many - few) / (MANY - FEW) for many, few in peaks]
    ratios = [each / PROMISED for each in growth]
    return Figure(
        f"memory dim {dim}",
        f"{statistics.median(growth):.0f} B",
        "promise",
        f"{PROMISED} B",
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        1.0,
        wanted="at most",
        note=f"peak memory for each item more, from {FEW:,} to {MANY:,} texts of 40 characters",
    )


def _of_verify(folder: Path, repeats: int) -> Figure:
    """What verifying many rows takes, beside few."""
    peaks = [[_peak("verify", folder, rows) / 1e6 for rows in (MANY, FEW)] for _ in range(repeats)]
    many, few = (statistics.median(each) for each in zip(*peaks, strict=True))
    ratios = [ours / peer for ours, peer in peaks]
    return Figure(
        "memory verify",
        f"{many:.0f} MB",
        f"{FEW:,}",
        f"{few:.0f} MB",
        many / few,
        (min(ratios), max(ratios)),
        1.1,
        wanted="at most",
        note=f"peak memory of verifying {MANY:,} rows beside {FEW:,}, the interpreter's own included",
    )


def _of_head(folder: Path, kind: str, repeats: int) -> Figure:
    """What a fit takes for each byte of the matrix more."""
    few, many = ROWS
    matrix = (many - few) * WIDTH * 2
    peaks = [[_peak(kind, folder, rows) for rows in (many, few)] for _ in range(repeats)]
    ratios = [(more - less) / matrix for more, less in peaks]
    return Figure(
        f"memory mlp {kind}",
        f"{statistics.median(ratios) * matrix / 1e6:.0f} MB",
        "the matrix",
        f"{matrix / 1e6:.0f} MB",
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        1.1,
        wanted="at most",
        note=f"peak memory of an epoch, from {few:,} to {many:,} mapped rows of {WIDTH:,} float16",
    )


def _matrix(folder: Path, rows: int) -> Path:
    return folder / f"{rows}.f16"


def _write_matrix(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(rows // 1000):
            file.write(rng.standard_normal((1000, WIDTH), np.float32).astype(np.float16).tobytes())


def _train(path: Path, kind: str) -> None:
    from heads.fitting import fit_pipeline
    from heads.torch_mlp import MLPHead

    x = np.memmap(path, np.float16, "r").reshape(-1, WIDTH)
    rows = np.arange(0, len(x), 2 if kind == "every other row" else 1)
    own = MLPHead((64,), epochs=1, device="cpu", random_state=0, **HEADS[kind])  # type: ignore[arg-type]
    fit_pipeline("mlp", [], own, x, np.arange(len(x)) % 10, rows)


def _kept(table: Path) -> Path:
    """The cache that ``verify`` looks at."""
    return table.with_suffix(".cache")


def _peak(what: str, folder: Path, rows: int, dim: int = 0) -> int:
    """Peak memory in bytes of a process that extracts ``rows`` texts, verifies them, or trains on as many rows."""
    path = _matrix(folder, rows) if what in HEADS else folder / f"{rows}.csv"
    command = [sys.executable, "-m", "benchmarks.memory", what, str(path), str(dim)]
    root = Path(__file__).parents[1]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


def _verify(cache: Path) -> None:
    import embedcache as ec
    from embedcache.verification import verify

    [report] = verify(ec.open(cache)["texts"])
    if report.damaged:
        raise RuntimeError(f"{report.path} is damaged: {report.findings}")


if __name__ == "__main__":
    if sys.argv[1] == "verify":
        _verify(_kept(Path(sys.argv[2])))
    elif sys.argv[1] in HEADS:
        _train(Path(sys.argv[2]), sys.argv[1])
    else:
        from benchmarks.stand_in import extract_texts  # torch with it, which verifying does without

        with TemporaryDirectory() as cache:
            extract_texts(Path(sys.argv[2]), int(sys.argv[3]), Path(cache))
    print(own_peak())
