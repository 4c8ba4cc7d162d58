"""Supervised fine-tuning: from a base model and demonstrations to a model that follows them.

The run folder: `posttrain.stages.training`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver, open_reporter
from posttrain.core.events import Sink
from posttrain.core.settings import assemble
from posttrain.stages import training
from posttrain.stages.objectives.demonstrations import Demonstrations
from posttrain.stages.training import Outcome, TrainingSettings


class SftSettings(TrainingSettings):
    """Settings of supervised fine-tuning."""

    method: Literal["nll", "dft"] = Field(
        "nll", description="negative log-likelihood, or dynamic fine-tuning"
    )
    neftune: float = Field(
        0.0, ge=0, description="NEFTune noise on the embeddings, alpha; 0 is none, 5 is usual"
    )


def sft(*, quiet: bool = False, sinks: Iterable[Sink] = (), **settings: Any) -> Outcome:
    """Fine-tune a model on demonstrations, in one line.

    `posttrain.sft(model="path/to/base", data="train.jsonl", out="runs/first", learning_rate=1e-4)`

    Args:
        quiet: show nothing but trouble.
        sinks: functions called with every event of the run (`posttrain.core.events`).
        settings: the command line's options, with underscores (`posttrain sft --help`).
    Returns: the finished run.
    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    return run(
        assemble(SftSettings, training.flat(settings)), open_reporter(quiet=quiet, sinks=sinks)
    )


def run(settings: SftSettings, observer: ConsoleObserver) -> Outcome:
    """Run the stage, or continue it, or report that it is finished."""
    return training.run(settings, observer, Demonstrations(settings.method, settings.neftune))
