"""What scorers take and what they return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.messages import Message, Text, answer_length

NOT_FINITE = "which is no number"  # ends the reason of a score that was infinite or NaN


@dataclass(frozen=True, slots=True)
class Response:
    """A completion to score.

    Attributes:
        prompt: what was asked: text, or messages.
        completion: what is judged: the answer, without the thinking before it unless that is asked
            for.
        columns: what else the row holds; verifiers read the wanted answer from `completion` or
            `answer`.
        where: the row, for errors.
        answer: the whole answer, where `completion` is only the last of its messages.
        message: the answer as it was written, its thinking in it or apart; a reward model reads it
            as its template renders it. None: the completion is all there is.
    """

    prompt: Text
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    answer: Text | None = None
    message: Message | None = None

    @property
    def length(self) -> int:
        """How long the answer is; see `posttrain.data.messages.answer_length`."""
        return answer_length(self.completion if self.answer is None else self.answer)


@dataclass(frozen=True, slots=True)
class Score:
    """What a completion is worth.

    Attributes:
        value: the higher the better; None where it is missing, which is never a 0.
        parts: what the value was made of, and what else was measured on the way, by name.
        why: the reason for the value; a missing one always has one.
        failed: whether it is missing because the scorer raised or ran out of time.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    failed: bool = False

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "why", f"the score is {self.value}, {NOT_FINITE}")
            object.__setattr__(self, "value", None)
        if self.value is None and not self.why:
            object.__setattr__(self, "why", "the scorer gave none")


Scorer = Callable[[Many[Response]], list[Score]]
"""Scores of responses, one each, in order."""
