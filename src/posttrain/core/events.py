"""Progress as JSON lines, for programs that watch a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from posttrain.core.console import ConsoleObserver, console

EVERY = 1.0  # seconds between two progress events


class JsonObserver(ConsoleObserver):
    """What `ConsoleObserver` shows, as one JSON object a line: `event`, `time` (seconds since 1970)
    and what belongs to it.

    Args:
        to: where to write; standard output by default.
    """

    def __init__(self, to: TextIO | None = None) -> None:
        super().__init__(quiet=True)
        self._to: Any = to or console().file  # which survives its reader
        self._last = 0.0

    def _write(self, event: str, **fields: Any) -> None:
        self._to.write(
            json.dumps(
                {"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False
            )
            + "\n"
        )
        self._to.flush()

    def note(self, label: str, text: str) -> None:
        self._write("note", label=label, text=text)

    def message(self, text: str) -> None:
        self._write("message", text=text)

    def progress(self, label: str, done: int, total: int) -> None:
        if done >= total or time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            self._write("progress", label=label, done=done, total=total)

    @contextmanager
    def working(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: self.progress(label, done, total) if done < total else None
        self.progress(label, total, total)

    def summary(self, summary: dict[str, Any]) -> None:
        """Everything the run came to; the last line."""
        self._write("summary", **summary)

    def start(self, step: int, steps: int) -> None:
        self._write("start", step=step, steps=steps)

    def record(self, record: dict[str, Any]) -> None:
        self._write("record", **record)

    def stop(self) -> None:
        self._write("stop")

    def curve(self, records: list[dict[str, Any]]) -> None:
        """Nothing: the records have been written."""
