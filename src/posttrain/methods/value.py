"""The value head: what it learns from, and how good it is."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(value: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Squared error of the value head, which may not gain by going further than `clip` at a time.

    ½·max((V − R)², (V_old + clip(V − V_old, ±c) − R)²)

    Args:
        value: [N] with gradients.
        old_values: [N] the head's when the batch was taken.
        returns: [N] R; NaN where the score is missing: no loss and no gradient there.
        clip: c.
    Returns: [N].
    Source: the implementation of Schulman et al. 2017 (PPO), arXiv 1707.06347, as in TRL and verl.

    >>> import torch
    >>> value_loss(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.9]), 0.25)  # ½·0.15²
    tensor([0.0112])
    """
    missing = returns.isnan()
    returns = torch.where(missing, 0, returns)
    near = old_values + (value - old_values).clamp(-clip, clip)
    errors = torch.maximum((value - returns).square(), (near - returns).square()) / 2
    return errors.masked_fill(missing, 0)


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """1 − Var(R − V)/Var(R) over a whole batch: 1 for a perfect head, 0 for one that says a
    constant, below 0 for one that is worse than none.

    Args:
        values: [N] of the head; returns: [N], NaN where the score is missing.
    Returns: None where fewer than two returns are there, or all are equal.
    """
    known = ~returns.isnan()
    target, error = returns[known].double(), (returns - values)[known].double()
    if len(target) < 2 or bool((target == target[0]).all()):
        return None
    return float(1 - error.var() / target.var())
