"""The order of a run: which rows make up which global batch, as a function of the seed.

A source is read in passes, each in a new random order. An epoch takes a fixed number of rows from
every source, resumes each source's pass where the epoch before stopped, and mixes the rows. So the
shares are exact in every epoch, small sources are replayed, and the cursor that a checkpoint saves
is two numbers, however many sources there are.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from posttrain.core.errors import ConfigError
from posttrain.core.seeds import generator
from posttrain.data.settings import Source

MOST_ROWS = 10**9  # of an epoch; the order takes eight bytes a row


def shares(rows: Many[int], sources: Many[Source]) -> list[int]:
    """How many rows an epoch takes from each source.

    Without weights: `epochs` passes over each source. With weights: as many rows in all, divided
    by weight. Sources with a `share` come on top, as many rows as make that share of the whole:
    replay against forgetting. Fractions are rounded by largest remainder; every source gives at
    least one row.

    Args:
        rows: rows of each source.
        sources: the sources.
    Raises:
        ConfigError: some sources have weights and some have none; shares that leave nothing; more
            than `MOST_ROWS` rows.
    """
    exact = [count * source.epochs for count, source in zip(rows, sources, strict=True)]
    without_share = [i for i, source in enumerate(sources) if source.share is None]
    total = sum(exact[i] for i in without_share)
    weights = _weights(sources, without_share)
    for i, weight in weights.items():
        exact[i] = total * weight / sum(weights.values())
    shared = sum(source.share or 0.0 for source in sources)
    if shared >= 1 or not without_share:
        raise ConfigError(
            f"the shares of sources add up to {shared:g} and leave nothing for the others",
            cure="lower share=, or leave it out",
        )
    for i, source in enumerate(sources):
        if source.share is not None:
            exact[i] = total / (1 - shared) * source.share
    if sum(exact) > MOST_ROWS:
        raise ConfigError(
            f"an epoch would have {sum(exact):.0e} rows, more than {MOST_ROWS:.0e}",
            cure="lower epochs= or share=",
        )
    return [max(1, count) for count in _rounded(exact)]


def _weights(sources: Many[Source], among: list[int]) -> dict[int, float]:
    """The weights of sources by their number; empty if none has a weight."""
    given = {i: sources[i].weight for i in among}
    weights = {i: weight for i, weight in given.items() if weight is not None}
    if weights and len(weights) < len(given):
        missing = next(sources[i] for i, weight in given.items() if weight is None)
        raise ConfigError(
            f"{missing} has no weight, and other sources have one",
            cure="give every source a weight, or none",
        )
    return weights


def _rounded(exact: list[float]) -> list[int]:
    """Whole numbers with the rounded total, by largest remainder."""
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: round(sum(exact)) - sum(counts)]:
        counts[i] += 1
    return counts


class Plan:
    """Epochs over the rows of one or more sources in batches; the last batch of an epoch may be
    smaller.

    Args:
        rows: how many rows there are, or how many in each source; sources are numbered through.
        batch: rows a global batch.
        seed: decides the order.
        take: rows an epoch takes from each source; None takes all of them.
    """

    def __init__(
        self, rows: int | Many[int], batch: int, seed: int, take: Many[int] | None = None
    ) -> None:
        self.sizes = [rows] if isinstance(rows, int) else list(rows)
        self.take = list(take) if take is not None else self.sizes
        self.rows, self.batch, self.seed = sum(self.take), batch, seed
        self.epoch, self.row = 0, 0  # the cursor: the next batch begins here
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # epoch, its rows

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    def next(self) -> list[int]:
        """The rows of the next global batch."""
        if self._order[0] != self.epoch:
            self._order = (self.epoch, self._epoch(self.epoch))
        batch = self._order[1][self.row : self.row + self.batch].tolist()
        self.row += self.batch
        if self.row >= self.rows:
            self.epoch, self.row = self.epoch + 1, 0
        return batch

    def _epoch(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, in order."""
        first_rows = np.cumsum([0, *self.sizes])
        parts = []
        for source, take in enumerate(self.take):
            parts.append(first_rows[source] + self._stretch(source, epoch * take, take))
        if len(parts) == 1:
            return parts[0]
        rows = np.concatenate(parts)
        return rows[generator(self.seed, "mix", epoch).permutation(len(rows))]

    def _stretch(self, source: int, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of a source's passes, one pass after another."""
        size = self.sizes[source]
        names = ("order",) if len(self.sizes) == 1 else ("order", source)
        first_pass, last_pass = start // size, (start + count - 1) // size
        passes = []
        for number in range(first_pass, last_pass + 1):
            passes.append(generator(self.seed, *names, number).permutation(size))
        return np.concatenate(passes)[start - first_pass * size :][:count]

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "row": self.row}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.row = state["epoch"], state["row"]
