"""Users' functions as scorers: TRL's signature, columns, coroutines, and everything that can go
wrong in one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.scoring.functions import from_function
from posttrain.scoring.score import Response, Score
from tests.scoring import toy_scorer

MESSAGES = ({"role": "user", "content": "Hi"},)
RESPONSES = [
    Response("a", "ABc", {"answer": "x", "level": 1}, "rows:1"),
    Response(MESSAGES, "No", {"prompt": "taken", "answer": "No"}, "rows:2"),
    Response("b", "12", {}, "rows:3"),
]


def values(function: Callable[..., Any], **more: Any) -> list[float | None]:
    return [score.value for score in from_function(function, **more)(RESPONSES)]


def test_a_function_is_called_as_trl_calls_it() -> None:
    """Text stays text, messages are lists of messages, and every column is a list of all rows."""
    calls: list[dict[str, Any]] = []

    def record(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        calls.append({"prompts": prompts, "completions": completions, **columns})
        return [0.0] * len(prompts)

    assert values(record) == [0, 0, 0]
    assert calls == [
        {
            "prompts": ["a", list(MESSAGES), "b"],
            "completions": ["ABc", [{"role": "assistant", "content": "No"}], "12"],
            "answer": ["x", "No", None],
            "level": [1, None, None],
        }
    ]


def test_plain_functions_and_coroutines_score() -> None:
    loud = values(toy_scorer.shout)
    assert loud == [pytest.approx(2 / 3), 0.5, None]
    assert values(toy_scorer.whisper) == [pytest.approx(1 / 3), 0.5, None]
    assert "gave none" in from_function(toy_scorer.shout)(RESPONSES)[2].why
    assert from_function(toy_scorer.shout)([]) == []


def test_a_function_gets_the_columns_it_names() -> None:
    assert values(toy_scorer.wanted) == [0, 0, None]
    with pytest.raises(DataError, match="asks for 'answer', a column that no row has") as caught:
        from_function(toy_scorer.wanted)([Response("a", "b", {}, "rows:7")])
    assert caught.value.where == "rows:7" and "default" in caught.value.cure


def test_what_raises_is_a_failed_score_with_its_reason() -> None:
    def leaves(**columns: Any) -> list[float]:
        raise SystemExit(3)

    async def late_error(**columns: Any) -> list[float]:
        await asyncio.sleep(0)
        raise TimeoutError("the server is slow")

    for function, why in (
        (toy_scorer.broken, "KeyError: 'no such thing'"),
        (leaves, "SystemExit: 3"),
        (late_error, "TimeoutError: the server is slow"),
        (lambda **columns: [1.0], "1 scores for 3 completions"),
        (lambda **columns: ["much"] * 3, "could not convert"),
        (lambda **columns: 3, "not iterable"),
    ):
        scores = from_function(function)(RESPONSES)
        assert [score.value for score in scores] == [None] * 3
        assert all(why in score.why and score.failed for score in scores), scores[0].why


def test_what_hangs_is_a_failed_score_and_the_run_goes_on() -> None:
    """Whether it blocks, or waits for something that never comes; the function's own deadline, and
    one that is given.
    """
    stop = threading.Event()

    def blocks(**columns: Any) -> list[float]:
        stop.wait(60)
        return []

    async def waits(**columns: Any) -> list[float]:
        await asyncio.sleep(60)
        return []

    for function, more in (
        (toy_scorer.hanging, {}),
        (blocks, {"deadline": 0.1}),
        (waits, {"deadline": 0.1}),
    ):
        began = time.monotonic()
        scores = from_function(function, **more)(RESPONSES)
        assert time.monotonic() - began < 5
        assert all(score.failed and "within 0.1 seconds" in score.why for score in scores)
    stop.set()


def test_a_score_is_a_number_or_missing_with_a_reason() -> None:
    def detailed(**columns: Any) -> list[Any]:
        return [Score(2.0, {"style": 1.0}, "good style"), float("nan"), True]

    first, second, third = from_function(detailed)(RESPONSES)
    assert first == Score(2.0, {"style": 1.0}, "good style") and third.value == 1.0
    assert second.value is None and "nan" in second.why and not second.failed
    assert Score(None).why and Score(float("inf")).value is None
