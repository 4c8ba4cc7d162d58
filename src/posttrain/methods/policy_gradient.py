"""The loss of learning from reward: a surrogate of every token, weighed by its advantage.

    loss = policy_gradient("grpo", RlOptions(beta=0.01), temperature=1.0, truncation=None)

Notation: π the policy, π_old the same when the batch was taken, μ the sampler, π_ref the reference,
ρ = π/π_old of a token or of its sequence, A the advantage, sg without gradient. Where the
advantages come from is in `posttrain.methods.credit`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.core.errors import ConfigError
from posttrain.core.seeds import generator
from posttrain.core.types import Columns, Counts, Facts, Loss, Read, Truncation
from posttrain.methods import credit
from posttrain.methods.credit import Values
from posttrain.methods.kl import ESTIMATORS, exponential, k3
from posttrain.methods.rl_options import RlOptions
from posttrain.methods.value import value_loss


@dataclass(frozen=True)
class Terms:
    """What a surrogate reads of targets.

    Attributes:
        logprob: [N] log π, with gradients.
        log_ratio: [N] log ρ of each target or of its sequence, with gradients.
        advantages: [N] A.
        values: the algorithm's options.
        facts: of the targets.
        held: [N] bool: the targets that a method of covariances holds back; None of the others.
    """

    logprob: Tensor
    log_ratio: Tensor
    advantages: Tensor
    values: Values
    facts: Facts
    held: Tensor | None

    @property
    def ratio(self) -> Tensor:
        return exponential(self.log_ratio)


# -------------------------------------------------------------------------------------- surrogates


def clipped(terms: Terms) -> Tensor:
    """[N] Proximal policy optimisation: nothing is gained by a ratio outside of its bounds.

    −min(ρ·A, clip(ρ, 1−ε_low, 1+ε_high)·A), where A < 0 with ρ at most `clip_largest`

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7; ε_high: DAPO, 2503.14476; ρ of a
        sequence: GSPO, 2507.18071; the largest: INTELLECT-2, 2505.07291.
    """
    values, ratio = terms.values, terms.ratio
    bounded = ratio.clamp(1 - values["clip_low"], 1 + values["clip_high"])
    if values.get("clip_largest") is not None:
        ratio = ratio.clamp(max=values["clip_largest"])
    return -torch.minimum(ratio * terms.advantages, bounded * terms.advantages)


def weighed(terms: Terms) -> Tensor:
    """[N] The likelihood, weighed by the ratio: no token loses its gradient. At ρ = 1 REINFORCE.

    −sg(min(ρ, ε_high))·A·log π

    Source: MiniMax 2025 (CISPO), arXiv 2506.13585.
    """
    weight = terms.ratio.detach().clamp(max=terms.values["clip_high"])
    return -weight * terms.advantages * terms.logprob


def soft(terms: Terms) -> Tensor:
    """[N] A gate that closes gradually on both sides of ρ = 1, where its slope is 1.

    −(4/τ)·σ(τ(ρ − 1))·A,  τ by the sign of A

    Source: Gao et al. 2025 (SAPO), arXiv 2511.20347.
    """
    positive, negative = terms.values["sapo_positive"], terms.values["sapo_negative"]
    temperature = torch.where(terms.advantages > 0, positive, negative).to(terms.ratio.dtype)
    gate = (temperature * (terms.ratio - 1)).sigmoid() * 4 / temperature
    return -gate * terms.advantages


def geometric(terms: Terms) -> Tensor:
    """[N] The geometric mean of a sequence's ratios, each held back on the side where A pushes it.

    −exp(mean over the sequence of clip(log ρ))·A;  clip: at most ε_high where A > 0, at least
    −ε_low elsewhere

    Source: Zhao et al. 2025 (GMPO), arXiv 2507.20673.
    """
    low, high = terms.values["clip_low"], terms.values["clip_high"]
    held = torch.where(
        terms.advantages > 0, terms.log_ratio.clamp(max=high), terms.log_ratio.clamp(min=-low)
    )
    return -exponential(_by_sequence(held, terms.facts)) * terms.advantages


def clip_cov(terms: Terms) -> Tensor:
    """[N] PPO's, without the tokens that are held back.

    Source: Cui et al. 2025, arXiv 2505.22617.
    """
    assert terms.held is not None
    return clipped(terms).masked_fill(terms.held, 0)


def kl_cov(terms: Terms) -> Tensor:
    """[N] The ratio alone, and for the tokens that are held back a penalty on its change.

    −ρ·A + w·|log ρ| where held

    Source: Cui et al. 2025, arXiv 2505.22617.
    """
    assert terms.held is not None
    penalty = terms.log_ratio.abs().masked_fill(~terms.held, 0)
    return -terms.ratio * terms.advantages + terms.values["cov_weight"] * penalty


SURROGATES: dict[str, Callable[[Terms], Tensor]] = {
    "clipped": clipped,
    "weighed": weighed,
    "soft": soft,
    "geometric": geometric,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}


def _bounds(surrogate: str, values: Values) -> tuple[float, float]:
    """Ratios beyond which a token has no gradient, or no more of it."""
    if surrogate in ("clipped", "clip_cov"):
        return 1 - values["clip_low"], 1 + values["clip_high"]
    if surrogate == "geometric":
        return math.exp(-values["clip_low"]), math.exp(values["clip_high"])
    return 0.0, values["clip_high"] if surrogate == "weighed" else math.inf


# ---------------------------------------------------------------------------------- what they read


def _by_sequence(each: Tensor, facts: Facts, mean: bool = True) -> Tensor:
    """[N] of every target the mean, or the sum, over its sequence."""
    sums = facts.sums(each)
    return (sums / facts.lengths.clamp(min=1) if mean else sums)[facts.leaf]


def _fact(facts: Facts, name: str, like: Tensor) -> Tensor:
    return facts.targets[name].to(like.dtype)


def _log_ratio(columns: Columns, facts: Facts, level: str) -> Tensor:
    """[N] log ρ of each target, or of its sequence."""
    each = columns.logprob - _fact(facts, "old_logprobs", columns.logprob)
    return each if level == "token" else _by_sequence(each, facts, mean=level == "sequence")


def _correction(facts: Facts, level: str, cap: float) -> Tensor:
    """[N] min(π_old/μ, cap), of each target or of its sequence's geometric mean; 1 where the
    sampler's log-probability is unknown.

    The mean, because the product over a long sequence says little but its length. Never above the
    cap, so that tokens of an old policy cannot take over.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
        training", fengyao.notion.site/off-policy-rl.
    """
    whole = facts.whole or facts if level == "sequence" else facts
    gap = (whole.targets["old_logprobs"] - whole.targets["sampled_logprobs"]).nan_to_num(nan=0.0)
    if level == "sequence":
        gap = (whole.sums(gap) / whole.lengths.clamp(min=1))[facts.leaf]
    return exponential(gap).clamp(max=cap)


def _weights(facts: Facts, counts: Counts, aggregate: str, longest: int | None) -> Tensor | float:
    """What each target counts in the loss, by the denominators of the global batch."""
    if aggregate == "token":
        return 1 / counts["targets"]
    if aggregate == "sequence":
        return 1 / (facts.lengths[facts.leaf] * counts["completions"])
    if aggregate == "sum":
        return 1 / counts["completions"]
    assert longest is not None
    return 1 / (counts["completions"] * longest)


def _divergence(terms: Terms) -> Tensor:
    """[N] KL to the reference, as a term of the loss."""
    reference = _fact(terms.facts, "reference", terms.logprob)
    kl = ESTIMATORS[terms.values["kl_estimator"]](reference - terms.logprob)
    return kl * terms.ratio if terms.values["kl_weighted"] else kl


# --------------------------------------------------------------------------- methods of covariances


def _places(facts: Facts) -> Tensor:
    """[N] a number by which targets stand in the order of the global batch, however it is cut."""
    place = torch.zeros(facts.L, dtype=torch.int64, device=facts.leaf.device)
    members = torch.arange(facts.members.shape[1], device=place.device)
    place[facts.members] = (facts.numbers[:, None] << 32) + members
    return place[facts.leaf]


def _held(
    surrogate: str, values: Values, columns: list[Columns], facts: list[Facts]
) -> dict[int, Tensor]:
    """The targets of the global batch that are held back: those whose log-probability and advantage
    go together most, as they make the entropy fall.

    Clip-Cov draws them from those between its bounds; the draw is a function of the batch, so that
    a run that resumes draws the same. KL-Cov takes the largest.

    Returns: [N] bool of each forest, by the number of its first unit.
    """
    order = torch.cat([_places(f) for f in facts]).argsort(stable=True)
    old = torch.cat([f.targets["old_logprobs"] for f in facts])[order].double()
    advantages = torch.cat([f.targets["advantages"] for f in facts])[order].double()
    logprob = torch.cat([c.logprob for c in columns])[order].double()
    covariance = (advantages - advantages.mean()) * (logprob - logprob.mean())
    count = max(1, int(values["cov_share"] * len(order)))
    if surrogate == "kl_cov":
        top = covariance.argsort(descending=True, stable=True)[:count]
        chosen = top[(covariance[top] > 0) & (advantages[top] != 0)]
    else:
        ratio, (low, high) = (logprob - old).exp(), _bounds(surrogate, values)
        inside = (covariance > values["cov_low"]) & (covariance < values["cov_high"])
        inside &= ~((ratio < low) & (advantages < 0)) & ~((ratio > high) & (advantages > 0))
        candidates = inside.nonzero()[:, 0]
        draw = generator(zlib.crc32(old.cpu().numpy().tobytes()), "clip_cov")
        drawn = draw.permutation(len(candidates))[:count]
        chosen = candidates[torch.from_numpy(drawn).to(candidates.device)]
    held = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    held[order[chosen]] = True
    parts = held.split([f.N for f in facts])
    return {int(f.numbers[0]): part for f, part in zip(facts, parts, strict=True) if f.U}


# ---------------------------------------------------------------------------------------- the loss


def policy_gradient(
    algorithm: str,
    options: RlOptions,
    temperature: float,
    truncation: Truncation | None,
    *,
    longest: int | None = None,
) -> Loss:
    """The loss of an algorithm of `posttrain.methods.credit`.

    loss = Σ_n w_n·(c_n·surrogate_n + β·KL_n + w_V·value_n) − w_H·Σ_n H_n/targets;  w_n by
    `aggregate`, c_n the correction of the sampler

    Facts of targets: `advantages`, `old_logprobs`, and `sampled_logprobs` unless the correction is
    off; `reference` where the divergence is in the loss; `returns` and `old_values` of a value
    head. `staleness`, policy versions since sampling, is only shown. Units are groups.

    Args:
        algorithm: a name of `credit.ALGORITHMS`.
        options: its options; unset ones have its defaults.
        temperature: that the completions were sampled at.
        truncation: that they were sampled with.
        longest: tokens a completion may have: the denominator where `aggregate` is fixed.
    Returns: the loss. What it reports begins with `policy/`. It is additive over targets unless
        ratios are of sequences, or covariances of the batch.
    Raises:
        ConfigError: an unknown algorithm, an option it does not read, or no `longest`.

    >>> import torch
    >>> advantages, logs = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5]).log()
    >>> targets = dict(advantages=advantages, old_logprobs=logs, sampled_logprobs=logs)
    >>> both = torch.tensor([0, 1])
    >>> facts = Facts(both, L=2, members=both[None], numbers=torch.tensor([0]), targets=targets)
    >>> loss = policy_gradient("grpo", RlOptions(beta=0), 1.0, None)
    >>> columns = Columns(logprob=torch.tensor([0.6, 0.55]).log(), entropy=torch.zeros(2))
    >>> round(float(loss.loss(columns, facts, loss.counts(facts), None)), 4)  # (−1.2 + 1.1)/2
    -0.05
    """
    method = credit.algorithm(algorithm)
    values = method.values(options)
    if values["aggregate"] == "fixed" and not longest:
        raise ConfigError(
            "aggregate is fixed, and how long a completion may be is not known",
            cure="give longest, the limit of tokens a completion",
            option="aggregate",
        )
    objective = Objective(method, values, longest)
    read = Read(
        temperature=temperature,
        truncation=truncation,
        entropy="gradient" if values["entropy_weight"] else "value",
        value=method.value,
    )
    return Loss(
        objective.loss,
        read=read,
        counts=_counts,
        prepare=objective.prepare if objective.coupled else None,
        report=objective.report,
        additive=objective.additive,
    )


@dataclass(frozen=True)
class Objective:
    """The functions of a `Loss`, for an algorithm and its options; see `policy_gradient`."""

    method: credit.Algorithm
    values: Values
    longest: int | None

    @property
    def level(self) -> str:
        """What a ratio is of."""
        return self.values.get("importance", "token")

    @property
    def coupled(self) -> bool:
        """Whether it needs the covariances of the batch."""
        return self.method.surrogate in ("clip_cov", "kl_cov")

    @property
    def additive(self) -> bool:
        return self.level == "token" and self.method.surrogate in ("clipped", "weighed", "soft")

    def terms(self, columns: Columns, facts: Facts, statistics: Any) -> Terms:
        """What the surrogate reads."""
        return Terms(
            columns.logprob,
            _log_ratio(columns, facts, self.level),
            _fact(facts, "advantages", columns.logprob),
            self.values,
            facts,
            _of_forest(statistics, facts) if self.coupled else None,
        )

    def loss(self, columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        """Scalar, by the formula of `policy_gradient`."""
        values = self.values
        terms = self.terms(columns, facts, statistics)
        each = SURROGATES[self.method.surrogate](terms)
        if values["correction"] != "none":
            correction = _correction(facts, values["correction"], values["correction_cap"])
            each = each * correction.to(each.dtype)
        if values["kl_in"] == "loss" and values["beta"] > 0:
            each = each + values["beta"] * _divergence(terms)
        if self.method.value:
            each = each + values["value_weight"] * _value_loss(columns, facts, values)
        total = (each * _weights(facts, counts, values["aggregate"], self.longest)).sum()
        if values["entropy_weight"]:
            total = total - values["entropy_weight"] * columns.entropy.sum() / counts["targets"]
        return total

    def prepare(self, columns: list[Columns], facts: list[Facts]) -> dict[int, Tensor]:
        """What is held back; see `_held`."""
        return _held(self.method.surrogate, self.values, columns, facts)

    @torch.no_grad()
    def report(self, columns: Columns, facts: Facts, statistics: Any) -> dict[str, Tensor]:
        """What is watched; see `_report`."""
        return _report(self.terms(columns, facts, statistics), columns, self.method.surrogate)


def _counts(facts: Facts) -> dict[str, float]:
    """`targets` and `completions`, those without a token among them."""
    return {"targets": facts.N, "completions": facts.L}


def _of_forest(statistics: dict[int, Tensor], facts: Facts) -> Tensor:
    """[N] bool: what is held back of one forest."""
    if not facts.U:
        return torch.zeros(facts.N, dtype=torch.bool, device=facts.leaf.device)
    return statistics[int(facts.numbers[0])]


def _value_loss(columns: Columns, facts: Facts, values: Values) -> Tensor:
    old, returns = (_fact(facts, name, columns.value) for name in ("old_values", "returns"))
    errors = value_loss(columns.value, old, returns, values["clip_value"])
    return errors.to(columns.logprob.dtype)


def _report(terms: Terms, columns: Columns, surrogate: str) -> dict[str, Tensor]:
    """What is watched: [N] of targets, [L] of completions, by names under `policy/`.

    `clip_low` and `clip_high` are shares; `kl` is k3 to the reference, nats a token, and
    `kl_sequence` nats a completion; `mismatch` is |log π_old − log μ|, and `mismatch_k3` the KL of
    μ from π_old; `ratio_max` is the largest of a completion; `value_loss` is before its weight.
    """
    facts, targets = terms.facts, terms.facts.targets
    low, high = _bounds(surrogate, terms.values)
    ratio, up, down = terms.ratio, terms.advantages > 0, terms.advantages < 0
    largest = ratio.new_full((facts.L,), -torch.inf)
    largest.scatter_reduce_(0, facts.leaf, ratio, "amax")
    out = {
        "ratio": ratio,
        "ratio_max": largest[facts.lengths > 0],
        "clip_low": ((ratio < low) & down).to(ratio.dtype),
        "clip_high": ((ratio > high) & up).to(ratio.dtype),
        "entropy": columns.entropy.detach(),
    }
    if "reference" in targets:
        out["kl"] = k3(_fact(facts, "reference", columns.logprob) - columns.logprob)
        out["kl_sequence"] = facts.sums(out["kl"])
    if "sampled_logprobs" in targets:
        gap = targets["old_logprobs"] - targets["sampled_logprobs"]
        gap = gap[~gap.isnan()]
        out["mismatch"], out["mismatch_k3"] = gap.abs(), k3(gap)
    if "staleness" in targets:
        out["staleness"] = targets["staleness"]
    if "clip_value" in terms.values:
        out["value_loss"] = _value_loss(columns, facts, terms.values)
    return {f"policy/{name}": value for name, value in out.items()}
