"""The head: from hidden states to log-probabilities without the [N, V] matrix.

Logits exist for one chunk of targets at a time and are computed again in the backward pass. A loss
that is additive over
targets needs no second time: each chunk's gradient is taken while its logits are still there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RowFunction = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True)
class Head:
    """The map from a hidden state to logits: z = cap·tanh((h Wᵀ + b)·scale / cap).

    Attributes:
        weight: [V, d]. bias: [V] or None.
        scale: factor on the logits (Granite divides by `logits_scaling`, Cohere multiplies by
            `logit_scale`).
        softcap: the cap (Gemma-2), or None.
        elements: numbers a [chunk, V] block may hold; 0 takes what suits the device.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    elements: int = 0

    @property
    def chunk(self) -> int:
        """Targets scored at a time."""
        elements = self.elements or (2**27 if self.weight.is_cuda else 2**22)
        return max(1 if self.elements else 64, elements // self.weight.shape[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] → [n, V], in float32 or better."""
        z = hidden @ self.weight.T
        if self.bias is not None:
            z += self.bias
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z

    def backward(
        self, grad: Tensor, factor: Tensor, z: Tensor, hidden: Tensor, into: list[Tensor | None]
    ) -> Tensor:
        """Gradient of the logits → gradient of the hidden states; adds to the gradients of weight
        and bias.

        Args:
            grad: [n, V] gradient of the loss by `z`, but for the row's factor; overwritten.
            factor: [n] what each row of `grad` is multiplied with: cheaper on the [n, d] side than
                here.
            z: [n, V] the logits; read only where there is a soft cap.
            hidden: [n, d].
            into: running gradients of weight and bias, None for one that needs none.
        Returns: [n, d].
        """
        if self.softcap is not None:
            grad.addcmul_(
                grad, (z / self.softcap).square_(), value=-1
            )  # d cap·tanh(x/cap) = 1 − tanh²
        column = (factor * self.scale)[:, None]
        weight_grad, bias_grad = into
        low = grad.to(hidden.dtype)
        scaled = (hidden * column).to(hidden.dtype)
        if weight_grad is not None:
            if weight_grad.dtype == low.dtype:
                weight_grad.addmm_(low.T, scaled)
            else:
                weight_grad += low.T @ scaled
        if bias_grad is not None:
            bias_grad += column[:, 0] @ grad
        return ((low @ self.weight) * column).to(hidden.dtype)

    def new_gradients(self) -> list[Tensor | None]:
        """Zeros for `backward` to add to, in float32 or better."""
        return [
            (
                None
                if p is None or not p.requires_grad
                else torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            )
            for p in (self.weight, self.bias)
        ]

    def cast(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients of weight and bias in the parameters' own types."""
        pairs = zip(gradients, (self.weight, self.bias), strict=True)
        return [None if g is None or p is None else g.to(p.dtype) for g, p in pairs]


def logprobs(
    head: Head, hidden: Tensor, target: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and if asked the entropy of each row.

    Args:
        hidden: [N, d] hidden states that predict the targets; gradients flow into them and into the
            head.
        target: [N] token ids.
        temperature: the logits are divided by it first.
        entropy: also return −Σ p log p, with gradients.
    Returns: [N] log-probabilities and [N] entropies (or None), nats.
    """
    out = _LogProbs.apply(hidden, head.weight, head.bias, head, target, temperature, entropy, {})
    return out[0], (out[1] if entropy else None)


def detailed(
    head: Head, hidden: Tensor, target: Tensor, needs: frozenset[str], *, temperature: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probability of each target, with gradients, and what else is asked of each row in the
    same pass, without.

    Args:
        hidden: [N, d]; target: [N].
        needs: "entropy", −Σ p log p; "collision", log Σ p².
    Returns: [N] log-probabilities, and [N] of each detail; nats.
    """
    details = {
        name: torch.empty(
            len(target),
            dtype=torch.promote_types(hidden.dtype, torch.float32),
            device=hidden.device,
        )
        for name in sorted(needs)
    }
    return (
        _LogProbs.apply(hidden, head.weight, head.bias, head, target, temperature, False, details)[
            0
        ],
        details,
    )


@torch.no_grad()
def assess(
    head: Head, hidden: Tensor, target: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and entropy of each target, nats, and whether it is the most likely token:
    [N] each, no gradients.
    """
    logprob = torch.empty(
        len(target), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
    )
    entropy, correct = torch.empty_like(logprob), torch.empty_like(target, dtype=torch.bool)
    for i in range(0, len(target), head.chunk):
        part = slice(i, i + head.chunk)
        logp = torch.log_softmax(_over(head.logits(hidden[part]), temperature), -1)
        logprob[part] = logp.gather(1, target[part, None])[:, 0]
        correct[part] = logp.argmax(-1) == target[part]
        entropy[part] = -torch.linalg.vecdot(logp.exp(), logp)
    return logprob, entropy, correct


def _over(z: Tensor, temperature: float) -> Tensor:
    return z if temperature == 1.0 else z / temperature


def _minus_one_hot(p: Tensor, target: Tensor) -> Tensor:
    """p − 1_y, in place: minus the gradient of log p_y by the logits."""
    return p.scatter_add_(1, target[:, None], torch.full_like(p[:, :1], -1.0))


class _LogProbs(torch.autograd.Function):
    """d log p_y = (1_y − p)·dz;  d entropy = −p·(log p + entropy)·dz."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        target: Tensor,
        temperature: float,
        entropy: bool,
        details: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        real = torch.promote_types(hidden.dtype, torch.float32)
        logprob = torch.empty(len(target), dtype=real, device=hidden.device)
        entropies = torch.empty_like(logprob if entropy else logprob[:0])
        for i in range(0, len(target), head.chunk):
            part = slice(i, i + head.chunk)
            logp = torch.log_softmax(_over(head.logits(hidden[part]), temperature), -1)
            logprob[part] = logp.gather(1, target[part, None])[:, 0]
            if entropy:
                entropies[part] = -torch.linalg.vecdot(logp.exp(), logp)
            if details:
                _fill(details, part, logp)
        ctx.save_for_backward(hidden, target, entropies)
        ctx.head, ctx.temperature, ctx.entropy = head, temperature, entropy
        return logprob, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, target, entropies = ctx.saved_tensors
        head: Head = ctx.head
        into = head.new_gradients()
        out = torch.empty_like(hidden)
        for i in range(0, len(target), head.chunk):
            part = slice(i, i + head.chunk)
            z = head.logits(hidden[part])
            logp = torch.log_softmax(_over(z, ctx.temperature), -1)
            by_logprob = grads[0][part]
            if ctx.entropy:
                p = logp.exp()
                grad = p.mul_(
                    logp.add_(entropies[part, None])
                    .mul_(grads[1][part, None])
                    .add_(by_logprob[:, None])
                ).neg_()
                grad.scatter_add_(1, target[part, None], by_logprob[:, None])
                factor = torch.ones_like(by_logprob)
            else:
                grad, factor = _minus_one_hot(logp.exp_(), target[part]), -by_logprob
            out[part] = head.backward(grad, factor / ctx.temperature, z, hidden[part], into)
        return out, *head.cast(into), None, None, None, None, None


def _fill(details: dict[str, Tensor], part: slice, logp: Tensor) -> None:
    """What is asked of a chunk of rows, whose log-probabilities are given."""
    if "collision" in details:
        details["collision"][part] = (2 * logp).logsumexp(-1)
    if "entropy" in details:
        details["entropy"][part] = -torch.linalg.vecdot(logp.exp(), logp)


def additive(
    head: Head, hidden: Tensor, target: Tensor, loss: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor]:
    """A loss that is additive over targets, its gradient taken in the same pass over the
    vocabulary.

    Args:
        hidden: [N, d]; target: [N].
        loss: `(log-probabilities of a chunk [c], which targets) -> scalar`; the chunks' values add
            up.
    Returns: the loss (scalar, with gradients) and the log-probabilities [N] (without).
    """
    return _Additive.apply(hidden, head.weight, head.bias, head, target, loss)  # type: ignore[return-value]


class _Additive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        target: Tensor,
        loss: Callable[[Tensor, slice], Tensor],
    ) -> tuple[Tensor, Tensor]:
        real = torch.promote_types(hidden.dtype, torch.float32)
        value = torch.zeros((), dtype=torch.float64, device=hidden.device)
        logprob = torch.empty(len(target), dtype=real, device=hidden.device)
        into = head.new_gradients()
        grad_hidden = torch.empty_like(hidden)
        for i in range(0, len(target), head.chunk):
            part = slice(i, i + head.chunk)
            z = head.logits(hidden[part])
            logp = torch.log_softmax(z, -1)
            if head.softcap is None:
                z = logp  # the logits are not read again: their memory may go
            logprob[part] = scored = logp.gather(1, target[part, None])[:, 0]
            with torch.enable_grad():
                here = loss(scored.requires_grad_(), part)
                (by_logprob,) = torch.autograd.grad(here, scored)
            value += here.detach()
            grad = _minus_one_hot(logp.exp_(), target[part])
            grad_hidden[part] = head.backward(grad, -by_logprob, z, hidden[part], into)
        ctx.save_for_backward(grad_hidden, *into)
        ctx.mark_non_differentiable(logprob)
        ctx.head = head
        return value.to(real), logprob

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *rest = ctx.saved_tensors
        by = grads[0]
        if float(by) != 1.0:
            grad_hidden = grad_hidden * by
            rest = [None if g is None else g * by for g in rest]
        return grad_hidden, *ctx.head.cast(rest), None, None, None


def rows(head: Head, hidden: Tensor, target: Tensor, function: RowFunction) -> Tensor:
    """Run a function of whole rows of logits, chunk by chunk, computed again in the backward pass.

    Args:
        hidden: [N, d]; target: [N].
        function: `(logits [c, V], targets [c], which targets) -> [c]`, differentiable by the
            logits. What else it reads (a teacher's rows, say) it takes by the slice.
    Returns: [N], with gradients into the hidden states and the head.
    """
    return _Rows.apply(hidden, head.weight, head.bias, head, target, function)  # type: ignore[return-value]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        target: Tensor,
        function: RowFunction,
    ) -> Tensor:
        ctx.save_for_backward(hidden, target)
        ctx.head, ctx.function = head, function
        parts = [slice(i, i + head.chunk) for i in range(0, len(target), head.chunk)]
        out = [function(head.logits(hidden[part]), target[part], part) for part in parts]
        return torch.cat(out) if out else hidden.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, target = ctx.saved_tensors
        head: Head = ctx.head
        into = head.new_gradients()
        out = torch.empty_like(hidden)
        for i in range(0, len(target), head.chunk):
            part = slice(i, i + head.chunk)
            z = head.logits(hidden[part]).requires_grad_()
            with torch.enable_grad():
                value = ctx.function(z, target[part], part)
                (grad,) = torch.autograd.grad(value, z, grads[0][part])
            ones = torch.ones_like(grads[0][part])
            out[part] = head.backward(grad.clone(), ones, z.detach(), hidden[part], into)
        return out, *head.cast(into), None, None, None


def cross_entropy(head: Head, hidden: Tensor, target: Tensor) -> Tensor:
    """Mean −log p of the targets, nats; the chunked twin of `torch.nn.functional.cross_entropy`."""
    return additive(head, hidden, target, lambda logprob, part: -logprob.sum() / len(target))[0]
