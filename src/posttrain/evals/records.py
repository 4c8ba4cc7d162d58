"""Records: what became of one item, for everything that measures. Evaluation, judging and sampled
pairs write and read this one type, a JSON line each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.core.files import sha256_json, state_of, write_atomic
from posttrain.data.messages import Text

DAMAGED = "delete the file and run the same command again: its items are measured anew"
# columns of a pair that its record keeps
PAIR_COLUMNS = ("category", "subset", "rule", "skill", "level")


@dataclass(frozen=True)
class Record:
    """One item and what was measured of it.

    Attributes:
        item: which item it is: `file:line`, and a suffix where one row gives several items. Records
            of two models are paired by it.
        cluster: items with the same one are not independent: a digest of the prompt. Empty: the
            item is its own.
        values: numbers by name; None where one could not be had, which is never a 0.
        weight: how much the item counts in a mean, above 0.
        output: what the model wrote or gave, as JSON.
        meta: what else is known, as JSON: columns of the row such as its category, the wanted
            answer, why a value is missing.
    """

    item: str
    cluster: str = ""
    values: Mapping[str, float | None] = field(default_factory=dict)
    weight: float = 1.0
    output: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The name of its cluster."""
        return self.cluster or self.item

    def value(self, name: str) -> float:
        """A value that must be there."""
        value = self.values[name]
        assert value is not None, f"{self.item} has no {name}"
        return value

    def line(self) -> str:
        """The record as a JSON line."""
        return json.dumps(vars(self), ensure_ascii=False) + "\n"


def cluster_of(prompt: Text) -> str:
    """The cluster of items that share a prompt; empty where there is no prompt to share."""
    return sha256_json(prompt) if prompt else ""


def read_records(path: Path) -> list[Record]:
    """The records of a file, in order.

    Raises:
        CheckpointError: it is damaged; with the line.
    """
    records: list[Record] = []
    with state_of(path, DAMAGED):
        lines = path.read_bytes().split(b"\n")  # text has other signs that end lines
    for number, line in enumerate(lines, 1):
        if line:
            with state_of(path, DAMAGED, number):
                records.append(Record(**json.loads(line)))
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a file of records, whole or not at all."""
    write_atomic(path, "".join(record.line() for record in records))
