"""Pairs from scored answers to one prompt: which answer is chosen over which, and why others are in
no pair.

    best-worst   the best over the worst; of k pairs, the k-th best over the k-th worst
    adjacent     each over the next in the ranking
    all          each over every one that is worse

Every answer and every two answers are accounted for. Pure functions of texts and numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import islice, pairwise
from math import isfinite
from typing import Literal

How = Literal["best-worst", "all", "adjacent"]
Unfinished = Literal["reject", "drop", "keep"]

# why an answer is in no ranking
UNSCORED, EMPTY, CUT, REPEATED = "unscored", "empty", "unfinished", "repeats another"
# why two answers are no pair
TIE, BELOW, BETTER_CUT, NOT_TAKEN = (
    "same score",
    "margin below --min-margin",
    "the better one is unfinished",
    "not taken",
)
# why a prompt has no pair
NO_SCORE, NO_ANSWER, ONE_ANSWER = (
    "no answer has a score",
    "no answer can be used",
    "all answers are the same",
)
ALL_EQUAL, NO_NEIGHBOURS = (
    "all answers have the same score",
    "no two neighbours in the ranking are a pair",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A sampled answer. `score` None: the scorer could not judge it. `finished`: the model ended it
    itself.
    """

    text: str
    score: float | None
    finished: bool = True


@dataclass(frozen=True)
class Rules:
    """How pairs are made.

    Attributes:
        how: see above. most: pairs of a prompt at most; None: one with best-worst, else all there
            are.
        min_margin: difference of the scores at least. A difference of 0 is never a pair.
        unfinished: answers that were cut off are at most rejected, or dropped, or kept as if they
            were whole.
    """

    how: How = "best-worst"
    most: int | None = None
    min_margin: float = 0.0
    unfinished: Unfinished = "reject"


@dataclass(frozen=True)
class Ranking:
    """What became of the answers to one prompt.

    Attributes:
        order: numbers of the answers that can be used, best first; of equal ones the earlier first.
        left_out: the others, by reason.
        pairs: (chosen, rejected), numbers of answers.
        unpaired: of all twos in `order`, those that are no pair, by reason.
        why: why there is no pair; empty where there is one.
        best: the best answer that may be chosen; None where there is none.
    """

    order: tuple[int, ...]
    left_out: Counter[str]
    pairs: tuple[tuple[int, int], ...]
    unpaired: Counter[str]
    why: str
    best: int | None


def known(score: float | None) -> bool:
    """Whether a score is one: neither None nor NaN nor infinite."""
    return score is not None and isfinite(score)


def rank(answers: Many[Answer], rules: Rules = Rules()) -> Ranking:
    """Rank the answers to a prompt and pair them.

    Answers that differ in white space alone are the same; of those a finished one stands for all,
    and of these the first.
    """
    order, left_out = _usable(answers, rules.unfinished)
    scores = {i: float(answers[i].score or 0.0) for i in order}
    may = {i for i in order if answers[i].finished or rules.unfinished == "keep"}
    unpaired: Counter[str] = Counter()
    valid: set[tuple[int, int]] = set()
    for at, i in enumerate(order):
        for j in order[at + 1 :]:
            why = _unpairable(scores[i] - scores[j], rules.min_margin, i in may)
            if why:
                unpaired[why] += 1
            else:
                valid.add((i, j))
    most = rules.most or (1 if rules.how == "best-worst" else None)
    pairs = tuple(
        islice((pair for pair in _proposed(order, scores, may, rules.how) if pair in valid), most)
    )
    unpaired[NOT_TAKEN] = len(valid) - len(pairs)
    best = next((i for i in order if i in may), None)
    return Ranking(
        order,
        left_out,
        pairs,
        +unpaired,
        "" if pairs else _why(answers, order, scores, unpaired),
        best,
    )


def _unpairable(margin: float, min_margin: float, may_be_better: bool) -> str:
    """Why two answers are no pair; empty where they are one."""
    if not margin > 0:
        return TIE
    if margin < min_margin:
        return BELOW
    return "" if may_be_better else BETTER_CUT


def _unusable(answer: Answer, words: tuple[str, ...], unfinished: Unfinished) -> str:
    """Why an answer cannot be used, whatever the others are; empty where it can."""
    if not known(answer.score):
        return UNSCORED
    if not words or "\0" in answer.text:
        return EMPTY
    return CUT if unfinished == "drop" and not answer.finished else ""


def _usable(answers: Many[Answer], unfinished: Unfinished) -> tuple[tuple[int, ...], Counter[str]]:
    left_out: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    order: list[int] = []
    for i in sorted(
        range(len(answers)), key=lambda i: (unfinished != "keep" and not answers[i].finished, i)
    ):
        words = tuple(answers[i].text.split())
        why = _unusable(answers[i], words, unfinished)
        if not why and words in seen:
            why = REPEATED
        if why:
            left_out[why] += 1
        else:
            seen.add(words)
            order.append(i)
    return tuple(sorted(order, key=lambda i: (-(answers[i].score or 0.0), i))), left_out


def _proposed(
    order: tuple[int, ...], scores: dict[int, float], may: set[int], how: How
) -> Iterator[tuple[int, int]]:
    """Pairs in the order in which they are taken; some may turn out to be none."""
    if how == "best-worst":
        # of equally bad ones, too, the earlier first: what is drawn often is drawn early
        yield from zip(
            (i for i in order if i in may),
            sorted(order, key=lambda i: (scores[i], i)),
            strict=False,
        )
        return
    place = {i: at for at, i in enumerate(order)}
    candidates = (
        pairwise(order)
        if how == "adjacent"
        else ((i, j) for at, i in enumerate(order) for j in order[at + 1 :])
    )
    # the largest margins first; among equal ones, no answer often before the others were there
    yield from sorted(
        candidates,
        key=lambda pair: (scores[pair[1]] - scores[pair[0]], place[pair[0]] + place[pair[1]]),
    )


def _why(
    answers: Many[Answer], order: tuple[int, ...], scores: dict[int, float], unpaired: Counter[str]
) -> str:
    if not order:
        return NO_ANSWER if any(known(one.score) for one in answers) else NO_SCORE
    if len(order) == 1:
        return ONE_ANSWER
    if len(set(scores.values())) == 1:
        return ALL_EQUAL
    if unpaired[NOT_TAKEN]:
        return NO_NEIGHBOURS
    return BETTER_CUT if unpaired[BETTER_CUT] else BELOW
