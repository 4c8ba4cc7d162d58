"""Scorers of a user: functions with TRL's signature, as one finds them in its documentation."""

from __future__ import annotations

import asyncio
import time
from typing import Any


def shout(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """The share of letters that are capital; None for a completion without letters."""
    scores: list[float | None] = []
    for completion in completions:
        text = completion if isinstance(completion, str) else completion[0]["content"]
        letters = [sign for sign in text if sign.isalpha()]
        scores.append(sum(map(str.isupper, letters)) / len(letters) if letters else None)
    return scores


async def whisper(completions: list[Any], **columns: Any) -> list[float | None]:
    """1 less what `shout` says, after a moment."""
    await asyncio.sleep(0.001)
    return [None if one is None else 1 - one for one in shout([], completions)]


def wanted(completions: list[str], answer: list[str | None]) -> list[float | None]:
    """Whether the column `answer` is what was written."""
    pairs = zip(completions, answer, strict=True)
    return [None if right is None else float(text == right) for text, right in pairs]


def broken(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    raise KeyError("no such thing")


def hanging(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    time.sleep(60)
    return []


hanging.deadline = 0.1  # type: ignore[attr-defined]  # seconds
