"""Pairs from scored answers, on cases that a pencil can follow, and what holds for all of them."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.scoring import ranking
from posttrain.scoring.ranking import (
    BELOW,
    BETTER_CUT,
    CUT,
    EMPTY,
    NOT_TAKEN,
    REPEATED,
    TIE,
    UNSCORED,
    Answer,
    Rules,
    rank,
)


def answers(*given: Any) -> list[Answer]:
    """`(text, score)`, or with False behind it where the answer was cut off."""
    return [Answer(*one) for one in given]


FOUR = answers(("c", 2), ("a", 4), ("d", 1), ("b", 3))  # best to worst: numbers 1, 3, 0, 2


@pytest.mark.parametrize(
    ("rules", "pairs"),
    [
        (Rules(), [(1, 2)]),
        # the best over the worst, the second best over the second worst
        (Rules(most=2), [(1, 2), (3, 0)]),
        (Rules(most=9), [(1, 2), (3, 0)]),
        (Rules(most=9, min_margin=2), [(1, 2)]),
        (Rules("adjacent"), [(1, 3), (3, 0), (0, 2)]),
        (Rules("adjacent", most=1), [(1, 3)]),
        # margins 3, 2, 2, 1, 1, 1
        (Rules("all"), [(1, 2), (1, 0), (3, 2), (1, 3), (3, 0), (0, 2)]),
        (Rules("all", most=3), [(1, 2), (1, 0), (3, 2)]),
        (Rules("all", min_margin=2), [(1, 2), (1, 0), (3, 2)]),
    ],
)
def test_which_answers_are_paired(rules: Rules, pairs: list[tuple[int, int]]) -> None:
    found = rank(FOUR, rules)
    assert (list(found.pairs), found.order, found.best, found.why) == (pairs, (1, 3, 0, 2), 1, "")
    below = sum(
        a.score - b.score < rules.min_margin
        for a, b in product(FOUR, FOUR)
        if a.score and b.score and a.score > b.score
    )
    assert found.unpaired == Counter({BELOW: below, NOT_TAKEN: 6 - below - len(pairs)}) + Counter()


def test_of_equal_scores_no_answer_is_used_often_before_the_others() -> None:
    right_and_wrong = answers(("a", 1), ("b", 1), ("x", 0), ("y", 0))
    found = rank(right_and_wrong, Rules("all"))
    assert found.pairs == ((0, 2), (0, 3), (1, 2), (1, 3))
    assert (found.unpaired, rank(right_and_wrong, Rules("all", most=3)).unpaired) == (
        Counter({TIE: 2}),
        Counter({TIE: 2, NOT_TAKEN: 1}),
    )
    assert rank(right_and_wrong, Rules(most=5)).pairs == ((0, 2), (1, 3))  # each once
    assert rank(right_and_wrong, Rules("adjacent")).pairs == ((1, 2),)


def test_what_cannot_be_used_is_left_out_for_one_reason() -> None:
    found = rank(
        answers(
            ("a", None),
            ("b", nan),
            ("c", inf),
            (" \n", 5),
            ("x\0", 5),
            ("d", 1),
            ("  d\n", 2),
            ("e", 3),
        )
    )
    assert (found.order, found.pairs) == ((7, 5), ((7, 5),))
    assert found.left_out == {UNSCORED: 3, EMPTY: 2, REPEATED: 1}


def test_an_unfinished_answer_is_at_most_rejected() -> None:
    some = answers(("long", 9, False), ("good", 5), ("bad", 1), ("rambling", 0, False))
    found = rank(some)
    assert (found.pairs, found.best, found.order) == (((1, 3),), 1, (0, 1, 2, 3))
    assert found.unpaired == {BETTER_CUT: 3, NOT_TAKEN: 2}
    dropped, kept = (rank(some, Rules(unfinished=how)) for how in ("drop", "keep"))
    assert (dropped.pairs, dropped.left_out, dropped.best) == (((1, 2),), {CUT: 2}, 1)
    assert (kept.pairs, kept.best) == (((0, 3),), 0)
    alone = rank(some[:1] + some[3:])
    assert (alone.pairs, alone.best, alone.why) == ((), None, BETTER_CUT)


def test_a_finished_answer_stands_for_the_same_one_cut_off() -> None:
    found = rank(answers(("a b", 1, False), ("x", 0), ("a  b", 1)))
    assert (found.order, found.pairs, found.left_out) == ((2, 1), ((2, 1),), {REPEATED: 1})


@pytest.mark.parametrize(
    ("some", "rules", "why"),
    [
        (answers(("a", None), ("b", None)), Rules(), ranking.NO_SCORE),
        (answers(("", 1), ("b", None)), Rules(), ranking.NO_ANSWER),
        (answers(("a", 1), (" a", 1), ("b", None)), Rules(), ranking.ONE_ANSWER),
        (answers(("a", 1), ("b", 1)), Rules(), ranking.ALL_EQUAL),
        (answers(("a", 1), ("b", 0.5)), Rules(min_margin=0.6), BELOW),
        (answers(("a", 2, False), ("b", 1), ("c", 1)), Rules(), BETTER_CUT),
        (
            answers(("a", 1), ("b", 1), ("c", 0, False), ("d", -1)),
            Rules("adjacent", min_margin=2),
            ranking.NO_NEIGHBOURS,
        ),
    ],
)
def test_why_a_prompt_has_no_pair(some: list[Answer], rules: Rules, why: str) -> None:
    found = rank(some, rules)
    assert (found.pairs, found.why) == ((), why)


SCORES = st.one_of(
    st.none(),
    st.sampled_from([0.0, 1.0]),
    st.floats(-100, 100, allow_subnormal=False),
    st.just(nan),
)
ANSWERS = st.lists(
    st.builds(
        Answer,
        st.sampled_from(["", " ", "a", "a ", "b", "c d", "c  d", "e", "f", "g", "\0"]),
        SCORES,
        st.booleans(),
    ),
    max_size=10,
)
RULES = st.builds(
    Rules,
    st.sampled_from(["best-worst", "all", "adjacent"]),
    st.one_of(st.none(), st.integers(1, 5)),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(["reject", "drop", "keep"]),
)


@given(ANSWERS, RULES)
def test_every_answer_and_every_two_are_accounted_for(some: list[Answer], rules: Rules) -> None:
    found = rank(some, rules)
    m = len(found.order)
    assert m + found.left_out.total() == len(some)
    assert len(found.pairs) + found.unpaired.total() == m * (m - 1) // 2
    assert len(set(found.pairs)) == len(found.pairs) <= (rules.most or 45)
    assert (found.why == "") == bool(found.pairs)
    for i, j in found.pairs:
        chosen, rejected = some[i], some[j]
        assert chosen.score is not None and rejected.score is not None
        assert chosen.score - rejected.score >= rules.min_margin and chosen.score > rejected.score
        assert (
            chosen.text.split() != rejected.text.split()
            and chosen.text.strip()
            and rejected.text.strip()
        )
        assert chosen.finished or rules.unfinished == "keep"
        assert rejected.finished or rules.unfinished != "drop"
    if found.best is not None:
        assert all(
            chosen.score <= some[found.best].score for chosen in (some[i] for i, _ in found.pairs)
        )  # type: ignore[operator]
    if rules.how == "best-worst":
        # no answer twice
        assert len({i for pair in found.pairs for i in pair}) == 2 * len(found.pairs)
    if rules.how == "best-worst" and not found.pairs:  # then no other way finds one
        assert not rank(some, Rules("all", None, rules.min_margin, rules.unfinished)).pairs
