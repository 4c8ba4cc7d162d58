"""The divergence from a reference: estimates of it, how its weight moves, and where a run stops.

On tokens drawn from the policy π, with x = log π_ref − log π, KL(π‖π_ref) is the mean of any of

    k1 = −x        k2 = x²/2        k3 = eˣ − x − 1

k1 and k3 are unbiased as numbers, k2 nearly so near 0; k3 is never negative and varies least. As a
term of the loss what counts is the gradient. There k2 is unbiased, k3 has the gradient of the other
divergence, KL(π_ref‖π), and k1 has none on average. Times the ratio π/π_old, with its gradient, k1
and k3 are unbiased too, where old is the policy that is being updated. In the reward, where nothing
is differentiated, the value is what counts: k1 or k3.

Source: Schulman 2020, joschu.net/blog/kl-approx.html; gradients: Tang and Munos 2025, arXiv
2506.09477; the ratio: DeepSeek-V3.2, arXiv 2512.02556. Without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.core.errors import PosttrainError

LARGEST_EXPONENT = 20.0  # beyond it e^x goes on as its tangent: finite, and with a slope
ALARM = 10.0  # nats a completion
LARGEST_ERROR = 0.2  # of the adaptive controller, as a share of its target


def exponential(x: Any) -> Any:
    """e^x of a tensor or array, and its tangent at 20 beyond that."""
    low = x.clip(max=LARGEST_EXPONENT)
    return (np.exp(low) if isinstance(x, np.ndarray) else low.exp()) * (1 + x - low)


def k1(x: Any) -> Any:
    """−x, of a tensor or array."""
    return -x


def k2(x: Any) -> Any:
    """x²/2, of a tensor or array."""
    return x * x / 2


def k3(x: Any) -> Any:
    """eˣ − x − 1, of a tensor or array."""
    return exponential(x) - x - 1


ESTIMATORS: dict[str, Callable[[Any], Any]] = {"k1": k1, "k2": k2, "k3": k3}


@dataclass
class FixedKL:
    """A weight that stays as it is."""

    beta: float

    def update(self, kl: float, completions: int) -> None:
        """Nothing moves."""

    def state(self) -> Mapping[str, float]:
        """What `restore` needs, as JSON."""
        return {"beta": self.beta}

    def restore(self, state: Mapping[str, float]) -> None:
        """Stand where `state` was taken."""
        self.beta = state["beta"]


@dataclass
class AdaptiveKL(FixedKL):
    """A weight that holds the divergence at a target.

    β ← β·(1 + clip(KL/target − 1, ±0.2)·completions/horizon)

    Attributes:
        beta: β to begin with.
        target: nats a completion.
        horizon: completions in which β may move by a fifth.
    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
    """

    target: float = 6.0
    horizon: float = 10_000.0

    def update(self, kl: float, completions: int) -> None:
        """Move β by the divergence of one batch.

        Args:
            kl: mean over the batch, nats a completion.
            completions: in the batch.
        """
        error = min(max(kl / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.beta *= max(1 + error * completions / self.horizon, 0.0)


def control(values: Mapping[str, Any]) -> FixedKL:
    """What moves β, by an algorithm's options, none missing."""
    if values["kl_target"] is None:
        return FixedKL(values["beta"])
    return AdaptiveKL(values["beta"], values["kl_target"], values["kl_horizon"])


def check(kl: float, max_kl: float | None = None) -> str:
    """Whether the policy is still near its reference.

    Args:
        kl: mean over a batch, nats a completion.
        max_kl: where to stop; None never stops.
    Returns: a sentence of alarm beyond 10 nats, or beyond `max_kl`'s half; empty where all is well.
    Raises:
        PosttrainError: `max_kl` is exceeded.
    """
    if max_kl is not None and not kl <= max_kl:
        raise PosttrainError(
            f"the policy is {kl:.3g} nats a completion from its reference, and max_kl is"
            f" {max_kl:g}",
            cure="raise beta, lower the learning rate, or raise max_kl; look at completions first",
        )
    if kl <= (ALARM if max_kl is None else min(ALARM, max_kl / 2)):
        return ""
    return (
        f"the policy is {kl:.3g} nats a completion from its reference: look whether it has found"
        " a reward that means nothing; raise beta or lower the learning rate"
    )
