"""Defaults that several floors read, each written once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain.core.errors import ConfigError
from posttrain.core.settings import ExecutionOnly

# tokens of a forward pass by kind of device, where --budget says nothing
TOKEN_BUDGET = {"cpu": 4096, "cuda": 16384}
UNSET_BUDGET = f"Unset: {TOKEN_BUDGET['cpu']} on a CPU, {TOKEN_BUDGET['cuda']} on a GPU"


Device = Annotated[
    Literal["", "cpu", "cuda"],
    ExecutionOnly(),
    Field(description="unset: the GPU where there is one"),
]


def token_budget(given: int | None, device: str, longest: int = 0) -> int:
    """Tokens of a forward pass.

    Args:
        given: by the user; None takes the device's default.
        device: "cpu" or "cuda".
        longest: tokens of the longest sequence; a default is never less.
    """
    return given or max(TOKEN_BUDGET.get(device, TOKEN_BUDGET["cpu"]), longest)


def check_budget(budget: int, longest: int) -> None:
    """Refuse a budget into which the longest sequence does not fit.

    Raises:
        ConfigError: with the budget that is enough.
    """
    if longest > budget:
        raise ConfigError(
            f"--budget {budget} is less than the {longest} tokens of the longest sequence",
            cure=f"give --budget {longest} or more, or --max-length {budget} or less",
        )
