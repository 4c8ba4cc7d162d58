"""Relevance: how near a row is to a target set, as the mean cosine to its nearest target rows.

    relevance(x) = 1/k Σ cos(x, t) over the k target rows t nearest to x

Not the cosine to the target's centroid (all rows, k = m): among 586 medical and 30 shell rows it
loses the shell. Not to the nearest row alone (k = 1): one odd target row draws in all its kind.
Measured: docs/how-to/build-a-domain-set.md.
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
    """Where texts become vectors of length 1.

    What is common to all rows is learned from the large set first.
    """

    def observe(self, texts: list[str]) -> None: ...

    def vectors(self, texts: list[str]) -> Any: ...


class Tfidf:
    """TF-IDF: [n, FEATURES] sparse, from hashed words.

    A word that stands tf times in a row and in df of the R rows observed weighs (1 + ln tf) ·
    (ln((1 + R) / (1 + df)) + 1).
    """

    def __init__(self) -> None:
        text: Any = require(
            "sklearn.feature_extraction.text", extra="data", purpose="ranking by TF-IDF"
        )
        self._hasher = text.HashingVectorizer(
            analyzer=words, n_features=FEATURES, norm=None, alternate_sign=False, dtype=np.float32
        )
        self._found = np.zeros(FEATURES, np.int32)
        self._rows = 0

    def observe(self, texts: list[str]) -> None:
        self._found += np.bincount(
            self._hasher.transform(texts).indices, minlength=FEATURES
        ).astype(np.int32)
        self._rows += len(texts)

    def vectors(self, texts: list[str]) -> Any:
        from sklearn.preprocessing import normalize

        out = self._hasher.transform(texts)
        idf = np.log((1 + self._rows) / (1 + self._found[out.indices])) + 1
        out.data = ((1 + np.log(out.data)) * idf).astype(np.float32)
        return normalize(out, copy=False)


class Embedding:
    """A model's embeddings, [n, d], without what all rows have in common.

    Embeddings of language models lie in a narrow cone: any two have a high cosine. Without their
    mean (Mu and Viswanath 2018) the cosine tells topics apart. The mean is that of a sample of the
    rows observed.

    Args:
        embed: texts → embeddings.
        seed: of the sample.
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
            elif (at := int(self._rng.integers(self._rows))) < SAMPLE:
                self._sample[at] = text

    def vectors(self, texts: list[str]) -> np.ndarray:
        if self._mean is None:
            self._mean = self._embed(self._sample).mean(axis=0)
        out = self._embed(texts) - self._mean
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def relevance(vectors: Any, target: Any, nearest: int) -> np.ndarray:
    """[n] mean cosine of each row to its `nearest` target rows, or to all where there are fewer.

    Args:
        vectors: [n, d], of length 1, sparse or dense.
        target: [m, d], likewise.
    """
    cosines = vectors @ target.T
    cosines = cosines.toarray() if hasattr(cosines, "toarray") else cosines
    k = min(nearest, cosines.shape[1])
    return np.sort(np.partition(cosines, -k, axis=1)[:, -k:], axis=1).mean(
        axis=1
    )  # sorted: the sum does not depend on m
