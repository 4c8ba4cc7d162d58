"""Where the batches of a run come from.

Offline, rows in the order of a plan; online, a source samples, scores and gives credit. The loop
asks for the batch of a step and trains on it; it does not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from posttrain.data.forest import Tree, by_tree
from posttrain.data.plan import Plan
from posttrain.engine.learner import Learner
from posttrain.engine.policy import LogProbs

# trees → for each the values of its targets, sequence after sequence
TreeScores = Callable[[Many[Tree]], list[np.ndarray]]
Reference = Many[np.ndarray] | TreeScores  # stored by row, or computed when a batch is taken


@dataclass(frozen=True)
class Batch:
    """The global batch of a step.

    Attributes:
        trees: what is trained on, with all facts.
        probes: trees that are scored and not trained on; None where the method needs none.
        passes: times the batch is gone through (PPO's epochs over a rollout).
        parts: optimiser updates a pass.
        values: numbers of the batch for the log, by name: rewards, lengths.
    """

    trees: list[Tree]
    probes: list[Tree] | None = None
    passes: int = 1
    parts: int = 1
    values: Mapping[str, float] = field(default_factory=dict)


class Source(Protocol):
    """Gives the loop its batches.

    Attributes:
        steps_per_epoch: steps until every row was seen once; of a source without rows, any number
            of steps that validation should wait for.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, step: int) -> Batch:
        """The batch of a step, 0-based; called once for each step, in order."""
        ...

    def state(self) -> Any:
        """What `restore` needs, as JSON."""
        ...

    def restore(self, state: Any) -> None:
        """Stand where `state` was taken."""
        ...


@dataclass(frozen=True)
class Rows:
    """Rows as trees, and what a reference says of their targets.

    Attributes:
        trees: a tree for each row.
        reference: its log-probabilities; None for methods without one.
    """

    trees: Many[Tree]
    reference: Reference | None = None

    def __len__(self) -> int:
        return len(self.trees)

    def take(self, rows: Many[int]) -> list[Tree]:
        """Some rows, with the fact `reference` where there is one."""
        trees = [self.trees[i] for i in rows]
        if self.reference is None:
            return trees
        if callable(self.reference):
            values = self.reference(trees)
        else:
            values = [self.reference[i] for i in rows]
        pairs = zip(trees, values, strict=True)
        return [tree.with_targets("reference", np.asarray(v, np.float32)) for tree, v in pairs]


@dataclass
class Offline:
    """Rows in the order of a plan.

    Attributes:
        rows: what is trained on.
        plan: which rows make a batch.
        probes: a row of probes for every row, or None.
    """

    rows: Rows
    plan: Plan
    probes: Rows | None = field(default=None)

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def batch(self, step: int) -> Batch:
        return self.take(self.plan.next())

    def take(self, rows: Many[int]) -> Batch:
        """Some rows as a batch."""
        probes = None if self.probes is None else self.probes.take(rows)
        return Batch(self.rows.take(rows), probes)

    def state(self) -> Any:
        return self.plan.state()

    def restore(self, state: Any) -> None:
        self.plan.restore(state)


def tree_scores(learner: Learner, logprobs: LogProbs, budget: int) -> TreeScores:
    """Log-probabilities by tree.

    Args:
        learner: packs the trees.
        logprobs: of forests, by whatever model.
        budget: tokens a forward pass.
    """

    def scores(trees: Many[Tree]) -> list[np.ndarray]:
        packed = learner.pack(trees, budget)
        return by_tree(packed, logprobs(packed), trees)

    return scores
