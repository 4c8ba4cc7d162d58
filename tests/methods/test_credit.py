"""Credit with a pencil: every algorithm's advantages, what is left out, and what cannot matter."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError
from posttrain.methods.credit import ALGORITHMS, Credit, Samples, algorithm, divergence, same
from posttrain.methods.rl_options import AlgorithmName, RlOptions

NAN = math.nan
GROUPED = [name for name, method in ALGORITHMS.items() if method.grouped]
STANDARDISED = [n for n in GROUPED if ALGORITHMS[n].defaults["scale"] == "group"]


def samples(*rewards: float, lengths: tuple[int, ...] = (), **more: Any) -> Samples:
    """Completions of one token unless said; log π is 0 everywhere, log π_ref −½."""
    lengths = lengths or (1,) * len(rewards)
    facts: dict[str, Any] = {
        "finished": np.ones(len(rewards), bool),
        "logprobs": [np.zeros(n) for n in lengths],
        "reference": [np.full(n, -0.5) for n in lengths],
        "values": [np.zeros(n) for n in lengths],
        "greedy": 0.0,
    }
    return Samples(np.array(rewards), np.array(lengths), **{**facts, **more})


def credits(name: str, *batch: Samples, **options: Any) -> list[Credit]:
    options = {"beta": 0.0, **options}
    return ALGORITHMS[name].credit(batch, RlOptions(**options))


def advantages(name: str, *batch: Samples, **options: Any) -> list[float]:
    """Of every token of every completion, laid end to end."""
    given_credit = credits(name, *batch, **options)
    return np.concatenate([tokens for c in given_credit for tokens in c.advantages]).tolist()


# ------------------------------------------------------------------------------------ with a pencil

TWO = [samples(1.0, 0.0, 0.0, 0.0), samples(4.0, 2.0)]
CENTRED = [0.75, -0.25, -0.25, -0.25, 1, -1]
OTHERS = [1, -1 / 3, -1 / 3, -1 / 3, 2, -2]  # less the mean of the others
FROM_MEAN = [r - 7 / 6 for r in (1, 0, 0, 0, 4, 2)]
BATCH = math.sqrt((21 - 49 / 6) / 5)  # deviation of the six rewards
HALF = math.sqrt(0.5)
THIRD = math.sqrt(1 / 3)
LATE = {"longest": 10}

BY_HAND: list[tuple[str, list[Samples], dict[str, Any], list[float]]] = [
    # the deviation is ½, and of the two √2
    (
        "grpo",
        TWO,
        {},
        [a / d for a, d in zip(CENTRED, [0.5001] * 4 + [2**0.5 + 1e-4] * 2, strict=True)],
    ),
    ("grpo", TWO, {"scale": "none"}, CENTRED),
    ("grpo", TWO, {"scale": "batch"}, [a / (BATCH + 1e-4) for a in CENTRED]),
    ("dr_grpo", TWO, {}, CENTRED),
    ("rloo", TWO, {}, OTHERS),
    ("rloo", TWO, {"scale": "batch"}, [a / (math.sqrt(28 / 15) + 1e-4) for a in OTHERS]),
    ("reinforce", TWO, {}, FROM_MEAN),
    ("reinforce", TWO, {"scale": "batch"}, [a / (BATCH + 1e-4) for a in FROM_MEAN]),
    ("remax", [samples(1.0, 0.0, greedy=0.75)], {}, [0.25, -0.75]),
    # the first reward is earned by two tokens: 1, 1 and −2 have mean 0 and variance 3
    ("reinforce_pp", [samples(1.0, -2.0, lengths=(2, 1))], {}, [THIRD, THIRD, -2 * THIRD]),
    ("reinforce_pp", [samples(1.0, lengths=(2,))], {"scale": "none", "gamma": 0.5}, [0.5, 1]),
    # every token has its completion's advantage
    ("rloo", [samples(1.0, 0.0, lengths=(3, 1))], {}, [1, 1, 1, -1]),
    # a missing score: no credit, and out of the mean
    ("rloo", [samples(1.0, NAN, 0.0, lengths=(1, 2, 1))], {}, [1, 0, 0, -1]),
    ("grpo", [samples(1.0, NAN, 0.0)], {}, [0.5 / (HALF + 1e-4), 0, -0.5 / (HALF + 1e-4)]),
    ("grpo", [samples(1.0, NAN), samples(NAN, NAN)], {}, [0] * 4),
    ("reinforce", [samples(3.0, NAN), samples(1.0)], {}, [1, 0, -1]),
    ("remax", [samples(1.0, 0.0, greedy=NAN)], {}, [0, 0]),
    ("reinforce_pp", [samples(1.0, NAN, -1.0, lengths=(1, 2, 1))], {}, [HALF, 0, 0, -HALF]),
    # the divergence is ½ a token (k1), and comes off the reward: of whole answers …
    ("rloo", [samples(1.0, 0.0, lengths=(4, 2))], {"beta": 0.5}, [0.5] * 4 + [-0.5] * 2),
    (
        "dr_grpo",
        [samples(1.0, 0.0, lengths=(4, 2))],
        {"beta": 0.5, "kl_in": "reward"},
        [0.25] * 4 + [-0.25] * 2,
    ),
    # … or of what is still to come
    ("remax", [samples(1.0, lengths=(3,))], {"beta": 0.2}, [0.7, 0.8, 0.9]),
    ("reinforce_pp", [samples(1.0, lengths=(3,))], {"beta": 0.2, "scale": "none"}, [0.7, 0.8, 0.9]),
    # k2 of a token is ⅛
    (
        "rloo",
        [samples(1.0, 0.0, lengths=(4, 2))],
        {"beta": 1.0, "kl_estimator": "k2"},
        [0.75] * 4 + [-0.75] * 2,
    ),
    # the last four of ten tokens: the reward falls by ¼ each, and by no more than 1
    (
        "rloo",
        [samples(1.0, 1.0, lengths=(6, 9), **LATE)],
        {"overlong_buffer": 4},
        [0.75] * 6 + [-0.75] * 9,
    ),
    (
        "rloo",
        [samples(1.0, 1.0, lengths=(3, 12), **LATE)],
        {"overlong_buffer": 4},
        [1] * 3 + [-1] * 12,
    ),
    # cut off: it is compared with, and learns nothing
    ("rloo", [samples(1, 0, finished=np.array([True, False]))], {"mask_unfinished": True}, [1, 0]),
]


@pytest.mark.parametrize(
    ("name", "batch", "options", "expected"),
    BY_HAND,
    ids=[f"{i} {name} {o}" for i, (name, _, o, _) in enumerate(BY_HAND)],
)
def test_by_hand(
    name: str, batch: list[Samples], options: dict[str, Any], expected: list[float]
) -> None:
    assert advantages(name, *batch, **options) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_generalised_advantages_by_hand() -> None:
    """γ = λ = ½; δ = (½·½ − 1, ½·¼ − ½, 1 − ¼) = (−¾, −⅜, ¾); A_t = δ_t + ¼·A_{t+1}."""
    group = samples(1.0, lengths=(3,), values=[np.array([1, 0.5, 0.25])])
    (given_credit,) = credits("ppo", group, gamma=0.5, gae_lambda=0.5, scale="none")
    expected = [-0.75 - 0.1875 / 4, -0.375 + 0.75 / 4, 0.75]
    assert given_credit.advantages[0].tolist() == expected
    assert given_credit.returns is not None
    assert given_credit.returns[0].tolist() == [expected[0] + 1, expected[1] + 0.5, 1.0]


def test_ppo_whitens_the_tokens_of_the_batch_and_keeps_returns_as_they_are() -> None:
    group = samples(1.0, -2.0, NAN, lengths=(2, 1, 2))
    (given_credit,) = credits("ppo", group, gae_lambda=1.0)
    assert np.concatenate(given_credit.advantages) == pytest.approx(
        [1 / 3**0.5, 1 / 3**0.5, -2 / 3**0.5, 0, 0]
    )
    assert given_credit.returns is not None
    assert np.array_equal(np.concatenate(given_credit.returns), [1, 1, -2, NAN, NAN], True)


def test_what_is_cut_off_teaches_the_value_head_nothing() -> None:
    group = samples(1.0, -2.0, lengths=(1, 1), finished=np.array([True, False]))
    (given_credit,) = credits("ppo", group, mask_unfinished=True)
    assert given_credit.returns is not None
    assert np.array_equal(np.concatenate(given_credit.returns), [1, NAN], True)


def test_two_completions_are_a_contrast() -> None:
    """By how much one is better does not matter: A = ±1/√2."""
    for better in (1e3, 1e6):
        assert advantages("grpo", samples(better, 0.0)) == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_lambda_1_is_reward_to_go_less_the_value() -> None:
    values = [np.array([0.3, -0.2, 0.9])]
    (ppo,) = credits(
        "ppo", samples(1.0, lengths=(3,), values=values), gae_lambda=1.0, scale="none", beta=0.2
    )
    assert ppo.advantages[0] == pytest.approx(np.array([0.7, 0.8, 0.9]) - values[0])


def test_a_completion_without_tokens_has_no_place_for_credit() -> None:
    for name in ALGORITHMS:
        given_credit = credits(name, samples(1.0, 0.0, lengths=(0, 2)))[0]
        assert [len(tokens) for tokens in given_credit.advantages] == [0, 2]


def test_divergence_of_completions() -> None:
    """k3 of a token is e^−½ − ½, whose x is −½."""
    assert divergence(samples(0.0, 0.0, lengths=(2, 1))) == pytest.approx(
        [2 * (math.exp(-0.5) - 0.5), math.exp(-0.5) - 0.5]
    )


# ------------------------------------------------------------------------------- what cannot matter

REWARDS = st.lists(
    st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=2, max_size=5),
    min_size=1,
    max_size=4,
)


def tried(name: str, groups: list[list[float]], **options: Any) -> list[np.ndarray]:
    batch = [samples(*g, lengths=tuple(range(1, len(g) + 1))) for g in groups]
    return [np.concatenate(c.advantages) for c in credits(name, *batch, **options)]


@settings(max_examples=8)
@given(REWARDS)
@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in ("ppo", "remax")])
def test_a_constant_added_to_rewards_changes_nothing(name: str, groups: list[list[float]]) -> None:
    for before, after in zip(
        tried(name, groups), tried(name, [[r + 3 for r in g] for g in groups]), strict=True
    ):
        np.testing.assert_allclose(before, after, atol=1e-9)


@settings(max_examples=8)
@given(REWARDS)
@pytest.mark.parametrize("name", [*STANDARDISED, "reinforce_pp"])
def test_the_unit_of_rewards_changes_nothing(name: str, groups: list[list[float]]) -> None:
    """But for the 10⁻⁴ beside the deviation."""
    for before, after in zip(
        tried(name, groups), tried(name, [[r * 64 for r in g] for g in groups]), strict=True
    ):
        np.testing.assert_allclose(before, after, atol=4e-3)


@settings(max_examples=8)
@given(REWARDS, st.randoms())
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_order_of_groups_changes_nothing(
    name: str, groups: list[list[float]], random: Any
) -> None:
    order = random.sample(range(len(groups)), len(groups))
    before, after = tried(name, groups), tried(name, [groups[i] for i in order])
    for i, permuted in zip(order, after, strict=True):
        np.testing.assert_allclose(before[i], permuted, atol=1e-9)


@pytest.mark.parametrize("name", [*GROUPED, "reinforce", "reinforce_pp"])
def test_equal_rewards_give_exactly_nothing(name: str) -> None:
    """0.1 three times has a mean that is not 0.1 in floating point."""
    assert np.mean([0.1] * 3) != 0.1
    assert set(advantages(name, samples(0.1, 0.1, 0.1, NAN, lengths=(1, 2, 3, 1)))) == {0.0}


def test_whether_rewards_are_the_same_is_told_exactly() -> None:
    assert same(np.array([0.1] * 3)) and same(np.array([0.1, NAN, 0.1]))
    assert same(np.array([NAN, NAN])) and same(np.array([1.0])) and same(np.array([1.0, NAN]))
    assert not same(np.array([0.1, 0.1 + 1e-17 + 2e-17])) and not same(np.array([0.0, NAN, 5e-324]))


# ------------------------------------------------------------------------------------------ options


def test_names_are_those_of_the_settings() -> None:
    assert tuple(ALGORITHMS) == get_args(AlgorithmName)
    fields = set(RlOptions.model_fields)
    assert set().union(*(method.defaults for method in ALGORITHMS.values())) == fields
    for method in ALGORITHMS.values():
        set_all = {k: v for k, v in method.defaults.items() if v is not None}
        allowed = {k: v for k, v in set_all.items() if k not in ("kl_horizon", "kl_weighted")}
        assert method.values(RlOptions(**allowed)) == method.values(RlOptions())


def test_the_page_has_the_defaults() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "rl-methods.md"
    lines = re.findall(r"^\| (.*) \|$", page.read_text(), re.MULTILINE)
    head, *rows = [[c.strip(" `") for c in line.split("|")] for line in lines[:16]]
    assert [name for name, *_ in rows] == list(ALGORITHMS)
    for name, *cells in rows:
        for option, cell in zip(head[1:-1], cells, strict=False):
            default = ALGORITHMS[name].defaults.get(option, "")
            assert cell == default or float(cell) == default, (name, option)


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        ("grpo", {"gae_lambda": 0.9}, "gae_lambda"),
        ("cispo", {"clip_low": 0.1}, "clip_low"),
        ("cispo", {"clip_high": 0.2}, "clip_high"),
        ("reinforce", {"scale": "group"}, "scale"),
        ("ppo", {"kl_horizon": 100.0}, "kl_horizon"),
        ("grpo", {"kl_target": 6.0}, "kl_target"),
        ("ppo", {"kl_weighted": True}, "kl_weighted"),
        ("grpo", {"kl_estimator": "k1", "kl_weighted": False}, "kl_estimator"),
        ("grpo", {"kl_estimator": "k2", "kl_weighted": True}, "kl_weighted"),
        ("grpo", {"correction": "none", "correction_cap": 2.0}, "correction_cap"),
        ("clip_cov", {"cov_low": 5.0}, "cov_low"),
    ],
)
def test_an_option_without_meaning_is_refused(
    name: str, options: dict[str, Any], option: str
) -> None:
    with pytest.raises(ConfigError) as error:
        ALGORITHMS[name].values(RlOptions(**options))
    assert error.value.option == option


def test_the_estimator_follows_where_the_divergence_is() -> None:
    assert ALGORITHMS["ppo"].values(RlOptions())["kl_estimator"] == "k1"
    assert ALGORITHMS["grpo"].values(RlOptions())["kl_estimator"] == "k3"
    assert not ALGORITHMS["grpo"].values(RlOptions(kl_estimator="k2"))["kl_weighted"]


@pytest.mark.parametrize(
    ("name", "missing", "options"),
    [
        ("ppo", "values", {}),
        ("remax", "greedy", {}),
        ("rloo", "reference", {"beta": 0.1}),
        ("grpo", "longest", {"overlong_buffer": 2}),
    ],
)
def test_what_is_missing_is_named(name: str, missing: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Samples.{missing}"):
        credits(name, replace(samples(1.0, 0.0), **{missing: None}), **options)


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="draw two"):
        credits(name, samples(1.0))


def test_an_unknown_algorithm_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dr_grpo'"):
        algorithm("drgrpo")


def test_the_command_line_needs_no_torch_for_algorithms() -> None:
    code = "import sys, posttrain.methods.credit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
