"""What several answers a prompt say, on numbers that a pencil can follow."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from posttrain.evals import stats
from posttrain.evals.records import Record
from posttrain.evals.samples import Tally, divergence, measure, pass_at
from posttrain.scoring.ranking import Answer, rank


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_draws_of_k_with_a_right_one(n: int) -> None:
    for right in range(n + 1):
        for k in range(1, n + 1):
            draws = [any(i < right for i in draw) for draw in combinations(range(n), k)]
            assert pass_at(n, right, k) == pytest.approx(sum(draws) / len(draws))


def test_the_divergence_of_best_of_n_is_that_of_continuous_scores() -> None:
    """With scores that are never equal, best of n has the density n·F^(n−1): KL = ∫ n u^(n−1) ln(n
    u^(n−1)) du.
    """
    u = (np.arange(400_000) + 0.5) / 400_000
    for n in (2, 8, 64):
        log_density = np.log(n) + (n - 1) * np.log(u)
        assert divergence(n) == pytest.approx(
            float((np.exp(log_density) * log_density).mean()), abs=1e-4
        )
    assert divergence(1) == 0


def test_means_are_over_prompts() -> None:
    found = measure([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1]], 4)
    assert (found["mean_score"]["mean"], found["mean_score"]["n"]) == (0.4, 10)
    assert (
        found["mean_score"]
        == stats.share([1, 0, 1, 0, 0, 0, 0, 0, 1, 1], [0] * 4 + [1] * 4 + [2] * 2).json()
    )
    assert found["best_of_n"]["score"] == stats.share([1, 0, 1]).json()
    assert found["best_of_n"]["gain"] == stats.share([0.5, 0, 0]).json()
    scores = measure([[3.0, 1.0], [2.0, 2.0]], 2)
    assert scores["best_of_n"]["gain"] == stats.mean([1.0, 0.0]).json()
    assert found["best_of_n"]["kl_bound"] == pytest.approx(math.log(4) - 0.75)
    assert {k: one["mean"] for k, one in found["pass_at"].items()} == {
        "1": pytest.approx((0.5 + 0 + 1) / 3),
        "2": pytest.approx((5 / 6 + 0 + 1) / 3),
        "4": 0.5,
    }
    assert found["pass_at"]["4"]["n"] == 2  # the last prompt has two scores
    assert measure([[0.5], [1]], 1)["pass_at"] is None
    # rows that ask the same are one cluster
    again = measure([[1, 0], [1, 0], [0, 0], [0, 0]], 2, ["a", "a", "b", "b"])
    assert again["best_of_n"]["score"] == stats.share([1, 1, 0, 0], ["a", "a", "b", "b"]).json()
    assert again["pass_at"]["1"] == stats.share([0.5, 0.5, 0, 0], ["a", "a", "b", "b"]).json()
    assert measure([[], []], 4) == {"mean_score": None, "best_of_n": None, "pass_at": None}


def test_a_tally_adds_up() -> None:
    def records(*some: tuple[str, float | None, int]) -> list[Record]:
        return [
            Record(
                f"a:1#{i}",
                values={"score": score, "tokens": tokens},
                output=text,
                meta={"finished": tokens < 9},
            )
            for i, (text, score, tokens) in enumerate(some)
        ]

    tally = Tally(3)
    for some in (
        records(("yes", 1, 2), ("no no", 0, 4), ("yes", 1, 2)),
        records(("a", 0, 1), ("b", 0, 1), ("c", None, 9)),
        records(("x", 1, 3), ("y z w", 0, 9), ("u v", 0, 5)),
    ):
        answers = [Answer(one.output, one.values["score"], one.meta["finished"]) for one in some]
        tally.add(some, rank(answers))
    found = tally.summary()
    assert (found["prompts"], found["answers"], found["finished"], found["usable"]) == (3, 9, 7, 7)
    assert found["left_out"] == {"unscored": 1, "empty": 0, "unfinished": 0, "repeats another": 1}
    assert (found["possible_pairs"], found["pairs"], found["prompts_with_pairs"]) == (
        1 + 1 + 3,
        2,
        2,
    )
    assert found["not_pairs"] == {
        "same score": 2,
        "margin below --min-margin": 0,
        "the better one is unfinished": 0,
        "not taken": 1,
    }
    assert found["prompts_without"] == {"all answers have the same score": 1}
    assert (found["distinct_answers"]["mean"], found["margin"]["mean"]) == (pytest.approx(8 / 3), 1)
    assert found["tokens"]["mean"] == pytest.approx((8 / 3 + 11 / 3 + 17 / 3) / 3)
    tokens = [
        found[name]["mean"] for name in ("chosen_tokens", "rejected_tokens", "tokens_difference")
    ]
    assert tokens == [(2 + 3) / 2, (4 + 9) / 2, (2 - 4 + 3 - 9) / 2]
    assert found["tokens_difference"]["n"] == 2 and found["bias"]["longer"]["words"]["mean"] == 0
    assert Tally(3).left_out == {}


def test_rows_that_ask_the_same_are_one_cluster() -> None:
    """Four rows of two prompts: every mean is clustered by prompt, margins of pairs, too."""
    tally, clusters, tokens = Tally(2), ["p", "p", "q", "q"], [1, 2, 8, 9]
    for cluster, n in zip(clusters, tokens, strict=True):
        some = [
            Record(f"{n}#{i}", cluster, {"score": s, "tokens": n}, 1.0, f"{i}", {"finished": True})
            for i, s in enumerate((float(n), 0.0))
        ]
        tally.add(some, rank([Answer(one.output, one.values["score"]) for one in some]))
    found = tally.summary()
    assert found["tokens"] == found["margin"] == stats.mean(tokens, clusters).json()
    assert found["best_of_n"]["score"] == stats.mean(tokens, clusters).json()
    assert found["tokens"] != stats.mean(tokens).json()
