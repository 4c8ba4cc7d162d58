"""What happens in a run, as events, and the reporter that hands every event to its sinks.

A sink is any function of one event: the terminal (`core.console`), JSON lines, a metrics file
(`engine.metrics`), a tracker (`core.trackers`), or a function of the user's:

    posttrain.sft(..., sinks=[print])
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TRAIN = "train"  # the label of the training steps' own progress
SECONDS = 0.1  # between two progress events of one piece of work


@dataclass(frozen=True)
class Note:
    """A fact about the run.

    Attributes:
        label: one or two words; empty where the text stands alone.
        always: shown where quiet is asked for, too.
    """

    label: str
    text: str
    always: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        label: names the work; `TRAIN` is the optimiser steps.
        done, total: in the work's own unit; a total of 0 is not known.
        unit: "bytes", or empty for things that are counted.
        over: the last event of this work, finished or not.
    """

    label: str
    done: int
    total: int
    unit: str = ""
    over: bool = False


@dataclass(frozen=True)
class Step:
    """An optimiser step: its number, from 1, and what it measured (docs/reference/run-folder.md).

    Attributes:
        values: by name; `loss`, `tokens_per_second` and `memory_gib` are always among them.
    """

    step: int
    values: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """The step as a line of the metrics file."""
        return {"step": self.step, **self.values}


@dataclass(frozen=True)
class Held:
    """Numbers of the held-out rows after a step; step 0 is before training."""

    step: int
    values: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """The validation as a line of the metrics file."""
        return {"step": self.step, "validation": dict(self.values)}


@dataclass(frozen=True)
class Alarm:
    """Something is going wrong without the loss showing it.

    Attributes:
        good: the last step that looked right, where the run must not go on; None: it goes on.
    """

    step: int
    text: str
    good: int | None = None

    def __str__(self) -> str:
        return f"after step {self.step}: {self.text}"


@dataclass(frozen=True)
class Done:
    """A run has ended.

    Attributes:
        folder: of the run. summary: what its `summary.json` says.
        log: its steps and validations, those of earlier processes among them.
    """

    folder: str
    summary: Mapping[str, Any]
    log: Many[Step | Held] = field(default=(), repr=False)


Event = Note | Progress | Step | Held | Alarm | Done
Sink = Callable[[Event], None]


def from_record(record: Mapping[str, Any]) -> Step | Held:
    """The event that a line of the metrics file was written from."""
    if "validation" in record:
        return Held(record["step"], record["validation"])
    return Step(record["step"], {name: v for name, v in record.items() if name != "step"})


class Reporter:
    """Builds events and hands each to its sinks.

    Args:
        sinks: their errors are errors of the run.
        optional: sinks that must not end a run, trackers and users' own. The first error of one is
            reported as a note, and the sink hears no more.
    """

    def __init__(self, *sinks: Sink, optional: Iterable[Sink] = ()) -> None:
        self._sinks, self._optional = sinks, list(optional)

    def emit(self, event: Event) -> None:
        """Hand an event to every sink."""
        for sink in self._sinks:
            sink(event)
        for sink in tuple(self._optional):
            try:
                sink(event)
            except Exception as error:
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        if sink in self._optional:  # not while it is told of another's failure
            self._optional.remove(sink)
            reason = f"{type(error).__name__}: {error}".strip(": ")
            self.message(f"{_name(sink)} failed and gets no more events ({reason})")

    @contextmanager
    def also(self, sinks: Iterable[Sink]) -> Iterator[Reporter]:
        """A reporter with more optional sinks; at the end, those with a `close()` are closed."""
        sinks = list(sinks)
        reporter = Reporter(self.emit, optional=sinks)
        try:
            yield reporter
        finally:
            for sink in sinks:
                try:
                    getattr(sink, "close", lambda: None)()
                except Exception as error:
                    reporter._drop(sink, error)

    # ------------------------------------------------------------------ events by their verbs

    def note(self, label: str, text: str) -> None:
        """A fact about the run."""
        self.emit(Note(label, text))

    def message(self, text: str) -> None:
        """A fact that is shown where quiet is asked for, too."""
        self.emit(Note("", text, always=True))

    def progress(
        self, label: str, done: int, total: int, *, unit: str = "", over: bool = False
    ) -> None:
        """How far some work is; it is over when all of it is done."""
        self.emit(Progress(label, done, total, unit, over or 0 < total <= done))

    @contextmanager
    def working(self, label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Report work that may take long, at most every `SECONDS`.

        Args:
            total: what the progress callback is called with when all is done; 0 is not known.
        Yields: the progress callback.
        """
        done, last = 0, time.monotonic()

        def progress(now: int) -> None:
            nonlocal done, last
            done = now
            if (done < total or not total) and time.monotonic() - last > SECONDS:
                last = time.monotonic()
                self.progress(label, done, total, unit=unit)

        try:
            yield progress
            done = total or done
        finally:
            self.progress(label, done, total, unit=unit, over=True)

    def done(self, folder: object, summary: Mapping[str, Any], log: Many[Step | Held] = ()) -> None:
        """A run has ended, with this summary and these steps and validations."""
        self.emit(Done(str(folder), summary, log))


def _name(sink: Sink) -> str:
    return getattr(sink, "name", None) or getattr(sink, "__name__", type(sink).__name__)
