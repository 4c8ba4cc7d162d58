"""What several answers a prompt say of a model: mean score, best of n, pass@k, how much the answers
differ.

    pass@k      1 − C(n − c, k) / C(n, k), c of a prompt's n answers being right; unbiased for every
                k ≤ n
    best of n   the mean of the highest score; its policy is at most ln n − (n − 1)/n nats from the
                one that was sampled

The unit of means is the prompt: answers to one prompt are not independent. Sources: Chen et al.
    2021 (arXiv 2107.03374), eq. 1;
Beirami et al. 2024 (arXiv 2401.01879), theorem 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from posttrain.data.curate.bias import LOOKS, compare, looks
from posttrain.evals import preferences, stats
from posttrain.scoring.ranking import (
    BELOW,
    BETTER_CUT,
    CUT,
    EMPTY,
    NOT_TAKEN,
    REPEATED,
    TIE,
    UNSCORED,
    Ranking,
)


def pass_at(n: int, right: int, k: int) -> float:
    """The chance that of k of a prompt's n answers, drawn without replacement, one is right;
    `right` of the n are.
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def divergence(n: int) -> float:
    """ln n − (n − 1)/n: how far, in nats, taking the best of n answers leads away from the policy
    at most.
    """
    return math.log(n) - (n - 1) / n


def measure(scores: Many[Many[float]], n: int) -> dict[str, Any]:
    """Numbers with intervals, over prompts.

    Args:
        scores: of every prompt its answers' scores, those that could be given.
        n: answers drawn for each prompt.
    Returns: JSON: mean_score, best_of_n, and pass_at where every score is 0 or 1, for k = 1, 2, 4,
        … and n.
    """
    some = [one for one in scores if one]
    if not some:
        return {"mean_score": None, "best_of_n": None, "pass_at": None}
    flat = [(value, number) for number, one in enumerate(some) for value in one]
    best = {
        "n": n,
        "kl_bound": divergence(n),
        "score": stats.mean([max(one) for one in some]).json(),
    }
    found: dict[str, Any] = {
        "mean_score": (
            stats.mean([value for value, _ in flat], [number for _, number in flat]).json()
        ),
        "best_of_n": best,
        "pass_at": None,
    }
    if {value for value, _ in flat} <= {0.0, 1.0}:
        found["pass_at"] = {}
        for k in sorted({n, *(2**i for i in range(n.bit_length()))}):
            if full := [pass_at(len(one), round(sum(one)), k) for one in some if len(one) >= k]:
                found["pass_at"][str(k)] = stats.mean(full).json()
    return found


class Tally:
    """Adds up the answers to one prompt after another, and the pairs that were made of them.

    Args:
        n: answers a prompt.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.prompts = self.answers = self.pairs = self.usable = self.finished = 0
        self.left_out: Counter[str] = Counter()
        self.unpaired: Counter[str] = Counter()
        self.without: Counter[str] = Counter()
        self._scores: list[list[float]] = []
        self._distinct: list[int] = []
        self._tokens: list[float] = []
        self._margins: list[float] = []
        self._of: list[int] = []  # the prompt of every pair
        self._sides: tuple[list[list[int]], list[list[int]]] = ([], [])
        self._lengths: list[tuple[int, int]] = []

    def add(self, records: Many[Mapping[str, Any]], ranking: Ranking) -> None:
        """The answers to one prompt, as `samples.jsonl` has them."""
        self.answers += len(records)
        self.usable += len(ranking.order)
        self.finished += sum(one["finished"] for one in records)
        self.left_out += ranking.left_out
        self.unpaired += ranking.unpaired
        if ranking.why:
            self.without[ranking.why] += 1
        self._scores.append([one["score"] for one in records if one["score"] is not None])
        self._distinct.append(len({tuple(one["answer"].split()) for one in records}))
        self._tokens.append(sum(one["tokens"] for one in records) / len(records))
        for i, j in ranking.pairs:
            chosen, rejected = records[i], records[j]
            self._margins.append(chosen["score"] - rejected["score"])
            self._of.append(self.prompts)
            self._lengths.append((chosen["tokens"], rejected["tokens"]))
            for side, one in zip(self._sides, (chosen, rejected), strict=True):
                side.append(looks(one["answer"]))
        self.pairs += len(ranking.pairs)
        self.prompts += 1

    def summary(self) -> dict[str, Any]:
        """Counts, which add up, and numbers with intervals; JSON."""
        twos = self.pairs + self.unpaired.total()
        assert self.answers == self.usable + self.left_out.total(), "answers = usable + left out"
        assert self.prompts == len(set(self._of)) + self.without.total(), (
            "prompts = with a pair + without"
        )
        return {
            "prompts": self.prompts,
            "answers": self.answers,
            "finished": self.finished,
            "usable": self.usable,
            "left_out": {why: self.left_out[why] for why in (UNSCORED, EMPTY, CUT, REPEATED)},
            "possible_pairs": twos,
            "pairs": self.pairs,
            "not_pairs": {why: self.unpaired[why] for why in (TIE, BELOW, BETTER_CUT, NOT_TAKEN)},
            "prompts_with_pairs": self.prompts - self.without.total(),
            "prompts_without": dict(self.without.most_common()),
            **measure(self._scores, self.n),
            "distinct_answers": stats.mean(self._distinct).json(),
            "tokens": stats.mean(self._tokens).json(),
            **self._sided(),
        }

    def _sided(self) -> dict[str, Any]:
        """How the chosen answers differ from the rejected ones."""
        if not self.pairs:
            return {
                "margin": None,
                "chosen_tokens": None,
                "rejected_tokens": None,
                "tokens_difference": None,
                "bias": None,
                "warnings": [],
            }
        of = np.array(self._of)
        chosen, rejected = ([float(pair[side]) for pair in self._lengths] for side in (0, 1))
        bias = preferences.measure(
            compare(*(np.array(side).reshape(-1, LOOKS) for side in self._sides)), of
        )
        said = preferences.telling(bias, "`posttrain data pairs --balance-length`")
        return {
            "margin": stats.mean(self._margins, self._of).json(),
            "chosen_tokens": stats.mean(chosen, self._of).json(),
            "rejected_tokens": stats.mean(rejected, self._of).json(),
            "tokens_difference": stats.mean([a - b for a, b in self._lengths], self._of).json(),
            "bias": bias,
            "warnings": [said] if said else [],
        }
