"""Preference optimisation: a model learns which of two answers is better, or that an answer is good
or bad. The run folder: `posttrain.stages.training`.

The reference is the model that training starts from, or another. Its log-probabilities are

    stored     computed once before the first step and kept: no second model in memory, and nothing
               to compute again
    copy       computed in every step by a frozen copy
    adapters   computed in every step by the model itself, its adapters off
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver, open_reporter
from posttrain.core.events import Sink
from posttrain.core.settings import Settings, assemble
from posttrain.engine.settings import OptimiserSettings
from posttrain.stages import dataset, training
from posttrain.stages.training import Outcome, TrainingSettings

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

    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate; unset: 1e-6, with LoRA 1e-5"
    )


class MethodOptions(Settings):
    """What methods can be told. Unset is the method's own default; what the method does not read is
    an error.
    """

    beta: float | None = Field(
        None, description="temperature: how near to stay to the reference; ORPO's weight"
    )
    label_smoothing: float | None = Field(
        None, description="share of the labels thought wrong: cDPO, robust, EXO, AOT, CPO"
    )
    f_divergence: (
        Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] | None
    ) = Field(None, description="divergence from the reference; unset: reverse_kl")
    f_alpha: float | None = Field(None, description="of alpha_divergence; unset: 0.5")
    gamma: float | None = Field(
        None,
        description="margin of rewards that is aimed at: SimPO, AlphaPO, TPO-L; unset: beta / 2",
    )
    alpha: float | None = Field(None, description="shape of AlphaPO's reward")
    nll: float | None = Field(
        None, description="weight of the likelihood of the answers to imitate: CPO, ORPO, TPO"
    )
    weighting: bool | None = Field(
        None, description="weigh pairs by how likely the policy would write them (WPO)"
    )
    ld_alpha: float | None = Field(
        None,
        description=(
            "weight of the tokens by which the longer answer of a pair is longer (LD-DPO); 1 is off"
        ),
    )
    desirable: float | None = Field(None, description="weight of good answers: KTO, BCO")
    undesirable: float | None = Field(None, description="weight of bad answers: KTO, BCO")
    tau: float | None = Field(None, description="temperature of DiscoPOP's blend")


class PreferenceSettings(TrainingSettings):
    """Settings of preference optimisation."""

    elsewhere: ClassVar[frozenset[str]] = frozenset({"reference_cache", "reference_model"})

    epochs: float = Field(1.0, gt=0, description="passes over the data")
    batch_size: int = Field(
        8, ge=1, description="rows an optimiser step: pairs, or answers with a label"
    )
    method: MethodName = Field(
        "dpo",
        description="what is optimised; docs/explanation/preference-losses.md has the formulas",
    )
    mix: dict[str, float] = Field(
        default_factory=dict,
        description=(
            "METHOD=WEIGHT of a weighted sum, in the place of --method: dpo=1 sft=0.2 is RPO"
        ),
    )
    options: MethodOptions = MethodOptions()  # type: ignore[call-arg]
    reference: Literal["", "stored", "copy", "adapters"] = Field(
        "",
        description=(
            "where the reference's log-probabilities come from; unset: adapters with --lora, else"
            " stored"
        ),
    )
    reference_model: str | None = Field(
        None, description="model to stay near to; unset: the one that training starts from"
    )
    reference_cache: Path | None = Field(
        None,
        description=(
            "folder where stored log-probabilities outlive the run; unset: in the run's folder"
            " while it lasts"
        ),
    )
    answered: int = Field(
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


def preference(*, quiet: bool = False, sinks: Iterable[Sink] = (), **settings: Any) -> Outcome:
    """Optimise a model for preferences, in one line.

    `posttrain.preference(model="runs/sft/model", data="pairs.jsonl", out="runs/dpo", beta=0.1)`

    Args:
        quiet: show nothing but trouble.
        sinks: functions called with every event of the run (`posttrain.core.events`).
        settings: the command line's options, with underscores (`posttrain preference --help`).
    Returns: the finished run.
    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    return run(
        assemble(PreferenceSettings, training.flat(settings)),
        open_reporter(quiet=quiet, sinks=sinks),
    )


def run(settings: PreferenceSettings, observer: ConsoleObserver) -> Outcome:
    """Run the stage, or continue it, or report that it is finished."""
    if settings.optimiser.learning_rate is None:
        chosen = settings.optimiser.model_copy(
            update={"learning_rate": 1e-5 if settings.lora else 1e-6}
        )
        settings = settings.model_copy(update={"optimiser": chosen})
    dataset.peek(settings.data)
    from posttrain.stages.objectives.preferences import Preferences

    return training.run(settings, observer, Preferences(settings))
