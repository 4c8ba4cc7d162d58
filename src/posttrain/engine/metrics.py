"""The run's own record: one JSON object a line, for people and their tools.

A resumed run continues it as if it had never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.core.events import Event, Held, Step, from_record
from posttrain.core.files import gone, set_aside, write_atomic


class MetricsLog:
    """`metrics.jsonl` of a run folder; a sink that writes steps and validations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size: int | None = None  # bytes after the last line; None before one was written

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step | Held):
            self.write(event.record())

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
            self._size = file.tell()

    def check_there(self) -> None:
        """Refuse to go on where lines that were written were taken away.

        Raises:
            CheckpointError: the file is shorter than it was, or is gone.
        """
        if self._size is None:
            return
        if not self.path.exists() or self.path.stat().st_size < self._size:
            raise gone(self.path)

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: those steps will be run, and logged, again."""
        self._size = None
        if self.path.exists():
            kept = [json.dumps(r) + "\n" for r in self.read() if r["step"] <= step]
            write_atomic(self.path, "".join(kept))

    def text(self) -> str:
        """All of it, for a checkpoint."""
        return self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""

    def restore(self, saved: str | int, message: Callable[[str], None]) -> None:
        """Put the log where a checkpoint left it; what was logged after it will be logged again.

        Args:
            saved: its text then; of a checkpoint of an earlier version its last step.
            message: hears of it where the log was damaged since.
        """
        if isinstance(saved, int):
            self.rewind(saved)
            return
        now = self.text()
        if not now.startswith(saved):
            what = "is missing" if not now else "was cut"
            if now and not saved.startswith(now):
                what = f"was changed: what was there is kept as {set_aside(self.path).name}"
            lines = saved.count("\n")
            message(f"{self.path} {what}; its first {lines:,} lines are the checkpoint's again")
        self._size = None
        if now != saved:
            write_atomic(self.path, saved)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a crash cut off is left out."""
        records = []
        for line in self.text().splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and "step" in record:
                records.append(record)
        return records

    def events(self) -> list[Step | Held]:
        """The steps and validations that the lines were written from."""
        return [from_record(record) for record in self.read()]
