"""The head: from hidden states to log-probabilities, and what else is read off rows of logits,
without the [N, V] matrix.

Logits exist for one chunk of targets at a time and are computed again in the backward pass. A loss
that is additive over targets needs no second time: each chunk's gradient is taken while its logits
are still there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.core.types import Columns, Facts, Read, Truncation
from posttrain.engine.exact import ROWS, padded

NAMES = ("logprob", "entropy", "collision", "correct", "rows")  # columns that come from logits
LEAST_CHUNK = 64  # targets

PartLoss = Callable[[Columns, Facts], Tensor]  # of the columns and facts of a chunk


@dataclass(frozen=True)
class Head:
    """The map from a hidden state to logits: z = cap·tanh((h Wᵀ + b)·scale / cap).

    Attributes:
        weight: [V, d]. bias: [V] or None.
        scale: factor on the logits (Granite divides by `logits_scaling`, Cohere multiplies by
            `logit_scale`).
        softcap: the cap (Gemma-2), or None.
        elements: numbers a [chunk, V] block may hold; 0 takes what suits the device.
        exact: a row's logits are the same to the bit whatever rows are beside it; see
            `posttrain.engine.exact`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    elements: int = 0
    exact: bool = False

    @property
    def chunk(self) -> int:
        """Targets scored at a time."""
        elements = self.elements or (2**27 if self.weight.is_cuda else 2**22)
        rows = max(1 if self.elements else LEAST_CHUNK, elements // self.weight.shape[0])
        return -(-rows // ROWS) * ROWS if self.exact else rows

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] → [n, V], in float32 or better: sums of products are never rounded to less."""
        if self.exact:
            z = _product(padded(hidden), self.weight)[: len(hidden)]
        else:
            z = _product(hidden, self.weight)
        if self.bias is not None:
            z += self.bias
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
            # d cap·tanh(x/cap) = 1 − tanh²
            grad.addcmul_(grad, (z / self.softcap).square_(), value=-1)
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


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """h·Wᵀ in float32 or better."""
    if torch.finfo(hidden.dtype).bits >= 32:
        return hidden @ weight.T
    if hidden.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T


# ---------------------------------------------------------------------------------- rows of logits


def truncated(logits: Tensor, truncation: Truncation, keep: Tensor | None = None) -> Tensor:
    """Logits whose cut tokens are −∞: after log_softmax, the truncated distribution, renormalised.

    top-k first, then top-p and min-p of what it left. A token is kept if the tokens before it, in
    falling order, do not reach top_p yet; the first always is.

    Args:
        logits: [n, V].
        keep: [n] tokens that are kept in any case. What was drawn from this distribution elsewhere
            must not become impossible by rounding.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if truncation.top_k:
        kept[:, truncation.top_k :] = False
    p = ordered.masked_fill(~kept, -torch.inf).softmax(-1)
    kept &= p.cumsum(-1) - p < truncation.top_p
    kept &= p >= truncation.min_p * p[:, :1]
    kept[:, 0] = True
    kept = torch.zeros_like(kept).scatter_(1, index, kept)
    if keep is not None:
        kept.scatter_(1, keep[:, None], True)
    return logits.masked_fill(~kept, -torch.inf)


def _log_softmax(z: Tensor, target: Tensor, read: Read) -> Tensor:
    """[n, V] log-probabilities of the distribution that `read` asks for."""
    if read.temperature != 1.0:
        z = z / read.temperature
    if read.truncation is not None:
        z = truncated(z, read.truncation, keep=target)
    return torch.log_softmax(z, -1)


def _entropy(logp: Tensor) -> Tensor:
    """[n] −Σ p log p, where a p of 0 counts nothing."""
    finite = torch.where(logp == -torch.inf, 0.0, logp)
    return -torch.linalg.vecdot(logp.exp(), finite)


def _read_logp(logp: Tensor, target: Tensor, read: Read) -> dict[str, Tensor]:
    """The columns of one chunk that follow from log-probabilities [n, V]."""
    columns: dict[str, Tensor] = {}
    if read.logprob:
        columns["logprob"] = logp.gather(1, target[:, None])[:, 0]
    if read.entropy:
        columns["entropy"] = _entropy(logp)
    if read.collision:
        columns["collision"] = (2 * logp).logsumexp(-1)
    if read.correct:
        columns["correct"] = logp.argmax(-1) == target
    return columns


def _read_rows(z: Tensor, target: Tensor, facts: Facts, read: Read) -> dict[str, Tensor]:
    """The columns of one chunk of logits; differentiable by them."""
    columns = _read_logp(_log_softmax(z, target, read), target, read)
    if read.rows:
        columns["rows"] = read.rows(z, target, facts)
    return columns


def _differentiable(read: Read) -> tuple[str, ...]:
    """The columns that gradients flow through."""
    wanted = {"logprob": read.logprob, "entropy": read.entropy == "gradient", "rows": read.rows}
    return tuple(name for name, yes in wanted.items() if yes)


def _minus_one_hot(p: Tensor, target: Tensor) -> Tensor:
    """p − 1_y, in place: minus the gradient of log p_y by the logits."""
    return p.scatter_add_(1, target[:, None], torch.full_like(p[:, :1], -1.0))


# ------------------------------------------------------------------------- the two ways through it


def columns(head: Head, hidden: Tensor, target: Tensor, facts: Facts, read: Read) -> Columns:
    """What `read` asks of rows of logits; logits are computed again in the backward pass.

    Args:
        hidden: [N, d] hidden states that predict the targets; gradients flow into them and into the
            head.
        target: [N] token ids.
        facts: of the forest, for a row function.
    """
    out: Any = _Columns.apply(hidden, head.weight, head.bias, head, target, facts, read)
    by_name: dict[str, Any] = dict(zip(NAMES, out, strict=True))
    return Columns(**{name: value for name, value in by_name.items() if value is not None})


class _Columns(torch.autograd.Function):
    """d log p_y = (1_y − p)·dz;  d entropy = −p·(log p + entropy)·dz."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        target: Tensor,
        facts: Facts,
        read: Read,
    ) -> tuple[Tensor | None, ...]:
        collected = _Collected(len(target), hidden)
        for part in _parts(head, target):
            z = head.logits(hidden[part])
            collected.add(part, _read_rows(z, target[part], facts.part(part), read))
        out: dict[str, Tensor | None] = collected.columns(read)
        ctx.save_for_backward(hidden, target, out["entropy"])
        ctx.head, ctx.facts, ctx.read = head, facts, read
        passive = [v for n, v in out.items() if v is not None and n not in _differentiable(read)]
        ctx.mark_non_differentiable(*passive)
        return tuple(out.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, target, entropy = ctx.saved_tensors
        head, read = ctx.head, ctx.read
        given: dict[str, Tensor] = dict(zip(NAMES, grads, strict=True))
        into = head.new_gradients()
        out = torch.empty_like(hidden)
        for part in _parts(head, target):
            z = head.logits(hidden[part])
            by = {name: given[name][part] for name in _differentiable(read)}
            if by.keys() == {"logprob"}:
                logp = _log_softmax(z, target[part], read)
                grad = _minus_one_hot(logp.exp_(), target[part])
                factor = -by["logprob"] / read.temperature
            elif by.keys() == {"logprob", "entropy"} and read.truncation is None:
                logp = _log_softmax(z, target[part], read)
                p = logp.exp()
                both = logp.add_(entropy[part, None]).mul_(by["entropy"][:, None])
                grad = p.mul_(both.add_(by["logprob"][:, None])).neg_()
                grad.scatter_add_(1, target[part, None], by["logprob"][:, None])
                factor = torch.full_like(by["logprob"], 1 / read.temperature)
            else:
                grad = _by_logits(z, target[part], ctx.facts.part(part), read, by)
                factor = torch.ones_like(z[:, 0])
            out[part] = head.backward(grad, factor, z, hidden[part], into)
        return out, *head.cast(into), None, None, None, None


def _parts(head: Head, target: Tensor) -> list[slice]:
    """The chunks of the targets."""
    return [slice(i, i + head.chunk) for i in range(0, len(target), head.chunk)]


class _Collected:
    """Columns while they are filled, chunk by chunk."""

    def __init__(self, n: int, hidden: Tensor) -> None:
        self._n, self._device = n, hidden.device
        self._real = torch.promote_types(hidden.dtype, torch.float32)
        self._columns: dict[str, Tensor] = {}

    def add(self, part: slice, columns: dict[str, Tensor]) -> None:
        for name, values in columns.items():
            if name not in self._columns:
                self._columns[name] = values.new_empty(self._n)
            self._columns[name][part] = values.detach()

    def columns(self, read: Read) -> dict[str, Tensor | None]:
        """By name of `NAMES`: empty columns where there are no targets, None where not read."""
        out: dict[str, Tensor | None] = {name: self._columns.get(name) for name in NAMES}
        for name in NAMES:
            if self._n == 0 and getattr(read, name):
                dtype = torch.bool if name == "correct" else self._real
                out[name] = torch.empty(0, dtype=dtype, device=self._device)
        return out


def _by_logits(
    z: Tensor, target: Tensor, facts: Facts, read: Read, by: dict[str, Tensor]
) -> Tensor:
    """[n, V] gradient by the logits of columns whose own gradients are given."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        columns = _read_rows(leaf, target, facts, read)
        (grad,) = torch.autograd.grad([columns[name] for name in by], leaf, list(by.values()))
    return grad.clone()


def additive(
    head: Head,
    hidden: Tensor,
    target: Tensor,
    facts: Facts,
    read: Read,
    loss: PartLoss,
    value: Tensor | None = None,
) -> Columns:
    """The columns and an additive loss, its gradient taken in the same pass over the vocabulary.

    Args:
        hidden: [N, d]; target: [N]; facts: of the forest.
        loss: `(columns of a chunk, facts of a chunk) -> scalar`; the chunks' values add up.
        value: [N] a column from elsewhere that the loss reads, with gradients.
    Returns: columns without gradients, and `loss`, a scalar with gradients.
    """
    collected = _Collected(len(target), hidden)
    values = hidden.new_empty(0) if value is None else value
    scalar = _Additive.apply(
        hidden, head.weight, head.bias, values, head, target, facts, read, loss, collected
    )
    names = {name: column for name, column in collected.columns(read).items() if column is not None}
    return Columns(**names, value=None if value is None else value.detach(), loss=scalar)


class _Additive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        value: Tensor,
        head: Head,
        target: Tensor,
        facts: Facts,
        read: Read,
        loss: PartLoss,
        collected: _Collected,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        into = head.new_gradients()
        grad_hidden, grad_value = torch.empty_like(hidden), torch.zeros_like(value)
        for part in _parts(head, target):
            chunk = _Chunk(head.logits(hidden[part]), target[part], facts.part(part), read)
            if len(value):
                chunk.value = value[part].detach().requires_grad_()
            grad, factor = chunk.gradient(head, loss)
            total += chunk.loss
            collected.add(part, chunk.columns)
            if chunk.value is not None and chunk.value.grad is not None:
                grad_value[part] = chunk.value.grad
            grad_hidden[part] = head.backward(grad, factor, chunk.z, hidden[part], into)
        ctx.save_for_backward(grad_hidden, grad_value, *into)
        ctx.head = head
        return total.to(torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_value, *rest = ctx.saved_tensors
        by = grads[0]
        if float(by) != 1.0:
            grad_hidden, grad_value = grad_hidden * by, grad_value * by
            rest = [None if g is None else g * by for g in rest]
        return grad_hidden, *ctx.head.cast(rest), grad_value, *[None] * 6


class _Chunk:
    """One chunk of an additive loss: its logits, columns, loss and gradient."""

    def __init__(self, z: Tensor, target: Tensor, facts: Facts, read: Read) -> None:
        self.z, self.target, self.facts, self.read = z, target, facts, read
        self.value: Tensor | None = None
        self.columns: dict[str, Tensor] = {}
        self.loss = z.new_zeros(())

    def gradient(self, head: Head, loss: PartLoss) -> tuple[Tensor, Tensor]:
        """The gradient by the logits [n, V] but for a factor a row, and that factor [n]."""
        if _differentiable(self.read) == ("logprob",):
            return self._by_logprob(head, loss)
        with torch.enable_grad():
            leaf = self.z.detach().requires_grad_()
            self.columns = _read_rows(leaf, self.target, self.facts, self.read)
        self._take(loss)
        grad = torch.zeros_like(self.z) if leaf.grad is None else leaf.grad
        return grad, torch.ones_like(self.z[:, 0])

    def _by_logprob(self, head: Head, loss: PartLoss) -> tuple[Tensor, Tensor]:
        """By hand, where gradients flow through the log-probabilities alone."""
        logp = _log_softmax(self.z, self.target, self.read)
        if head.softcap is None:
            self.z = logp  # the logits are not read again: their memory may go
        self.columns = _read_logp(logp, self.target, self.read)
        scored = self.columns["logprob"].requires_grad_()
        self._take(loss)
        by = torch.zeros_like(scored) if scored.grad is None else scored.grad
        grad = _minus_one_hot(logp.exp_(), self.target)
        return grad, -by / self.read.temperature

    def _take(self, loss: PartLoss) -> None:
        """The loss of the chunk, and the gradients of its leaves."""
        with torch.enable_grad():
            value = loss(Columns(**self.columns, value=self.value), self.facts)
            if value.requires_grad:
                value.backward()
        self.loss = value.detach()
