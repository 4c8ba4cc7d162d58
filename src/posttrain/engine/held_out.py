"""Held-out loss with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.core.types import Read
from posttrain.data.forest import Tree
from posttrain.engine.policy import Policy

READ = Read(entropy="value", correct=True)
Progress = Callable[[int, int], None]  # called with how many of how many are done


@dataclass
class HeldLoss:
    """Held-out loss: nats per target, over all targets, and how sure that is.

    Attributes:
        loss: mean over targets. interval: half width of its 95 % interval, sequences being the
            units; None for one sequence.
        accuracy: share of targets that are the most likely token. entropy: mean, nats.
        sequences, targets: how many.
    """

    loss: float
    interval: float | None
    accuracy: float
    entropy: float
    sequences: int
    targets: int


def validate(
    policy: Policy, trees: Many[Tree], budget: int, progress: Progress = lambda done, total: None
) -> HeldLoss:
    """Held-out loss with a 95 % interval.

    The mean over targets is a ratio of sums over sequences, so its standard error is the delta
    method's: √(n/(n−1)·Σ_i (S_i − loss·N_i)²)/ΣN, S_i the summed loss and N_i the targets of
    sequence i.

    Args:
        budget: tokens a forward pass.
        progress: called with how many sequences of how many are scored.
    """
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    correct = entropy = 0.0
    packed = policy.pack(trees, budget)
    done, total = 0, sum(forest.L for forest in packed)
    progress(done, total)
    for forest in packed:
        (columns,) = policy.score([forest], READ)
        sums.append(forest.facts.sums(-columns.logprob.double().cpu()))
        counts.append(forest.facts.lengths.double())
        correct += float(columns.correct.sum())
        entropy += float(columns.entropy.sum())
        done += forest.L
        progress(done, total)
    s, n = torch.cat(sums), torch.cat(counts)
    targets, loss = float(n.sum()), float(s.sum() / n.sum())
    interval = None
    if len(s) > 1:
        squares = float(((s - loss * n) ** 2).sum())
        interval = 1.96 * math.sqrt(squares * len(s) / (len(s) - 1)) / targets
    return HeldLoss(loss, interval, correct / targets, entropy / targets, len(s), int(targets))
