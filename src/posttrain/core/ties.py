"""A tie counts one half: the one place that says so."""

from __future__ import annotations

from typing import Any


def wins(margin: Any) -> Any:
    """1 where a margin is above 0, ½ where it is 0, and 0 where it is below.

    Args:
        margin: a number, or a NumPy array or tensor of any shape.
    Returns: a number, array or tensor of the same shape.
    """
    return (margin > 0) * 0.5 + (margin >= 0) * 0.5
