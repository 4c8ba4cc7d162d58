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

# how the next token is computed when a completion is drawn
Way = Literal["slots", "cache", "positions", "whole"]
WAYS: dict[Way, str] = {
    "slots": "with keys and values in slots",
    "cache": "with a key-value cache",
    "positions": "with a key-value cache, and every token's position said",
    "whole": "without a cache, every token from the whole sequence",
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


@dataclass(frozen=True)
class Decoding:
    """How a model's completions may be drawn, and why not faster.

    Attributes:
        way: see WAYS.
        turn: a length beyond which all positions are encoded in another way, so that a cache from
            before is of no use beyond it; None where there is none.
        reasons: what ruled the faster ways out; one sentence each.
    """

    way: Way = "cache"
    turn: int | None = None
    reasons: tuple[str, ...] = ()

    def over(self, prompt: int, tokens: int) -> Way:
        """The way for completions of at most `tokens` tokens of a prompt of so many."""
        crosses = self.turn is not None and prompt <= self.turn < prompt + tokens
        return "whole" if crosses else self.way
