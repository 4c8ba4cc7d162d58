"""Relevance: TF-IDF by hand, the mean of the nearest, and embeddings without their common part."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain.data.curate.relevance import SAMPLE, Embedding, Tfidf, relevance


def test_tfidf_by_hand() -> None:
    space = Tfidf()
    space.observe(["the cat", "the dog"])
    space.observe(["the the bird"])
    idf = {"the": math.log(4 / 4) + 1, "cat": math.log(4 / 2) + 1, "new": math.log(4 / 1) + 1}
    weights = {"the": (1 + math.log(2)) * idf["the"], "cat": idf["cat"], "new": idf["new"]}
    length = math.sqrt(sum(w * w for w in weights.values()))
    found = space.vectors(["The the cat, new!", "the"])
    assert sorted(found[0].data) == pytest.approx(
        sorted(w / length for w in weights.values()), rel=1e-6
    )
    assert (found @ found.T).toarray()[0, 1] == pytest.approx(weights["the"] / length, rel=1e-6)
    assert space.vectors(["", "cat"]).getnnz(axis=1).tolist() == [0, 1]


def test_relevance_is_the_mean_of_the_nearest() -> None:
    target = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    rows = np.array([[0.8, 0.6, 0.0], [0.0, 0.6, -0.8]])
    assert relevance(rows, target, 1) == pytest.approx([0.8, 0.6])
    assert relevance(rows, target, 2) == pytest.approx([0.7, 0.3])
    # all, where there are fewer
    assert relevance(rows, target, 9) == pytest.approx([1.4 / 3, -0.2 / 3])


def test_a_small_topic_of_the_target_is_not_lost() -> None:
    """Of 80 target rows 4 are of a second topic: the mean of the four nearest finds it, that of all
    does not.
    """
    space = Tfidf()
    heart, shell = "heart valve blood pressure {}", "list files folder command {}"
    noise = [f"heart blood {i}" for i in range(50)]
    rows = [heart.format(i) for i in range(20)] + [shell.format(i) for i in range(20)] + noise
    space.observe(rows)
    target = space.vectors(
        [heart.format(f"t{i}") for i in range(76)] + [shell.format(f"t{i}") for i in range(4)]
    )
    four, everything = (relevance(space.vectors(rows), target, k) for k in (4, 80))
    assert four[:40].min() > four[40:].max()
    assert everything[20:40].max() < everything[40:].max()


def test_embeddings_lose_what_all_have_in_common() -> None:
    """Texts are numbers; an embedding is (100, x, y). The mean of the observed takes the
    100 away.
    """

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[100.0, *map(float, text.split())] for text in texts])

    space = Embedding(embed, seed=0)
    space.observe(["1 0", "-1 0"])
    space.observe(["0 1", "0 -1"])
    np.testing.assert_allclose(
        space.vectors(["3 4", "0 0", "0 -2"]), [[0, 0.6, 0.8], [0, 0, 0], [0, 0, -1]], atol=1e-12
    )


def test_the_sample_is_of_all_rows_alike_and_of_bounded_size() -> None:
    seen: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return np.array([[float(text), 1.0] for text in texts])

    means = []
    for seed in (0, 0, 1):
        space = Embedding(embed, seed=seed)
        for start in range(0, 20_000, 500):
            space.observe([str(i) for i in range(start, start + 500)])
        space.vectors(["0"])
        assert len(seen[-2]) == SAMPLE
        means.append(np.mean([float(text) for text in seen[-2]]))
    # of 20,000 rows drawn without replacement: mean 9,999.5, standard error 5,774 / √2,048 = 128
    assert abs(means[0] - 9999.5) < 4 * 128
    assert means[0] == means[1] != means[2]
