"""Trees on the disk come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.forest import Sequence, Tree
from posttrain.data.store import Trees, TreeWriter

sequences = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=9
).map(
    lambda pairs: Sequence(
        np.array([p[0] for p in pairs], np.int64), np.array([p[1] for p in pairs])
    )
)
trees = st.lists(sequences, min_size=1, max_size=4).map(lambda some: Tree(tuple(some)))


def write(folder: Path, some: list[Tree]) -> Path:
    with TreeWriter(folder) as out:
        for tree in some:
            out.add(tree)
    return folder


def same(a: Tree, b: Tree) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.tokens, y.tokens) and np.array_equal(x.trained, y.trained)
        for x, y in zip(a, b, strict=True)
    )


@given(parts=st.lists(st.lists(trees, max_size=6), min_size=1, max_size=3))
def test_trees_of_several_folders_come_back_in_order(
    parts: list[list[Tree]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trees")
    found = Trees(*(write(folder / str(i), part) for i, part in enumerate(parts)))
    flat = [tree for part in parts for tree in part]
    assert len(found) == len(flat)
    assert all(same(found[i], tree) for i, tree in enumerate(flat))
    assert all(same(a, b) for a, b in zip(found, flat, strict=True))  # iteration stops at the end
    assert found.lengths().tolist() == [len(s.tokens) for tree in flat for s in tree]
    with pytest.raises(IndexError):
        found[len(flat)]


def test_the_digest_covers_tokens_masks_and_how_they_are_cut(tmp_path: Path) -> None:
    def sequence(*ids: int, trained: bool = True) -> Sequence:
        return Sequence(np.array(ids), np.full(len(ids), trained))

    stores = {
        "pair": [(sequence(1, 2), sequence(3, 4))],
        "other token": [(sequence(1, 2), sequence(3, 5))],
        "other mask": [(sequence(1, 2), sequence(3, 4, trained=False))],
        "other sequences": [(sequence(1), sequence(2, 3, 4))],
        "other trees": [(sequence(1, 2),), (sequence(3, 4),)],
        "cut here": [(sequence(1),), (sequence(2), sequence(3))],
        "cut there": [(sequence(1), sequence(2)), (sequence(3),)],
    }
    digests = {
        name: Trees(write(tmp_path / name, trees)).digest() for name, trees in stores.items()
    }
    assert len(set(digests.values())) == len(stores)
    again = Trees(write(tmp_path / "again", stores["pair"]))
    assert again.digest() == digests["pair"]


def test_a_tree_takes_four_bytes_a_token_and_eight_a_sequence_and_a_tree(tmp_path: Path) -> None:
    sequence = Sequence(np.arange(100), np.ones(100, bool))
    write(tmp_path, [Tree((sequence, sequence)), Tree((sequence,))])
    assert {p.name: p.stat().st_size for p in tmp_path.iterdir()} == {
        "tokens": 1200,
        "sequences": 24,
        "trees": 16,
    }
