"""Groups of settings that stages share. No torch here, so that help and validation are instant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from posttrain.core.settings import Needs, Settings


def _pattern(text: str) -> str:
    """A regular expression, as text."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


Share = Annotated[float, Field(ge=0, lt=1)]
Pattern = Annotated[str, AfterValidator(_pattern)]


@dataclass(frozen=True)
class UnsetRate:
    """Peak learning rates where none is given: of all weights, and of LoRA's adapters."""

    full: float
    lora: float

    def of(self, *, lora: bool) -> float:
        return self.lora if lora else self.full

    def __str__(self) -> str:
        full, lora = (
            f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-")
            for rate in (self.full, self.lora)
        )
        return f"unset: {full}, with LoRA {lora}"


Schedule = Annotated[
    Literal["linear", "cosine", "wsd", "constant"],
    Field(
        description=(
            "how the rate falls after warm-up; wsd stays at the peak, then falls over the last "
            "fifth"
        )
    ),
]
Warmup = Annotated[
    float, Field(ge=0, lt=1, description="share of the steps over which the rate rises from 0")
]


class OptimiserSettings(Settings):
    """AdamW and its learning-rate schedule."""

    unset_rate: ClassVar = UnsetRate(2e-5, lora=2e-4)

    learning_rate: float | None = Field(None, gt=0, description=f"peak learning rate; {unset_rate}")
    schedule: Schedule = "linear"
    warmup: Warmup = 0.03
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled decay of matrices; vectors are never decayed"
    )
    betas: tuple[Share, Share] = Field(
        (0.9, 0.999), description="Adam's averaging of gradient and square"
    )
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 never clips")
    groups: dict[Pattern, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="PATTERN=FACTOR on the rate of parameters whose name matches; 0 freezes them",
    )


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through peft."""

    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' input")
    targets: tuple[str, ...] = Field(
        (), description="modules to adapt; unset: every linear layer but the head"
    )


class CheckpointSettings(Settings):
    """When to write a checkpoint, and how many stay."""

    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; unset: every 5 minutes"
    )
    checkpoint_keep: int = Field(
        2, ge=1, description="newest checkpoints that stay, besides the best"
    )


class ValidationSettings(Settings):
    """Held-out loss during the run."""

    validate_every: Annotated[int | None, Needs("validation")] = Field(
        None, ge=1, description="steps between validations; unset: once an epoch"
    )
    patience: Annotated[int | None, Needs("validation")] = Field(
        None,
        ge=1,
        description="stop after this many validations without a better one; unset: never",
    )
    keep_best: Annotated[bool, Needs("validation")] = Field(
        True, description="export the step with the lowest held-out loss, not the last"
    )
