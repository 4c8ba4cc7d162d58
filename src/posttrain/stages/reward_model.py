"""Reward models: what an answer is worth, learned from pairs of answers, or from labels of an
answer's steps. The run folder: `posttrain.stages.training`; `model/` is a sequence-classification
folder, of a process model a token-classification folder.

A reward model is measured on held-out rows, compared with content-blind baselines, and its
confidence against how often it is right.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from posttrain.core.settings import Unless
from posttrain.engine.settings import OptimiserSettings, Pattern, UnsetRate
from posttrain.stages import training
from posttrain.stages.objectives.rewards import Rewards
from posttrain.stages.stage import Context, stage
from posttrain.stages.training import FILES, MAKES, TrainingSettings

HEAD = r"^(score|classifier)\."  # the head's parameters by name
HEAD_FACTOR = 10.0  # on the learning rate: the head is new, the trunk is not


class RewardOptimiser(OptimiserSettings):
    """AdamW, with what suits reward models."""

    unset_rate: ClassVar = UnsetRate(1e-5, lora=1e-4)

    learning_rate: float | None = Field(None, gt=0, description=f"peak learning rate; {unset_rate}")
    groups: dict[Pattern, float] = Field(
        default_factory=dict,
        description=(
            "PATTERN=FACTOR on the rate of parameters whose name matches; 0 freezes them. "
            "Unset: 10 for the head, with LoRA 1"
        ),
    )


class RewardModelSettings(TrainingSettings):
    """Settings of a reward model."""

    epochs: Annotated[float, Unless("steps")] = Field(1.0, gt=0, description="passes over the data")
    batch_size: int = Field(
        8, ge=1, description="rows an optimiser step: pairs, or answers in steps"
    )
    method: Literal["bradley_terry", "process"] = Field(
        "bradley_terry",
        description="learn which of two answers is better, or which steps of an answer are right",
    )
    center: float | None = Field(
        None, ge=0, description="weight of what keeps rewards around 0, of pairs; unset: 0.01"
    )
    heads: int | None = Field(
        None,
        ge=1,
        description=(
            "rewards on one trunk, an ensemble: where they disagree it is uncertain; unset: 1"
        ),
    )
    use_margins: bool = Field(
        False, description="ask for at least the margin that the rows' column of that name says"
    )
    separator: str | None = Field(
        None, min_length=1, description="put after every step of an answer; unset: a line break"
    )
    optimiser: RewardOptimiser = RewardOptimiser()  # type: ignore[call-arg]

    def resolved(self) -> Self:
        """With a faster head, which is new, over a trunk whose weights are all trained."""
        settings = super().resolved()
        if settings.optimiser.groups or settings.lora:
            return settings
        faster = settings.optimiser.model_copy(update={"groups": {HEAD: HEAD_FACTOR}})
        return settings.model_copy(update={"optimiser": faster})

    def check(self) -> None:
        super().check()
        Rewards(self)


@stage(
    "reward_model",
    RewardModelSettings,
    help="train a model that says what an answer is worth",
    makes=MAKES,
    files=FILES,
)
def reward_model(settings: RewardModelSettings, context: Context) -> dict[str, Any]:
    """Train a model that says what an answer is worth, from pairs of answers (Bradley–Terry) or
    from labels of steps. Killed at any moment, the same command goes on where it was and ends with
    the same weights.
    """
    return training.train(settings, context, Rewards(settings))
