"""What a forest says of its answers: log-probabilities of targets, summed into answers, pairs and
labelled answers.

Notation: π the policy, π_ref the reference, y⁺ and y⁻ the chosen and the rejected answer, |y| its
length in tokens, r(y) = log π(y|x) − log π_ref(y|x) the log-ratio, Δ = r(y⁺) − r(y⁻).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.core.types import Columns, Facts

CHOSEN, REJECTED, GOLD = 0, 1, 2  # the members of a unit, in this order


@dataclass(frozen=True)
class Answers:
    """A answers.

    Attributes:
        logprob: [A] log-probability of each under the policy, nats.
        reference: [A] the same under the reference; None where there is none.
        length: [A] targets in each, as a float.
    """

    logprob: Tensor
    reference: Tensor | None
    length: Tensor

    @property
    def ratio(self) -> Tensor:
        """[A] log π/π_ref, nats."""
        assert self.reference is not None, "this method needs the fact `reference`"
        return self.logprob - self.reference

    @property
    def mean(self) -> Tensor:
        """[A] log-probability a token, nats."""
        return self.logprob / self.length

    @property
    def mean_ratio(self) -> Tensor:
        """[A] log π/π_ref a token, nats."""
        return self.ratio / self.length


@dataclass(frozen=True)
class Pairs:
    """The pairs of a forest, or of the whole global batch.

    Attributes:
        chosen, rejected: U answers each.
        coupled: [., U] what a method that couples the batch computed for each pair before any
            gradient.
    """

    chosen: Answers
    rejected: Answers
    coupled: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        """[U] Δ, nats."""
        return self.chosen.ratio - self.rejected.ratio


@dataclass(frozen=True)
class Labelled:
    """The labelled answers of a forest, or of the whole global batch.

    Attributes:
        answers: L answers.
        good: [L] whether each is good; None of probes.
        coupled: [] the log-ratio from which answers count as good, nats; None is 0.
    """

    answers: Answers
    good: Tensor | None
    coupled: Tensor | None = None

    @property
    def advance(self) -> Tensor:
        """[L] log-ratio over where it should be: up for good answers, down for bad ones, nats."""
        assert self.good is not None, "this method needs the fact `label`"
        ratio = self.answers.ratio
        above = ratio if self.coupled is None else ratio - self.coupled
        return torch.where(self.good, above, -above)

    def weighed(self, losses: Tensor, desirable: float, undesirable: float) -> Tensor:
        """[L] losses times the weight of their kind."""
        assert self.good is not None
        return torch.where(self.good, desirable * losses, undesirable * losses)


# ------------------------------------------------------------------------------------- of a forest


def _targets(columns: Columns, facts: Facts, reference: bool) -> dict[str, Tensor]:
    """[N] each: log-probabilities under the policy, and under the reference where it is needed."""
    values = {"logprob": columns.logprob}
    if reference:
        values["reference"] = facts.targets["reference"].to(columns.logprob.dtype)
    return values


def _shortened(
    values: Tensor, facts: Facts, sequences: Tensor, until: Tensor, tail: float
) -> Tensor:
    """[U] sums over the targets of some sequences; the targets from `until` [U] on count `tail`."""
    length = facts.lengths
    first = length.cumsum(0) - length
    count = length[sequences]
    unit = torch.repeat_interleave(count)
    place = torch.arange(len(unit), device=unit.device) - (count.cumsum(0) - count)[unit]
    weight = torch.where(place < until[unit], 1.0, tail).to(values.dtype)
    weighted = values[first[sequences][unit] + place] * weight
    return values.new_zeros(len(sequences)).index_add(0, unit, weighted)


def pairs(columns: Columns, facts: Facts, *, reference: bool, tail: float = 1.0) -> Pairs:
    """The pairs of a forest.

    Args:
        reference: whether to take the fact of that name.
        tail: what the targets count for by which the longer answer is longer (LD-DPO's α).
    Source: Liu et al. 2024 (LD-DPO), arXiv 2409.06411.
    """
    values, length = _targets(columns, facts, reference), facts.lengths
    chosen, rejected = facts.members[:, CHOSEN], facts.members[:, REJECTED]
    until = torch.minimum(length[chosen], length[rejected])

    def answers(members: Tensor) -> Answers:
        sums = {
            name: _shortened(value, facts, members, until, tail) for name, value in values.items()
        }
        count = length[members].to(columns.logprob.dtype)
        return Answers(sums["logprob"], sums.get("reference"), count)

    return Pairs(answers(chosen), answers(rejected))


def labelled(columns: Columns, facts: Facts, *, reference: bool = True) -> Labelled:
    """The answers of a forest, and whether they are good where the facts have a `label`."""
    sums = {name: facts.sums(v) for name, v in _targets(columns, facts, reference).items()}
    length = facts.lengths.to(columns.logprob.dtype)
    answers = Answers(sums["logprob"], sums.get("reference"), length)
    label = facts.sequences.get("label")
    return Labelled(answers, None if label is None else label.bool())


def policy_weights(columns: Columns, facts: Facts) -> Tensor:
    """[U] WPO's weights: how likely the policy would write both answers of a pair itself, fixed.

    w(y⁺)·w(y⁻),  w(y) = exp(mean over tokens of (log p − log Σ_v p_v²))

    Source: Zhou et al. 2024 (WPO), arXiv 2406.11827, equation 2, aligned by what a sampled token
        has on average.
    """
    aligned = (columns.logprob - columns.collision).detach()
    mean = facts.sums(aligned) / facts.lengths.clamp(min=1)
    return mean[facts.members[:, CHOSEN]].exp() * mean[facts.members[:, REJECTED]].exp()


# ------------------------------------------------------------------------------ of the whole batch


def _concatenated(answers: list[Answers]) -> Answers:
    reference = [a.reference for a in answers if a.reference is not None]
    return Answers(
        torch.cat([a.logprob for a in answers]),
        torch.cat(reference) if reference else None,
        torch.cat([a.length for a in answers]),
    )


def _ordered(answers: Answers, order: Tensor) -> Answers:
    reference = answers.reference[order] if answers.reference is not None else None
    return Answers(answers.logprob[order], reference, answers.length[order])


def joined(views: list[Pairs | Labelled], facts: list[Facts]) -> Pairs | Labelled:
    """The whole batch: pairs by their place in it; labelled answers as they come."""
    labelled = [view for view in views if isinstance(view, Labelled)]
    if labelled:
        good = [view.good for view in labelled if view.good is not None]
        answers = _concatenated([view.answers for view in labelled])
        return Labelled(answers, torch.cat(good) if good else None)
    order = torch.cat([f.numbers for f in facts]).argsort()
    pairs = [view for view in views if isinstance(view, Pairs)]
    return Pairs(
        _ordered(_concatenated([view.chosen for view in pairs]), order),
        _ordered(_concatenated([view.rejected for view in pairs]), order),
    )


def with_coupled(view: Pairs | Labelled, coupled: Tensor, facts: Facts) -> Pairs | Labelled:
    """The view of a forest with what was computed over the whole batch; pairs get their own."""
    return replace(view, coupled=coupled[:, facts.numbers] if isinstance(view, Pairs) else coupled)
