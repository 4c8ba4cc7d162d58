"""The head: the numbers of the plain full-logits computation, without its [N, V] matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.engine.head import Head, additive, assess, cross_entropy, logprobs, rows

N, D, VOCABULARY, CHUNK = 11, 5, 13, 3  # the last chunk is not full
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.4},
    "softcap": {"softcap": 1.5},
    "all": {"bias": True, "scale": 2.5, "softcap": 1.5},
}


def make(
    variant: str = "plain", dtype: torch.dtype = torch.float64, n: int = N
) -> tuple[Head, Tensor, Tensor]:
    """A head, hidden states that want gradients, and targets."""
    rng = torch.Generator().manual_seed(0)
    more = dict(VARIANTS[variant])

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()

    weight, hidden, bias = leaf(VOCABULARY, D), leaf(n, D), leaf(VOCABULARY)
    more["bias"] = bias if more.get("bias") else None
    target = torch.randint(0, VOCABULARY, (n,), generator=rng)
    return Head(weight, elements=CHUNK * VOCABULARY, **more), hidden, target


def plain_logits(head: Head, hidden: Tensor) -> Tensor:
    """The whole matrix at once, in operations that autograd knows."""
    z = F.linear(hidden, head.weight, head.bias) * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def leaves(head: Head, hidden: Tensor) -> list[Tensor]:
    return [p for p in (hidden, head.weight, head.bias) if p is not None]


def same(
    found: Tensor, expected: Tensor, head: Head, hidden: Tensor, tolerance: float = 1e-12
) -> None:
    """Values, and the gradients of a weighted sum by hidden states, weight and bias."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.cos(torch.arange(found.numel(), dtype=found.dtype)).view_as(found)
    ours = torch.autograd.grad((weights * found).sum(), leaves(head, hidden), retain_graph=True)
    theirs = torch.autograd.grad(
        (weights * expected).sum(), leaves(head, hidden), retain_graph=True
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_and_entropies_are_those_of_the_whole_matrix(
    variant: str, temperature: float
) -> None:
    head, hidden, target = make(variant)
    logp = (plain_logits(head, hidden) / temperature).log_softmax(-1)
    logprob, entropy = logprobs(head, hidden, target, temperature=temperature, entropy=True)
    assert entropy is not None
    expected = -(logp.exp() * logp).sum(-1)
    same(logprob, logp.gather(1, target[:, None])[:, 0], head, hidden)
    same(
        torch.cat([logprob, entropy]),
        torch.cat([logp.gather(1, target[:, None])[:, 0], expected]),
        head,
        hidden,
    )
    alone, none = logprobs(head, hidden, target, temperature=temperature)
    assert none is None
    same(alone, logp.gather(1, target[:, None])[:, 0], head, hidden)


def test_logprobs_by_hand() -> None:
    """Hidden 1, weights 0 and ln 3: p = ¼, ¾. At temperature ½ the odds are squared: 1/10, 9/10.

    Entropy of (¼, ¾).
    """
    head = Head(torch.tensor([[0.0], [math.log(3)]]))
    hidden, target = torch.ones(2, 1), torch.tensor([0, 1])
    logprob, entropy = logprobs(head, hidden, target, entropy=True)
    assert entropy is not None
    assert logprob.exp().tolist() == pytest.approx([0.25, 0.75])
    assert entropy.tolist() == pytest.approx([2 * math.log(2) - 0.75 * math.log(3)] * 2)
    assert logprobs(head, hidden, target, temperature=0.5)[0].exp().tolist() == pytest.approx(
        [0.1, 0.9]
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_assessments_are_those_of_the_whole_matrix(variant: str) -> None:
    """Log-probability, entropy and whether the target is the likeliest, which every second one is
    here by design.
    """
    head, hidden, target = make(variant)
    with torch.no_grad():
        logp = (plain_logits(head, hidden) / 0.7).log_softmax(-1)
    target = torch.where(torch.arange(N) % 2 == 0, logp.argmax(-1), target)
    logprob, entropy, correct = assess(head, hidden, target, temperature=0.7)
    torch.testing.assert_close(
        logprob, logp.gather(1, target[:, None])[:, 0], rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(entropy, -(logp.exp() * logp).sum(-1), rtol=1e-12, atol=1e-12)
    assert correct.tolist() == (logp.argmax(-1) == target).tolist()
    assert {*correct.tolist()} == {True, False}
    assert not logprob.requires_grad and not entropy.requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_by_finite_differences(variant: str) -> None:
    head, hidden, target = make(variant, n=4)

    def run(hidden: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
        moved = Head(weight, bias[0] if bias else None, head.scale, head.softcap, head.elements)
        logprob, entropy = logprobs(moved, hidden, target, temperature=0.8, entropy=True)
        assert entropy is not None
        row = rows(
            moved,
            hidden,
            target,
            lambda z, t, part: z.square().mean(-1) + z.gather(1, t[:, None])[:, 0],
        )
        # the value of `additive` is a scalar whose gradient was taken in the forward pass
        value, _ = additive(
            moved,
            hidden,
            target,
            lambda logprob, part: (logprob.exp() * (1 + torch.arange(4)[part])).sum(),
        )
        return logprob, entropy, row, value

    assert torch.autograd.gradcheck(run, leaves(head, hidden), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cross_entropy_is_torchs(variant: str) -> None:
    head, hidden, target = make(variant)
    same(
        cross_entropy(head, hidden, target),
        F.cross_entropy(plain_logits(head, hidden), target),
        head,
        hidden,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "function",
    [
        lambda logprob: -logprob.sum() / 7,
        lambda logprob: -(logprob.detach().exp() * logprob).sum(),
        lambda logprob: logprob.exp().square().sum(),
    ],
    ids=["nll", "dft", "square"],
)
def test_additive_equals_the_way_through_logprobs(
    variant: str, function: Callable[[Tensor], Tensor]
) -> None:
    """One pass over the vocabulary instead of two; the factor of a later operation reaches every
    gradient.
    """
    head, hidden, target = make(variant)
    value, logprob = additive(head, hidden, target, lambda logprob, part: function(logprob))
    expected, _ = logprobs(head, hidden, target)
    assert not logprob.requires_grad
    torch.testing.assert_close(logprob, expected.detach(), rtol=1e-12, atol=1e-12)
    same(2.5 * value, 2.5 * function(expected), head, hidden)
    same(value, function(logprobs(head, hidden, target)[0]), head, hidden)


def test_additive_tells_the_loss_which_targets_it_has() -> None:
    """Per-target facts are taken by the slice: weights 0, 1, 2, … land on their own targets across
    chunks.
    """
    head, hidden, target = make()
    weights = torch.arange(N, dtype=torch.float64)
    value, _ = additive(head, hidden, target, lambda logprob, part: (weights[part] * logprob).sum())
    same(value, weights @ logprobs(head, hidden, target)[0], head, hidden)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_equal_the_function_of_the_whole_matrix(variant: str) -> None:
    """A distillation loss: KL from a teacher's rows, which the function takes by the slice."""
    head, hidden, target = make(variant)
    teacher = torch.randn(
        N, VOCABULARY, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).softmax(-1)

    def divergence(z: Tensor, target: Tensor, part: slice) -> Tensor:
        return (teacher[part] * (teacher[part].log() - z.log_softmax(-1))).sum(-1) + 0.1 * z.gather(
            1, target[:, None]
        )[:, 0]

    same(
        rows(head, hidden, target, divergence),
        divergence(plain_logits(head, hidden), target, slice(0, N)),
        head,
        hidden,
    )


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_what_is_frozen_gets_no_gradient_and_disturbs_no_other(frozen: str) -> None:
    """LoRA freezes the head; a probe of the head freezes the trunk."""
    head, hidden, target = make("bias")
    expected = torch.autograd.grad(logprobs(head, hidden, target)[0].sum(), leaves(head, hidden))
    for p in (head.weight, head.bias) if frozen == "weight" else (hidden,):
        assert p is not None
        p.requires_grad_(False)
    summed, _ = additive(head, hidden, target, lambda logprob, part: logprob.sum())
    for value in (logprobs(head, hidden, target)[0].sum(), summed):
        for p in leaves(head, hidden):
            p.grad = None
        value.backward()
        for p, grad in zip(leaves(head, hidden), expected, strict=True):
            if p.requires_grad:
                assert p.grad is not None
                torch.testing.assert_close(p.grad, grad, rtol=1e-12, atol=1e-12)
            else:
                assert p.grad is None


def test_bfloat16_rows_are_normalised_in_float32() -> None:
    """With bf16 states the product is bf16, but softmax and the sums of the gradient over chunks
    are float32.

    Adding 1.0 five hundred times stops at 256 in bf16: gradients of the weight must come out whole.
    """
    n = 500
    head = Head(torch.zeros(2, 1, dtype=torch.bfloat16).requires_grad_(), elements=2)
    hidden, target = torch.ones(n, 1, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.int64)
    value, logprob = additive(head, hidden, target, lambda logprob, part: logprob.sum())
    assert logprob.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(-n * math.log(2), rel=1e-6)
    (grad,) = torch.autograd.grad(value, head.weight)
    assert grad.flatten().tolist() == [n / 2, -n / 2]
    (grad,) = torch.autograd.grad(logprobs(head, hidden, target)[0].sum(), head.weight)
    assert grad.flatten().tolist() == [n / 2, -n / 2]


# ------------------------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Sees every tensor that any operation makes, in forward and in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, list | tuple) else [out]:
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return out


@contextmanager
def at_most(elements: int) -> Iterator[None]:
    with Largest() as seen:
        yield
    assert seen.numel <= elements, f"a tensor of {seen.numel} numbers, over {elements}"


COMPUTATIONS: dict[str, Callable[[Head, Tensor, Tensor], Tensor]] = {
    "logprobs": lambda head, hidden, target: logprobs(head, hidden, target)[0].sum(),
    "entropy": lambda head, hidden, target: torch.cat(
        logprobs(head, hidden, target, temperature=0.7, entropy=True)  # type: ignore[arg-type]
    ).sum(),
    "additive": lambda head, hidden, target: additive(
        head, hidden, target, lambda logprob, part: -logprob.sum()
    )[0],
    "cross_entropy": cross_entropy,
    "rows": (
        lambda head, hidden, target: rows(
            head, hidden, target, lambda z, t, part: z.logsumexp(-1)
        ).sum()
    ),
}


def large(variant: str) -> tuple[Head, Tensor, Tensor, int]:
    """4096 targets scored 16 at a time over 512 tokens; the hidden states and the head's weight are
    at most [chunk, V].
    """
    n, d, vocabulary, chunk = 4096, 2, 512, 16
    rng = torch.Generator().manual_seed(0)
    more = {k: v for k, v in VARIANTS[variant].items() if k != "bias"}
    head = Head(
        torch.randn(vocabulary, d, generator=rng).requires_grad_(),
        torch.zeros(vocabulary).requires_grad_(),
        elements=chunk * vocabulary,
        **more,
    )
    assert head.chunk == chunk
    return (
        head,
        torch.randn(n, d, generator=rng).requires_grad_(),
        torch.randint(0, vocabulary, (n,), generator=rng),
        chunk * vocabulary,
    )


@pytest.mark.parametrize("variant", ["plain", "all"])
@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_no_tensor_is_larger_than_a_chunk(computation: str, variant: str) -> None:
    """256 chunks; not one tensor, in forward or backward, holds more than one of them."""
    head, hidden, target, elements = large(variant)
    with at_most(elements):
        COMPUTATIONS[computation](head, hidden, target).backward()
    assert hidden.grad is not None and head.weight.grad is not None


def test_no_tensor_of_an_assessment_is_larger_than_a_chunk() -> None:
    head, hidden, target, elements = large("all")
    with at_most(elements):
        assess(head, hidden, target, temperature=0.7)


def test_the_plain_computation_is_caught() -> None:
    """The same watch over torch's own cross-entropy: 4096·512 numbers at once."""
    head, hidden, target, elements = large("plain")
    with (
        pytest.raises(AssertionError, match=r"a tensor of 2097152 numbers, over 8192"),
        at_most(elements),
    ):
        F.cross_entropy(plain_logits(head, hidden), target).backward()


@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_no_targets(computation: str) -> None:
    """A forest of prompts only: the loss is nothing, and so is every gradient."""
    head, hidden, target = make("all", n=0)
    value = COMPUTATIONS[computation](head, hidden, target)
    value.backward()
    assert float(value.detach()) == 0.0
    assert hidden.grad is not None and hidden.grad.shape == (0, D)
    assert head.weight.grad is not None and not head.weight.grad.any()
    assert head.bias is not None and head.bias.grad is not None and not head.bias.grad.any()
