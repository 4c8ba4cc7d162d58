"""Supervised losses with a pencil, by finite differences, and over micro-batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.core.types import Columns, Facts, Loss
from posttrain.methods.supervised import METHODS, dft, neftune, nll

LN2 = math.log(2)


def facts_of(n: int) -> Facts:
    """One sequence of n targets."""
    leaf = torch.zeros(n, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    return Facts(leaf, L=1, members=none.reshape(0, 0), numbers=none)


def scored(*probabilities: float) -> Columns:
    return Columns(torch.tensor(probabilities, dtype=torch.float64).log().requires_grad_())


def value(method: Loss, probabilities: list[float], counts: dict[str, float]) -> float:
    columns = scored(*probabilities)
    return float(method.loss(columns, facts_of(len(probabilities)), counts, None).detach())


def grad(loss: Tensor, of: Tensor) -> list[float]:
    return torch.autograd.grad(loss, of)[0].tolist()


def test_nll_by_hand() -> None:
    """p = ½, ¼, 1 of a global batch of 5 targets: (ln 2 + 2 ln 2 + 0) / 5; every target pulls with
    −1/5.
    """
    batch = scored(0.5, 0.25, 1.0)
    loss = nll(batch, facts_of(3), {"targets": 5}, None)
    assert float(loss.detach()) == pytest.approx(3 * LN2 / 5)
    assert grad(loss, batch.logprob) == pytest.approx([-0.2] * 3)


def test_dft_by_hand() -> None:
    """The same targets, each weighed by its own p: (½ ln 2 + ¼·2 ln 2 + 0) / 5; the pull is −p/5,
    for the weight is fixed.
    """
    batch = scored(0.5, 0.25, 1.0)
    loss = dft(batch, facts_of(3), {"targets": 5}, None)
    assert float(loss.detach()) == pytest.approx(LN2 / 5)
    assert grad(loss, batch.logprob) == pytest.approx([-0.1, -0.05, -0.2])


def differences(function: object, z: Tensor, step: float = 1e-6) -> Tensor:
    """Central finite differences of a scalar function."""
    found = torch.empty_like(z)
    for i in range(z.numel()):
        up, down = z.clone(), z.clone()
        up.view(-1)[i] += step
        down.view(-1)[i] -= step
        found.view(-1)[i] = (function(up) - function(down)) / (2 * step)  # type: ignore[operator]
    return found


def through(loss: object, z: Tensor, target: Tensor) -> Tensor:
    """A loss of logits [N, V]."""
    logprob = z.log_softmax(-1).gather(1, target[:, None])[:, 0]
    return loss(Columns(logprob), facts_of(len(z)), {"targets": 7}, None)  # type: ignore[operator]


def test_gradients_by_finite_differences() -> None:
    """By the logits. DFT's weight is fixed under its gradient, which makes that the gradient of −Σ
    p / targets.
    """
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(4, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 5, 2, 2])
    (found,) = torch.autograd.grad(through(nll, z, target), z)
    torch.testing.assert_close(
        found, differences(lambda z: through(nll, z, target), z.detach()), rtol=1e-6, atol=1e-8
    )
    (found,) = torch.autograd.grad(through(dft, z, target), z)
    probability = differences(
        lambda z: -z.softmax(-1).gather(1, target[:, None]).sum() / 7, z.detach()
    )
    torch.testing.assert_close(found, probability, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up_whatever_their_size(name: str) -> None:
    """Parts of 1, 3 and 2 targets with the whole batch's denominators; the mean of their own means
    would be another number.
    """
    method: Loss = METHODS[name]
    probabilities = [0.5, 0.25, 0.125, 0.9, 0.01, 0.3]
    parts = [probabilities[:1], probabilities[1:4], probabilities[4:]]
    counts = [method.counts(facts_of(len(part))) for part in parts]
    total = {"targets": sum(count["targets"] for count in counts)}
    assert total == {"targets": 6} == method.counts(facts_of(6))
    whole = value(method, probabilities, total)
    added = sum(value(method, part, total) for part in parts)
    assert added == pytest.approx(whole, rel=1e-12)
    means = [value(method, part, count) for part, count in zip(parts, counts, strict=True)]
    assert abs(sum(means) / 3 - whole) > 0.01
    assert method.prepare is None and method.additive


# ------------------------------------------------------------------------------------------ NEFTune


def test_neftune_magnitude_by_hand() -> None:
    """α = 6, n = 4 tokens, d = 9 wide: at most b = 6/√36 = 1 a number; n = 16: b = ½. Uniform: mean
    0, variance b²/3.
    """
    lengths = torch.tensor([4] * 2000 + [16] * 2000)
    noise = neftune(
        torch.zeros(1, 4000, 9, dtype=torch.float64), lengths, 6.0, torch.Generator().manual_seed(0)
    )[0]
    for part, bound in ((noise[:2000], 1.0), (noise[2000:], 0.5)):
        assert 0.999 * bound < float(part.abs().max()) <= bound
        assert float(part.mean()) == pytest.approx(0.0, abs=4 * bound / math.sqrt(3 * 18000))
        assert float(part.square().mean()) == pytest.approx(bound**2 / 3, rel=0.02)


def test_neftune_is_added_to_what_is_there_and_repeats_by_generator() -> None:
    embeddings = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    lengths = torch.full((5,), 5)
    first, again = (
        neftune(embeddings, lengths, 5.0, torch.Generator().manual_seed(2)) for _ in range(2)
    )
    other = neftune(embeddings, lengths, 5.0, torch.Generator().manual_seed(3))
    assert torch.equal(first, again) and not torch.equal(first, other)
    twice = neftune(embeddings, lengths, 10.0, torch.Generator().manual_seed(2))
    torch.testing.assert_close(twice - embeddings, 2 * (first - embeddings))
    assert torch.equal(neftune(embeddings, lengths, 0.0), embeddings)


def test_neftune_in_batches_of_sequences() -> None:
    """Models that run every path alone have [B, n, d]: each row keeps the length of its own
    sequence, padding aside.
    """
    lengths = torch.tensor([4, 16])[:, None].expand(-1, 500)
    noise = neftune(torch.zeros(2, 500, 9), lengths, 6.0, torch.Generator().manual_seed(0))
    assert 0.99 < float(noise[0].abs().max()) <= 1.0
    assert 0.495 < float(noise[1].abs().max()) <= 0.5
