"""The text baseline: scikit-learn's ``TfidfVectorizer`` and ``LogisticRegression`` on the raw texts.

It needs no feature file: the texts are those of the cache's own item table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from heads.base import constructor_parameters
from heads.logistic import PROBE_ITERATIONS, Logistic

NOT_OURS: Final = frozenset({"input", "encoding", "decode_error", "preprocessor", "tokenizer", "vocabulary", "dtype"})
"""What is not said of a column of texts, or is a function and not a value."""
DEFAULTS: Final[Mapping[str, Any]] = {"sublinear_tf": True, "C": 10.0}


class Tfidf:
    """Words weighed by rarity, then one regression; the parameters of both by their own names.

    Unless stated ``sublinear_tf`` is true and ``C`` 10, and what ``logistic`` states; the rest are scikit-learn's.
    """

    name = "tfidf"
    reads = "texts"

    def parameters(self) -> set[str]:
        """Those of ``TfidfVectorizer`` and those of ``LogisticRegression``: no name is in both."""
        return set(_of_vectorizer()) | Logistic().parameters()

    def build(self, parameters: Mapping[str, Any], seed: int) -> Any:
        """An unfitted pipeline of both, for an array of texts (n,)."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import Pipeline

        words, rest = _divided({**DEFAULTS, **parameters})
        return Pipeline([("tfidf", TfidfVectorizer(**words)), ("head", Logistic().build(rest, seed))])

    def several_labels(self, estimator: Any) -> Any:
        """One regression per label on the same words."""
        return _with_head(estimator, Logistic().several_labels(estimator[-1]))

    def chained(self, estimator: Any, order: Any, seed: int) -> Any:
        """For several labels, each of which also sees those before it. order: labels, the first one first."""
        return _with_head(estimator, Logistic().chained(estimator[-1], order, seed))

    def canonical(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter has an effect."""
        words, rest = _divided({**DEFAULTS, **parameters})
        return {**_of_vectorizer(), **words, **Logistic().canonical(rest)}

    def passes(self, parameters: Mapping[str, Any]) -> int:
        """As of ``logistic``: the words are counted once, which is little beside it."""
        return Logistic().passes(_divided({**DEFAULTS, **parameters})[1])

    def brief(self, parameters: Mapping[str, Any], seed: int, passes: int) -> Any:
        """Ten iterations for each pass."""
        return self.build({**parameters, "max_iter": PROBE_ITERATIONS * passes}, seed)

    def slim(self, estimator: Any) -> Any:
        """The vocabulary's numbers as Python's own; the regressions as ``logistic`` has them."""
        words = estimator[0]
        words.vocabulary_ = {word: int(column) for word, column in words.vocabulary_.items()}
        return _with_head(estimator, Logistic().slim(estimator[-1]))


def _with_head(pipeline: Any, head: Any) -> Any:
    from sklearn.pipeline import Pipeline

    return Pipeline([*pipeline.steps[:-1], ("head", head)])


def _divided(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The vectorizer's parameters, ``ngram_range`` as a tuple, and the regression's."""
    own = _of_vectorizer()
    words = {name: value for name, value in parameters.items() if name in own}
    if isinstance(words.get("ngram_range"), list):
        words["ngram_range"] = tuple(words["ngram_range"])
    return words, {name: value for name, value in parameters.items() if name not in own}


def _of_vectorizer() -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return {name: value for name, value in constructor_parameters(TfidfVectorizer).items() if name not in NOT_OURS}
