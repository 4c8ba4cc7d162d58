"""What several answers a prompt say of a model: mean score, best of n, pass@k, how much the answers
differ.

    pass@k      1 − C(n − c, k) / C(n, k), c of a prompt's n answers being right; unbiased for every
                k ≤ n
    best of n   the mean of the highest score; its policy is at most ln n − (n − 1)/n nats from the
                one that was sampled

The unit of means is the prompt: answers to one prompt are not independent, nor are those to rows
that ask the same.

Sources: Chen et al. 2021 (arXiv 2107.03374), eq. 1; Beirami et al. 2024 (arXiv 2401.01879), theorem
1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from posttrain.data.curate.bias import LOOKS, compare, looks
from posttrain.evals import preferences, stats
from posttrain.evals.records import Record
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


def measure(
    scores: Many[Many[float]], n: int, clusters: Many[Hashable] | None = None
) -> dict[str, Any]:
    """Numbers with intervals, over prompts.

    Args:
        scores: of every prompt its answers' scores, those that could be given.
        n: answers drawn for each prompt.
        clusters: one a prompt; prompts with the same one are not independent. None: every prompt is
            its own.
    Returns: JSON: mean_score, best_of_n, and pass_at where every score is 0 or 1, for k = 1, 2, 4,
        … and n.
    """
    names = range(len(scores)) if clusters is None else clusters
    scored = [(group, name) for group, name in zip(scores, names, strict=True) if group]
    if not scored:
        return {"mean_score": None, "best_of_n": None, "pass_at": None}
    flat = [(value, name) for group, name in scored for value in group]
    by_prompt = [name for _, name in scored]
    right_or_wrong = {value for value, _ in flat} <= {0.0, 1.0}
    interval = stats.share if right_or_wrong else stats.mean
    gains = [max(group) - math.fsum(group) / len(group) for group, _ in scored]
    return {
        "mean_score": interval([value for value, _ in flat], [name for _, name in flat]).json(),
        "best_of_n": {
            "n": n,
            "kl_bound": divergence(n),
            "score": interval([max(group) for group, _ in scored], by_prompt).json(),
            "gain": interval(gains, by_prompt).json(),
        },
        "pass_at": _passes(scored, n) if right_or_wrong else None,
    }


def _passes(scored: Many[tuple[Many[float], Hashable]], n: int) -> dict[str, Any]:
    """pass@k for k = 1, 2, 4, … and n, over the prompts with as many scores."""
    found = {}
    for k in sorted({n, *(2**i for i in range(n.bit_length()))}):
        full = [(group, name) for group, name in scored if len(group) >= k]
        if full:
            chances = [pass_at(len(group), round(sum(group)), k) for group, _ in full]
            found[str(k)] = stats.share(chances, [name for _, name in full]).json()
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
        self._clusters: list[str] = []  # of every prompt
        self._of: list[int] = []  # the number of every pair's prompt
        self._sides: tuple[list[list[int]], list[list[int]]] = ([], [])
        self._lengths: list[tuple[float, float]] = []

    def add(self, records: Many[Record], ranking: Ranking) -> None:
        """The answers to one prompt, as `samples.jsonl` has them."""
        self.answers += len(records)
        self.usable += len(ranking.order)
        self.finished += sum(record.meta["finished"] for record in records)
        self.left_out += ranking.left_out
        self.unpaired += ranking.unpaired
        if ranking.why:
            self.without[ranking.why] += 1
        scores = [record.values["score"] for record in records]
        self._scores.append([score for score in scores if score is not None])
        self._distinct.append(len({tuple(record.output.split()) for record in records}))
        self._tokens.append(sum(record.value("tokens") for record in records) / len(records))
        self._clusters.append(records[0].cluster or str(self.prompts))
        for i, j in ranking.pairs:
            chosen, rejected = records[i], records[j]
            self._margins.append(chosen.value("score") - rejected.value("score"))
            self._of.append(self.prompts)
            self._lengths.append((chosen.value("tokens"), rejected.value("tokens")))
            for side, record in zip(self._sides, (chosen, rejected), strict=True):
                side.append(looks(record.output))
        self.pairs += len(ranking.pairs)
        self.prompts += 1

    def summary(self) -> dict[str, Any]:
        """Counts, which add up, and numbers with intervals; JSON."""
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
            "possible_pairs": self.pairs + self.unpaired.total(),
            "pairs": self.pairs,
            "not_pairs": {why: self.unpaired[why] for why in (TIE, BELOW, BETTER_CUT, NOT_TAKEN)},
            "prompts_with_pairs": self.prompts - self.without.total(),
            "prompts_without": dict(self.without.most_common()),
            **measure(self._scores, self.n, self._clusters),
            "distinct_answers": stats.mean(self._distinct, self._clusters).json(),
            "tokens": stats.mean(self._tokens, self._clusters).json(),
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
        of = [self._clusters[number] for number in self._of]
        chosen, rejected = ([float(pair[side]) for pair in self._lengths] for side in (0, 1))
        bias = preferences.measure(
            compare(*(np.array(side).reshape(-1, LOOKS) for side in self._sides)), np.array(of)
        )
        warning = preferences.length_warning(bias, "`posttrain data pairs --balance-length`")
        return {
            "margin": stats.mean(self._margins, of).json(),
            "chosen_tokens": stats.mean(chosen, of).json(),
            "rejected_tokens": stats.mean(rejected, of).json(),
            "tokens_difference": stats.mean([a - b for a, b in self._lengths], of).json(),
            "bias": bias,
            "warnings": [warning] if warning else [],
        }
