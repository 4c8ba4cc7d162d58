"""Preference optimisation: a model learns which of two answers is better, or that an answer is good
or bad. The run folder: `posttrain.stages.training`.

What is learned, and where the reference comes from: `posttrain.stages.objectives.preferences`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from posttrain.core.settings import ExecutionOnly, Needs, ReadsModel, Unless
from posttrain.engine.settings import OptimiserSettings, UnsetRate
from posttrain.methods.options import Options
from posttrain.stages import training
from posttrain.stages.objectives.preferences import Preferences
from posttrain.stages.stage import Context, stage
from posttrain.stages.training import FILES, MAKES, TrainingSettings

MethodName = Literal[
    "dpo",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
    "simpo",
    "alphapo",
    "cpo",
    "orpo",
    "tpo",
    "tpo_l",
    "kto",
    "bco",
    "apo_zero_unpaired",
]


class PreferenceOptimiser(OptimiserSettings):
    """AdamW, with what suits preferences."""

    unset_rate: ClassVar = UnsetRate(1e-6, lora=1e-5)

    learning_rate: float | None = Field(None, gt=0, description=f"peak learning rate; {unset_rate}")


class PreferenceSettings(TrainingSettings):
    """Settings of preference optimisation."""

    epochs: Annotated[float, Unless("steps")] = Field(1.0, gt=0, description="passes over the data")
    batch_size: int = Field(
        8, ge=1, description="rows an optimiser step: pairs, or answers with a label"
    )
    method: Annotated[MethodName, Unless("mix")] = Field(
        "dpo",
        description="what is optimised; docs/explanation/preference-losses.md has the formulas",
    )
    mix: dict[str, float] = Field(
        default_factory=dict,
        description=(
            "METHOD=WEIGHT of a weighted sum, in the place of --method: dpo=1 sft=0.2 is RPO"
        ),
    )
    options: Options = Options()  # type: ignore[call-arg]
    reference: Literal["", "stored", "copy", "adapters"] = Field(
        "",
        description=(
            "where the reference's log-probabilities come from; unset: adapters with --lora, else "
            "stored"
        ),
    )
    reference_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="model to stay near to; unset: the one that training starts from"
    )
    reference_cache: Annotated[Path | None, ExecutionOnly()] = Field(
        None,
        description=(
            "folder where stored log-probabilities outlive the run; unset: in the run's folder "
            "while it lasts"
        ),
    )
    answered: Annotated[int, Needs("validation")] = Field(
        8,
        ge=0,
        description=(
            "held-out prompts that are answered at every validation, to see whether answers "
            "become longer or shorter; 0 is none"
        ),
    )
    optimiser: PreferenceOptimiser = PreferenceOptimiser()  # type: ignore[call-arg]

    @property
    def mixture(self) -> dict[str, float]:
        """Weights of methods by name."""
        return dict(self.mix) or {self.method: 1.0}

    def check(self) -> None:
        super().check()
        Preferences(self)


@stage(
    "preference",
    PreferenceSettings,
    help="let a model learn which answers are better: DPO and its family, KTO, ORPO, …",
    makes=MAKES,
    files=FILES,
)
def preference(settings: PreferenceSettings, context: Context) -> dict[str, Any]:
    """Let a model learn which of two answers is better (DPO and its family), or that an answer is
    good or bad (KTO, BCO). Killed at any moment, the same command goes on where it was and ends
    with the same weights.
    """
    reference = context.inputs.models.get("reference_model")
    return training.train(settings, context, Preferences(settings, reference))
