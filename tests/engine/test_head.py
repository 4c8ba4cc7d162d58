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

from posttrain.core.errors import ConfigError
from posttrain.core.types import Columns, Facts, Read, Truncation
from posttrain.engine.head import Head, additive, columns, truncated

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


def facts_of(n: int, **more: dict[str, Tensor]) -> Facts:
    """Facts of n targets, two a sequence: a sequence's targets lie in several chunks."""
    leaf = torch.arange(n) // 2
    nothing = torch.empty(0, 2, dtype=torch.int64)
    return Facts(leaf, L=(n + 1) // 2, members=nothing, numbers=nothing[:, 0], **more)


def plain_logits(head: Head, hidden: Tensor) -> Tensor:
    """The whole matrix at once, in operations that autograd knows."""
    z = F.linear(hidden, head.weight, head.bias) * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def plain_columns(head: Head, hidden: Tensor, target: Tensor, temperature: float = 1.0) -> Columns:
    """Log-probability, entropy, collision and the most likely token, from the whole matrix."""
    logp = (plain_logits(head, hidden) / temperature).log_softmax(-1)
    p = logp.exp()
    return Columns(
        logprob=logp.gather(1, target[:, None])[:, 0],
        entropy=-(p * logp).sum(-1),
        collision=p.square().sum(-1).log(),
        correct=logp.argmax(-1) == target,
    )


def leaves(head: Head, hidden: Tensor) -> list[Tensor]:
    return [p for p in (hidden, head.weight, head.bias) if p is not None]


def same(
    found: Tensor, expected: Tensor, head: Head, hidden: Tensor, tolerance: float = 1e-12
) -> None:
    """Values, and the gradients of a weighted sum by hidden states, weight and bias."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.cos(torch.arange(found.numel(), dtype=found.dtype)).view_as(found)
    ours, theirs = (
        torch.autograd.grad((weights * x).sum(), leaves(head, hidden), retain_graph=True)
        for x in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_and_entropies_are_those_of_the_whole_matrix(
    variant: str, temperature: float
) -> None:
    head, hidden, target = make(variant)
    expected = plain_columns(head, hidden, target, temperature)
    read = Read(temperature=temperature, entropy="gradient")
    both = columns(head, hidden, target, facts_of(N), read)
    same(both.logprob, expected.logprob, head, hidden)
    joined = torch.cat([expected.logprob, expected.entropy])
    same(torch.cat([both.logprob, both.entropy]), joined, head, hidden)
    alone = columns(head, hidden, target, facts_of(N), Read(temperature=temperature))
    assert alone.entropy is alone.collision is alone.correct is alone.rows is None
    same(alone.logprob, expected.logprob, head, hidden)
    read = Read(logprob=False, temperature=temperature, entropy="gradient")
    entropy = columns(head, hidden, target, facts_of(N), read)
    assert entropy.logprob is None
    same(entropy.entropy, expected.entropy, head, hidden)


def test_logprobs_by_hand() -> None:
    """Hidden 1, weights 0 and ln 3: p = ¼, ¾. At temperature ½ the odds are squared: 1/10, 9/10.

    Entropy of (¼, ¾); its collision: (1 + 9)/16.
    """
    head = Head(torch.tensor([[0.0], [math.log(3)]]))
    hidden, target = torch.ones(2, 1), torch.tensor([0, 1])
    found = columns(head, hidden, target, facts_of(2), Read(entropy="value", collision=True))
    assert found.logprob.exp().tolist() == pytest.approx([0.25, 0.75])
    assert found.entropy.tolist() == pytest.approx([2 * math.log(2) - 0.75 * math.log(3)] * 2)
    assert found.collision.exp().tolist() == pytest.approx([10 / 16] * 2)
    cooler = columns(head, hidden, target, facts_of(2), Read(temperature=0.5))
    assert cooler.logprob.exp().tolist() == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_without_gradients_is_that_of_the_whole_matrix(variant: str) -> None:
    """Entropy, collision, and whether the target is the likeliest, which every second one is here
    by design; gradients flow through the log-probability alone.
    """
    head, hidden, target = make(variant)
    best = plain_logits(head, hidden).argmax(-1)
    target = torch.where(torch.arange(N) % 2 == 0, best, target)
    expected = plain_columns(head, hidden, target, 0.7)
    read = Read(temperature=0.7, entropy="value", collision=True, correct=True)
    for found in (
        columns(head, hidden, target, facts_of(N), read),
        additive(head, hidden, target, facts_of(N), read, lambda c, facts: c.logprob.sum()),
    ):
        for name in ("logprob", "entropy", "collision"):
            value = getattr(expected, name)
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-12, atol=1e-12)
        assert found.correct.tolist() == expected.correct.tolist()
        assert {*found.correct.tolist()} == {True, False}
        assert not found.entropy.requires_grad and not found.collision.requires_grad
    same(columns(head, hidden, target, facts_of(N), read).logprob, expected.logprob, head, hidden)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_by_finite_differences(variant: str) -> None:
    head, hidden, target = make(variant, n=4)
    weights = {"weight": 1 + torch.arange(4.0, dtype=torch.float64)}
    read = Read(
        temperature=0.8,
        entropy="gradient",
        rows=lambda z, t, facts: z.square().mean(-1) + z.gather(1, t[:, None])[:, 0],
    )

    def loss(c: Columns, facts: Facts) -> Tensor:
        return (c.logprob.exp() * facts.targets["weight"]).sum()

    def mixed(c: Columns, facts: Facts) -> Tensor:
        return loss(c, facts) + (c.entropy * c.rows).sum()

    def run(hidden: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
        moved = Head(weight, bias[0] if bias else None, head.scale, head.softcap, head.elements)
        facts = facts_of(4, targets=weights)
        found = columns(moved, hidden, target, facts, read)
        # the value of `additive` is a scalar whose gradient was taken in the forward pass
        plain = additive(moved, hidden, target, facts, Read(temperature=0.8), loss)
        every = additive(moved, hidden, target, facts, read, mixed)
        return found.logprob, found.entropy, found.rows, plain.loss, every.loss

    assert torch.autograd.gradcheck(run, leaves(head, hidden), atol=1e-6)


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
def test_additive_equals_the_way_through_columns(
    variant: str, function: Callable[[Tensor], Tensor]
) -> None:
    """One pass over the vocabulary instead of two; the factor of a later operation reaches every
    gradient.
    """
    head, hidden, target = make(variant)
    facts = facts_of(N)
    expected = columns(head, hidden, target, facts, Read(temperature=0.7)).logprob
    found = additive(
        head, hidden, target, facts, Read(temperature=0.7), lambda c, part: function(c.logprob)
    )
    assert not found.logprob.requires_grad
    torch.testing.assert_close(found.logprob, expected.detach(), rtol=1e-12, atol=1e-12)
    same(2.5 * found.loss, 2.5 * function(expected), head, hidden)
    same(found.loss, function(expected), head, hidden)


@pytest.mark.parametrize("variant", VARIANTS)
def test_entropy_with_gradients_in_an_additive_loss(variant: str) -> None:
    """An entropy bonus taken chunk by chunk has autograd's gradients."""
    head, hidden, target = make(variant)
    read = Read(temperature=0.7, entropy="gradient")

    def loss(c: Columns, facts: Facts | None) -> Tensor:
        return (c.entropy.square() - c.logprob.exp() * c.entropy).sum()

    found = additive(head, hidden, target, facts_of(N), read, loss)
    same(found.loss, loss(plain_columns(head, hidden, target, 0.7), None), head, hidden)


def test_a_value_from_elsewhere_gets_its_gradient() -> None:
    """A value head's column is sliced with the targets; so is its gradient, which follows a later
    factor.
    """
    head, hidden, target = make("bias")
    value = torch.linspace(-1, 1, N, dtype=torch.float64).requires_grad_()

    def loss(c: Columns, facts: Facts | None) -> Tensor:
        return ((c.value - c.logprob) ** 2).sum()

    found = additive(head, hidden, target, facts_of(N), Read(), loss, value)
    assert not found.value.requires_grad
    logprob = columns(head, hidden, target, facts_of(N), Read()).logprob
    expected = loss(Columns(logprob=logprob, value=value), None)
    same(found.loss, expected, head, hidden)
    (ours,) = torch.autograd.grad(2.5 * found.loss, value)
    (theirs,) = torch.autograd.grad(2.5 * expected, value)
    torch.testing.assert_close(ours, theirs)


# ------------------------------------------------------------------------------------------- facts


def test_facts_are_those_of_the_chunk() -> None:
    """Weights of targets are sliced; those of sequences stay whole and are reached by `leaf`,
    though a sequence lies in two chunks.
    """
    head, hidden, target = make()
    each, whole = torch.arange(N).double(), torch.linspace(-1, 2, 6).double()
    facts = facts_of(N, targets={"each": each}, sequences={"whole": whole})
    sizes = []

    def loss(c: Columns, part: Facts) -> Tensor:
        sizes.append((len(c.logprob), part.N, part.L))
        return (part.targets["each"] * part.sequences["whole"][part.leaf] * c.logprob).sum()

    found = additive(head, hidden, target, facts, Read(), loss)
    assert sizes == [(3, 3, 6)] * 3 + [(2, 2, 6)]
    logprob = columns(head, hidden, target, facts, Read()).logprob
    same(found.loss, (each * whole[torch.arange(N) // 2]) @ logprob, head, hidden)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_equal_the_function_of_the_whole_matrix(variant: str) -> None:
    """A distillation loss: KL from a teacher's rows, which are a fact of the targets."""
    head, hidden, target = make(variant)
    rng = torch.Generator().manual_seed(1)
    teacher = torch.randn(N, VOCABULARY, generator=rng, dtype=torch.float64).softmax(-1)
    facts = facts_of(N, targets={"teacher": teacher})

    def divergence(z: Tensor, target: Tensor, facts: Facts) -> Tensor:
        p = facts.targets["teacher"]
        picked = z.gather(1, target[:, None])[:, 0]
        return (p * (p.log() - z.log_softmax(-1))).sum(-1) + 0.1 * picked

    expected = divergence(plain_logits(head, hidden), target, facts)
    for logprob in (False, True):
        read = Read(logprob=logprob, rows=divergence)
        same(columns(head, hidden, target, facts, read).rows, expected, head, hidden)
        found = additive(head, hidden, target, facts, read, lambda c, part: c.rows.square().sum())
        same(found.loss, expected.square().sum(), head, hidden)


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
@pytest.mark.parametrize("read", [Read(), Read(entropy="gradient")], ids=["by hand", "autograd"])
def test_what_is_frozen_gets_no_gradient_and_disturbs_no_other(read: Read, frozen: str) -> None:
    """LoRA freezes the head; a probe of the head freezes the trunk."""
    head, hidden, target = make("bias")
    whole = plain_columns(head, hidden, target).logprob.sum()
    expected = torch.autograd.grad(whole, leaves(head, hidden))
    for p in (head.weight, head.bias) if frozen == "weight" else (hidden,):
        assert p is not None
        p.requires_grad_(False)
    facts = facts_of(N)
    summed = additive(head, hidden, target, facts, read, lambda c, part: c.logprob.sum()).loss
    for value in (columns(head, hidden, target, facts, read).logprob.sum(), summed):
        for p in leaves(head, hidden):
            p.grad = None
        value.backward()
        for p, grad in zip(leaves(head, hidden), expected, strict=True):
            if p.requires_grad:
                assert p.grad is not None
                torch.testing.assert_close(p.grad, grad, rtol=1e-12, atol=1e-12)
            else:
                assert p.grad is None


# -------------------------------------------------------------------------------------- truncation

# the logits of one row, out of order: p = 0.15, 0.3, 0.5, 0.05
P = torch.tensor([0.15, 0.3, 0.5, 0.05], dtype=torch.float64)
KEPT = [
    (Truncation(), (0, 1, 2, 3)),
    (Truncation(top_k=2), (1, 2)),
    (Truncation(top_k=1), (2,)),
    (Truncation(top_k=9), (0, 1, 2, 3)),
    (Truncation(top_p=0.4), (2,)),
    (Truncation(top_p=0.7), (1, 2)),
    (Truncation(top_p=0.81), (0, 1, 2)),
    (Truncation(top_p=0.0), (2,)),
    (Truncation(min_p=0.2), (0, 1, 2)),  # at least 0.2 · 0.5
    (Truncation(min_p=0.5), (1, 2)),
    (Truncation(min_p=1.0), (2,)),
    # of the three that top-k keeps, 0.5 / 0.95 is 0.53: two of them make 0.6
    (Truncation(top_k=3, top_p=0.6), (1, 2)),
    (Truncation(top_k=3, min_p=0.5), (1, 2)),
]


@pytest.mark.parametrize(("truncation", "kept"), KEPT)
def test_truncated_logprobs_by_hand(truncation: Truncation, kept: tuple[int, ...]) -> None:
    """log(p / Σ kept p) for what is kept; entropy and collision are of the kept distribution."""
    head = Head(P.log()[:, None], elements=4)
    n, mass = len(kept), float(P[list(kept)].sum())
    hidden, target = torch.ones(n, 1, dtype=torch.float64), torch.tensor(kept)
    read = Read(truncation=truncation, entropy="value", collision=True)
    found = columns(head, hidden, target, facts_of(n), read)
    share = [float(P[k]) / mass for k in kept]
    assert found.logprob.exp().tolist() == pytest.approx(share, rel=1e-12)
    entropy = -sum(p * math.log(p) for p in share)
    assert found.entropy.tolist() == pytest.approx([entropy] * n, abs=1e-12)
    assert found.collision.exp().tolist() == pytest.approx([sum(p * p for p in share)] * n)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.5000001, 2), (0.75, 2), (0.7500001, 3)])
def test_top_p_at_its_exact_edge(top_p: float, kept: int) -> None:
    """p = ½, ¼, ⅛, ⅛, all exact: a token is kept while those before it do not reach top_p yet, so
    that ½ keeps one token and a hair more than ½ keeps two.
    """
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    found = truncated(logits, Truncation(top_p=top_p))
    assert int(found.isfinite().sum()) == kept


def test_min_p_at_its_exact_edge() -> None:
    """Four tokens as likely as each other: each is as likely as the most likely, which min_p 1
    asks for. p = ½, ¼, ⅛, ⅛: a hair more than a quarter of ½ cuts ⅛.
    """
    even = torch.zeros(1, 4, dtype=torch.float64)
    assert int(truncated(even, Truncation(min_p=1.0)).isfinite().sum()) == 4
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    assert int(truncated(logits, Truncation(min_p=0.249999)).isfinite().sum()) == 4
    assert int(truncated(logits, Truncation(min_p=0.250001)).isfinite().sum()) == 2


def test_what_was_drawn_is_kept() -> None:
    """A target that truncation would cut, as rounding elsewhere may have it, gets a finite
    log-probability, that of 0.05 / (0.5 + 0.05).
    """
    head = Head(P.log()[:, None], elements=4)
    hidden, target = torch.ones(1, 1, dtype=torch.float64), torch.tensor([3])
    found = columns(head, hidden, target, facts_of(1), Read(truncation=Truncation(top_k=1)))
    assert float(found.logprob.exp()) == pytest.approx(0.05 / 0.55)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "truncation",
    [Truncation(top_k=4), Truncation(top_p=0.7), Truncation(min_p=0.3)],
    ids=["top_k", "top_p", "min_p"],
)
def test_truncation_renormalises_with_gradients(
    truncation: Truncation, variant: str, temperature: float
) -> None:
    """Against the whole matrix, what is kept chosen by loops; and by finite differences, from
    columns, with the entropy's gradient, and from an additive loss.
    """
    head, hidden, target = make(variant, n=5)
    facts = facts_of(5)
    z = plain_logits(head, hidden) / temperature
    cut = torch.ones_like(z, dtype=torch.bool)
    for row, p in enumerate(z.detach().softmax(-1)):
        reached = 0.0
        for rank, token in enumerate(p.argsort(descending=True).tolist()):
            inside = truncation.top_k == 0 or rank < truncation.top_k
            inside = inside and reached < truncation.top_p
            inside = inside and float(p[token]) >= truncation.min_p * float(p.max())
            cut[row, token] = not inside and token != int(target[row])
            reached += float(p[token])
    assert cut.any() and not cut.all(1).any()
    logp = z.masked_fill(cut, -torch.inf).log_softmax(-1)
    read = Read(temperature=temperature, truncation=truncation)
    found = columns(head, hidden, target, facts, read).logprob
    same(found, logp.gather(1, target[:, None])[:, 0], head, hidden)

    def run(hidden: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
        moved = Head(weight, bias[0] if bias else None, head.scale, head.softcap, head.elements)
        every = Read(temperature=temperature, truncation=truncation, entropy="gradient")
        both = columns(moved, hidden, target, facts, every)
        plain = columns(moved, hidden, target, facts, read).logprob
        loss = additive(moved, hidden, target, facts, read, lambda c, part: c.logprob.exp().sum())
        return both.logprob, both.entropy, plain, loss.loss

    assert torch.autograd.gradcheck(run, leaves(head, hidden), atol=1e-6)


# ----------------------------------------------------------------------------------- half precision


def test_bfloat16_rows_are_normalised_in_float32() -> None:
    """With bf16 states, softmax and the sums of the gradient over chunks are float32.

    Adding 1.0 five hundred times stops at 256 in bf16: gradients of the weight must come out whole.
    """
    n = 500
    head = Head(torch.zeros(2, 1, dtype=torch.bfloat16).requires_grad_(), elements=2)
    hidden, target = torch.ones(n, 1, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.int64)
    found = additive(head, hidden, target, facts_of(n), Read(), lambda c, part: c.logprob.sum())
    assert found.logprob.dtype == found.loss.dtype == torch.float32
    assert float(found.loss.detach()) == pytest.approx(-n * math.log(2), rel=1e-6)
    (grad,) = torch.autograd.grad(found.loss, head.weight)
    assert grad.flatten().tolist() == [n / 2, -n / 2]
    logprob = columns(head, hidden, target, facts_of(n), Read()).logprob
    (grad,) = torch.autograd.grad(logprob.sum(), head.weight)
    assert grad.flatten().tolist() == [n / 2, -n / 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_never_rounded(dtype: torch.dtype) -> None:
    """States and weights whose product needs more digits than bf16 has: 256·1 + 1·1 = 257, which
    bf16 rounds to 256 or 258; the logits are 257 and what follows from them is, too.
    """
    head = Head(torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=dtype), elements=2)
    hidden, target = torch.tensor([[256.0, 1.0]], dtype=dtype), torch.tensor([1])
    z = head.logits(hidden)
    assert z.dtype == torch.float32 and z.tolist() == [[257.0, 256.0]]
    found = columns(head, hidden, target, facts_of(1), Read())
    assert found.logprob.dtype == torch.float32
    assert float(found.logprob) == pytest.approx(-math.log1p(math.e), rel=1e-6)
    rng = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(9, 64, generator=rng).to(dtype) for _ in range(2))
    exact = hidden.double() @ weight.double().T
    torch.testing.assert_close(Head(weight).logits(hidden).double(), exact, rtol=1e-5, atol=1e-5)
    assert float(((hidden @ weight.T).double() - exact).abs().max()) > 1e-3  # rounded, it differs


# ------------------------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Sees every tensor that any operation makes, in forward and in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, list | tuple) else [out]:
            if isinstance(made, Tensor):
                self.numel = max(self.numel, made.numel())
        return out


@contextmanager
def at_most(elements: int) -> Iterator[None]:
    with Largest() as seen:
        yield
    assert seen.numel <= elements, f"a tensor of {seen.numel} numbers, over {elements}"


READS = {
    "logprob": Read(),
    "entropy": Read(temperature=0.7, entropy="gradient"),
    "rows": Read(logprob=False, rows=lambda z, t, facts: z.logsumexp(-1)),
    "truncated": Read(truncation=Truncation(top_k=5)),
    "everything": Read(entropy="value", collision=True, correct=True),
}


def total(c: Columns, facts: Facts) -> Tensor:
    """Everything that has gradients, added up."""
    read = [c.logprob, c.rows, c.entropy]
    return torch.stack([x.sum() for x in read if x is not None and x.requires_grad]).sum()


def through_columns(head: Head, hidden: Tensor, target: Tensor, read: Read) -> Tensor:
    facts = facts_of(len(target))
    return total(columns(head, hidden, target, facts, read), facts)


def through_chunks(head: Head, hidden: Tensor, target: Tensor, read: Read) -> Tensor:
    return additive(head, hidden, target, facts_of(len(target)), read, total).loss


WAYS = {"columns": through_columns, "additive": through_chunks}


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
    hidden = torch.randn(n, d, generator=rng).requires_grad_()
    return head, hidden, torch.randint(0, vocabulary, (n,), generator=rng), chunk * vocabulary


@pytest.mark.parametrize("variant", ["plain", "all"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("way", WAYS)
def test_no_tensor_is_larger_than_a_chunk(way: str, read: str, variant: str) -> None:
    """256 chunks; not one tensor, in forward or backward, holds more than one of them."""
    head, hidden, target, elements = large(variant)
    with at_most(elements):
        WAYS[way](head, hidden, target, READS[read]).backward()
    assert hidden.grad is not None and head.weight.grad is not None


def test_the_plain_computation_is_caught() -> None:
    """The same watch over torch's own cross-entropy: 4096·512 numbers at once."""
    head, hidden, target, elements = large("plain")
    with (
        pytest.raises(AssertionError, match=r"a tensor of 2097152 numbers, over 8192"),
        at_most(elements),
    ):
        F.cross_entropy(plain_logits(head, hidden), target).backward()


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("way", WAYS)
def test_no_targets(way: str, read: str) -> None:
    """A forest of prompts only: the loss is nothing, and so is every gradient."""
    head, hidden, target = make("all", n=0)
    value = WAYS[way](head, hidden, target, READS[read])
    value.backward()
    assert float(value.detach()) == 0.0
    assert hidden.grad is not None and hidden.grad.shape == (0, D)
    assert head.weight.grad is not None and not head.weight.grad.any()
    assert head.bias is not None and head.bias.grad is not None and not head.bias.grad.any()
    found = columns(head, hidden, target, facts_of(0), READS[read])
    for name in ("logprob", "entropy", "collision", "correct", "rows"):
        if getattr(READS[read], name):
            assert getattr(found, name).shape == (0,)
    if READS[read].correct:
        assert found.correct.dtype == torch.bool


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_logits_cannot_be_divided_by_is_an_error(temperature: float) -> None:
    with pytest.raises(ConfigError, match="logits are divided by it"):
        Read(temperature=temperature)
