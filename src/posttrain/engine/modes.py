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


TOLERANCE = 1e-3  # nats, in float32; models that agree do so within 1e-5, others are off by 0.1


@dataclass(frozen=True)
class Admission:
    """How a model may be run, and why not better.

    Attributes:
        mode: see MODES.
        stock: transformers' attention that agrees with its eager one, for sampling.
        deviation: largest difference of a log-probability from the path alone, nats.
        noise: by how much the model's own calls differ, one path alone or among others, nats.
        reasons: what ruled the better modes out, and what else the user should know; one sentence
            each.
    """

    mode: Mode = "forest"
    stock: str = "eager"
    deviation: float = 0.0
    noise: float = 0.0
    reasons: tuple[str, ...] = ()

    @property
    def tolerance(self) -> float:
        """What a log-probability in float32 may be off by, nats."""
        return max(TOLERANCE, 4 * self.noise)
