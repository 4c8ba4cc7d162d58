"""Reward-model losses with a pencil, by finite differences, and over micro-batches. L is ln 2."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.core.errors import ConfigError
from posttrain.core.types import Denominators, Facts, Rewards
from posttrain.methods.reward import bradley_terry, process

L = math.log(2)
ONE = Denominators(targets=2, sequences=2, pairs=1)
PAIR: Facts = {"chosen": torch.tensor([1]), "rejected": torch.tensor([0])}


def rewarded(*rewards: list[float]) -> Rewards:
    """A reward for each answer by each head."""
    tensor = torch.tensor(rewards, dtype=torch.float64)
    return Rewards(tensor.requires_grad_(), torch.arange(len(tensor)), len(tensor))


@pytest.mark.parametrize(
    ("rewards", "facts", "center", "expected"),
    [
        ([[-L], [L]], {}, 0.0, math.log(5 / 4)),  # r⁺ − r⁻ = 2L
        ([[-L], [L]], {"margin": torch.tensor([L])}, 0.0, math.log(3 / 2)),
        ([[-L], [L]], {}, 0.01, math.log(5 / 4)),  # already around 0
        ([[L], [3 * L]], {}, 0.01, math.log(5 / 4) + 0.16 * L**2),
        ([[L], [3 * L]], {}, 0.5, math.log(5 / 4) + 8 * L**2),
        (
            [[-L, 0.0], [L, 0.0]],
            {},
            0.0,
            (math.log(5 / 4) + L) / 2,
        ),  # two heads; their mean would have a difference of L
    ],
)
def test_bradley_terry_by_hand(rewards: Any, facts: Facts, center: float, expected: float) -> None:
    found = bradley_terry(center).loss(rewarded(*rewards), PAIR | facts, None, ONE)
    assert float(found.detach()) == pytest.approx(expected)


def test_bradley_terry_pulls_by_hand() -> None:
    """σ(−2L) = 1/5 apart, and c·2·(r⁺ + r⁻) = .08L down."""
    scores = rewarded([L], [3 * L])
    (gradient,) = torch.autograd.grad(bradley_terry().loss(scores, PAIR, None, ONE), scores.reward)
    assert gradient[:, 0].tolist() == pytest.approx([0.2 + 0.08 * L, -0.2 + 0.08 * L])


def test_heads_learn_as_if_alone() -> None:
    """The gradient of each of K heads is 1/K of that of a model with this head only."""
    both, alone = rewarded([0.3, -1.0], [0.1, 2.0]), rewarded([-1.0], [2.0])
    (together,) = torch.autograd.grad(bradley_terry().loss(both, PAIR, None, ONE), both.reward)
    (single,) = torch.autograd.grad(bradley_terry().loss(alone, PAIR, None, ONE), alone.reward)
    torch.testing.assert_close(together[:, 1:], single / 2)


def test_bradley_terrys_report_by_hand() -> None:
    """Two pairs, the second undecided; of two heads the mean is shown, and their standard deviation
    |a − b|/√2.
    """
    facts: Facts = {"chosen": torch.tensor([0, 3]), "rejected": torch.tensor([1, 2])}
    report = bradley_terry().report
    assert report is not None
    found = report(rewarded([1.0, 3.0], [0.0, -2.0], [1.0, 1.0], [0.0, 2.0]), facts, None)
    assert {name: value.tolist() for name, value in found.items()} == {
        "rewards/chosen": [2.0, 1.0],
        "rewards/rejected": [-1.0, 1.0],
        "rewards/margins": [3.0, 0.0],
        "rewards/accuracies": [1.0, 0.5],
        "uncertainty": pytest.approx([math.sqrt(2), math.sqrt(2), 0.0, math.sqrt(2)]),
    }
    assert "uncertainty" not in report(rewarded([1.0], [0.0]), PAIR, None)


@pytest.mark.parametrize("center", [-0.1, math.nan, math.inf])
def test_a_center_out_of_range_is_refused(center: float) -> None:
    with pytest.raises(ConfigError, match="center is"):
        bradley_terry(center)


@pytest.mark.parametrize(
    ("rewards", "labels", "expected"),
    [
        ([[L], [L]], [1, 0], (math.log(3 / 2) + math.log(3)) / 2),
        ([[L], [-L]], [1, 0], math.log(3 / 2)),
        ([[2 * L], [0.0]], [0.25, 1], (0.25 * math.log(5 / 4) + 0.75 * math.log(5) + L) / 2),
        ([[L, 0.0], [L, 0.0]], [1, 1], (math.log(3 / 2) + L) / 2),
    ],
)
def test_process_by_hand(rewards: Any, labels: list[float], expected: float) -> None:
    found = process().loss(rewarded(*rewards), {"step_label": torch.tensor(labels)}, None, ONE)
    assert float(found.detach()) == pytest.approx(expected)


def test_process_report_by_hand() -> None:
    report = process().report
    assert report is not None
    labels = {"step_label": torch.tensor([1, 0, 1, 0.8])}
    assert report(rewarded([2.0], [0.1], [0.0], [3.0]), labels, None)["accuracy"].tolist() == [
        1.0,
        0.0,
        0.5,
        1.0,
    ]
    found = report(rewarded([2.0, -4.0], [0.0, -2.0], [1.0, 1.0], [0.0, 2.0]), labels, None)
    assert found["accuracy"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert found["uncertainty"].tolist() == pytest.approx(
        [math.sqrt(18), math.sqrt(2), 0.0, math.sqrt(2)]
    )


@pytest.mark.parametrize("heads", [1, 3])
def test_gradients_by_finite_differences(heads: int) -> None:
    rng = torch.Generator().manual_seed(0)
    reward = torch.randn(6, heads, generator=rng, dtype=torch.float64, requires_grad=True)
    facts: Facts = {
        "chosen": torch.tensor([0, 3, 4]),
        "rejected": torch.tensor([1, 2, 5]),
        "margin": torch.tensor([0.5, 0, 2]),
        "step_label": torch.tensor([0, 1, 1, 0, 0.3, 1]),
    }
    denominators = Denominators(targets=6, sequences=6, pairs=3)
    for loss in (bradley_terry(0.3), process()):
        assert torch.autograd.gradcheck(
            lambda r, loss=loss: loss.loss(
                Rewards(r, torch.arange(6), 6), facts, None, denominators
            ),
            (reward,),
            atol=1e-8,
        )


@given(seed=st.integers(0, 10**6), heads=st.integers(1, 3), data=st.data())
@settings(max_examples=30, deadline=None)
def test_micro_batches_add_up_to_the_whole(seed: int, heads: int, data: st.DataObject) -> None:
    """Pairs in any order and forests of any size; steps the same."""
    pairs = data.draw(st.integers(1, 6))
    order = data.draw(st.permutations(range(pairs)))
    cuts = sorted(data.draw(st.sets(st.integers(1, pairs - 1)) if pairs > 1 else st.just(set())))
    rng = torch.Generator().manual_seed(seed)
    reward = torch.randn(2 * pairs, heads, generator=rng, dtype=torch.float64, requires_grad=True)
    margin, label = (
        torch.rand(pairs, generator=rng),
        torch.randint(0, 2, (2 * pairs,), generator=rng),
    )
    denominators = Denominators(targets=2 * pairs, sequences=2 * pairs, pairs=pairs)

    def run(loss: Any, forests: list[list[int]]) -> tuple[float, Tensor]:
        total = torch.zeros((), dtype=torch.float64)
        for rows in forests:
            at = torch.tensor([2 * r + k for r in rows for k in (0, 1)])
            places = torch.arange(len(rows)) * 2
            facts: Facts = {
                "chosen": places,
                "rejected": places + 1,
                "margin": margin[torch.tensor(rows)],
                "step_label": label[at],
            }
            total = total + loss.loss(
                Rewards(reward[at], torch.arange(len(at)), len(at)), facts, None, denominators
            )
        return float(total.detach()), torch.autograd.grad(total, reward)[0]

    for loss in (bradley_terry(), process()):
        whole, gradient = run(loss, [list(range(pairs))])
        added, gradients = run(
            loss, [order[a:b] for a, b in zip([0, *cuts], [*cuts, pairs], strict=True)]
        )
        assert added == pytest.approx(whole, rel=1e-10)
        torch.testing.assert_close(gradients, gradient, rtol=1e-10, atol=1e-10)


def test_what_the_engine_must_know() -> None:
    assert (bradley_terry().together, process().together) == (2, 1)
    assert bradley_terry().prepare is None and process().prepare is None
