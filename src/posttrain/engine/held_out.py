"""Held-out loss, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from posttrain.core.types import Read
from posttrain.data.forest import Tree
from posttrain.engine.policy import Policy

READ = Read(entropy="value", correct=True)
Progress = Callable[[int, int], None]  # called with how many of how many are done


@dataclass(frozen=True)
class HeldLoss:
    """Held-out loss: nats a target, over all targets.

    Attributes:
        accuracy: share of targets that are the most likely token. entropy: mean, nats.
        sums: of every sequence, in the order of the trees, its loss, nats. counts: its targets.
    """

    accuracy: float
    entropy: float
    sums: list[float]
    counts: list[int]


def validate(
    policy: Policy, trees: Many[Tree], budget: int, progress: Progress = lambda done, total: None
) -> HeldLoss:
    """The held-out loss of every sequence, and what else one pass over them tells.

    Args:
        budget: tokens a forward pass.
        progress: called with how many sequences of how many are scored.
    """
    correct = entropy = 0.0
    packed = policy.pack(trees, budget)
    done, total = 0, sum(forest.L for forest in packed)
    sums, counts = [0.0] * total, [0] * total
    progress(done, total)
    for forest in packed:
        (columns,) = policy.score([forest], READ)
        of_forest = forest.facts.sums(-columns.logprob.double().cpu()).tolist()
        lengths = forest.facts.lengths.tolist()
        # in the order of the trees, which does not depend on the budget
        for number, nats, length in zip(forest.sequence.tolist(), of_forest, lengths, strict=True):
            sums[number], counts[number] = nats, length
        correct += float(columns.correct.sum())
        entropy += float(columns.entropy.sum())
        done += forest.L
        progress(done, total)
    targets = sum(counts)
    return HeldLoss(correct / targets, entropy / targets, sums, counts)
