"""Near-duplicates: similarities by hand, planted pairs, and what must hold whatever the
texts are.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.curate.groups import equal
from posttrain.data.curate.near_duplicates import (
    MISSED,
    Prints,
    bands,
    clusters,
    jaccard,
    near_reference,
    repeats,
    shingles,
    words,
)

RNG = np.random.default_rng(0)


def similarity(prints: Prints, i: int, j: int) -> float:
    return jaccard(prints.shingles(i), prints.shingles(j))


def prose(count: int, rng: np.random.Generator = RNG) -> list[str]:
    """Words drawn from 500."""
    return [f"w{i}" for i in rng.integers(0, 500, count)]


def test_words_are_without_case_and_punctuation_but_with_the_signs_of_code() -> None:
    assert words("The llama, (Lama GLAMA)!") == ["the", "llama", "lama", "glama"]
    assert words("2 + 3") != words("2 - 3") == ["2", "-", "3"]
    assert words("ﬁne ＡＢ") == ["fine", "ab"]
    assert words("我是x人") == ["我", "是", "x", "人"]


def test_similarity_by_hand() -> None:
    # a b c d e: abc bcd cde; a b c d f: abc bcd cdf: 2 of 4
    assert jaccard(shingles("a b c d e"), shingles("A, b, c, d; f.")) == 0.5
    assert jaccard(shingles("a b"), shingles("a b")) == 1.0
    # fewer than three words are one shingle
    assert jaccard(shingles("a b"), shingles("a b c")) == 0.0
    assert jaccard(shingles(""), shingles("!?")) == 0.0
    assert len(shingles("a b c a b c")) == 3  # abc bca cab abc


@pytest.mark.parametrize("near", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_what_they_may_and_no_longer_ones_do(near: float) -> None:
    count, rows = bands(near)
    assert count * rows <= 128
    assert (1 - near**rows) ** count <= MISSED
    assert rows == 128 or (1 - near ** (rows + 1)) ** (128 // (rows + 1)) > MISSED


def test_keys_do_not_depend_on_the_process() -> None:
    assert shingles("a b c").tolist() == [13929088924395079595]
    assert equal_list([5, 3, 5, 7, 3, 5]) == [[1, 4], [0, 2, 5]]
    assert equal_list([]) == []


def equal_list(keys: list[int]) -> list[list[int]]:
    return [run.tolist() for run in equal(np.array(keys, np.uint64))]


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    """2,000 texts of 80 words, 300 of them with a copy that has two words changed: similarity about
    0.86.
    """
    texts = [prose(80) for _ in range(2000)]
    pairs = {i: 1000 + i for i in range(300)}
    for i, j in pairs.items():
        copy = list(texts[i])
        for at in RNG.choice(80, 2, replace=False):
            copy[at] = f"new{i}"
        texts[j] = copy
    with Prints(tmp_path / "p") as prints:
        for text in texts:
            prints.add(" ".join(text))
        labels = clusters(prints, 0.8)
        true = {i for i, j in pairs.items() if similarity(prints, i, j) >= 0.8}
    assert len(true) > 290
    assert all(labels[pairs[i]] == labels[i] for i in true)
    assert len(np.unique(labels)) == 2000 - len(true)


def test_clusters_are_chains_and_keys_join(tmp_path: Path) -> None:
    """a ~ b ~ c, but not a ~ c; d is joined to a by its key; keys of 0 join nothing; texts without
    words are alone.
    """
    base = prose(60)
    b, c = base[:55] + prose(5), base[:50] + prose(5) + prose(5)
    c[55:] = b[55:]
    with Prints(tmp_path / "p") as prints:
        for text in (base, b, c, prose(60), prose(60), ["!"], ["?"]):
            prints.add(" ".join(text))
        assert (
            similarity(prints, 0, 2)
            < 0.75
            < min(similarity(prints, 0, 1), similarity(prints, 1, 2))
        )
        labels = clusters(prints, 0.75, equal_keys=[np.array([7, 0, 0, 7, 0, 0, 0], np.uint64)])
    assert labels.tolist() == [0, 0, 0, 0, 4, 5, 6]


def test_of_repeats_the_best_stays(tmp_path: Path) -> None:
    base = prose(60)
    b, c = base[:55] + prose(5), base[:50] + prose(5)
    c += b[55:]
    with Prints(tmp_path / "p") as prints:
        for text in (base, b, c, prose(60)):
            prints.add(" ".join(text))
        labels = clusters(prints, 0.75)
        # c is near b, which has gone
        assert repeats(prints, 0.75, labels, np.array([0, 1, 2, 3])).tolist() == [-1, 0, -1, -1]
        assert repeats(prints, 0.75, labels, np.array([1, 0, 2, 3])).tolist() == [1, -1, 1, -1]
        assert repeats(prints, 0.75, labels, np.array([1, -1, 2, 3])).tolist() == [-1, -1, -1, -1]
        assert near_reference(prints, 0.75, labels, 1).tolist() == [-1, 0, -1, -1]
        assert near_reference(prints, 0.75, labels, 2).tolist() == [-1, -1, 1, -1]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=8), min_size=1, max_size=25),
    st.sampled_from([0.3, 0.6, 0.9, 1.0]),
)
def test_no_two_that_stay_are_near_and_each_that_goes_is_near_a_better_one(
    texts: list[list[str]], near: float
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, Prints(Path(folder) / "p") as prints:
        for text in texts:
            prints.add(" ".join(text))
        of = repeats(prints, near, clusters(prints, near), np.arange(len(texts)))
        stay = np.flatnonzero(of < 0)
        for i in np.flatnonzero(of >= 0):
            assert of[i] in stay and of[i] < i and similarity(prints, int(i), int(of[i])) >= near
        # short texts with few shingles: a pair below MISSED is the only excuse, and signatures of
        # equal sets are equal
        close = [
            (i, j)
            for i in stay
            for j in stay
            if i < j and similarity(prints, int(i), int(j)) >= max(near, 0.999)
        ]
        assert not close


def test_similarities_are_those_of_the_sets(tmp_path: Path) -> None:
    texts = [" ".join(RNG.choice(list("abcd"), RNG.integers(1, 30))) for _ in range(60)]
    with Prints(tmp_path / "p") as prints:
        for text in texts:
            prints.add(text)
        sets = [set(prints.shingles(i).tolist()) for i in range(60)]
        for i in range(0, 60, 7):
            expected = [len(sets[i] & other) / len(sets[i] | other) for other in sets]
            assert prints.similarities(i, range(60)).tolist() == expected
            assert [similarity(prints, i, j) for j in range(60)] == expected


def test_many_rows_of_a_template_do_not_take_forever(tmp_path: Path) -> None:
    """The worst case: all pairs have a similarity of 0.75, just too little, and every band brings
    some together.
    """
    fixed = " ".join(prose(50))
    with Prints(tmp_path / "p") as prints:
        for i in range(1000):
            prints.add(f"{fixed} " + " ".join(f"x{i}y{j}" for j in range(8)))
        began = time.process_time()
        assert len(np.unique(clusters(prints, 0.8))) == 1000
        assert 0.7 < similarity(prints, 0, 1) < 0.8
    assert time.process_time() - began < 15  # seconds, for half a million pairs
