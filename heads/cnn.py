"""``cnn``: filters over word vectors, alone or beside cached vectors, by its own parameter names."""

from __future__ import annotations

from typing import Any

from heads.lstm import Lstm


class Cnn(Lstm):
    """``CNNHead`` over word ids."""

    name = "cnn"

    def estimator(self) -> Any:
        """The class of the estimator."""
        from heads.torch_text import CNNHead

        return CNNHead
