"""Domain adaptation: the base model reads raw text of a domain, with some of what it read before so
that it forgets less.

The learning rate is warmed up again and falls again (Ibrahim et al. 2024, arXiv 2403.08763). The
run folder: `posttrain.stages.training`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from posttrain.core.errors import ConfigError
from posttrain.core.settings import Needs, Unless
from posttrain.data.settings import Rows, Source
from posttrain.engine.settings import OptimiserSettings, Schedule, Warmup
from posttrain.stages import dataset, training
from posttrain.stages.objectives.demonstrations import Demonstrations
from posttrain.stages.stage import Context, stage
from posttrain.stages.training import FILES, MAKES, TrainingSettings


class AdaptOptimiser(OptimiserSettings):
    """AdamW, with what suits raw text."""

    learning_rate: float | None = Field(
        1e-4, gt=0, description="peak learning rate, to which the rate is warmed up again"
    )
    schedule: Schedule = "cosine"
    warmup: Warmup = 0.05


def _plain(sources: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replay takes its share from `replay_share`, so its sources have none of their own."""
    if odd := next(
        (s for s in sources if s.share is not None or s.weight is not None or s.epochs != 1), None
    ):
        raise ConfigError(
            f"--replay {odd} has a share, weight or epochs of its own", cure="give --replay-share"
        )
    return sources


class AdaptSettings(TrainingSettings):
    """Settings of domain adaptation."""

    epochs: Annotated[float, Unless("steps")] = Field(1.0, gt=0, description="passes over the data")
    replay: Annotated[Rows, AfterValidator(_plain)] = Field(
        (),
        description=(
            "text of the kind the model was made with, mixed in against forgetting; given like "
            "--data"
        ),
    )
    replay_share: Annotated[float, Needs("replay")] = Field(
        0.1, gt=0, lt=1, description="share of an epoch's rows that are replay"
    )
    optimiser: AdaptOptimiser = AdaptOptimiser()  # type: ignore[call-arg]

    def check(self) -> None:
        dataset.peek(self.data.model_copy(update={"data": self.sources}))

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is trained on: the domain's sources, and replay with its share of an epoch."""
        share = self.replay_share / max(1, len(self.replay))
        return self.data.data + tuple(
            source.model_copy(update={"share": share}) for source in self.replay
        )


@stage(
    "adapt", AdaptSettings, help="let a model read the text of a domain", makes=MAKES, files=FILES
)
def adapt(settings: AdaptSettings, context: Context) -> dict[str, Any]:
    """Adapt a model to the text of a domain, with replay against forgetting. Killed at any moment,
    the same command goes on where it was.
    """
    if settings.replay:
        data = settings.data.model_copy(update={"data": settings.sources})
        settings = settings.model_copy(update={"data": data, "replay": ()})
    return training.train(settings, context, Demonstrations())
