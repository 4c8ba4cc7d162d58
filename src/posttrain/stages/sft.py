"""Supervised fine-tuning: from a base model and demonstrations to a model that follows them.

The run folder: `posttrain.stages.training`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from posttrain.stages import training
from posttrain.stages.objectives.demonstrations import Demonstrations
from posttrain.stages.stage import Context, stage
from posttrain.stages.training import FILES, MAKES, TrainingSettings


class SftSettings(TrainingSettings):
    """Settings of supervised fine-tuning."""

    method: Literal["nll", "dft"] = Field(
        "nll", description="negative log-likelihood, or dynamic fine-tuning"
    )
    neftune: float = Field(
        0.0, ge=0, description="NEFTune noise on the embeddings, alpha; 0 is none, 5 is usual"
    )


@stage("sft", SftSettings, help="fine-tune a model on demonstrations", makes=MAKES, files=FILES)
def sft(settings: SftSettings, context: Context) -> dict[str, Any]:
    """Fine-tune a model on demonstrations. Killed at any moment, the same command goes on where it
    was and ends with the same weights.
    """
    return training.train(settings, context, Demonstrations(settings.method, settings.neftune))
