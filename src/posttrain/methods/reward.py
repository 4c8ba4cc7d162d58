"""Losses of reward models: of whole answers, from pairs, and of the steps of an answer, from
labels.

A model may have K heads on one trunk, an ensemble. Each is trained as if alone, and the loss is the
mean of theirs; they differ by their first weights only. Where they disagree the reward is
uncertain, and where they agree it may still be wrong together, since the trunk is shared. Left
out: rewards as distributions, and regression on scores.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from posttrain.core.errors import ConfigError
from posttrain.core.ties import wins
from posttrain.core.types import Columns, Counts, Facts, Loss, Read
from posttrain.methods.answers import CHOSEN, REJECTED


def bradley_terry(center: float = 0.01) -> Loss:
    """The better answer should have the higher reward.

    loss = mean over heads of Σ_pairs (−log σ(r⁺ − r⁻ − m) + c·(r⁺ + r⁻)²) / (pairs of the global
    batch)

    Pairs tell only differences; the second term keeps rewards around 0. TRL leaves it out by
    default.

    Args:
        center: c; 0 leaves rewards where they drift.
    Returns: the loss of a reward [L, K]. Facts: units of two members (chosen, rejected); their fact
        `margin` m where rows have one. It reports rewards as the mean of the heads; with several
        heads also `uncertainty` [L], their standard deviation.
    Raises:
        ConfigError: center is below 0.
    Source: Ouyang et al. 2022, arXiv 2203.02155, equation 1; margin: Touvron et al. 2023 (Llama 2),
        arXiv 2307.09288, equation 2; center: Eisenstein et al. 2023, arXiv 2312.09244; ensembles:
        Coste et al. 2023, arXiv 2310.02743.

    >>> import torch
    >>> leaf, units = torch.tensor([0, 1]), torch.tensor([[0, 1]])
    >>> facts = Facts(leaf, L=2, members=units, numbers=torch.tensor([0]))
    >>> method = bradley_terry(center=0)
    >>> columns = Columns(reward=torch.tensor([[1.0], [1.0]]))
    >>> round(float(method.loss(columns, facts, method.counts(facts), None)), 4)  # log 2
    0.6931
    """
    if not 0 <= center < math.inf:
        raise ConfigError(f"center is {center}", cure="it must be at least 0")

    def loss(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        chosen = columns.reward[facts.members[:, CHOSEN]]
        rejected = columns.reward[facts.members[:, REJECTED]]
        gap = chosen - rejected
        if "margin" in facts.units:
            gap = gap - facts.units["margin"].to(gap.dtype)[:, None]
        losses = -logsigmoid(gap) + center * (chosen + rejected).square()
        return losses.mean(1).sum() / counts["pairs"]

    def pairs(facts: Facts) -> dict[str, float]:
        return {"pairs": facts.U}

    read = Read(logprob=False, reward="sequences")
    return Loss(loss, read=read, counts=pairs, report=_report_pairs)


@torch.no_grad()
def _report_pairs(columns: Columns, facts: Facts, statistics: Any) -> dict[str, Tensor]:
    mean = columns.reward.mean(1)
    chosen, rejected = mean[facts.members[:, CHOSEN]], mean[facts.members[:, REJECTED]]
    margins = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margins,
        "rewards/accuracies": wins(margins),
        **_uncertainty(columns),
    }


def process() -> Loss:
    """Is each step of an answer right?

    loss = mean over heads of Σ_n −(y_n·log σ(r_n) + (1 − y_n)·log σ(−r_n)) / (steps of the global
    batch)

    The targets are the tokens that end a step, so that a step of the batch is one of its targets.

    Returns: the loss of a reward [N, K]. The fact `step_label` of every target is 1 for right and 0
        for wrong, or a share of continuations that end well. It reports `accuracy` [N] and
        `reward` [N] of the heads' mean, and with several heads `uncertainty` [N].
    Source: Lightman et al. 2023, arXiv 2305.20050; shares as labels: Wang et al. 2023
        (Math-Shepherd), arXiv 2312.08935.
    """

    def loss(columns: Columns, facts: Facts, counts: Counts, statistics: Any) -> Tensor:
        label = facts.targets["step_label"].to(columns.reward.dtype)[:, None]
        label = label.expand_as(columns.reward)
        losses = binary_cross_entropy_with_logits(columns.reward, label, reduction="none")
        return losses.mean(1).sum() / counts["targets"]

    return Loss(loss, read=Read(logprob=False, reward="targets"), report=_report_steps)


@torch.no_grad()
def _report_steps(columns: Columns, facts: Facts, statistics: Any) -> dict[str, Tensor]:
    mean = columns.reward.mean(1)
    right = wins(mean * (facts.targets["step_label"].to(mean.dtype) - 0.5))
    return {"accuracy": right, "reward": mean, **_uncertainty(columns)}


def _uncertainty(columns: Columns) -> dict[str, Tensor]:
    """Standard deviation over the heads, where there are several."""
    return {"uncertainty": columns.reward.std(1)} if columns.reward.shape[1] > 1 else {}
