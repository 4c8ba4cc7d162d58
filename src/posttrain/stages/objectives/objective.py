"""What the training stages differ in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from posttrain.core.events import Reporter
from posttrain.stages.dataset import Dataset

if TYPE_CHECKING:
    from posttrain.core.types import Loss
    from posttrain.data.examples import Kind
    from posttrain.data.store import Trees
    from posttrain.engine.learner import Learner
    from posttrain.engine.loop import HeldOut, Run, Watch
    from posttrain.engine.network import Noise
    from posttrain.engine.source import Rows


@dataclass(frozen=True)
class Setup:
    """What the loop is to do with the data.

    Attributes:
        loss: the method. rows: what it is taken over. probes: see `posttrain.engine.source.Batch`.
        held_out: measures the held-out rows; None where there are none.
        noise: on the input embeddings.
        watch: see `posttrain.engine.loop`.
        begin: long work before the first step; it has the run's folder to itself, and may be
            killed.
    """

    loss: Loss
    rows: Rows
    probes: Rows | None = None
    held_out: HeldOut | None = None
    noise: Noise | None = None
    watch: Watch | None = None
    begin: Callable[[Run], None] | None = None


class Objective(Protocol):
    """What is learned, and from which rows.

    Attributes:
        learned: the kind of rows.
        separator: put after every step of answers that have steps.
    """

    learned: Kind
    separator: str

    def load(self, settings: Any) -> Learner:
        """What learns."""
        ...

    def setup(
        self, settings: Any, learner: Any, data: dict[str, Dataset], budget: int, reporter: Reporter
    ) -> Setup:
        """What the loop does. What is wrong with the settings shows here, before the folder is
        claimed.
        """
        ...

    def summary(self, run: Run) -> dict[str, Any]:
        """What else `summary.json` says."""
        ...


def last_means(run: Run, names: Collection[str]) -> dict[str, float]:
    """The last 20 steps' means of what the method reports: names with a slash, and these."""
    reported: dict[str, list[float]] = {}  # a step need not have all: its rows may be good alone
    for record in [record for record in run.log.read() if "loss" in record][-20:]:
        for name, value in record.items():
            if "/" in name or name in names:
                reported.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in reported.items()}


def extra_characters(trees: Trees, pairs: int) -> list[float]:
    """By how many characters the chosen answer of every pair is longer."""
    characters = trees.characters().reshape(pairs, -1)
    return (characters[:, 0] - characters[:, 1]).astype(float).tolist()


def exported_validation(run: Run) -> tuple[int, dict[str, Any] | None]:
    """The step whose weights are exported, and its validation; None where it was not validated."""
    exported = run.step
    if run.validation.keep_best and run.best["step"] is not None:
        exported = run.best["step"]
    for record in reversed(run.log.read()):
        if record["step"] == exported and "validation" in record:
            return exported, record["validation"]
    return exported, None
