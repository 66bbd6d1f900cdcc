"""``lstm``: a word embedding and an LSTM, alone or beside cached vectors, by its own parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from heads.mlp import Mlp


class Lstm(Mlp):
    """``LSTMHead`` over word ids."""

    name = "lstm"
    reads: ClassVar[str] = "tokens"

    def estimator(self) -> Any:
        """The class of the estimator."""
        from heads.torch_text import LSTMHead

        return LSTMHead

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Without the size of an embedding that pretrained vectors decide."""
        found = super().canonical(parameters)
        if found["vectors"] is not None:
            found.pop("embedding_size")
        return found
