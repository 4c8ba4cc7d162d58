"""The token forest: its fields on cases small enough for a pencil, and what packing and splitting
promise.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.data.forest import Sequence, TokenForest, Tree, forests, pack, plant, size, split
from tests.tiny import random_tree, seq

trees = st.composite(lambda draw: random_tree(lambda n: draw(st.integers(0, n - 1))))

# prompt 10 11 12; chosen 20 21, rejected 20 22 23: the answers begin alike, so what they share is
# four tokens long
PAIR: Tree = (
    seq([10, 11, 12, 20, 21], [0, 0, 0, 1, 1]),
    seq([10, 11, 12, 20, 22, 23], [0, 0, 0, 1, 1, 1]),
)


def fields(forest: TokenForest) -> dict[str, list[int]]:
    names = (
        "tokens",
        "positions",
        "subtree_end",
        "predictor",
        "target",
        "leaf",
        "sequence",
        "path",
        "lengths",
    )
    return {name: getattr(forest, name).tolist() for name in names}


def visible(forest: TokenForest, q: int) -> list[int]:
    """The keys a query sees, by the rule of `subtree_end`."""
    ends = forest.subtree_end.tolist()
    return [k for k in range(q + 1) if q < ends[k]]


def test_fields_of_a_pair() -> None:
    """Seven tokens instead of eleven; the shared answer token 20 is laid out once and is a target
    of both answers.
    """
    assert fields(plant([PAIR])) == {
        "tokens": [10, 11, 12, 20, 21, 22, 23],
        "positions": [0, 1, 2, 3, 4, 4, 5],
        "subtree_end": [7, 7, 7, 7, 5, 7, 7],
        "predictor": [2, 3, 2, 3, 5],
        "target": [20, 21, 20, 22, 23],
        "leaf": [0, 0, 1, 1, 1],
        "sequence": [0, 1],
        "path": [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6],
        "lengths": [5, 6],
    }


def test_a_packed_document_before_a_pair() -> None:
    """Every index of a later tree is moved by the tokens before it; positions are not."""
    forest = plant([(seq([7, 8, 9]),), PAIR], numbers=[[5], [8, 3]])
    assert fields(forest) == {
        "tokens": [7, 8, 9, 10, 11, 12, 20, 21, 22, 23],
        "positions": [0, 1, 2, 0, 1, 2, 3, 4, 4, 5],
        "subtree_end": [3, 3, 3, 10, 10, 10, 10, 8, 10, 10],
        "predictor": [0, 1, 5, 6, 5, 6, 8],
        "target": [8, 9, 20, 21, 20, 22, 23],
        "leaf": [0, 0, 1, 1, 2, 2, 2],
        "sequence": [5, 8, 3],
        "path": [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 8, 9],
        "lengths": [3, 5, 6],
    }
    assert forest.trees == (0, 3, 10)
    assert (forest.T, forest.N, forest.L) == (10, 7, 3)
    assert forest.shared == (False, True)


def test_the_attention_rule_on_a_pair() -> None:
    """Token 22 (place 5) sees the prompt and 20, not the other answer's 21."""
    forest = plant([PAIR])
    assert [visible(forest, q) for q in range(7)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 5],
        [0, 1, 2, 3, 5, 6],
    ]


def test_token_lengths_take_the_longest_sequence() -> None:
    """The prompt is in sequences of 5 and of 6 tokens: it counts as 6; token 21 is in the one of 5
    alone.
    """
    assert plant([(seq([7, 8, 9]),), PAIR]).token_lengths.tolist() == [3, 3, 3, 6, 6, 6, 6, 5, 6, 6]


def test_the_first_token_is_never_a_target() -> None:
    """Nothing comes before it that could predict it, whatever the mask says."""
    one = seq([4, 5, 6], [1, 0, 1])
    assert one.targets == 1
    assert plant([(one,)]).target.tolist() == [6]
    assert plant([(seq([4]),)]).N == 0


def test_a_sequence_that_is_a_prefix_of_another_and_one_that_is_its_double() -> None:
    """Three sequences on five tokens; the shared ones are targets of each sequence that trains
    them.
    """
    forest = plant(
        [(seq([1, 2, 3, 4, 5], [0, 0, 1, 0, 1]), seq([1, 2, 3]), seq([1, 2, 3], [0, 0, 1]))]
    )
    assert forest.tokens.tolist() == [1, 2, 3, 4, 5]
    assert forest.subtree_end.tolist() == [5, 5, 5, 5, 5]
    assert forest.shared == (False,)  # one line: plain causal attention
    assert list(
        zip(forest.predictor.tolist(), forest.target.tolist(), forest.leaf.tolist(), strict=True)
    ) == [(1, 3, 0), (3, 5, 0), (0, 2, 1), (1, 3, 1), (1, 3, 2)]


def test_targets_follow_the_caller_not_the_layout() -> None:
    """The layout sorts a tree's sequences; per-sequence facts still line up with the order they
    were given in.
    """
    forest = plant([(seq([1, 9]), seq([1, 5]), seq([1, 7]))])
    assert forest.tokens.tolist() == [1, 5, 7, 9]
    assert forest.target.tolist() == [9, 5, 7]
    assert forest.leaf.tolist() == [0, 1, 2]
    assert forest.path.tolist() == [0, 3, 0, 1, 0, 2]


def test_an_empty_forest_has_no_targets() -> None:
    forest = plant([])
    assert (forest.T, forest.N, forest.L, forest.trees) == (0, 0, 0, (0,))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_every_path_of_a_random_forest_reads_as_its_sequence(planted: list[Tree]) -> None:
    """Along each path lie the sequence's tokens, at their positions, seeing just what came before;
    nothing is laid out twice.
    """
    forest = plant(planted)
    sequences = [s for tree in planted for s in tree]
    paths = forest.path.split(forest.lengths.tolist())
    for one, path in zip(sequences, paths, strict=True):
        assert forest.tokens[path].tolist() == one.tokens.tolist()
        assert forest.positions[path].tolist() == list(range(len(one.tokens)))
        for i, q in enumerate(path.tolist()):
            assert visible(forest, q) == path[: i + 1].tolist()
    targets = [
        (i, j, int(s.tokens[j]))
        for i, s in enumerate(sequences)
        for j in range(1, len(s.tokens))
        if s.trained[j]
    ]
    assert (
        list(
            zip(
                forest.leaf.tolist(),
                (forest.positions[forest.predictor] + 1).tolist(),
                forest.target.tolist(),
                strict=True,
            )
        )
        == targets
    )
    for leaf, predictor in zip(forest.leaf.tolist(), forest.predictor.tolist(), strict=True):
        assert predictor in paths[leaf].tolist()
    prefixes = [
        len({tuple(s.tokens[: i + 1].tolist()) for s in tree for i in range(len(s.tokens))})
        for tree in planted
    ]
    assert [size(tree) for tree in planted] == prefixes
    assert np.diff(forest.trees).tolist() == prefixes
    assert [size(tree, shared=False) for tree in planted] == [
        sum(len(s.tokens) for s in tree) for tree in planted
    ]


# ----------------------------------------------------------------------------------- pack and split


def test_pack_by_hand() -> None:
    """Budget 10, sizes 6 5 4 3 2: 6 opens a bin, 5 a second; 4 goes to the 6 (fuller), 3 to the 5,
    2 beside them.
    """
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


def test_pack_is_best_fit_not_first_fit() -> None:
    """Budget 20: 12 leaves room 8, and 10 + 9 leave room 1.

    The 1 goes there, though the bin of 12 was opened first.
    """
    assert pack([12, 10, 9, 1], 20) == [[0], [1, 2, 3]]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
def test_pack_keeps_its_promises(sizes: list[int], budget: int) -> None:
    """All items once, no bin over budget, ascending, the same every time, and as few bins as a
    plain search for the best fit.
    """
    bins = pack(sizes, budget)
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in b) <= budget for b in bins)
    assert all(b == sorted(b) for b in bins)
    assert pack(list(sizes), budget) == bins
    assert len(bins) == _best_fit(sizes, budget)


def _best_fit(sizes: list[int], budget: int) -> int:
    """Best-fit decreasing, written the slow way: how many bins it opens."""
    room: list[int] = []
    for one in sorted(sizes, reverse=True):
        fitting = [i for i, left in enumerate(room) if left >= one]
        if fitting:
            room[min(fitting, key=lambda i: room[i])] -= one
        else:
            room.append(budget - one)
    return len(room)


GROUP: Tree = tuple(
    seq([1, 2, 3, 4, 10 * i, 10 * i + 1]) for i in range(1, 5)
)  # a prompt of 4, four answers of 2: 12 tokens


def test_split_repeats_the_prefix() -> None:
    """Budget 8 holds the prompt and two answers: two parts of 4 + 2·2 tokens, the prompt in
    both.
    """
    assert split(GROUP, 8) == [[0, 1], [2, 3]]
    assert [f.tokens.tolist() for f in forests([GROUP], 8)] == [
        [1, 2, 3, 4, 10, 11, 20, 21],
        [1, 2, 3, 4, 30, 31, 40, 41],
    ]
    assert split(GROUP, 7) == [[0], [1], [2], [3]]
    assert split(GROUP, 12) == [[0, 1, 2, 3]]


def test_split_counts_the_prefix_every_time_where_nothing_is_shared() -> None:
    assert split(GROUP, 12, shared=False) == [[0, 1], [2, 3]]
    assert split(GROUP, 8, shared=False) == [[0], [1], [2], [3]]


def test_split_keeps_pairs_together() -> None:
    """Budget 10 holds three answers, but not two pairs: a pair is never cut for the sake of a
    fuller part.
    """
    assert split(GROUP, 10) == [[0, 1, 2], [3]]
    assert split(GROUP, 10, together=2) == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match=r"8 tokens does not fit the budget of 7 tokens") as caught:
        split(GROUP, 7, together=2)
    assert caught.value.cure == "lower --max-length to 3, or raise --budget to 8"


def test_one_sequence_over_budget_is_an_error_with_a_cure() -> None:
    with pytest.raises(
        DataError, match="a sequence of 5 tokens does not fit the budget of 4 tokens"
    ) as caught:
        forests([(seq([1, 2, 3, 4, 5]),)], 4)
    assert caught.value.cure == "lower --max-length to 4, or raise --budget to 5"


def test_forests_keep_pairs_together() -> None:
    """Two pairs on one prompt over budget: the halves of a pair meet in one forest, though three
    answers would fit.
    """
    batch = forests([GROUP], 10, together=2)
    assert [f.sequence.tolist() for f in batch] == [[0, 1], [2, 3]]
    assert [f.sequence.tolist() for f in forests([GROUP], 10)] == [[0, 1, 2], [3]]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(trees(), min_size=1, max_size=4), st.integers(0, 40), st.booleans())
def test_forests_hold_every_sequence_once_under_budget(
    planted: list[Tree], more: int, shared: bool
) -> None:
    """`sequence` leads back to the caller's batch, whatever was split and packed where."""
    sequences: list[Sequence] = [s for tree in planted for s in tree]
    budget = max(len(s.tokens) for s in sequences) + more
    batch = forests(planted, budget, shared=shared)
    assert sorted(n for f in batch for n in f.sequence.tolist()) == list(range(len(sequences)))
    for forest in batch:
        assert (forest.T if shared else len(forest.path)) <= budget
        for number, path in zip(
            forest.sequence.tolist(), forest.path.split(forest.lengths.tolist()), strict=True
        ):
            assert forest.tokens[path].tolist() == sequences[number].tokens.tolist()
        for leaf, target in zip(forest.leaf.tolist(), forest.target.tolist(), strict=True):
            assert target in sequences[int(forest.sequence[leaf])].tokens
    assert sum(f.N for f in batch) == sum(s.targets for s in sequences)


def test_forests_are_the_same_every_time() -> None:
    """Which micro-batches a step has is a function of its trees: a resumed run cuts them alike."""
    rng = random.Random(0)
    planted = [random_tree(rng.randrange) for _ in range(12)]
    first, again = forests(planted, 40), forests(planted, 40)
    assert len(first) == len(again) > 3
    for a, b in zip(first, again, strict=True):
        assert fields(a) == fields(b) and a.trees == b.trees


def test_to_keeps_every_field() -> None:
    forest = plant([PAIR])
    moved = forest.to("meta")
    assert {getattr(moved, name).device for name in fields(forest)} == {torch.device("meta")}
    assert moved.trees == (0, 7)
