"""The order of a run: which rows make up which global batch.

A function of the seed, with a cursor that can be saved.

A source is read in passes, each in a new order. One epoch takes a fixed number of rows from every
source, goes on in its pass where the epoch before stopped, and mixes them. So the shares are exact
in every epoch, small sources are replayed, and the place in the data is two numbers, however many
sources there are.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from posttrain.core.errors import ConfigError
from posttrain.core.seeds import generator
from posttrain.data.settings import Source

MOST = 10**9  # rows of an epoch, whose order takes eight bytes each


def shares(rows: Many[int], sources: Many[Source]) -> list[int]:
    """How many rows an epoch takes from each source.

    Without weights: `epochs` passes over each. With weights: as many rows as that, divided by
        weight (largest remainder).
    Sources with a `share` come on top, so many that they have that share of the whole: replay
    against forgetting.

    Args:
        rows: rows of each source.
        sources: the sources.
    Raises:
        ConfigError: some sources have weights and some have none; shares that leave nothing; more
            than `MOST` rows.
    """
    passes = [n * source.epochs for n, source in zip(rows, sources, strict=True)]
    free = [i for i, source in enumerate(sources) if source.share is None]
    total = sum(passes[i] for i in free)
    if weighted := [i for i in free if sources[i].weight is not None]:
        if missing := [sources[i] for i in free if i not in weighted]:
            raise ConfigError(
                f"{missing[0]} has no weight, and other sources have one",
                cure="give every source a weight, or none",
            )
        weights = {i: sources[i].weight or 0.0 for i in weighted}
        passes = [
            total * weights[i] / sum(weights.values()) if i in weights else n
            for i, n in enumerate(passes)
        ]
    if (taken := sum(source.share or 0.0 for source in sources)) >= 1 or not free:
        raise ConfigError(
            f"the shares of sources add up to {taken:g} and leave nothing for the others",
            cure="lower share=, or leave it out",
        )
    passes = [
        n if source.share is None else total / (1 - taken) * source.share
        for n, source in zip(passes, sources, strict=True)
    ]
    if sum(passes) > MOST:
        raise ConfigError(
            f"an epoch would have {sum(passes):.0e} rows, more than {MOST:.0e}",
            cure="lower epochs= or share=",
        )
    whole = [int(p) for p in passes]
    order = sorted(range(len(passes)), key=lambda i: (whole[i] - passes[i], i))
    for i in order[: round(sum(passes)) - sum(whole)]:
        whole[i] += 1
    return [max(1, n) for n in whole]


class Plan:
    """Epochs over the rows of one or more sources in batches; the last batch of an epoch may be
    smaller.

    Args:
        rows: how many rows there are, or how many in each source; sources are numbered through.
        batch: rows a global batch.
        seed: of the order.
        take: rows an epoch takes from each source; all of them where None.
    """

    def __init__(
        self, rows: int | Many[int], batch: int, seed: int, take: Many[int] | None = None
    ) -> None:
        self.sizes = [rows] if isinstance(rows, int) else list(rows)
        self.take = list(take) if take is not None else self.sizes
        self.rows, self.batch, self.seed = sum(self.take), batch, seed
        self.epoch, self.row = 0, 0
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    def next(self) -> list[int]:
        """The rows of the next global batch."""
        if self._order[0] != self.epoch:
            self._order = (self.epoch, self._epoch(self.epoch))
        items = self._order[1][self.row : self.row + self.batch].tolist()
        self.row += self.batch
        if self.row >= self.rows:
            self.epoch, self.row = self.epoch + 1, 0
        return items

    def _epoch(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, in order."""
        first = np.cumsum([0, *self.sizes])
        parts = [
            first[s] + self._stretch(s, epoch * take, take) for s, take in enumerate(self.take)
        ]
        if len(parts) == 1:
            return parts[0]
        together = np.concatenate(parts)
        return together[generator(self.seed, "mix", epoch).permutation(len(together))]

    def _stretch(self, source: int, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of a source's passes laid end to end."""
        size = self.sizes[source]
        passes = range(start // size, (start + count - 1) // size + 1)
        names = ("order",) if len(self.sizes) == 1 else ("order", source)
        laid = np.concatenate([generator(self.seed, *names, k).permutation(size) for k in passes])
        return laid[start - passes[0] * size :][:count]

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "row": self.row}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.row = state["epoch"], state["row"]
