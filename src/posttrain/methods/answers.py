"""What a forest says of its answers: log-probabilities of targets, summed into answers, pairs and
judged answers.

Notation: π the policy, π_ref the reference, y⁺ and y⁻ the chosen and the rejected answer, |y| its
    length in tokens,
r(y) = log π(y|x) − log π_ref(y|x) the log-ratio, Δ = r(y⁺) − r(y⁻).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.core.types import Facts, Scores


@dataclass(frozen=True)
class Answers:
    """Some answers.

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
        chosen, rejected: P answers each.
        coupled: [., P] what a method that couples the batch found for each pair before any
            gradient.
    """

    chosen: Answers
    rejected: Answers
    coupled: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        """[P] Δ, nats."""
        return self.chosen.ratio - self.rejected.ratio


@dataclass(frozen=True)
class Judged:
    """The answers of a forest, or of the whole global batch.

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
        above = self.answers.ratio if self.coupled is None else self.answers.ratio - self.coupled
        return torch.where(self.good, above, -above)

    def weighed(self, losses: Tensor, desirable: float, undesirable: float) -> Tensor:
        """[L] losses times the weight of their kind."""
        assert self.good is not None
        return torch.where(self.good, desirable * losses, undesirable * losses)


# -------------------------------------------------------------------------------------- of a forest


def totals(values: Tensor, scores: Scores) -> Tensor:
    """[L] sums over the targets of each sequence."""
    return values.new_zeros(scores.sequences).index_add(0, scores.leaf, values)


def lengths(scores: Scores) -> Tensor:
    """[L] targets of each sequence."""
    return torch.bincount(scores.leaf, minlength=scores.sequences)


def _sums(values: Tensor, sequences: Tensor, length: Tensor, until: Tensor, tail: float) -> Tensor:
    """[P] sums over the targets of some sequences; the targets from `until` [P] on count `tail`."""
    first = length.cumsum(0) - length
    count = length[sequences]
    pair = torch.repeat_interleave(count)
    place = torch.arange(len(pair), device=pair.device) - (count.cumsum(0) - count)[pair]
    weight = torch.where(place < until[pair], 1.0, tail).to(values.dtype)
    return values.new_zeros(len(sequences)).index_add(
        0, pair, values[first[sequences][pair] + place] * weight
    )


def _known(scores: Scores, facts: Facts, reference: bool) -> dict[str, Tensor]:
    """[N] each."""
    found = {"logprob": scores.logprob}
    return (
        found | {"reference": facts["reference"].to(scores.logprob.dtype)} if reference else found
    )


def pairs(scores: Scores, facts: Facts, *, reference: bool, tail: float = 1.0) -> Pairs:
    """The pairs of a forest.

    Args:
        reference: whether to take the fact of that name.
        tail: what the targets count for by which the longer answer is longer (LD-DPO's α).
    Source: Liu et al. 2024 (LD-DPO), arXiv 2409.06411.
    """
    known, length = _known(scores, facts, reference), lengths(scores)
    until = torch.minimum(length[facts["chosen"]], length[facts["rejected"]])

    def answers(which: Tensor) -> Answers:
        summed = {name: _sums(value, which, length, until, tail) for name, value in known.items()}
        return Answers(
            summed["logprob"], summed.get("reference"), length[which].to(scores.logprob.dtype)
        )

    return Pairs(answers(facts["chosen"]), answers(facts["rejected"]))


def judged(scores: Scores, facts: Facts, *, reference: bool = True) -> Judged:
    """The answers of a forest, and whether they are good where the facts have a `label`."""
    summed = {
        name: totals(value, scores) for name, value in _known(scores, facts, reference).items()
    }
    answers = Answers(
        summed["logprob"], summed.get("reference"), lengths(scores).to(scores.logprob.dtype)
    )
    return Judged(answers, facts["label"].bool() if "label" in facts else None)


def weights(scores: Scores, facts: Facts) -> Tensor:
    """[P] WPO's weights: how likely the policy would write both answers of a pair itself, fixed.

    w(y⁺)·w(y⁻),  w(y) = exp(mean over tokens of (log p − log Σ_v p_v²))

    Source: Zhou et al. 2024 (WPO), arXiv 2406.11827, equation 2, aligned by what a sampled token
        has on average.
    """
    assert scores.collision is not None
    own = totals((scores.logprob - scores.collision).detach(), scores) / lengths(scores).clamp(
        min=1
    )
    return own[facts["chosen"]].exp() * own[facts["rejected"]].exp()


# ------------------------------------------------------------------------------- of the whole batch


def _cat(some: list[Answers]) -> Answers:
    reference = [a.reference for a in some if a.reference is not None]
    return Answers(
        torch.cat([a.logprob for a in some]),
        torch.cat(reference) if reference else None,
        torch.cat([a.length for a in some]),
    )


def _ordered(answers: Answers, order: Tensor) -> Answers:
    reference = answers.reference[order] if answers.reference is not None else None
    return Answers(answers.logprob[order], reference, answers.length[order])


def joined(views: list[Pairs | Judged], facts: list[Facts]) -> Pairs | Judged:
    """The whole batch: pairs by the fact `number`, their place in it; judged answers as
    they come.
    """
    some = [v for v in views if isinstance(v, Judged)]
    if some:
        good = [v.good for v in some if v.good is not None]
        return Judged(_cat([v.answers for v in some]), torch.cat(good) if good else None)
    order = torch.cat([f["number"] for f in facts]).argsort()
    both = [v for v in views if isinstance(v, Pairs)]
    return Pairs(
        _ordered(_cat([v.chosen for v in both]), order),
        _ordered(_cat([v.rejected for v in both]), order),
    )


def coupled(view: Pairs | Judged, found: Tensor, facts: Facts) -> Pairs | Judged:
    """The view of a forest with what was found in the whole batch: pairs get what is theirs, by the
    fact `number`.
    """
    return replace(view, coupled=found[:, facts["number"]] if isinstance(view, Pairs) else found)
