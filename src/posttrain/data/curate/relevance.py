"""Relevance: how near a row is to a target set, as the mean cosine to its nearest target rows.

    relevance(x) = 1/k Σ cos(x, t) over the k target rows t nearest to x

The cosine to the target's centroid (all rows, k = m) loses small topics: of 586 medical and 30
shell rows, the shell. The cosine to the nearest row alone (k = 1) lets one odd target row draw in
all of its kind. Measured: docs/how-to/build-a-domain-set.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from posttrain.core.extras import require
from posttrain.core.seeds import generator
from posttrain.data.curate.near_duplicates import words

FEATURES = 2**20  # of the hashed words
SAMPLE = 2048  # rows from which the mean of embeddings is learned

Embed = Callable[[list[str]], np.ndarray]  # n texts → [n, d]


class Space(Protocol):
    """Turns texts into vectors of length 1, once it has observed what all rows have in common."""

    def observe(self, texts: list[str]) -> None: ...

    def vectors(self, texts: list[str]) -> Any: ...


class Tfidf:
    """TF-IDF: [n, FEATURES] sparse, from hashed words.

    A word that occurs tf times in a row and in df of the R rows observed weighs
    (1 + ln tf) · (ln((1 + R) / (1 + df)) + 1).
    """

    def __init__(self) -> None:
        text: Any = require(
            "sklearn.feature_extraction.text", extra="data", purpose="ranking by TF-IDF"
        )
        self._hasher = text.HashingVectorizer(
            analyzer=words, n_features=FEATURES, norm=None, alternate_sign=False, dtype=np.float32
        )
        self._document_frequency = np.zeros(FEATURES, np.int32)
        self._rows = 0

    def observe(self, texts: list[str]) -> None:
        features = self._hasher.transform(texts).indices
        self._document_frequency += np.bincount(features, minlength=FEATURES).astype(np.int32)
        self._rows += len(texts)

    def vectors(self, texts: list[str]) -> Any:
        from sklearn.preprocessing import normalize

        counts = self._hasher.transform(texts)
        frequency = self._document_frequency[counts.indices]
        idf = np.log((1 + self._rows) / (1 + frequency)) + 1
        counts.data = ((1 + np.log(counts.data)) * idf).astype(np.float32)
        return normalize(counts, copy=False)


class Embedding:
    """A model's embeddings less their mean, [n, d].

    Embeddings of language models lie in a narrow cone: any two have a high cosine. Less their mean
    (Mu and Viswanath 2018) the cosine tells topics apart. The mean is that of a sample of the rows
    observed.

    Args:
        embed: texts → embeddings.
        seed: decides the sample.
    """

    def __init__(self, embed: Embed, seed: int) -> None:
        self._embed, self._rng = embed, generator(seed, "embedding mean")
        self._sample: list[str] = []
        self._rows = 0
        self._mean: np.ndarray | None = None

    def observe(self, texts: list[str]) -> None:
        for text in texts:  # a reservoir: every row has the same chance
            self._rows += 1
            if len(self._sample) < SAMPLE:
                self._sample.append(text)
            elif (slot := int(self._rng.integers(self._rows))) < SAMPLE:
                self._sample[slot] = text

    def vectors(self, texts: list[str]) -> np.ndarray:
        if self._mean is None:
            self._mean = self._embed(self._sample).mean(axis=0)
        vectors = self._embed(texts) - self._mean
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def relevance(vectors: Any, target: Any, nearest: int) -> np.ndarray:
    """[n] mean cosine of each row to its `nearest` target rows, or to all where there are fewer.

    Args:
        vectors: [n, d], of length 1, sparse or dense.
        target: [m, d], likewise.
    """
    cosines = vectors @ target.T
    cosines = cosines.toarray() if hasattr(cosines, "toarray") else cosines
    k = min(nearest, cosines.shape[1])
    largest = np.partition(cosines, -k, axis=1)[:, -k:]
    return np.sort(largest, axis=1).mean(axis=1)  # sorted: rounding does not depend on their order
