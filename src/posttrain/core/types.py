"""The few types that methods and the engine share. Tensors only; no behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

# What a method knows about a forest besides its tokens (advantages, old log-probabilities, labels): tensors by name, [N] for
# facts of targets and [L] for facts of sequences.
Facts: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Scores:
    """What the policy says of N targets. N is the targets of one forest, or of one chunk of it.

    Attributes:
        logprob: [N] log-probability of each target given its path, nats.
        leaf: [N] the sequence of each target, 0 ≤ leaf < sequences.
        sequences: how many sequences the forest has (L).
        entropy: [N] entropy of the distribution each target is drawn from, nats; None unless asked for.
        correct: [N] whether the target is the most likely token; None unless asked for.
    """

    logprob: Tensor
    leaf: Tensor
    sequences: int
    entropy: Tensor | None = None
    correct: Tensor | None = None


@dataclass(frozen=True)
class Denominators:
    """Counts over the whole global batch, so that losses of micro-batches add up to the loss of one big batch."""

    targets: int
    sequences: int


@dataclass(frozen=True)
class Loss:
    """A method, as a pair of pure functions.

    Attributes:
        loss: `(scores, facts, statistics, denominators) -> scalar`, additive: over micro-batches it sums to the loss
            of the whole global batch.
        prepare: `(scores of all forests, facts of all forests) -> statistics`, for methods that couple the batch;
            runs without gradients before any `loss`. None where nothing is coupled.
        per_target: the loss of a target depends on its own score alone. It is then also additive over targets, which
            lets the head take it chunk by chunk and skip a second pass over the vocabulary.
    """

    loss: Callable[[Scores, Facts, Any, Denominators], Tensor]
    prepare: Callable[[list[Scores], list[Facts]], Any] | None = None
    per_target: bool = False
