"""Reward models: what an answer is worth, learned from pairs of answers, or from labels of an
answer's steps. The run folder: `posttrain.stages.training`; `model/` is a sequence-classification
folder, of a process model a token-classification folder.

A reward model is measured on held-out rows beside judges that read nothing, and its confidence
against how often it is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver, open_reporter
from posttrain.core.events import Sink
from posttrain.core.settings import assemble
from posttrain.engine.settings import OptimiserSettings, Pattern
from posttrain.stages import dataset, training
from posttrain.stages.training import Outcome, TrainingSettings

if TYPE_CHECKING:
    pass

HEAD = r"^(score|classifier)\."  # the head's parameters by name
HEAD_FACTOR = 10.0  # on the learning rate: the head is new, the trunk is not


class RewardOptimiser(OptimiserSettings):
    """AdamW, with what suits reward models."""

    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate; unset: 1e-5, with LoRA 1e-4"
    )
    groups: dict[Pattern, float] = Field(
        default_factory=dict,
        description=(
            "PATTERN=FACTOR on the rate of parameters whose name matches; 0 freezes them. "
            "Unset: 10 for the head, with LoRA 1"
        ),
    )


class RewardModelSettings(TrainingSettings):
    """Settings of a reward model."""

    epochs: float = Field(1.0, gt=0, description="passes over the data")
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


def reward_model(*, quiet: bool = False, sinks: Iterable[Sink] = (), **settings: Any) -> Outcome:
    """Train a reward model, in one line.

    `posttrain.reward_model(model="runs/sft/model", data="pairs.jsonl", out="runs/rm")`

    Args:
        quiet: show nothing but trouble.
        sinks: functions called with every event of the run (`posttrain.core.events`).
        settings: the command line's options, with underscores (`posttrain reward-model --help`).
    Returns: the finished run.
    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    return run(
        assemble(RewardModelSettings, training.flat(settings)),
        open_reporter(quiet=quiet, sinks=sinks),
    )


def run(settings: RewardModelSettings, observer: ConsoleObserver) -> Outcome:
    """Run the stage, or continue it, or report that it is finished."""
    chosen: dict[str, Any] = {}
    if settings.optimiser.learning_rate is None:
        chosen["learning_rate"] = 1e-4 if settings.lora else 1e-5
    if not settings.optimiser.groups and not settings.lora:
        chosen["groups"] = {HEAD: HEAD_FACTOR}
    settings = settings.model_copy(
        update={"optimiser": settings.optimiser.model_copy(update=chosen)}
    )
    dataset.peek(settings.data)
    from posttrain.stages.objectives.rewards import Rewards

    return training.run(settings, observer, Rewards(settings))
