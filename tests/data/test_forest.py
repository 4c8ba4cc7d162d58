"""The token forest: its fields on cases small enough for a pencil, what packing and splitting
promise, and facts that ride on sequences and units.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.core.types import Facts
from posttrain.data.forest import (
    Sequence,
    TokenForest,
    Tree,
    Unit,
    by_tree,
    collate,
    forests,
    pack,
    size,
    split,
)
from tests.tiny import random_tree, seq, tree_of

trees = st.composite(lambda draw: random_tree(lambda n: draw(st.integers(0, n - 1))))

# prompt 10 11 12; chosen 20 21, rejected 20 22 23: the answers begin alike, so what they share is
# four tokens long
PAIR = tree_of(
    seq([10, 11, 12, 20, 21], [0, 0, 0, 1, 1]), seq([10, 11, 12, 20, 22, 23], [0, 0, 0, 1, 1, 1])
)


def fields(forest: TokenForest) -> dict[str, list[int]]:
    names = [
        "tokens",
        "positions",
        "subtree_end",
        "predictor",
        "target",
        "leaf",
        "sequence",
        "path",
        "lengths",
    ]
    return {name: getattr(forest, name).tolist() for name in names}


def visible(forest: TokenForest, q: int) -> list[int]:
    """The keys a query sees, by the rule of `subtree_end`."""
    ends = forest.subtree_end.tolist()
    return [k for k in range(q + 1) if q < ends[k]]


def test_fields_of_a_pair() -> None:
    """Seven tokens instead of eleven; the shared answer token 20 is laid out once and is a target
    of both answers.
    """
    assert fields(collate([PAIR])) == {
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
    forest = collate([tree_of(seq([7, 8, 9])), PAIR])
    assert fields(forest) == {
        "tokens": [7, 8, 9, 10, 11, 12, 20, 21, 22, 23],
        "positions": [0, 1, 2, 0, 1, 2, 3, 4, 4, 5],
        "subtree_end": [3, 3, 3, 10, 10, 10, 10, 8, 10, 10],
        "predictor": [0, 1, 5, 6, 5, 6, 8],
        "target": [8, 9, 20, 21, 20, 22, 23],
        "leaf": [0, 0, 1, 1, 2, 2, 2],
        "sequence": [0, 1, 2],
        "path": [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 8, 9],
        "lengths": [3, 5, 6],
    }
    assert forest.trees == (0, 3, 10)
    assert (forest.T, forest.N, forest.L) == (10, 7, 3)
    assert forest.shared == (False, True)


def test_the_attention_rule_on_a_pair() -> None:
    """Token 22 (place 5) sees the prompt and 20, not the other answer's 21."""
    forest = collate([PAIR])
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
    forest = collate([tree_of(seq([7, 8, 9])), PAIR])
    assert forest.token_lengths.tolist() == [3, 3, 3, 6, 6, 6, 6, 5, 6, 6]


def test_the_first_token_is_never_a_target() -> None:
    """Nothing comes before it that could predict it, whatever the mask says."""
    sequence = seq([4, 5, 6], [1, 0, 1])
    assert sequence.N == tree_of(sequence).N == 1
    assert collate([tree_of(sequence)]).target.tolist() == [6]
    assert collate([tree_of(seq([4]))]).N == 0


def test_a_sequence_that_is_a_prefix_of_another_and_one_that_is_its_double() -> None:
    """Three sequences on five tokens; the shared ones are targets of each sequence that trains
    them.
    """
    forest = collate(
        [tree_of(seq([1, 2, 3, 4, 5], [0, 0, 1, 0, 1]), seq([1, 2, 3]), seq([1, 2, 3], [0, 0, 1]))]
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
    forest = collate([tree_of(seq([1, 9]), seq([1, 5]), seq([1, 7]))])
    assert forest.tokens.tolist() == [1, 5, 7, 9]
    assert forest.target.tolist() == [9, 5, 7]
    assert forest.leaf.tolist() == [0, 1, 2]
    assert forest.path.tolist() == [0, 3, 0, 1, 0, 2]


def test_an_empty_forest_has_no_targets() -> None:
    forest = collate([])
    assert (forest.T, forest.N, forest.L, forest.trees) == (0, 0, 0, (0,))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_every_path_of_a_random_forest_reads_as_its_sequence(planted: list[Tree]) -> None:
    """Along each path lie the sequence's tokens, at their positions, seeing just what came before;
    nothing is laid out twice.
    """
    forest = collate(planted)
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


# a prompt of 4, four answers of 2: 12 tokens; and the same as two pairs
GROUP = tree_of(*(seq([1, 2, 3, 4, 10 * i, 10 * i + 1]) for i in range(1, 5)))
PAIRS = replace(GROUP, units=(Unit((0, 1)), Unit((2, 3))))


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
    assert split(PAIRS, 10) == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="a unit of 2 sequences of 8 tokens does not fit") as caught:
        split(PAIRS, 7)
    assert caught.value.cure == "lower --max-length to 3, or raise --budget to 8"


def test_one_sequence_over_budget_is_an_error_with_a_cure() -> None:
    with pytest.raises(
        DataError, match="a sequence of 5 tokens does not fit the budget of 4 tokens"
    ) as caught:
        forests([tree_of(seq([1, 2, 3, 4, 5]))], 4)
    assert caught.value.cure == "lower --max-length to 4, or raise --budget to 5"


def test_forests_keep_pairs_together() -> None:
    """Two pairs on one prompt over budget: the halves of a pair meet in one forest, though three
    answers would fit.
    """
    batch = forests([PAIRS], 10)
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
    assert sum(f.N for f in batch) == sum(s.N for s in sequences)


def test_forests_are_the_same_every_time() -> None:
    """Which micro-batches a step has is a function of its trees: a resumed run cuts them alike."""
    rng = random.Random(0)
    planted = [random_tree(rng.randrange) for _ in range(12)]
    first, again = forests(planted, 40), forests(planted, 40)
    assert len(first) == len(again) > 3
    for a, b in zip(first, again, strict=True):
        assert fields(a) == fields(b) and a.trees == b.trees


def test_to_keeps_every_field() -> None:
    forest = collate([with_facts(PAIRS)])
    moved = forest.to("meta")
    held = [getattr(moved, name) for name in fields(forest)]
    facts = moved.facts
    for axis in (facts.targets, facts.sequences, facts.units):
        assert axis
        held += axis.values()
    held += [facts.leaf, facts.members, facts.numbers]
    assert {tensor.device for tensor in held} == {torch.device("meta")}
    assert (moved.trees, facts.L) == ((0, 12), 4)


# ------------------------------------------------------------------------------------------- units


def test_split_keeps_units_that_share_a_member_together() -> None:
    """Of five answers, 0 and 3 are a unit, and 3 and 4: the three stay together, though 1 and 2
    lie between them; what is in no unit stands alone.
    """
    group = tree_of(*(seq([1, 2, 10 * i]) for i in range(1, 6)), units=[(0, 3), (3, 4)])
    assert group.groups() == [[0, 3, 4], [1], [2]]
    assert split(group, 5) == [[0, 3, 4], [1, 2]]
    found = forests([group], 5)
    assert sorted(f.sequence.tolist() for f in found) == [[0, 3, 4], [1, 2]]
    (held,) = [f for f in found if f.facts.U]
    assert held.facts.members.tolist() == [[0, 1], [1, 2]]
    assert held.facts.numbers.tolist() == [0, 1]


def test_members_keep_the_order_of_their_unit() -> None:
    """The chosen answer may come second in the tree; members say so, in the forest's numbers."""
    swapped = replace(PAIR, units=(Unit((1, 0), {"margin": 0.5}),))
    facts = collate([tree_of(seq([7, 8])), swapped]).facts
    assert facts.members.tolist() == [[2, 1]]
    assert facts.units["margin"].tolist() == [0.5]


# ------------------------------------------------------------------------------------------- facts


def with_facts(tree: Tree, first: int = 0, first_unit: int = 0) -> Tree:
    """The same tree, in which every fact says where it belongs.

    Args:
        first: number of the first sequence in the batch; first_unit: of the first unit.
    """
    sequences = []
    for i, s in enumerate(tree, first):
        n = len(s.tokens)
        targets = {"place": 1000.0 * i + np.arange(n), "ids": np.stack([s.tokens, -s.tokens], 1)}
        sequences.append(replace(s, targets=targets, whole={"label": i + 0.5}))
    units = [replace(u, facts={"margin": i + 0.25}) for i, u in enumerate(tree.units, first_unit)]
    return Tree(tuple(sequences), tuple(units))


def in_pairs(tree: Tree, choose: Any) -> Tree:
    """Units of two random sequences each; some sequences are in several, some in none."""
    units = []
    for _ in range(choose(3) if len(tree) > 1 else 0):
        a = choose(len(tree))
        units.append(Unit((a, (a + 1 + choose(len(tree) - 1)) % len(tree))))
    return replace(tree, units=tuple(units))


def labelled(trees: Many[Tree]) -> list[Tree]:
    """`with_facts`, numbered through the batch."""
    out, first, first_unit = [], 0, 0
    for tree in trees:
        out.append(with_facts(tree, first, first_unit))
        first, first_unit = first + len(tree), first_unit + len(tree.units)
    return out


def check_facts(forest: TokenForest, batch: Many[Tree]) -> None:
    """Every fact of a forest is that of its own target, sequence or unit."""
    facts, sequence = forest.facts, forest.sequence
    assert facts.L == forest.L and torch.equal(facts.leaf, forest.leaf)
    numbers = sequence[forest.leaf]
    places = forest.positions[forest.predictor] + 1
    assert torch.equal(facts.targets["place"], (1000.0 * numbers + places).double())
    assert torch.equal(facts.targets["ids"], torch.stack([forest.target, -forest.target], 1))
    assert torch.equal(facts.sequences["label"], sequence + 0.5)
    known = []  # of every unit of the batch: its members' numbers
    first = 0
    for tree in batch:
        known += [[first + m for m in unit.members] for unit in tree.units]
        first += len(tree)
    if facts.U:
        assert sequence[facts.members].tolist() == [known[u] for u in facts.numbers.tolist()]
        assert torch.equal(facts.units["margin"], facts.numbers + 0.25)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data(), st.integers(0, 30), st.booleans())
def test_facts_ride_to_the_forest_on_every_axis(data: Any, more: int, shared: bool) -> None:
    """Facts of targets, also of several numbers each; of sequences; of units: however trees are
    split and packed, each is its own, and every unit is there once.
    """

    def choose(n: int) -> int:
        return data.draw(st.integers(0, n - 1))

    trees = [in_pairs(random_tree(choose, 3), choose) for _ in range(1 + choose(3))]
    batch = labelled(trees)
    parts = [tree.part(group)[0] for tree in batch for group in tree.groups()]
    budget = max(size(part, shared=shared) for part in parts) + more
    found = forests(batch, budget, shared=shared)
    for forest in found:
        check_facts(forest, batch)
        assert (forest.T if shared else len(forest.path)) <= budget
    numbers = sorted(n for forest in found for n in forest.facts.numbers.tolist())
    assert numbers == list(range(sum(len(tree.units) for tree in trees)))
    check_facts(collate(batch), batch)


def test_facts_of_a_pair_by_hand() -> None:
    """Prompt of three, answers of two and three tokens: five targets, two sequences, a unit. Facts
    of tokens that are not trained are not read.
    """
    chosen, rejected = PAIR
    pair = Tree(
        (
            replace(
                chosen,
                targets={"reference": np.array([9, 9, 9, 0.1, 0.2], np.float32)},
                whole={"reward": 1.0},
            ),
            replace(
                rejected,
                targets={"reference": np.array([9, 9, 9, 0.3, 0.4, 0.5], np.float32)},
                whole={"reward": -2.0},
            ),
        ),
        (Unit((0, 1), {"margin": 1.5}),),
    )
    facts = collate([pair]).facts
    assert (facts.N, facts.L, facts.U) == (5, 2, 1)
    assert facts.leaf.tolist() == [0, 0, 1, 1, 1]
    assert facts.lengths.tolist() == [2, 3]
    assert facts.targets["reference"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert facts.sequences["reward"].tolist() == [1.0, -2.0]
    assert facts.units["margin"].tolist() == [1.5]
    assert facts.members.tolist() == [[0, 1]] and facts.numbers.tolist() == [0]
    assert facts.sums(torch.arange(5.0)).tolist() == [1.0, 9.0]


def test_sums_count_a_sequence_without_targets_as_nothing() -> None:
    forest = collate([tree_of(seq([1, 2, 3])), tree_of(seq([4, 5], [0, 0])), tree_of(seq([6, 7]))])
    assert forest.facts.lengths.tolist() == [2, 0, 1]
    assert forest.facts.sums(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 0.0, 4.0]


def test_a_part_of_facts_cuts_the_axis_of_targets_alone() -> None:
    facts = collate([with_facts(PAIRS)]).facts
    part = facts.part(slice(3, 9))
    assert part.N == 6
    assert torch.equal(part.leaf, facts.leaf[3:9])
    for name in ("place", "ids"):
        assert torch.equal(part.targets[name], facts.targets[name][3:9])
    assert part.L == facts.L
    assert torch.equal(part.lengths, facts.lengths)
    assert torch.equal(part.part(slice(0, 2)).lengths, facts.lengths)
    for name in ("members", "numbers", "sequences", "units"):
        assert getattr(part, name) is getattr(facts, name)
    assert torch.equal(
        part.sequences["label"][part.leaf], facts.sequences["label"][facts.leaf[3:9]]
    )


@pytest.mark.parametrize("axis", ["targets", "sequences", "units"])
def test_a_fact_that_only_some_have_is_an_error(axis: str) -> None:
    """Nothing could say whose it is; the message has the name and the two numbers."""
    whole = with_facts(PAIRS)
    lacking = {
        "targets": Tree((replace(whole[0], targets={}), *whole.sequences[1:]), whole.units),
        "sequences": Tree((replace(whole[0], whole={}), *whole.sequences[1:]), whole.units),
        "units": Tree(whole.sequences, (Unit((0, 1)), whole.units[1])),
    }
    name = {"targets": "place", "sequences": "label", "units": "margin"}[axis]
    known = {"targets": "15 of 20", "sequences": "3 of 4", "units": "1 of 2"}[axis]
    with pytest.raises(DataError, match=f"'{name}' is known of {known} {axis}"):
        collate([lacking[axis]])


@pytest.mark.parametrize("axis", ["targets", "sequences", "units"])
def test_a_fact_of_some_forests_is_an_error_too(axis: str) -> None:
    """Whether a loss can read a fact does not hang on how the batch is cut."""
    whole = with_facts(PAIRS)
    without = Tree(
        tuple(
            replace(
                sequence,
                targets={} if axis == "targets" else sequence.targets,
                whole={} if axis == "sequences" else sequence.whole,
            )
            for sequence in whole
        ),
        tuple(replace(u, facts={} if axis == "units" else u.facts) for u in whole.units),
    )
    name = {"targets": "ids", "sequences": "label", "units": "margin"}[axis]
    budget = size(whole)
    for trees in ([whole, without], [without, whole]):
        with pytest.raises(DataError, match=f"'{name}' is known of some {axis}"):
            forests(trees, budget)
    assert len(forests([whole, whole], budget)) == 2


def test_trees_that_cannot_be_meant_are_errors() -> None:
    with pytest.raises(DataError, match="without sequences"):
        Tree(())
    one = seq([1, 2, 3])
    for members in ((0, 2), (-1, 0), ()):
        with pytest.raises(DataError, match="in a tree of 2"):
            tree_of(one, one, units=[members])
    unlike = [Tree((replace(one, targets={"x": x}),)) for x in (np.zeros(3), np.zeros((3, 2)))]
    with pytest.raises(DataError, match=r"'x' has the shapes \[\(\), \(2,\)\]"):
        collate(unlike)


def test_units_of_different_sizes_and_short_facts_are_errors() -> None:
    """A pair beside a triple has no [U, m]; a fact of targets has a value for every token."""
    one = seq([1, 2, 3])
    trees = [tree_of(one, one, units=[(0, 1)]), tree_of(one, one, one, units=[(0, 1, 2)])]
    with pytest.raises(DataError, match=r"units of \[2, 3\] sequences"):
        collate(trees)
    with pytest.raises(DataError, match=r"units of \[2, 3\] sequences"):
        forests(trees, 3)  # a forest each
    for values in (2, 4):
        with pytest.raises(DataError, match=f"'x' has {values} values for 3 tokens"):
            collate([Tree((replace(one, targets={"x": np.zeros(values)}),))])


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(trees(), min_size=1, max_size=4), st.integers(0, 40))
def test_values_of_targets_go_back_to_their_trees_and_ride_again(
    planted: list[Tree], more: int
) -> None:
    """`by_tree` undoes packing, and `with_targets` puts its values on the trees as a fact."""
    budget = max(len(s.tokens) for tree in planted for s in tree) + more
    packed = forests(planted, budget)
    values = [100.0 * forest.sequence[forest.leaf] + forest.target for forest in packed]
    found = by_tree(packed, values, planted)
    assert [len(value) for value in found] == [tree.N for tree in planted]
    again = [t.with_targets("value", v) for t, v in zip(planted, found, strict=True)]
    for forest, value in zip(forests(again, budget), values, strict=True):
        assert torch.equal(forest.facts.targets["value"], value)


def test_an_empty_forest_has_facts_of_nothing() -> None:
    facts = collate([]).facts
    assert (facts.N, facts.L, facts.U) == (0, 0, 0)
    assert isinstance(facts, Facts) and facts.members.shape == (0, 0)
