"""A bar on stderr while a head is trained by epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

OnEpoch: TypeAlias = Callable[[Mapping[str, float]], None]
"""Is told each line of a history when its epoch is done."""
LONGEST: Final = 30
"""Letters of a name before a bar: a terminal of 80 columns has room for both."""


@contextmanager
def watched(estimator: Any, name: str | None, epochs: int | None = None) -> Iterator[dict[str, OnEpoch]]:
    """Arguments for ``fit`` or ``continue_fit`` that move a bar, which is gone afterwards.

    name: stands before the bar; None shows none, and neither does a head that is not trained by epochs. epochs: how
    many there are at most; by default those of the estimator.
    """
    from sklearn.utils.validation import has_fit_parameter
    from tqdm import tqdm

    if name is None or not has_fit_parameter(estimator, "on_epoch"):
        yield {}
        return
    total = estimator.epochs if epochs is None else epochs
    with tqdm(total=total, unit=" epochs", desc=_short(name), leave=False, dynamic_ncols=True) as bar:

        def tell(line: Mapping[str, float]) -> None:
            bar.set_postfix_str(_losses(line), refresh=False)
            bar.update()

        yield {"on_epoch": tell}


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _losses(line: Mapping[str, float]) -> str:
    """The training loss, and the validation loss where there is one."""
    found = [line[name] for name in ("train_loss", "validation_loss") if name in line]
    return "loss " + ", ".join(f"{loss:.3f}" for loss in found)
