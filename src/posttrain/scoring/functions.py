"""Users' own functions as scorers: TRL's reward functions run unchanged.

    def shout(prompts, completions, **columns) -> list[float | None]

`prompts` and `completions` are lists, text for text and messages for messages; a message has its
thinking apart, as `reasoning_content`. Every column of the rows is a list beside them, None where a
row lacks it. A function without `**columns` gets what it names. It may be `async`. In place of a
number it may return a `Score`.

A function that raises, or that has not returned by its deadline, gives failed scores with the
reason; it never ends a run by itself. `shout.deadline = 30` sets its deadline in seconds a call.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from typing import Any

from posttrain.core.errors import DataError, PosttrainError
from posttrain.data.templates.thinking import reasoning
from posttrain.scoring.score import Response, Score, Scorer

DEADLINE = 300.0  # seconds a call, unless the function says otherwise
LATE = "no score within"  # begins the reason of a score that its deadline took
OURS = ("prompts", "completions")


def from_function(function: Callable[..., Any], deadline: float | None = None) -> Scorer:
    """A scorer from a function with TRL's signature.

    Args:
        function: see above.
        deadline: seconds a call; None: the function's attribute `deadline`, or 300.
    """
    seconds = deadline or getattr(function, "deadline", DEADLINE)

    def scorer(responses: Many[Response]) -> list[Score]:
        if not responses:
            return []
        arguments = _arguments(function, responses)
        try:
            values = _within(seconds, lambda: function(**arguments))
            return _scores(values, len(responses))
        except PosttrainError:
            raise
        except _DeadlineError:
            why = f"{LATE} {seconds:g} seconds"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        return [Score(None, why=why, failed=True)] * len(responses)

    return scorer


class _DeadlineError(Exception):
    """A call has not returned by its deadline."""


def _arguments(function: Callable[..., Any], responses: Many[Response]) -> dict[str, Any]:
    """The function's keywords: of prompts, completions and columns those that it takes.

    Raises:
        DataError: it asks for a column that no row has.
    """
    columns = dict.fromkeys(name for response in responses for name in response.columns)
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in named:
        if parameter.name not in (*OURS, *columns) and parameter.default is parameter.empty:
            raise DataError(
                f"the scorer {getattr(function, '__name__', function)} asks for "
                f"{parameter.name!r}, a column that no row has",
                where=responses[0].where,
                cure=f"add the column, or give {parameter.name} a default",
            )
    every: dict[str, Any] = {
        name: [response.columns.get(name) for response in responses]
        for name in columns
        if name != "prompt"
    }
    every["prompts"] = [_prompt(response) for response in responses]
    every["completions"] = [_completion(response) for response in responses]
    taken = every if takes_all else {parameter.name for parameter in named}
    return {name: values for name, values in every.items() if name in taken}


def _prompt(response: Response) -> Any:
    return response.prompt if isinstance(response.prompt, str) else list(response.prompt)


def _completion(response: Response) -> Any:
    """As TRL hands it over: text after a text, a list of one message after messages."""
    if isinstance(response.prompt, str):
        return response.completion
    thinking = reasoning(response.message or {})
    apart = {"reasoning_content": thinking} if thinking not in response.completion else {}
    return [{"role": "assistant", "content": response.completion, **apart}]


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns, awaited where it is a coroutine.

    It runs in a thread of its own, which is left behind where it does not end: Python cannot stop
    it, and a daemon thread does not keep the process from ending.

    Raises:
        _DeadlineError: it did not end in time. Exception: whatever the call raises.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    async def awaited(value: Any) -> Any:
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await value
        except TimeoutError:
            if deadline.expired():
                raise _DeadlineError from None
            raise

    def work() -> None:
        try:
            value = call()
            results.put(
                (asyncio.run(awaited(value)) if inspect.isawaitable(value) else value, None)
            )
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=work, daemon=True, name="scorer").start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise _DeadlineError from None
    if isinstance(error, Exception):
        raise error
    if error is not None:  # SystemExit and the like end what runs the scorer in its own process
        raise RuntimeError(f"{type(error).__name__}: {error}")
    return value


def _scores(values: Iterable[Any], n: int) -> list[Score]:
    scores = [_score(value) for value in values]
    if len(scores) != n:
        raise ValueError(f"{len(scores)} scores for {n} completions")
    return scores


def _score(value: Any) -> Score:
    if isinstance(value, Score):
        return value
    return Score(None if value is None else float(value))
