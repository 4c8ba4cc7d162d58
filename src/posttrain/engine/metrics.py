"""The run's own record: one JSON object a line.

A resumed run continues it as if it had never stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.core.files import write_atomic


class MetricsLog:
    """`metrics.jsonl` of a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: those steps will be run, and logged, again."""
        if self.path.exists():
            kept = [json.dumps(r) + "\n" for r in self.read() if r["step"] <= step]
            write_atomic(self.path, "".join(kept))

    def write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a line that a crash cut off is left out."""
        records = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records
