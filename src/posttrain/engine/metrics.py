"""The run's own record: one JSON object a line, for people and their tools.

A resumed run continues it as if it had never stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.core.events import Event, Held, Step, from_record
from posttrain.core.files import write_atomic


class MetricsLog:
    """`metrics.jsonl` of a run folder; a sink that writes steps and validations."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step | Held):
            self.write(event.record())

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: those steps will be run, and logged, again."""
        if self.path.exists():
            kept = [json.dumps(r) + "\n" for r in self.read() if r["step"] <= step]
            write_atomic(self.path, "".join(kept))

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a crash cut off is left out."""
        records = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def events(self) -> list[Step | Held]:
        """The steps and validations that the lines were written from."""
        return [from_record(record) for record in self.read()]
