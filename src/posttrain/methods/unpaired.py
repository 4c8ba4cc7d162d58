"""Losses of single answers that are good or bad.

Each takes the answers of a forest and gives one number an answer.

Notation as in `posttrain.methods.pairwise`. The arguments of a function after the first are the
options its method reads, with the method's defaults. Left out: BCO's weights against a shift
between the prompts of good and of bad answers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.methods.answers import Labelled


def mismatched(probes: Labelled) -> Tensor:
    """KTO's z: the mean log-ratio of answers to prompts that are not their own, at least 0.

    Estimates the KL divergence.

    Probes that are cut so short that nothing of the answer is left do not count.
    """
    return (probes.answers.ratio.sum() / (probes.answers.length > 0).sum().clamp(min=1)).clamp(
        min=0
    )


def middle(batch: Labelled) -> Tensor:
    """BCO's shift δ/β: between the mean log-ratio of good answers and that of bad ones; of one kind
    alone, its mean.

    Of this global batch alone. The paper keeps a running average; that would make a step depend on
    those before it.
    """
    assert batch.good is not None
    kinds = [batch.answers.ratio[kind] for kind in (batch.good, ~batch.good)]
    return torch.stack([kind.mean() for kind in kinds if len(kind)]).mean()


def kto(
    labelled: Labelled, *, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """Kahneman-Tversky optimisation: value gained or lost against a reference point.

    good: λ_d·(1 − σ(β(r − z))),  bad: λ_u·(1 − σ(β(z − r)));
    z = max(0, mean of r over mismatched answers), without a gradient.

    Source: Ethayarajh et al. 2024, arXiv 2402.01306.
    """
    return labelled.weighed((-beta * labelled.advance).sigmoid(), desirable, undesirable)


def bco(
    labelled: Labelled, *, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """Binary classifier optimisation: is an answer good, judged by its reward?

    good: −log σ(βr − δ),  bad: −log σ(δ − βr),  δ = (mean of βr over good + mean over bad)/2, fixed

    Source: Jung et al. 2024, arXiv 2404.04656.
    """
    return labelled.weighed(-logsigmoid(beta * labelled.advance), desirable, undesirable)


def apo_zero_unpaired(
    labelled: Labelled, *, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """Anchored preference optimisation of single answers: KTO with its reference point at 0.

    good: 1 − σ(βr),  bad: σ(βr)

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7, its two halves apart.
    """
    return labelled.weighed((-beta * labelled.advance).sigmoid(), desirable, undesirable)
