"""Stored reference log-probabilities: what is read back is what was scored, after a kill and after
damage, too.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
import pytest

from posttrain.core.errors import CheckpointError
from posttrain.core.journal import Journal
from posttrain.engine.reference import BLOCK, Stored, store

KEY = {"reference": "abc", "rows": "def"}
ROWS = list(range(0, 300, 2))  # 150 rows: two whole blocks and a part of one


def values(i: int) -> np.ndarray:
    return -np.arange(i % 5, dtype=np.float32) - i


class Scorer:
    """Scores rows, and keeps which ones it was asked for."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.blocks: list[list[int]] = []
        self.stop_at = stop_at

    def __call__(self, rows: Many[int]) -> list[np.ndarray]:
        self.blocks.append(list(rows))
        if len(self.blocks) == self.stop_at:
            raise KeyboardInterrupt
        return [values(i) for i in rows]


def kept(folder: Path, score: Scorer, said: list[str] | None = None) -> Stored:
    said = [] if said is None else said
    return store(Journal(folder, KEY, message=said.append), ROWS, score)


def right(stored: Stored) -> bool:
    return all(
        stored[i].tolist() == values(i).tolist() and stored[i].dtype == np.float32 for i in ROWS
    )


def test_what_is_stored_is_what_was_scored(tmp_path: Path) -> None:
    score = Scorer()
    done: list[int] = []
    stored = store(Journal(tmp_path, KEY), ROWS, score, done.append)
    assert right(stored) and len(stored) == ROWS[-1] + 1
    assert score.blocks == [ROWS[:64], ROWS[64:128], ROWS[128:]]
    assert done == [0, 64, 128, 150]
    for strange in (1, 300, -1):
        with pytest.raises(IndexError):
            stored[strange]
    stored[2][:] = 0  # a copy: what is stored stays
    assert right(stored)


def test_it_is_found_again(tmp_path: Path) -> None:
    kept(tmp_path, Scorer())
    again = Scorer()
    assert right(kept(tmp_path, again)) and again.blocks == []


def test_what_was_interrupted_goes_on_after_the_last_whole_block(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path, Scorer(stop_at=2))
    again = Scorer()
    assert right(kept(tmp_path, again)) and again.blocks == [ROWS[64:128], ROWS[128:]]


@pytest.mark.parametrize("name", ["records.jsonl", "arrays.bin"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "zero"])
def test_a_damaged_block_and_those_after_it_are_scored_again(
    tmp_path: Path, name: str, damage: str
) -> None:
    kept(tmp_path, Scorer())
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        size = len(data)
        path.write_bytes({"flipped": data, "short": data[: size // 2], "zero": bytes(size)}[damage])
    again, said = Scorer(), list[str]()
    assert right(kept(tmp_path, again, said))
    assert again.blocks in ([ROWS[64:128], ROWS[128:]], [ROWS[:64], ROWS[64:128], ROWS[128:]])
    assert len(said) == (0 if (name, damage) == ("records.jsonl", "gone") else 1)


def test_another_reference_is_refused(tmp_path: Path) -> None:
    kept(tmp_path, Scorer())
    with pytest.raises(CheckpointError, match="reference"):
        store(Journal(tmp_path, {**KEY, "reference": "other"}), ROWS, Scorer())


def test_one_row_is_read_without_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = kept(tmp_path, Scorer())
    read: list[int] = []
    real = Journal._at
    monkeypatch.setattr(
        Journal, "_at", lambda self, name, *at: (read.append(at[1]), real(self, name, *at))[1]
    )
    stored[ROWS[BLOCK + 2]]
    assert sum(read) < 1000
