"""Words: how a text is split into them, which of them a vocabulary keeps, and the vectors that others have learnt.

>>> from embedcache.words import embedding_matrix, read_vectors       # doctest: +SKIP
>>> vectors = read_vectors("glove.6B.50d.txt")                        # doctest: +SKIP
>>> found = embedding_matrix(cache["vqa"].tokens("words").vocabulary, vectors)  # doctest: +SKIP
>>> found.matrix.shape, found.coverage                                # doctest: +SKIP
"""

from embedcache.words.tokens import RULE, Tokenized, split_words, tokenize
from embedcache.words.vectors import EmbeddingMatrix, WordVectors, embedding_matrix, read_vectors
from embedcache.words.vocabulary import PADDING_ID, UNKNOWN_ID, Vocabulary, build_vocabulary

__all__ = [
    "PADDING_ID",
    "RULE",
    "UNKNOWN_ID",
    "EmbeddingMatrix",
    "Tokenized",
    "Vocabulary",
    "WordVectors",
    "build_vocabulary",
    "embedding_matrix",
    "read_vectors",
    "split_words",
    "tokenize",
]
