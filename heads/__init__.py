"""Stage two: light heads on cached features, at the speed of the hardware.

The table of heads is ``HEADS``. A new kind of head is one file and one line here.
"""

from __future__ import annotations

from typing import Final

from embedcache.errors import unknown_name
from heads.base import Head
from heads.knn import Knn
from heads.logistic import Logistic
from heads.mlp import Mlp
from heads.ridge import Ridge
from heads.sklearn_mlp import SklearnMlp
from heads.svm import Svm
from heads.tfidf import Tfidf

HEADS: Final[dict[str, Head]] = {
    head.name: head for head in (Logistic(), Mlp(), SklearnMlp(), Knn(), Ridge(), Svm(), Tfidf())
}


def head_named(name: str) -> Head:
    """The head of that name. Raises UnknownNameError with the known ones."""
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    return HEADS[name]
