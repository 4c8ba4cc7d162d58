"""Losses of learning from reward with a pencil; what each option does; what cannot matter.

L is ln 2. Most numbers come from two completions. Of the first, of advantage 1, the policy holds
the tokens for ½ and 1/16, and held them for ¼ and ½: ρ = 2 and ⅛, whose geometric mean is ½. Of the
second, of advantage −1, it holds the only token for ½, and held it for ⅛: ρ = 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.core.errors import ConfigError
from posttrain.core.types import Columns, Facts, Loss, Read, Truncation
from posttrain.data.forest import Sequence, Tree, Unit
from posttrain.methods.credit import ALGORITHMS
from posttrain.methods.policy_gradient import policy_gradient
from posttrain.methods.rl_options import RlOptions
from posttrain.methods.value import explained_variance
from tests.tiny import distance, parameter_gradients, policy

L = math.log(2)
NAN = math.nan
LONGEST = 4
TARGETS = ("advantages", "old_logprobs", "sampled_logprobs", "reference", "returns", "old_values")


@dataclass(frozen=True)
class Batch:
    """What a policy says of a forest, and what is known of the forest."""

    columns: Columns
    facts: Facts


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two(**changes: Tensor) -> Batch:
    """The completions of the module's docstring; the reference holds every token for ¼."""
    old = double(1 / 4, 1 / 2, 1 / 8).log()
    targets = {
        "advantages": double(1, 1, -1),
        "old_logprobs": old,
        "sampled_logprobs": old,
        "reference": double(1 / 4, 1 / 4, 1 / 4).log(),
        "returns": double(2, 0.5, 1),
        "old_values": double(0.5, 0.5, 0.5),
        **changes,
    }
    columns = Columns(
        double(1 / 2, 1 / 16, 1 / 2).log().requires_grad_(),
        entropy=double(1, 2, 3).requires_grad_(),
        value=double(1, 0.5, 0).requires_grad_(),
    )
    members, number = torch.tensor([[0, 1]]), torch.tensor([0])
    return Batch(columns, Facts(torch.tensor([0, 0, 1]), 2, members, number, targets))


def made(name: str, **options: Any) -> Loss:
    """An algorithm's loss; without a divergence unless said."""
    return policy_gradient(name, RlOptions(**{"beta": 0.0, **options}), 1.0, None, longest=LONGEST)


def taken(loss: Loss, *batches: Batch) -> Tensor:
    """The loss of a global batch of several forests."""
    columns, facts = [b.columns for b in batches], [b.facts for b in batches]
    each = [loss.counts(f) for f in facts]
    counts = {name: sum(count[name] for count in each) for name in each[0]}
    with torch.no_grad():
        statistics = loss.prepare(columns, facts) if loss.prepare else None
    values = [loss.loss(c, f, counts, statistics) for c, f in zip(columns, facts, strict=True)]
    return torch.stack(values).sum()


# ------------------------------------------------------------------------------------ with a pencil

SAPO_1 = 4 / (1 + math.exp(-1))  # of ρ = 2 at τ = 1
SAPO_2 = 4 / (1 + math.exp(7 / 8))  # of ρ = ⅛
SAPO_3 = 4 / 1.05 / (1 + math.exp(-1.05 * 3))  # of ρ = 4 at τ = 1.05
SAPO_4, SAPO_5 = 2 / (1 + math.exp(-2)), 2 / (1 + math.exp(7 / 4))  # the first two at τ = 2
GMPO = math.exp((0.4 - 3 * L) / 2)  # (2 held back at e^0.4, and ⅛)
PPO = -1.2 - 1 / 8 + 4
K3 = [0.5 - 1 + L, 4 - 1 - 2 * L, 0.5 - 1 + L]  # x = −L, 2L, −L

BY_HAND: list[tuple[str, dict[str, Any], float]] = [
    ("grpo", {}, ((-1.2 - 1 / 8) / 2 + 4) / 2),
    ("grpo", {"clip_low": 0.0, "clip_high": 2.0}, ((-2 - 1 / 8) / 2 + 4) / 2),
    ("grpo", {"clip_largest": 3.0}, ((-1.2 - 1 / 8) / 2 + 3) / 2),
    ("grpo", {"aggregate": "sum"}, PPO / 2),
    ("dapo", {}, (-1.28 - 1 / 8 + 4) / 3),
    ("bnpo", {}, PPO / 3),
    ("dr_grpo", {}, PPO / (2 * LONGEST)),
    ("gspo", {}, (-0.5 + 4) / 2),
    ("gspo", {"aggregate": "token"}, (-0.5 - 0.5 + 4) / 3),
    ("rloo", {}, (-0.25 + 4) / 2),  # 2·⅛, of the whole
    ("reinforce_pp", {}, PPO / 3),
    ("cispo", {}, (2 * L + 4 * L / 8 - 4 * L) / 3),
    ("cispo", {"clip_high": 3.0}, (2 * L + 4 * L / 8 - 3 * L) / 3),
    ("reinforce", {}, (2 * L + 4 * L / 8 - 4 * L) / 2),
    ("remax", {"clip_high": 1.0}, (L + 4 * L / 8 - L) / 2),
    ("sapo", {}, (-(SAPO_1 + SAPO_2) / 2 + SAPO_3) / 2),
    ("sapo", {"sapo_positive": 2.0}, (-(SAPO_4 + SAPO_5) / 2 + SAPO_3) / 2),
    ("gmpo", {}, (-GMPO + 4) / 2),
    ("gmpo", {"clip_high": 1.0}, (-math.exp((L - 3 * L) / 2) + 4) / 2),
    # covariances are (2/3)·L, −(2/3)·2L, −(4/3)·L
    ("kl_cov", {"cov_share": 1 / 3}, (-2 - 1 / 8 + 4 + L) / 3),
    ("kl_cov", {"cov_share": 1.0, "cov_weight": 0.5}, (-2 - 1 / 8 + 4 + L / 2) / 3),
    ("clip_cov", {"cov_low": 0.4, "clip_high": 1.5}, (-1 / 8 + 4) / 3),  # it holds the first back
    ("clip_cov", {"cov_low": 0.5, "clip_high": 1.5}, (-2 - 1 / 8 + 4) / 3),
    ("clip_cov", {"cov_low": 0.4}, PPO / 3),  # it has no gradient as it is
    # ½·(1.3² + 0 + 1²), where the first value may be .7 at most
    ("ppo", {}, (PPO + 0.1 * (1.69 + 1) / 2) / 3),
    ("ppo", {"clip_value": 9.0, "value_weight": 1.0}, (PPO + 1) / 3),
    ("dapo", {"entropy_weight": 0.5}, (-1.28 - 1 / 8 + 4) / 3 - 1),
    # the divergence: k3 of x, and times the ratio
    ("bnpo", {"beta": 1.0, "kl_weighted": False}, (PPO + sum(K3)) / 3),
    ("bnpo", {"beta": 1.0}, (PPO + 2 * K3[0] + K3[1] / 8 + 4 * K3[2]) / 3),
    ("bnpo", {"beta": 1.0, "kl_estimator": "k1"}, (PPO + 2 * L - 2 * L / 8 + 4 * L) / 3),
    ("bnpo", {"beta": 1.0, "kl_estimator": "k2"}, (PPO + 3 * L * L) / 3),
    (
        "grpo",
        {"beta": 1.0, "kl_weighted": False},
        ((-1.2 - 1 / 8 + K3[0] + K3[1]) / 2 + 4 + K3[2]) / 2,
    ),
    ("gspo", {"beta": 1.0}, ((-1 + (K3[0] + K3[1]) / 2) / 2 + 4 + 4 * K3[2]) / 2),
    ("ppo", {"beta": 1.0}, (PPO + 0.1 * 1.345) / 3),  # in the reward: none here
]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    BY_HAND,
    ids=[f"{name} {' '.join(f'{k}={v}' for k, v in o.items())}" for name, o, _ in BY_HAND],
)
def test_by_hand(name: str, options: dict[str, Any], expected: float) -> None:
    assert float(taken(made(name, **options), two()).detach()) == pytest.approx(expected)


def test_every_algorithm_is_there() -> None:
    assert {name for name, _, _ in BY_HAND} == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, (2, 0.25, 3)),  # 8 is cut to the cap
        ({"correction_cap": 1.0}, (1, 0.25, 1)),
        ({"correction": "none"}, (1, 1, 1)),
        ({"correction": "sequence"}, (0.5**0.5, 0.5**0.5, 3)),
    ],
)
def test_the_samplers_mismatch_is_corrected(
    options: dict[str, Any], weights: tuple[float, float, float]
) -> None:
    """π_old/μ = 2, ¼ and 8. The divergence is not weighed by it."""
    batch = two(sampled_logprobs=two().facts.targets["old_logprobs"] - double(2, 1 / 4, 8).log())
    loss = made("bnpo", beta=1.0, kl_weighted=False, **options)
    policy_terms = np.dot(weights, (-1.2, -1 / 8, 4))
    assert float(taken(loss, batch).detach()) == pytest.approx((policy_terms + sum(K3)) / 3)


def test_a_token_the_sampler_could_not_score_is_not_corrected() -> None:
    batch = two(sampled_logprobs=double(NAN, NAN, NAN))
    assert taken(made("bnpo"), batch) == taken(made("bnpo", correction="none"), batch)


def test_what_is_watched() -> None:
    old = two().facts.targets["old_logprobs"]
    batch = two(sampled_logprobs=old - double(L, 0, NAN), staleness=double(0, 1, 2))
    loss = made("ppo", beta=1.0)
    assert loss.report is not None
    shown = {k: v.tolist() for k, v in loss.report(batch.columns, batch.facts, None).items()}
    expected = {
        "policy/ratio": [2, 1 / 8, 4],
        "policy/ratio_max": [2, 4],
        "policy/clip_low": [0, 0, 0],  # ⅛ is low, but is pulled up
        "policy/clip_high": [1, 0, 0],  # 4 is high, but is pulled down
        "policy/entropy": [1, 2, 3],
        "policy/kl": K3,
        "policy/kl_sequence": [K3[0] + K3[1], K3[2]],
        "policy/mismatch": [L, 0],
        "policy/mismatch_k3": [2 - 1 - L, 0],
        "policy/staleness": [0, 1, 2],
        "policy/value_loss": [1.69 / 2, 0, 1 / 2],
    }
    assert shown.keys() == expected.keys()
    for name, value in expected.items():
        assert shown[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("gmpo", [0, 1, 0], [1, 0, 0]), ("cispo", [0, 0, 0], [1, 0, 0]), ("sapo", [0] * 3, [0] * 3)],
)
def test_shares_that_are_held_back(name: str, low: list[int], high: list[int]) -> None:
    """ρ = 2, ⅛ and 4 with advantages 1, −1 and −1; CISPO's bound at 1.5."""
    batch = two(advantages=double(1, -1, -1))
    loss = made(name, **({"clip_high": 1.5} if name == "cispo" else {}))
    assert loss.report is not None
    shown = loss.report(batch.columns, batch.facts, None)
    assert shown["policy/clip_low"].tolist() == low
    assert shown["policy/clip_high"].tolist() == high


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([1.0, 3.0, NAN])
    assert explained_variance(torch.tensor([1.0, 3.0, 9.0]), returns) == 1.0
    assert explained_variance(torch.tensor([5.0, 5.0, 5.0]), returns) == 0.0
    assert explained_variance(torch.tensor([3.0, 1.0, 0.0]), returns) == -3.0  # 1 − 8/2
    assert explained_variance(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])) is None
    assert explained_variance(torch.tensor([1.0]), torch.tensor([1.0])) is None


# ------------------------------------------------------------------------------ what cannot matter


def random_batch(seed: int, groups: int = 3, spread: float = 0.5) -> Batch:
    """Groups of two to three completions of one to four tokens, and an empty one."""
    rng = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    members = []
    for _ in range(groups):
        first = len(lengths)
        lengths += torch.randint(1, 5, (3,), generator=rng).tolist()
        members.append([first, first + 1, first + 2])
    lengths[1] = 0
    leaf = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    n = len(leaf)

    def drawn(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(n, generator=rng, dtype=torch.float64)

    old = drawn() - 2
    logprob = old + drawn(spread)
    targets = {
        "advantages": torch.randn(len(lengths), generator=rng, dtype=torch.float64)[leaf],
        "old_logprobs": old,
        "sampled_logprobs": old + drawn(0.3),
        "reference": logprob + drawn(0.5),
        "returns": drawn(),
        "old_values": drawn(),
    }
    columns = Columns(
        logprob.requires_grad_(),
        entropy=drawn().square().requires_grad_(),
        value=drawn().requires_grad_(),
    )
    place = torch.randperm(groups, generator=rng)
    return Batch(columns, Facts(leaf, len(lengths), torch.tensor(members), place, targets))


def cut(batch: Batch) -> list[Batch]:
    """Every group as a forest of its own, in no particular order."""
    parts = []
    for members, number in zip(batch.facts.members, batch.facts.numbers, strict=True):
        chosen = (batch.facts.leaf[:, None] == members).any(1)
        facts = Facts(
            batch.facts.leaf[chosen] - members[0],
            len(members),
            (members - members[0])[None],
            number[None],
            {name: value[chosen] for name, value in batch.facts.targets.items()},
        )
        columns = batch.columns
        parts.append(
            Batch(
                Columns(
                    columns.logprob[chosen],
                    entropy=columns.entropy[chosen],
                    value=columns.value[chosen],
                ),
                facts,
            )
        )
    return parts[::-1]


def leaves(batch: Batch) -> list[Tensor]:
    return [batch.columns.logprob, batch.columns.entropy, batch.columns.value]


def derivatives(value: Tensor, batch: Batch) -> list[Tensor]:
    found = torch.autograd.grad(value, leaves(batch), allow_unused=True)
    return [torch.zeros(1) if g is None else g for g in found]


EVERYTHING: dict[str, Any] = {"beta": 0.1, "entropy_weight": 0.2, "kl_in": "loss"}
WIDE: dict[str, dict[str, Any]] = {
    "clip_cov": {"cov_share": 0.3, "cov_low": -9.0, "cov_high": 9.0},
    "kl_cov": {"cov_share": 0.3},
}
AGGREGATES = ("token", "sequence", "fixed", "sum")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_micro_batches_are_the_whole(name: str) -> None:
    for seed, aggregate in enumerate(AGGREGATES):
        batch = random_batch(seed)
        loss = made(name, aggregate=aggregate, **EVERYTHING, **WIDE.get(name, {}))
        whole, parts = taken(loss, batch), taken(loss, *cut(batch))
        assert float(whole.detach()) == pytest.approx(float(parts.detach()), rel=1e-12)
        for one, other in zip(derivatives(whole, batch), derivatives(parts, batch), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_an_additive_loss_is_the_sum_of_its_chunks(name: str, correction: str) -> None:
    loss = made(name, correction=correction, **EVERYTHING)
    assert loss.additive == (name not in ("gspo", "rloo", "gmpo", "clip_cov", "kl_cov"))
    assert not made("grpo", importance="sequence").additive
    if not loss.additive:
        return
    batch = random_batch(7)
    counts = loss.counts(batch.facts)
    chunks = []
    for first in range(0, batch.facts.N, 4):
        chunk = slice(first, first + 4)
        columns = Columns(
            batch.columns.logprob[chunk],
            entropy=batch.columns.entropy[chunk],
            value=batch.columns.value[chunk],
        )
        chunks.append(loss.loss(columns, batch.facts.part(chunk), counts, None))
    whole = loss.loss(batch.columns, batch.facts, counts, None)
    assert float(torch.stack(chunks).sum().detach()) == pytest.approx(float(whole.detach()))


def reinforce(batch: Batch, aggregate: str) -> Tensor:
    """[N] −w·A, the gradient by log π where ρ is 1."""
    facts = batch.facts
    weights = {
        "token": torch.full((facts.N,), 1 / facts.N),
        "sequence": 1 / (facts.lengths[facts.leaf] * facts.L),
        "sum": torch.full((facts.N,), 1 / facts.L),
        "fixed": torch.full((facts.N,), 1 / (facts.L * LONGEST)),
    }
    return -weights[aggregate].double() * facts.targets["advantages"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_at_a_ratio_of_1_it_is_the_policy_gradient(name: str) -> None:
    """And what the sampler said does not matter where it is what the trainer said, to the bit."""
    batch = random_batch(1, spread=0.0)
    targets = batch.facts.targets
    targets["sampled_logprobs"] = targets["old_logprobs"]
    far = {"cov_low": 1e6, "cov_high": 1e7} if name == "clip_cov" else {}
    value = taken(made(name, **far), batch)
    aggregate = ALGORITHMS[name].defaults["aggregate"]
    aggregate = "sum" if name == "rloo" else aggregate  # the ratio is of the whole
    torch.testing.assert_close(derivatives(value, batch)[0], reinforce(batch, aggregate))
    without = taken(made(name, correction="none", **far), batch)
    sequence = taken(made(name, correction="sequence", **far), batch)
    assert torch.equal(value, without) and torch.equal(value, sequence)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_group_without_advantages_has_no_gradient_at_all(name: str) -> None:
    batch = random_batch(2)
    batch.facts.targets["advantages"][batch.facts.leaf < 3] = 0.0
    value = taken(made(name, **WIDE.get(name, {})), batch)
    gradient = derivatives(value, batch)[0]
    assert set(gradient[batch.facts.leaf < 3].tolist()) <= {0.0}
    assert gradient.count_nonzero() > 0


@pytest.mark.parametrize("name", [n for n, a in ALGORITHMS.items() if a.surrogate != "weighed"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    batch = random_batch(3)
    loss = made(name, **{**EVERYTHING, **WIDE.get(name, {})})
    with torch.no_grad():
        statistics = loss.prepare([batch.columns], [batch.facts]) if loss.prepare else None
    counts = loss.counts(batch.facts)

    def function(logprob: Tensor, entropy: Tensor, value: Tensor) -> Tensor:
        columns = Columns(logprob, entropy=entropy, value=value)
        return loss.loss(columns, batch.facts, counts, statistics)

    assert torch.autograd.gradcheck(function, leaves(batch), eps=1e-7, atol=1e-6)


def test_the_likelihoods_gradient_is_weighed_by_the_ratio_without_its_own() -> None:
    batch = random_batch(3, spread=2.0)
    facts = batch.facts
    ratio = (batch.columns.logprob - facts.targets["old_logprobs"]).detach().exp()
    assert (ratio > 1.5).any() and (ratio < 1.5).any()
    value = taken(made("cispo", clip_high=1.5, correction="none"), batch)
    expected = -ratio.clamp(max=1.5) * facts.targets["advantages"] / facts.N
    torch.testing.assert_close(derivatives(value, batch)[0], expected)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_and_the_absurd_are_finite(name: str) -> None:
    loss = made(name, **EVERYTHING)
    empty = torch.zeros(0, dtype=torch.int64)
    none = {key: torch.zeros(0) for key in TARGETS}
    column = torch.zeros(0, requires_grad=True)
    nothing = Batch(
        Columns(column, entropy=column, value=column), Facts(empty, 1, empty[None].T, empty, none)
    )
    absurd = random_batch(4)
    absurd.facts.targets["old_logprobs"] -= torch.linspace(-300, 300, absurd.facts.N)
    absurd.facts.targets["reference"] += torch.linspace(300, -300, absurd.facts.N)
    absurd.facts.targets["returns"][:] = NAN
    value = taken(loss, nothing, absurd)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in derivatives(value, absurd))
    assert loss.report is not None
    for batch in (absurd, nothing):
        statistics = loss.prepare([batch.columns], [batch.facts]) if loss.prepare else None
        shown = loss.report(batch.columns, batch.facts, statistics)
        assert all(number.isfinite().all() for number in shown.values())


def test_a_missing_score_teaches_the_value_head_nothing() -> None:
    batch = two(returns=double(NAN, NAN, 1), advantages=double(0, 0, -1))
    logprob, _, value = derivatives(taken(made("ppo"), batch), batch)
    assert value.tolist()[:2] == [0, 0] and logprob.tolist()[:2] == [0, 0]
    assert value[2] != 0


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_clip_cov_draws_as_many_as_it_says_and_the_same_however_the_batch_is_cut(seed: int) -> None:
    batch = random_batch(seed, groups=4)
    loss = made("clip_cov", cov_share=0.2, cov_low=-9.0, cov_high=9.0, clip_low=9.0, clip_high=99.0)
    assert loss.prepare is not None
    parts = cut(batch)
    (whole,) = loss.prepare([batch.columns], [batch.facts]).values()
    held = loss.prepare([p.columns for p in parts], [p.facts for p in parts])
    assert int(whole.sum()) == max(1, int(0.2 * batch.facts.N))
    assert torch.equal(torch.cat([held[int(p.facts.numbers[0])] for p in parts[::-1]]), whole)
    other = replace(batch.facts, targets={**batch.facts.targets})
    other.targets["old_logprobs"] = other.targets["old_logprobs"] + 1e-3
    draws = [loss.prepare([batch.columns], [other]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0].values(), draws[1].values(), strict=True))


# ------------------------------------------------------------------------------- through the engine


def groups(seed: int, count: int = 3) -> list[Tree]:
    """Prompts with three completions each, and every fact that an algorithm may read."""
    rng = np.random.default_rng(seed)
    trees = []
    for _ in range(count):
        prompt = rng.integers(3, 61, 4)
        sequences = []
        for _ in range(3):
            n = int(rng.integers(1, 7))
            tokens = np.concatenate([prompt, rng.integers(3, 61, n)])
            facts = {name: rng.normal(size=4 + n).astype(np.float32) for name in TARGETS}
            facts["old_logprobs"] = (-4 + 0.5 * facts["old_logprobs"]).astype(np.float32)
            facts["sampled_logprobs"] = facts["old_logprobs"] + 0.1 * facts["sampled_logprobs"]
            facts["reference"] = facts["old_logprobs"] + 0.2 * facts["reference"]
            facts["advantages"][:] = rng.normal()
            sequences.append(Sequence(tokens, np.arange(4 + n) >= 4, facts))
        trees.append(Tree(tuple(sequences), (Unit((0, 1, 2)),)))
    return trees


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ppo", {"entropy_weight": 0.1, "kl_in": "loss", "correction": "sequence"}),
        ("gspo", {"entropy_weight": 0.1}),
        ("clip_cov", WIDE["clip_cov"]),
        ("kl_cov", WIDE["kl_cov"]),
    ],
)
def test_through_the_engine_in_one_forest_or_several(name: str, options: dict[str, Any]) -> None:
    """Temperature and truncation are the sampler's; an additive loss is that of the columns."""
    learner = policy()
    learner.add_value_head()
    trees = groups(0)
    options = {"beta": 0.1, **options}
    loss = policy_gradient(name, RlOptions(**options), 0.7, Truncation(top_p=0.9), longest=8)
    assert loss.additive == (name == "ppo")
    results = []
    for budget, additive in ((1000, loss.additive), (24, loss.additive), (24, False)):
        forests = learner.pack(trees, budget)
        assert (len(forests) > 1) == (budget < 1000)
        measured = learner.forward_backward(forests, replace(loss, additive=additive))
        results.append((measured, parameter_gradients(learner.network)))
    for measured, gradient in results[1:]:
        assert measured.loss == pytest.approx(results[0][0].loss, rel=1e-5)
        assert distance(gradient, results[0][1]) < 1e-4
        for key, mean in results[0][0].means().items():
            assert measured.means()[key] == pytest.approx(mean, rel=1e-4, abs=1e-6), key
    assert ("policy/value_loss" in results[0][0].means()) == (name == "ppo")
    colder = policy_gradient(name, RlOptions(**options), 0.6, Truncation(top_p=0.9), longest=8)
    assert learner.measure(learner.pack(trees, 24), colder).loss != pytest.approx(
        results[0][0].loss
    )


def test_what_is_read_off_the_model() -> None:
    cut = Truncation(top_p=0.9)
    read = policy_gradient("ppo", RlOptions(entropy_weight=0.1), 0.7, cut).read
    assert read == Read(temperature=0.7, truncation=cut, entropy="gradient", value=True)
    assert made("grpo").read == Read(entropy="value")


def test_a_fixed_denominator_must_be_known() -> None:
    with pytest.raises(ConfigError, match="how long a completion may be"):
        policy_gradient("dr_grpo", RlOptions(), 1.0, None)
