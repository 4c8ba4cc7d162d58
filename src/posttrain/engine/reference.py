"""Reference log-probabilities, computed once and kept on the disk.

They are a function of the reference model and the rows, so that a run with another β finds them.
They are written in blocks of rows; what was interrupted goes on after the last whole block. Runs
that share a cache wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np

from posttrain.core.files import sha256_file, write_json
from posttrain.data.forest import Tree
from posttrain.data.store import Numbers, NumberWriter
from posttrain.engine.held_out import Progress
from posttrain.engine.source import TreeScores

FILES = ("numbers", "ends")
BLOCK = 64  # rows that are scored and written at a time


class Stored(Many[np.ndarray]):
    """Log-probabilities of some rows' targets, by the row's number."""

    def __init__(self, folder: Path, rows: np.ndarray) -> None:
        self._numbers, self._rows = Numbers(folder), rows

    def __len__(self) -> int:
        return int(self._rows[-1]) + 1 if len(self._rows) else 0

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override] - no slices
        at = int(np.searchsorted(self._rows, i))
        if at == len(self._rows) or self._rows[at] != i:
            raise IndexError(i)
        return self._numbers[at]


def store(
    scores: TreeScores,
    trees: Many[Tree],
    rows: Many[int],
    folder: Path,
    progress: Progress = lambda done, total: None,
) -> Stored:
    """Score rows and keep their log-probabilities, or read them where that was done before.

    Args:
        scores: of trees, by the reference.
        trees: a tree for each row; rows: those that will be read, ascending.
        folder: belongs to this reference, these trees and these rows.
        progress: called with how many rows of how many are done.
    """
    with _alone(folder):
        done = folder / "done.json"
        if done.is_file():
            if json.loads(done.read_text()).get("sha256") == _digests(folder):
                return Stored(folder, np.asarray(rows, np.int64))
            for name in ("done.json", *FILES):  # damaged: nothing of it is believed
                (folder / name).unlink(missing_ok=True)
        ready = _ready(folder)
        with NumberWriter(folder, ready) as writer:
            for first in range(ready, len(rows), BLOCK):
                progress(first, len(rows))
                for numbers in scores([trees[i] for i in rows[first : first + BLOCK]]):
                    writer.add(numbers)
                writer.flush()
        progress(len(rows), len(rows))
        write_json(done, {"rows": len(rows), "sha256": _digests(folder)})
    return Stored(folder, np.asarray(rows, np.int64))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to `folder`.

    The system drops the lock when a process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digests(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in FILES if (folder / name).is_file()}


def _ready(folder: Path) -> int:
    """How many rows stand there in whole blocks."""
    if not all((folder / name).is_file() for name in FILES):
        return 0
    ends = np.fromfile(folder / "ends", "<u8")
    ready = len(ends) // BLOCK * BLOCK
    return ready if ready and 4 * int(ends[ready - 1]) <= (folder / "numbers").stat().st_size else 0
