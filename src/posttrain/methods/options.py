"""The options of preference methods. Without torch, so that the command line answers at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from posttrain.core.settings import Settings

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class Options(Settings):
    """Options of preference methods. An unset one has the method's own default; one that no chosen
    method reads is an error.
    """

    beta: float | None = Field(
        None, gt=0, description="temperature: how near to stay to the reference; ORPO's weight"
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="share of the labels thought wrong: cDPO, robust, EXO, AOT, CPO",
    )
    f_divergence: Divergence | None = Field(
        None, description="divergence from the reference; unset: reverse_kl"
    )
    f_alpha: float | None = Field(None, description="of alpha_divergence; unset: 0.5")
    gamma: float | None = Field(
        None,
        ge=0,
        description="margin of rewards that is aimed at: SimPO, AlphaPO, TPO-L; unset: beta / 2",
    )
    alpha: float | None = Field(None, description="shape of AlphaPO's reward")
    # a token, of chosen answers (CPO, ORPO) or of gold ones (TPO)
    nll: float | None = Field(
        None, ge=0, description="weight of the likelihood of the answers to imitate: CPO, ORPO, TPO"
    )
    # WPO: arXiv 2406.11827, equation 2
    weighting: bool | None = Field(
        None, description="weigh pairs by how likely the policy would write them (WPO)"
    )
    # LD-DPO: arXiv 2409.06411
    ld_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description=(
            "weight of the tokens by which the longer answer of a pair is longer (LD-DPO); 1 is off"
        ),
    )
    desirable: float | None = Field(None, ge=0, description="weight of good answers: KTO, BCO")
    undesirable: float | None = Field(None, ge=0, description="weight of bad answers: KTO, BCO")
    tau: float | None = Field(None, gt=0, description="temperature of DiscoPOP's blend")

    def given(self) -> dict[str, Any]:
        """Those that are set."""
        return self.model_dump(exclude_none=True)
