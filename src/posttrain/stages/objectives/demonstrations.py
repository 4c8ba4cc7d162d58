"""Learn to write what demonstrations, or documents, say."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from posttrain.core.events import Reporter
from posttrain.stages.dataset import Dataset
from posttrain.stages.objectives.objective import Setup

if TYPE_CHECKING:
    from posttrain.data.examples import Kind
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
        from posttrain.engine.held_out import Progress, validate
        from posttrain.engine.source import Rows
        from posttrain.methods.supervised import METHODS, neftune

        held = data.get("held out")

        def held_out(progress: Progress) -> dict[str, Any]:
            assert held is not None
            return vars(validate(learner, held.trees, budget, progress))

        return Setup(
            METHODS[self.method],
            Rows(data["data"].trees),
            held_out=held_out if held is not None else None,
            noise=partial(neftune, alpha=self.noise) if self.noise else None,
        )

    def summary(self, run: Run) -> dict[str, Any]:
        return {}
