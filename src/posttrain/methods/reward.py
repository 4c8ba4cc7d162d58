"""Losses of reward models: of whole answers, from pairs, and of the steps of an answer, from
labels.

A model may have K heads on one trunk, an ensemble. Each is trained as if alone, and the loss is the
mean of theirs; they differ by their first weights only. Where they disagree the reward is
uncertain, and where they agree it may still be wrong together,
since the trunk is shared. Left out: rewards as distributions, and regression on scores.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from posttrain.core.errors import ConfigError
from posttrain.core.ties import wins
from posttrain.core.types import Denominators, Facts, Loss, Rewards


def bradley_terry(center: float = 0.01) -> Loss:
    """The better answer should have the higher reward.

    loss = mean over heads of Σ_pairs (−log σ(r⁺ − r⁻ − m) + c·(r⁺ + r⁻)²) / (pairs of the global
    batch)

    Pairs tell only differences; the second term keeps rewards around 0. TRL leaves it out by
    default.

    Args:
        center: c; 0 leaves rewards where they drift.
    Returns: the loss of `Rewards` whose reward is [L, K]. Facts: `chosen`, `rejected` [P]; `margin`
        m [P] where rows have one. It reports rewards as the mean of the heads; with several heads
        also `uncertainty` [L], their standard deviation.
    Raises:
        ConfigError: center is below 0.
    Source: Ouyang et al. 2022, arXiv 2203.02155, equation 1; margin: Touvron et al. 2023 (Llama 2),
        arXiv 2307.09288, equation 2;
        center: Eisenstein et al. 2023, arXiv 2312.09244; ensembles: Coste et al. 2023, arXiv
            2310.02743.

    >>> import torch
    >>> rewards = Rewards(torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1]), sequences=2)
    >>> facts = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1])}
    >>> denominators = Denominators(targets=2, sequences=2, pairs=1)
    >>> round(float(bradley_terry(center=0).loss(rewards, facts, None, denominators)), 4)  # log 2
    0.6931
    """
    if not 0 <= center < math.inf:
        raise ConfigError(f"center is {center}", cure="it must be at least 0")

    def loss(scores: Rewards, facts: Facts, statistics: Any, denominators: Denominators) -> Tensor:
        chosen, rejected = scores.reward[facts["chosen"]], scores.reward[facts["rejected"]]
        apart = chosen - rejected
        if "margin" in facts:
            apart = apart - facts["margin"].to(apart.dtype)[:, None]
        each = -logsigmoid(apart) + center * (chosen + rejected).square()
        return each.mean(1).sum() / denominators.pairs

    return Loss(loss, report=_report_pairs, together=2)


@torch.no_grad()
def _report_pairs(scores: Rewards, facts: Facts, statistics: Any) -> dict[str, Tensor]:
    mean = scores.reward.mean(1)
    chosen, rejected = mean[facts["chosen"]], mean[facts["rejected"]]
    margins = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margins,
        "rewards/accuracies": wins(margins),
        **_uncertainty(scores),
    }


def process() -> Loss:
    """Is each step of an answer right?

    loss = mean over heads of Σ_n −(y_n·log σ(r_n) + (1 − y_n)·log σ(−r_n)) / (steps of the global
    batch)

    The targets are the tokens that end a step, so that a step of the batch is one of its targets.

    Returns: the loss of `Rewards` whose reward is [N, K]. Facts: `step_label` [N], 1 for right and
        0 for wrong, or a share of continuations that end well. It reports `accuracy` [N] of the
        heads' mean, and with several heads `uncertainty` [N].
    Source: Lightman et al. 2023, arXiv 2305.20050; shares as labels: Wang et al. 2023
        (Math-Shepherd), arXiv 2312.08935.
    """

    def loss(scores: Rewards, facts: Facts, statistics: Any, denominators: Denominators) -> Tensor:
        label = facts["step_label"].to(scores.reward.dtype)[:, None].expand_as(scores.reward)
        each = binary_cross_entropy_with_logits(scores.reward, label, reduction="none")
        return each.mean(1).sum() / denominators.targets

    return Loss(loss, report=_report_steps)


@torch.no_grad()
def _report_steps(scores: Rewards, facts: Facts, statistics: Any) -> dict[str, Tensor]:
    mean = scores.reward.mean(1)
    right = wins(mean * (facts["step_label"].to(mean.dtype) - 0.5))
    return {"accuracy": right, **_uncertainty(scores)}


def _uncertainty(scores: Rewards) -> dict[str, Tensor]:
    """Standard deviation over the heads, where there are several."""
    return {"uncertainty": scores.reward.std(1)} if scores.reward.shape[1] > 1 else {}
