"""Reward-model losses with a pencil, by finite differences, and over micro-batches. L is ln 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.core.errors import ConfigError
from posttrain.core.types import Columns, Facts, Loss, Read
from posttrain.methods.reward import bradley_terry, process

L = math.log(2)


def answered(
    pairs: Sequence[list[int]] = (),
    *,
    margin: Tensor | None = None,
    step_label: Tensor | None = None,
) -> Facts:
    """Answers of one target each; of each pair the chosen and the rejected one, which are two of
    them.
    """
    L = len(step_label) if step_label is not None else 2 * len(pairs)
    return Facts(
        torch.arange(L),
        L=L,
        members=torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2),
        numbers=torch.arange(len(pairs)),
        targets={} if step_label is None else {"step_label": step_label},
        units={} if margin is None else {"margin": margin},
    )


PAIR = answered([[1, 0]])


def rewarded(*rewards: list[float]) -> Columns:
    """A reward for each answer by each head."""
    return Columns(reward=torch.tensor(rewards, dtype=torch.float64).requires_grad_())


def taken(loss: Loss, columns: Columns, facts: Facts) -> Tensor:
    """The loss of a batch of one forest."""
    return loss.loss(columns, facts, loss.counts(facts), None)


@pytest.mark.parametrize(
    ("rewards", "margin", "center", "expected"),
    [
        ([[-L], [L]], None, 0.0, math.log(5 / 4)),  # r⁺ − r⁻ = 2L
        ([[-L], [L]], torch.tensor([L]), 0.0, math.log(3 / 2)),
        ([[-L], [L]], None, 0.01, math.log(5 / 4)),  # already around 0
        ([[L], [3 * L]], None, 0.01, math.log(5 / 4) + 0.16 * L**2),
        ([[L], [3 * L]], None, 0.5, math.log(5 / 4) + 8 * L**2),
        # two heads; their mean would have a difference of L
        ([[-L, 0.0], [L, 0.0]], None, 0.0, (math.log(5 / 4) + L) / 2),
    ],
)
def test_bradley_terry_by_hand(
    rewards: Any, margin: Tensor | None, center: float, expected: float
) -> None:
    facts = answered([[1, 0]], margin=margin)
    found = taken(bradley_terry(center), rewarded(*rewards), facts)
    assert float(found.detach()) == pytest.approx(expected)


def test_bradley_terry_pulls_by_hand() -> None:
    """σ(−2L) = 1/5 apart, and c·2·(r⁺ + r⁻) = .08L down."""
    columns = rewarded([L], [3 * L])
    (gradient,) = torch.autograd.grad(taken(bradley_terry(), columns, PAIR), columns.reward)
    assert gradient[:, 0].tolist() == pytest.approx([0.2 + 0.08 * L, -0.2 + 0.08 * L])


def test_heads_learn_as_if_alone() -> None:
    """The gradient of each of K heads is 1/K of that of a model with this head only."""
    both, alone = rewarded([0.3, -1.0], [0.1, 2.0]), rewarded([-1.0], [2.0])
    (together,) = torch.autograd.grad(taken(bradley_terry(), both, PAIR), both.reward)
    (single,) = torch.autograd.grad(taken(bradley_terry(), alone, PAIR), alone.reward)
    torch.testing.assert_close(together[:, 1:], single / 2)


def test_bradley_terrys_report_by_hand() -> None:
    """Two pairs, the second undecided; of two heads the mean is shown, and their standard deviation
    |a − b|/√2.
    """
    facts = answered([[0, 1], [3, 2]])
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
    facts = answered(step_label=torch.tensor(labels))
    found = taken(process(), rewarded(*rewards), facts)
    assert float(found.detach()) == pytest.approx(expected)


def test_process_report_by_hand() -> None:
    report = process().report
    assert report is not None
    labels = answered(step_label=torch.tensor([1, 0, 1, 0.8]))
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
    facts = answered(
        [[0, 1], [3, 2], [4, 5]],
        margin=torch.tensor([0.5, 0, 2]),
        step_label=torch.tensor([0, 1, 1, 0, 0.3, 1]),
    )
    for loss in (bradley_terry(0.3), process()):
        assert torch.autograd.gradcheck(
            lambda r, loss=loss: taken(loss, Columns(reward=r), facts), (reward,), atol=1e-8
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

    def run(loss: Any, forests: list[list[int]]) -> tuple[float, Tensor]:
        parts, counts = [], dict[str, float]()
        for rows in forests:
            at = torch.tensor([2 * r + k for r in rows for k in (0, 1)])
            facts = answered(
                [[2 * i, 2 * i + 1] for i in range(len(rows))],
                margin=margin[torch.tensor(rows)],
                step_label=label[at],
            )
            parts.append((Columns(reward=reward[at]), facts))
            for name, count in loss.counts(facts).items():
                counts[name] = counts.get(name, 0) + count
        total = torch.zeros((), dtype=torch.float64)
        for columns, facts in parts:
            total = total + loss.loss(columns, facts, counts, None)
        return float(total.detach()), torch.autograd.grad(total, reward)[0]

    for loss in (bradley_terry(), process()):
        whole, gradient = run(loss, [list(range(pairs))])
        added, gradients = run(
            loss, [order[a:b] for a, b in zip([0, *cuts], [*cuts, pairs], strict=True)]
        )
        assert added == pytest.approx(whole, rel=1e-10)
        torch.testing.assert_close(gradients, gradient, rtol=1e-10, atol=1e-10)


def test_what_the_engine_must_know() -> None:
    """What is read, and the denominators: pairs whatever their length, and steps."""
    assert bradley_terry().read == Read(logprob=False, reward="sequences")
    assert process().read == Read(logprob=False, reward="targets")
    facts = answered([[0, 1], [3, 2], [4, 5]], step_label=torch.ones(6))
    assert bradley_terry().counts(facts) == {"pairs": 3}
    assert process().counts(facts) == {"targets": 6}
    assert bradley_terry().prepare is None and process().prepare is None
