"""The options of learning from reward. Without torch, so that the command line answers at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from posttrain.core.settings import Settings

AlgorithmName = Literal[
    "ppo",
    "reinforce",
    "rloo",
    "reinforce_pp",
    "remax",
    "grpo",
    "dr_grpo",
    "dapo",
    "bnpo",
    "gspo",
    "cispo",
    "sapo",
    "gmpo",
    "clip_cov",
    "kl_cov",
]
Importance = Literal["token", "sequence", "product"]
Aggregate = Literal["sequence", "token", "fixed", "sum"]


class RlOptions(Settings):
    """Options of learning from reward. An unset one has the algorithm's own default; one that the
    algorithm does not read is an error.
    """

    # how far an update may go
    clip_low: float | None = Field(None, ge=0, description="how far a ratio may fall below 1")
    clip_high: float | None = Field(
        None, ge=0, description="how far it may rise; CISPO, REINFORCE, ReMax: the largest ratio"
    )
    clip_largest: float | None = Field(
        None, gt=1, description="largest ratio of tokens with an advantage below 0; unset: none"
    )
    importance: Importance | None = Field(
        None, description="ratios of tokens, of sequences a token, or of whole sequences"
    )
    aggregate: Aggregate | None = Field(
        None, description="means of completions, mean of tokens, sums / longest length, or sums"
    )
    sapo_positive: float | None = Field(
        None, gt=0, description="temperature of SAPO's gate where the advantage is above 0"
    )
    sapo_negative: float | None = Field(None, gt=0, description="the same elsewhere")
    cov_share: float | None = Field(
        None, gt=0, le=1, description="share of tokens that Clip-Cov and KL-Cov hold back"
    )
    cov_low: float | None = Field(None, description="least covariance that Clip-Cov holds back")
    cov_high: float | None = Field(None, description="largest covariance that Clip-Cov holds back")
    cov_weight: float | None = Field(None, ge=0, description="weight of KL-Cov's penalty")
    entropy_weight: float | None = Field(None, ge=0, description="weight of the entropy bonus")
    # staying near the reference
    beta: float | None = Field(
        None, ge=0, description="weight of the KL divergence from the reference; 0 needs none"
    )
    kl_in: Literal["reward", "loss"] | None = Field(None, description="where the divergence enters")
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="of the divergence; unset: k1 in the reward, k3 in the loss"
    )
    kl_weighted: bool | None = Field(
        None, description="weigh the loss's divergence by the ratio: its gradient is then unbiased"
    )
    kl_target: float | None = Field(
        None, gt=0, description="nats a completion that beta adapts to; unset: beta is fixed"
    )
    kl_horizon: float | None = Field(None, gt=0, description="completions over which beta adapts")
    max_kl: float | None = Field(
        None, gt=0, description="nats a completion at which the run stops; unset: it warns at 10"
    )
    # credit
    gamma: float | None = Field(None, ge=0, le=1, description="discount a token")
    gae_lambda: float | None = Field(
        None, ge=0, le=1, description="of generalised advantages; at 1 values are baselines only"
    )
    scale: Literal["group", "batch", "none"] | None = Field(
        None, description="whose standard deviation advantages are divided by"
    )
    overlong_buffer: int | None = Field(
        None, gt=0, description="last tokens allowed, over which the reward falls by 1; unset: off"
    )
    mask_unfinished: bool | None = Field(
        None, description="give completions that were cut off no credit; others compare with them"
    )
    # the value head
    value_weight: float | None = Field(None, ge=0, description="weight of the value head's loss")
    clip_value: float | None = Field(None, gt=0, description="how far an update may move a value")
    # the sampler is not the trainer
    correction: Literal["none", "token", "sequence"] | None = Field(
        None, description="importance weights of the trainer's policy against the sampler's"
    )
    correction_cap: float | None = Field(None, gt=0, description="largest of these weights")

    def given(self) -> dict[str, Any]:
        """Those that are set."""
        return self.model_dump(exclude_none=True)
