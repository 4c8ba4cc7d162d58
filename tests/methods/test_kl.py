"""The divergence: exact expectations of every estimator and its gradient, and what moves β."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.core.errors import PosttrainError
from posttrain.core.types import Columns, Facts
from posttrain.methods import kl
from posttrain.methods.credit import ALGORITHMS
from posttrain.methods.kl import ESTIMATORS, AdaptiveKL, FixedKL
from posttrain.methods.policy_gradient import policy_gradient
from posttrain.methods.rl_options import RlOptions

LOGITS = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()


def test_values_by_hand() -> None:
    half = np.array([-math.log(2)])  # the policy is twice as sure as the reference
    assert kl.k1(half) == pytest.approx(math.log(2))
    assert kl.k2(half) == pytest.approx(math.log(2) ** 2 / 2)
    assert kl.k3(half) == pytest.approx(math.log(2) - 0.5)
    assert torch.equal(kl.k3(torch.zeros(2)), torch.zeros(2))


def test_arrays_and_tensors_agree_and_stay_finite_with_a_slope() -> None:
    x = np.array([-300.0, -1.0, 0.0, 2.0, 19.0, 25.0, 300.0])
    for estimate in ESTIMATORS.values():
        tensor = torch.from_numpy(x).requires_grad_()
        values = estimate(tensor)
        np.testing.assert_allclose(values.detach(), estimate(x), rtol=1e-12)
        (slope,) = torch.autograd.grad(values.sum(), tensor)
        assert slope.isfinite().all() and values.isfinite().all()
    assert slope[-1] > 1e8  # k3's still pulls the policy back


def divergence(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum()


def expected(estimator: str, weighted: bool) -> tuple[float, Tensor]:
    """Over every token the policy may draw: the mean of the loss's term, and its mean gradient."""
    options = RlOptions(beta=1.0, kl_estimator=estimator, correction="none", kl_weighted=weighted)  # type: ignore[arg-type]
    loss = policy_gradient("dapo", options, 1.0, None)
    mean, gradient = 0.0, torch.zeros(3, dtype=torch.float64)
    for token in range(3):
        logits = LOGITS.clone().requires_grad_()
        logprob = logits.log_softmax(-1)[token : token + 1]
        zero = torch.zeros(1, dtype=torch.int64)
        targets = {
            "advantages": torch.zeros(1),
            "old_logprobs": logprob.detach(),
            "reference": REFERENCE[token : token + 1],
        }
        facts = Facts(zero, L=1, members=zero[None], numbers=zero, targets=targets)
        value = loss.loss(Columns(logprob), facts, loss.counts(facts), None)
        p = float(logprob.detach().exp())
        mean += p * float(value.detach())
        gradient += p * torch.autograd.grad(value, logits)[0]
    return mean, gradient


def exact(forward: bool = False) -> tuple[float, Tensor]:
    """KL(π‖π_ref), or KL(π_ref‖π), and its gradient by the logits."""
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(-1)
    value = divergence(REFERENCE, policy) if forward else divergence(policy, REFERENCE)
    return float(value.detach()), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize(
    ("estimator", "weighted", "unbiased"),
    [("k3", True, True), ("k1", True, True), ("k2", False, True), ("k3", False, False)],
)
def test_which_gradients_are_unbiased(estimator: str, weighted: bool, unbiased: bool) -> None:
    mean, gradient = expected(estimator, weighted)
    value, direction = exact()
    if estimator != "k2":
        assert mean == pytest.approx(value)
    torch.testing.assert_close(gradient, direction if unbiased else exact(forward=True)[1])
    assert torch.allclose(gradient, direction) is unbiased


def test_k2_is_nearly_unbiased_as_a_number() -> None:
    mean, _ = expected("k2", False)
    assert mean != pytest.approx(exact()[0], rel=1e-3)
    assert mean == pytest.approx(exact()[0], rel=0.3)


# -------------------------------------------------------------------------------------------- β


def test_an_adaptive_weight_moves_by_a_fifth_a_horizon_at_most() -> None:
    weight = AdaptiveKL(0.1, target=5.0, horizon=100.0)
    weight.update(50.0, 50)
    assert weight.beta == pytest.approx(0.1 * 1.1)  # +20 % of 50/100
    weight.update(0.0, 100)
    assert weight.beta == pytest.approx(0.11 * 0.8)
    weight.update(5.25, 100)
    assert weight.beta == pytest.approx(0.088 * 1.05)


def test_its_state_is_json_and_comes_back() -> None:
    weight = kl.control(ALGORITHMS["ppo"].values(RlOptions(kl_target=5.0, kl_horizon=10.0)))
    weight.update(9.0, 7)
    other = kl.control(ALGORITHMS["ppo"].values(RlOptions(kl_target=5.0, kl_horizon=10.0)))
    other.restore(json.loads(json.dumps(weight.state())))
    assert other == weight and other.beta != 0.05


def test_without_a_target_the_weight_is_fixed() -> None:
    weight = kl.control(ALGORITHMS["grpo"].values(RlOptions()))
    weight.update(100.0, 100)
    assert weight == FixedKL(0.02)


def test_far_from_the_reference_there_is_an_alarm_and_then_an_end() -> None:
    assert kl.check(9.9) == "" and "10.1 nats" in kl.check(10.1)
    assert kl.check(2.0, 4.0) == "" and "2.1 nats" in kl.check(2.1, 4.0)
    with pytest.raises(PosttrainError, match=r"4\.01 nats .* max_kl is 4"):
        kl.check(4.01, 4.0)
    with pytest.raises(PosttrainError):
        kl.check(math.nan, 4.0)
