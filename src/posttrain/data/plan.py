"""The order of a run: which sequences make up which global batch. A function of the seed, with a cursor that can be saved."""

from __future__ import annotations

from typing import Any

from posttrain.core.seeds import generator


class Plan:
    """Epochs over `rows` items in batches of `batch`, each epoch in a new order; the last batch of an epoch may be smaller.

    Args:
        rows: how many items there are.
        batch: items a global batch.
        seed: of the order.
    """

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self.epoch, self.row = 0, 0
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    def next(self) -> list[int]:
        """The items of the next global batch."""
        if self._order[0] != self.epoch:
            self._order = (self.epoch, generator(self.seed, "order", self.epoch).permutation(self.rows).tolist())
        items = self._order[1][self.row:self.row + self.batch]
        self.row += self.batch
        if self.row >= self.rows:
            self.epoch, self.row = self.epoch + 1, 0
        return items

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "row": self.row}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.row = state["epoch"], state["row"]
