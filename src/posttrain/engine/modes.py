"""How a model may be run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["forest", "padded", "equal"]
MODES: dict[Mode, str] = {
    "forest": "packed, prefixes shared",
    "padded": "every path alone, in batches of similar length",
    "equal": "every path alone, in batches of exactly equal length",
}


@dataclass(frozen=True)
class Admission:
    """How a model may be run, and why not better.

    Attributes:
        mode: see MODES.
        stock: transformers' attention that agrees with its eager one, for sampling.
        deviation: largest difference of a log-probability from the path alone, nats.
        reasons: what ruled the better modes out, and what else the user should know; one sentence
            each.
    """

    mode: Mode = "forest"
    stock: str = "eager"
    deviation: float = 0.0
    reasons: tuple[str, ...] = ()
