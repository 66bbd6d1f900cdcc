"""What a search is made of besides fits: points that are drawn, rungs of halving, a journal of what is finished."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from embedcache.errors import UsageError
from embedcache.provenance import canonical_json, digest_json
from embedcache.samples import nested_order
from heads.base import Head
from heads.config import AXES, Range
from heads.sequences import Sequences

Rows = npt.NDArray[np.int64]
FOLDER: Final = ".searches"
LEAST_PER_CLASS: Final = 2
"""Rows of each class that the first rung of halving by samples has at least, on average, as in scikit-learn."""


# ------------------------------------------------------------------------------------------------------ points


def points_of(grids: Sequence[Mapping[str, Any]], how: str, n_iter: int, seed: int) -> list[dict[str, Any]]:
    """The points to try: all of the grids, in ``ParameterGrid``'s order, or those that ``ParameterSampler`` draws."""
    from sklearn.model_selection import ParameterGrid, ParameterSampler

    if how != "random":
        return [dict(point) for point in ParameterGrid([dict(one) for one in grids])]
    drawn = [{name: _distribution(values) for name, values in one.items()} for one in grids]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lists that have fewer points: all of them are tried
        return [_python(point) for point in ParameterSampler(drawn, n_iter, random_state=seed)]


def _python(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if hasattr(value, "item") else value for name, value in point.items()}


def _distribution(values: Any) -> Any:
    """A list as it is, a range as one of the distributions of scipy."""
    if not isinstance(values, Range):
        return values
    from scipy import stats

    if isinstance(values.low, int) and isinstance(values.high, int):
        return _WholeLog(values.low, values.high) if values.log else stats.randint(values.low, values.high + 1)
    if values.log:
        return stats.loguniform(values.low, values.high)
    return stats.uniform(values.low, values.high - values.low)


@dataclass(frozen=True)
class _WholeLog:
    """Whole numbers from low to high, evenly over their logarithms."""

    low: int
    high: int

    def rvs(self, random_state: Any) -> int:
        drawn = math.exp(random_state.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return min(max(round(drawn), self.low), self.high)


def of_head(point: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a point that the head is built with: without the choice of features and of transforms."""
    return {name: value for name, value in point.items() if name not in AXES}


# ------------------------------------------------------------------------------------------------------- rungs


@dataclass(frozen=True)
class Rungs:
    """How much each candidate gets before the worse ones are left.

    by: ``epochs`` goes on training the same head; ``rows`` fits a new one on more of the same rows; ``all`` is no
    halving. amounts: of each rung, rising; shares of the training rows for ``rows``. keep: candidates on each rung.
    """

    by: Literal["all", "epochs", "rows"] = "all"
    amounts: tuple[float, ...] = (1.0,)
    keep: tuple[int, ...] = (0,)

    def fits(self, folds: int) -> int:
        """Fits and continued fits, of all rungs."""
        return sum(self.keep) * folds

    def work(self, folds: int) -> float:
        """What they cost, in fits with everything."""
        last = self.amounts[-1]
        before = (0.0, *self.amounts[:-1]) if self.by == "epochs" else (0.0,) * len(self.amounts)
        return folds * sum(
            number * (amount - done) / last
            for number, amount, done in zip(self.keep, self.amounts, before, strict=True)
        )


def rungs_of(
    head: Head, parameters: Sequence[Mapping[str, Any]], how: str, factor: int, rows: int, classes: int
) -> Rungs:
    """The rungs of a search over some candidates. rows: of the smallest training part; classes: classes or labels.

    Raises UsageError where epochs are both what is halved and what is searched.
    """
    n = len(parameters)
    if how != "halving":
        return Rungs(keep=(n,))
    wanted = _steps_down(n, factor)
    if _iterates(head, parameters[0]):
        full = _epochs(head, parameters)
        n_rungs = min(wanted, _steps_down(full, factor))
        amounts = tuple(float(max(1, full // factor ** (n_rungs - 1 - rung))) for rung in range(n_rungs))
        return Rungs("epochs", amounts, _kept(n, factor, n_rungs))
    n_rungs = min(wanted, _steps_down(max(1, rows // (LEAST_PER_CLASS * classes)), factor))
    return Rungs(
        "rows", tuple(1 / factor ** (n_rungs - 1 - rung) for rung in range(n_rungs)), _kept(n, factor, n_rungs)
    )


def _steps_down(number: int, factor: int) -> int:
    """1 and how often a number can be divided without falling below 1."""
    steps = 1
    while number >= factor:
        number, steps = number // factor, steps + 1
    return steps


def _kept(n: int, factor: int, n_rungs: int) -> tuple[int, ...]:
    kept = [n]
    for _ in range(n_rungs - 1):
        kept.append(math.ceil(kept[-1] / factor))
    return tuple(kept)


def _iterates(head: Head, parameters: Mapping[str, Any]) -> bool:
    """Whether a head can go on training where it stopped. scikit-learn's ``partial_fit`` is not its ``fit``."""
    try:
        return hasattr(head.build(parameters, 0), "continue_fit") and "epochs" in head.parameters()
    except (TypeError, ValueError):
        return False


def _epochs(head: Head, parameters: Sequence[Mapping[str, Any]]) -> int:
    """The epochs of the last rung. Raises UsageError where candidates differ in them, or stop by themselves."""
    full = {int(head.canonical(one)["epochs"]) for one in parameters}
    if len(full) > 1:
        raise UsageError(
            "'search: halving' divides the epochs of this head: state one number of 'epochs' under 'fixed', not "
            f"several under 'grid' ({sorted(full)})."
        )
    if any(head.canonical(one).get("early_stopping") for one in parameters):
        raise UsageError(
            "'search: halving' and 'early_stopping' both decide when a head has trained enough: use one of them."
        )
    return max(1, full.pop())


def part_of(train: Rows, strata: Rows, share: float, seed: int) -> Rows:
    """That share of some training rows, nested in those of larger shares, classes in proportion; sorted."""
    if share >= 1:
        return train
    size = max(2, int(share * len(train)))
    return np.sort(train[nested_order(strata, len(train), seed)[:size]])


# ----------------------------------------------------------------------------------------------------- journal


@dataclass(frozen=True)
class Outcome:
    """One candidate on one fold, up to one rung. scores: of each score, NaN where it could not be fitted or scored.

    estimator: fitted, where a later rung goes on with it.
    """

    scores: tuple[float, ...]
    fit_seconds: float
    score_seconds: float
    unconverged: bool
    error: str = ""
    estimator: Any = field(default=None, compare=False)


class Journal:
    """Finished fits of one search, a JSON line each, so that an interrupted search goes on where it was.

    A line that was not written to its end is as if it were not there.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Outcome] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if (entry := _read(line)) is not None:
                    self.known[entry[0]] = entry[1]

    def add(self, key: str, outcome: Outcome) -> None:
        """Write one finished fit."""
        if self.path is None:
            return
        entry = {name: value for name, value in vars(outcome).items() if name != "estimator"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            torn = file.tell() and not _ends_a_line(file)
            file.write((b"\n" if torn else b"") + json.dumps({"key": key, **entry}).encode() + b"\n")


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def _read(line: str) -> tuple[str, Outcome] | None:
    try:
        entry = json.loads(line)
        key = str(entry.pop("key"))
        return key, Outcome(**{**entry, "scores": tuple(map(float, entry["scores"]))})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def journal_path(folder: Path | None, identity: Mapping[str, Any]) -> Path | None:
    """Where the journal of a search stands. identity: all that a search is: configuration, data, splits."""
    return None if folder is None else folder / f"{digest_json(plain_keys(identity))}.jsonl"


def plain_keys(value: Any) -> Any:
    """A value that JSON can hold: what it cannot, infinite floats among it, as its Python text."""
    if isinstance(value, Mapping):
        return {str(key): plain_keys(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_keys(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return [repr(value.item() if hasattr(value, "item") else value)]


def _plain(arrays: Sequence[Any]) -> Iterator[npt.NDArray[Any] | None]:
    """The arrays; of rows of word ids those that they are made of."""
    for array in arrays:
        if isinstance(array, Sequences):
            yield from (array.tokens, array.offsets, array.rows, array.numbers())
        else:
            yield array


def data_digest(arrays: Sequence[Any], said: Any) -> str:
    """Of the numbers that a search is made on: their types, shapes and bytes, and what else is ``said`` of them."""
    digest = xxhash.xxh3_128(canonical_json(plain_keys(said)).encode())
    for array in _plain(arrays):
        if array is None:
            digest.update(b"none")
            continue
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype == object:  # texts
            digest.update(canonical_json(array.tolist()).encode("utf-8", "surrogatepass"))
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
