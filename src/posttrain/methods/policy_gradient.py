"""The loss of learning from reward: a surrogate of every token, weighed by its advantage.

loss = policy_gradient("grpo", RlOptions(beta=0.01), temperature=1.0, truncation=None)
"""

from __future__ import annotations

from posttrain.core.types import Loss, Truncation
from posttrain.methods.rl_options import RlOptions


def policy_gradient(
    algorithm: str,
    options: RlOptions,
    temperature: float,
    truncation: Truncation | None,
    *,
    longest: int | None = None,
) -> Loss:
    """The loss of an algorithm. To be written on this branch.

    Args:
        longest: tokens a completion may have: the denominator where `aggregate` is fixed.
    """
    raise NotImplementedError
