"""Learn to write what demonstrations, or documents, say."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import partial
from typing import TYPE_CHECKING, Any

from posttrain.core.events import Reporter
from posttrain.evals import stats
from posttrain.stages.dataset import Dataset
from posttrain.stages.objectives.objective import Setup

if TYPE_CHECKING:
    from posttrain.data.examples import Kind
    from posttrain.data.forest import Tree
    from posttrain.engine.learner import Learner
    from posttrain.engine.loop import Run


class Demonstrations:
    """Supervised learning.

    Args:
        method: of `posttrain.methods.supervised.METHODS`.
        noise: NEFTune's alpha.
    """

    learned: Kind = "demonstrations"
    separator = "\n"

    def __init__(self, method: str = "nll", noise: float = 0.0) -> None:
        self.method, self.noise = method, noise

    def load(self, settings: Any) -> Learner:
        from posttrain.engine.policy import Policy

        return Policy.load(
            settings.model, device=settings.device, lora=settings.lora, seed=settings.seed
        )

    def setup(
        self, settings: Any, learner: Any, data: dict[str, Dataset], budget: int, reporter: Reporter
    ) -> Setup:
        from posttrain.engine.source import Rows
        from posttrain.methods.supervised import METHODS, neftune

        held = data.get("held out")
        return Setup(
            METHODS[self.method],
            Rows(data["data"].trees),
            held_out=None if held is None else partial(_held_out, learner, held.trees, budget),
            noise=partial(neftune, alpha=self.noise) if self.noise else None,
        )

    def summary(self, run: Run) -> dict[str, Any]:
        return {}


def _held_out(
    learner: Any,
    trees: Many[Tree],
    budget: int,
    progress: Callable[[int, int], None],
    before: list[list[float]] | None,
) -> tuple[dict[str, Any], list[list[float]]]:
    """The loss on held-out rows with its interval, and its paired difference from before the first
    step. Sequences of one tree are not independent.

    Returns: and of every sequence its loss, nats, and its targets.
    """
    from posttrain.engine.held_out import validate

    found = validate(learner, trees, budget, progress)
    owners = [i for i, tree in enumerate(trees) for _ in tree]
    loss = stats.ratio(found.sums, found.counts, owners)
    values: dict[str, Any] = {
        "loss": loss.mean,
        "interval": None if loss.high is None else loss.high - loss.mean,
        "accuracy": found.accuracy,
        "entropy": found.entropy,
        "sequences": len(found.sums),
        "targets": sum(found.counts),
    }
    if before is not None:
        gaps = [now - then for now, (then, _) in zip(found.sums, before, strict=True)]
        values["difference"] = {"loss": stats.ratio(gaps, found.counts, owners).json()}
    rows = [[nats, float(count)] for nats, count in zip(found.sums, found.counts, strict=True)]
    return values, rows
