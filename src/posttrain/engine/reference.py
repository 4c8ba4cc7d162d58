"""Reference log-probabilities, computed once and kept in a journal.

They are a function of the reference model and the rows, so that a run with another β finds them.
A record holds a block of rows; what was interrupted goes on after the last whole block. Runs that
share a journal wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many

import numpy as np

from posttrain.core.journal import Journal

BLOCK = 64  # rows that are scored and written at a time

Score = Callable[[Many[int]], list[np.ndarray]]  # rows' numbers → log-probabilities of each


class Stored(Many[np.ndarray]):
    """Log-probabilities of some rows' targets, by the row's number.

    Args:
        journal: complete. rows: the numbers of the rows in it, ascending.
    """

    def __init__(self, journal: Journal, rows: Many[int]) -> None:
        self._journal, self._rows = journal, np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return int(self._rows[-1]) + 1 if len(self._rows) else 0

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override] - no slices
        at = int(np.searchsorted(self._rows, i))
        if at == len(self._rows) or self._rows[at] != i:
            raise IndexError(i)
        block, k = divmod(at, BLOCK)
        start, stop = self._journal.part(block, "bounds", k, k + 2).tolist()
        return self._journal.part(block, "logprobs", start, stop).copy()


def store(
    journal: Journal,
    rows: Many[int],
    score: Score,
    progress: Callable[[int], None] = lambda done: None,
) -> Stored:
    """Score rows and keep their log-probabilities, or read them where that was done before.

    Args:
        journal: its key names the reference, the rows and their tokens. Not open.
        rows: the numbers of those that will be read, ascending.
        score: the reference's log-probabilities (nats) of the targets of each of some rows.
        progress: called with how many rows are done.
    """
    with journal:
        if not journal.sealed:
            for first in range(len(journal) * BLOCK, len(rows), BLOCK):
                progress(first)
                block = score(rows[first : first + BLOCK])
                journal.append(
                    logprobs=np.concatenate(block).astype(np.float32, copy=False),
                    bounds=np.cumsum([0, *map(len, block)]),
                )
                journal.flush()
            journal.seal()
        progress(len(rows))
    return Stored(journal, rows)
