"""The types that methods, data and the engine share: facts of a forest, columns read off the model,
and a loss.

N targets, L sequences, U units of m members (a pair has two), V vocabulary, K heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from posttrain.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Counts: TypeAlias = Mapping[str, float]  # the denominators of a loss, over the whole global batch


class Named(dict[str, Any]):
    """Facts or counts by name; one that is not there is an error that says which there are."""

    def __missing__(self, name: str) -> Any:
        known = ", ".join(sorted(self)) or "none"
        raise ConfigError(
            f"the loss reads {name!r}, which is not known here",
            cure=f"known are: {known}; give it with the sequences or units, or in Loss.counts",
        )


@dataclass(frozen=True)
class Facts:
    """What a method knows of a forest besides its tokens. Each fact knows its axis.

    Attributes:
        leaf: [N] the sequence of each target, 0 ≤ leaf < L, ascending; within one by position.
        L: sequences in the forest.
        members: [U, m] the sequences of each unit: of a pair the chosen one, then the rejected.
        numbers: [U] place of each unit in the global batch, from 0 on.
        targets: [N, …] by name, for example `reference`, log-probabilities in nats.
        sequences: [L] by name, for example `label` or `reward`.
        units: [U] by name, for example `margin`.
        whole: of a part, the facts it is a part of.
    """

    leaf: Tensor
    L: int
    members: Tensor
    numbers: Tensor
    targets: dict[str, Tensor] = field(default_factory=dict)
    sequences: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, Tensor] = field(default_factory=dict)
    whole: Facts | None = None

    @property
    def N(self) -> int:
        """Targets, of a part those in it."""
        return len(self.leaf)

    @property
    def U(self) -> int:
        return len(self.members)

    @property
    def lengths(self) -> Tensor:
        """[L] targets of each sequence; of a part, too, all that its sequences have."""
        return (self.whole or self).leaf.bincount(minlength=self.L)

    def sums(self, values: Tensor) -> Tensor:
        """[N] values of targets → [L] their sums over each sequence.

        Raises:
            ConfigError: these are the facts of a part, whose sums would be those of a part.
        """
        if self.whole is not None:
            raise ConfigError(
                "a loss that sums over sequences is not additive over targets",
                cure="leave additive=True out of the Loss",
            )
        return values.new_zeros(self.L).index_add(0, self.leaf, values)

    def part(self, targets: slice) -> Facts:
        """The facts of some targets; those of sequences and units stay whole."""
        sliced = Named({name: value[targets] for name, value in self.targets.items()})
        return replace(self, leaf=self.leaf[targets], targets=sliced, whole=self.whole or self)

    def to(self, device: Any) -> Facts:
        """The same facts on another device."""

        def moved(facts: dict[str, Tensor]) -> dict[str, Tensor]:
            return Named({name: value.to(device) for name, value in facts.items()})

        return Facts(
            leaf=self.leaf.to(device),
            L=self.L,
            members=self.members.to(device),
            numbers=self.numbers.to(device),
            targets=moved(self.targets),
            sequences=moved(self.sequences),
            units=moved(self.units),
        )


@dataclass(frozen=True)
class Truncation:
    """The tokens a distribution keeps; the others have probability 0 and the kept are renormalised.

    Attributes:
        top_k: the k most likely; 0 keeps all.
        top_p: the most likely that together reach this probability.
        min_p: those at least this fraction as likely as the most likely one.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


# (logits [n, V], targets [n], facts of these targets) -> [n], differentiable by the logits
RowFunction: TypeAlias = "Callable[[Tensor, Tensor, Facts], Tensor]"


@dataclass(frozen=True)
class Read:
    """What is read off one pass over a forest.

    Attributes:
        logprob: log-probability of each target.
        temperature: the logits are divided by it first.
        truncation: log-probabilities are those of the truncated distribution.
        entropy: of the distribution each target is drawn from; `gradient` lets gradients through.
        collision: log Σ_v p_v² of that distribution, without gradients.
        correct: whether the target is the most likely token.
        rows: a function of whole rows of logits, for example a divergence from a teacher.
        value: the value head, where each target is predicted.
        reward: the reward head, at the end of every sequence or at every target.
        hidden: hidden states `before` the targets, at the `targets`, or at the `ends` of sequences.
        experts: how much the router of a mixture uses each of its experts.
    """

    logprob: bool = True
    temperature: float = 1.0
    truncation: Truncation | None = None
    entropy: Literal["", "value", "gradient"] = ""
    collision: bool = False
    correct: bool = False
    rows: RowFunction | None = None
    value: bool = False
    reward: Literal["", "sequences", "targets"] = ""
    hidden: Literal["", "before", "targets", "ends"] = ""
    experts: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"a temperature of {self.temperature:g}: logits are divided by it",
                cure="give Read a temperature above 0",
            )

    @property
    def vocabulary(self) -> bool:
        """Whether anything is read off rows of logits."""
        asked = (self.logprob, self.entropy, self.collision, self.correct, self.rows)
        return any(map(bool, asked))


@dataclass(frozen=True)
class Columns:
    """What was read, a column each; None where it was not asked for.

    Attributes:
        logprob: [N] log-probability of each target given its path, nats; with gradients.
        entropy: [N] nats.
        collision: [N] log Σ_v p_v².
        correct: [N] bool.
        rows: [N] what the row function gave; with gradients.
        value: [N] float32; with gradients.
        reward: [L, K] or [N, K] float32; with gradients.
        hidden: [N, d] or [L, d]; with gradients.
        experts: [2, E] over all layers and the tokens of every sequence: how often each expert was
            chosen, and the sum of its probabilities, with gradients.
        loss: scalar, of an additive loss that was taken in the same pass.
    """

    logprob: Any = None
    entropy: Any = None
    collision: Any = None
    correct: Any = None
    rows: Any = None
    value: Any = None
    reward: Any = None
    hidden: Any = None
    experts: Any = None
    loss: Any = None


def count_targets(facts: Facts) -> dict[str, float]:
    """`targets`: how many there are."""
    return {"targets": facts.N}


@dataclass(frozen=True)
class Loss:
    """A method, as pure functions.

    Attributes:
        loss: `(columns, facts, counts, statistics) -> scalar`, additive: over micro-batches it sums
            to the loss of the whole global batch.
        read: what it needs to know.
        counts: `(facts) -> denominators by name` of one forest; the loss gets their sums over the
            forests of the global batch, on all ranks.
        prepare: `(columns of all forests, facts of all forests) -> statistics`, for methods that
            couple the batch; runs without gradients and without dropout before any `loss`. Where
            the batch has probes, sequences that are scored and not trained on, it gets those.
        report: `(columns, facts, statistics) -> values by name`, without gradients: what is shown
            while training runs.
        additive: the loss of a target depends on its own columns and on facts alone. It is then
            also additive over targets, which lets the head take it chunk by chunk and skip a second
            pass over the vocabulary. `loss` is then called with the columns and facts of a chunk.
    """

    loss: Callable[[Columns, Facts, Counts, Any], Tensor]
    read: Read = Read()
    counts: Callable[[Facts], dict[str, float]] = count_targets
    prepare: Callable[[list[Columns], list[Facts]], Any] | None = None
    report: Callable[[Columns, Facts, Any], dict[str, Tensor]] | None = None
    additive: bool = False


@dataclass(frozen=True)
class Measured:
    """What a global batch came to.

    Attributes:
        loss: of the whole batch.
        values: of the method's `report`: by name, one number for each sequence, unit or target.
        router: load-balancing loss of a mixture's router, before its coefficient; None where none
            was added to the loss.
    """

    loss: float
    values: dict[str, Tensor]
    router: float | None = None

    def means(self) -> dict[str, float]:
        """Each value's mean over the batch, and the router's loss; names without a value are left
        out.
        """
        found = {
            name: float(value.double().mean()) for name, value in self.values.items() if len(value)
        }
        return found if self.router is None else {**found, "router_loss": self.router}
