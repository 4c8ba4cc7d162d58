"""The few types that methods and the engine share. Tensors only; no behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

# What a method knows about a forest besides its tokens: tensors by name. P is the pairs of
# sequences in it.
#     reference   [N] log-probability of each target under the reference, nats
# chosen      [P] sequence that is the better of each pair, 0 ≤ · < L          rejected  [P] the
# worse one
#     gold        [P] sequence that is the answer to imitate, of triples
#     label       [L] whether each sequence is a good answer, 1 or 0
#     number      the place in the global batch, from 0 on: [P] of pairs, or of labels [L]
#     margin      [P] by how much the better one is better
#     step_label  [N] whether the step that ends with each target is right, 1 or 0
# A method may have others; those of targets are [N], those of sequences [L].
Facts: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Scores:
    """What the policy says of N targets. N is the targets of one forest, or of one chunk of it.

    Attributes:
        logprob: [N] log-probability of each target given its path, nats.
        leaf: [N] the sequence of each target, 0 ≤ leaf < sequences, ascending; within a sequence by
            position.
        sequences: how many sequences the forest has (L).
        entropy: [N] entropy of the distribution each target is drawn from, nats; None unless asked
            for.
        correct: [N] whether the target is the most likely token; None unless asked for.
        collision: [N] log Σ_v p_v² of that distribution; None unless asked for.
    """

    logprob: Tensor
    leaf: Tensor
    sequences: int
    entropy: Tensor | None = None
    correct: Tensor | None = None
    collision: Tensor | None = None


@dataclass(frozen=True)
class Rewards:
    """What a reward model says of a forest.

    Attributes:
        reward: [L, K] reward of each sequence by each of K heads; of a process reward model [N, K],
            one for each step.
        leaf: [N] the sequence of each target; see `Scores`.
        sequences: how many sequences the forest has (L).
    """

    reward: Tensor
    leaf: Tensor
    sequences: int


@dataclass(frozen=True)
class Denominators:
    """Counts over the whole global batch, so that losses of micro-batches add up to the loss of one
    big batch.

    Attributes:
        targets, sequences, pairs: how many.
        chosen_targets, gold_targets: targets of the sequences that are some pair's `chosen` and
            some triple's `gold`, a sequence once a pair.
    """

    targets: int
    sequences: int
    pairs: int = 0
    chosen_targets: int = 0
    gold_targets: int = 0


@dataclass(frozen=True)
class Measured:
    """What a global batch came to.

    Attributes:
        loss: of the whole batch.
        values: of the method's `report`: by name, one number for each sequence, pair or target of
            the batch.
    """

    loss: float
    values: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Each value's mean over the batch; names without a value are left out."""
        return {
            name: float(value.double().mean()) for name, value in self.values.items() if len(value)
        }


@dataclass(frozen=True)
class Loss:
    """A method, as pure functions. Scores are `Scores` of a policy or `Rewards` of a reward model.

    Attributes:
        loss: `(scores, facts, statistics, denominators) -> scalar`, additive: over micro-batches it
            sums to the loss of the whole global batch.
        prepare: `(scores of all forests, facts of all forests) -> statistics`, for methods that
            couple the batch; runs without gradients before any `loss`. None where nothing is
            coupled. Where the batch has probes, sequences that are scored and not trained on, it
            gets those instead.
        report: `(scores, facts, statistics) -> values by name`, without gradients: what is shown
            while training runs.
        per_target: the loss of a target depends on its own score alone. It is then also additive
            over targets, which lets the head take it chunk by chunk and skip a second pass over the
            vocabulary.
        needs: fields of `Scores` to fill beside `logprob`: "entropy", "collision". They carry no
            gradients.
        together: consecutive sequences of a tree that must be in one forest: 2 for pairs, 3 for
            triples.
    """

    loss: Callable[[Any, Facts, Any, Denominators], Tensor]
    prepare: Callable[[list[Any], list[Facts]], Any] | None = None
    report: Callable[[Any, Facts, Any], dict[str, Tensor]] | None = None
    per_target: bool = False
    needs: frozenset[str] = frozenset()
    together: int = 1
