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
Estimator = Literal["k1", "k2", "k3"]


class RlOptions(Settings):
    """Options of learning from reward. An unset one has the algorithm's own default; one that the
    algorithm does not read is an error.
    """

    # how far one update may go
    clip_low: float | None = Field(
        None, ge=0, description="how far a ratio may fall below 1; GMPO's is of the log-ratio"
    )
    clip_high: float | None = Field(
        None,
        ge=0,
        description=(
            "how far a ratio may rise above 1; GMPO's is of the log-ratio; of CISPO, REINFORCE and"
            " ReMax the largest ratio itself"
        ),
    )
    clip_largest: float | None = Field(
        None, gt=1, description="largest ratio where the advantage is below 0 (two-sided clipping)"
    )
    importance: Literal["token", "sequence", "product"] | None = Field(
        None,
        description=(
            "ratio of a token, of its sequence a token (geometric mean), or of its whole sequence"
        ),
    )
    aggregate: Literal["sequence", "token", "fixed", "sum"] | None = Field(
        None,
        description=(
            "mean over each completion, then over completions; over all tokens; sums over the"
            " longest length allowed; sums, then over completions"
        ),
    )
    sapo_positive: float | None = Field(
        None, gt=0, description="temperature of SAPO's gate where the advantage is above 0"
    )
    sapo_negative: float | None = Field(
        None, gt=0, description="temperature of SAPO's gate elsewhere"
    )
    cov_share: float | None = Field(
        None, gt=0, le=1, description="share of the tokens that Clip-Cov and KL-Cov hold back"
    )
    cov_low: float | None = Field(None, description="least covariance that Clip-Cov may hold back")
    cov_high: float | None = Field(
        None, description="largest covariance that Clip-Cov may hold back"
    )
    cov_weight: float | None = Field(None, ge=0, description="weight of KL-Cov's penalty")
    # staying near the reference
    beta: float | None = Field(
        None, ge=0, description="weight of the KL divergence to the reference; 0 needs no reference"
    )
    kl_in: Literal["reward", "loss"] | None = Field(
        None, description="whether the divergence is a penalty in the reward or a term of the loss"
    )
    kl_estimator: Estimator | None = Field(
        None, description="of the divergence; unset: k1 in the reward, k3 in the loss"
    )
    kl_weighted: bool | None = Field(
        None, description="weigh the loss's divergence by the ratio, which unbiases its gradient"
    )
    kl_target: float | None = Field(
        None, gt=0, description="nats a completion that an adaptive beta aims at; unset: fixed beta"
    )
    kl_horizon: float | None = Field(
        None, gt=0, description="completions over which an adaptive beta moves"
    )
    max_kl: float | None = Field(
        None, gt=0, description="nats a completion beyond which the run stops; unset: it warns"
    )
    entropy_weight: float | None = Field(
        None, ge=0, description="weight of the entropy that is added to the objective"
    )
    # credit
    gamma: float | None = Field(None, ge=0, le=1, description="discount a token")
    lambda_: float | None = Field(
        None, ge=0, le=1, description="of generalised advantage estimation; 1 takes no value's word"
    )
    scale: Literal["group", "batch", "none"] | None = Field(
        None, description="by whose standard deviation advantages are divided"
    )
    overlong_buffer: int | None = Field(
        None,
        gt=0,
        description="last tokens before the limit over which the reward falls by 1; unset: off",
    )
    # the value head
    value_weight: float | None = Field(None, ge=0, description="weight of the value head's loss")
    clip_value: float | None = Field(
        None, gt=0, description="how far a value may move from the one at sampling"
    )
    # the sampler is not the trainer
    correction: Literal["none", "token", "sequence"] | None = Field(
        None, description="truncated importance weights between trainer and sampler"
    )
    correction_cap: float | None = Field(None, gt=0, description="largest of these weights")

    def given(self) -> dict[str, Any]:
        """Those that are set."""
        return self.model_dump(exclude_none=True)
