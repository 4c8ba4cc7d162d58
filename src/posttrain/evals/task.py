"""Tasks: what is asked of a model, and what the records of its answers come to.

from posttrain.evals.tasks import Record, Share, task

@task("polite", polite=Share("polite"))
def polite(subject, rows):
    answers = subject.ask([row.text("prompt") for row in rows])
    return [
        Record(row.where, values={"polite": float("please" in answer.text)}, output=answer.text)
        for row, answer in zip(rows, answers)
    ]

posttrain eval --model MODEL --task FILE.py:polite=rows.jsonl --out FOLDER
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.core.errors import DataError
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source
from posttrain.data.sources import read
from posttrain.evals.metrics import Metric, chance, paired
from posttrain.evals.records import Record
from posttrain.evals.stats import LEVEL, Estimate

if TYPE_CHECKING:
    from posttrain.data.chat import Chat
    from posttrain.data.tokens import Encoder
    from posttrain.evals.subject import Subject

Ask = Callable[["Subject", list[Row]], list[Record]]
Check = Callable[["Chat", "Encoder", int, list[Row]], object]


@dataclass(frozen=True)
class Task:
    """A way to measure a model.

    Attributes:
        name: what it is called.
        ask: `(subject, rows) -> records`; rows that give no record are counted as left out.
        metrics: what the records come to, by name.
        check: `(chat, encoder, max_length, rows)` refuses rows that a model cannot take, before
            anything runs; None where nothing can be told beforehand.
    """

    name: str
    ask: Ask
    metrics: Mapping[str, Metric]
    check: Check | None = None

    def estimates(self, records: Many[Record], level: float = LEVEL) -> dict[str, Estimate]:
        """What the records come to, by metric; metrics that only a comparison has are left out."""
        estimates = {name: metric.estimate(records, level) for name, metric in self.metrics.items()}
        return {name: estimate for name, estimate in estimates.items() if estimate is not None}

    def chances(self, records: Many[Record]) -> dict[str, float]:
        """What guessing would come to, by metric, of those that can be guessed."""
        found = {name: chance(metric, records) for name, metric in self.metrics.items()}
        return {name: share for name, share in found.items() if share is not None}

    def differences(
        self, after: Many[Record], before: Many[Record], level: float = LEVEL
    ) -> dict[str, Estimate]:
        """After − before on the items that both have, by metric; those that cannot be compared are
        left out.
        """
        pairs = paired(after, before)
        found = {name: metric.difference(pairs, level) for name, metric in self.metrics.items()}
        return {name: estimate for name, estimate in found.items() if estimate is not None}


REGISTRY: dict[str, Task] = {}


def register(new: Task) -> Task:
    """Make a task known by its name; one of the same name is replaced."""
    REGISTRY[new.name] = new
    return new


def task(name: str, /, *, check: Check | None = None, **metrics: Metric) -> Callable[[Ask], Task]:
    """Makes a registered task of a function `(subject, rows) -> records`.

    Args:
        name: of the task.
        check: see `Task`.
        metrics: what the records come to, by name.
    """
    return lambda ask: register(Task(name, ask, metrics, check))


def read_rows(source: Source) -> list[Row]:
    """The rows of a source; evaluation stops at the first that cannot be read.

    Raises:
        DataError: a row that cannot be read, or no row.
    """
    rows = list(read(source, Rejects()))
    if not rows:
        raise DataError(f"there are no rows in {source}", cure="check the file")
    return rows
