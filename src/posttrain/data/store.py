"""Trees on the disk: token ids and masks of a whole data set, read where they are needed.

Three files of little-endian integers:

    tokens      uint32   id · 2 + trained, of every token
    sequences   uint64   where each sequence ends in `tokens`
    trees       uint64   where each tree ends in `sequences`

and beside them, where every tree has numbers of its own (labels, margins, log-probabilities), where
the mask does not show where a tree's prompt ends, and where answers are compared:

    numbers     float32  the numbers, tree after tree
    ends        uint64   where each tree's numbers end in `numbers`
    prompts     uint32   the tokens of each tree's prompt
    characters  uint32   the characters of each sequence's answer; see
                         `posttrain.data.messages.answer_length`

The files are memory-mapped; memory holds only what is being read.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from collections.abc import Sequence as Many
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np

from posttrain.data.forest import Sequence, Tree

FILES = {"tokens": np.dtype("<u4"), "sequences": np.dtype("<u8"), "trees": np.dtype("<u8")}
COUNT = np.dtype("<u4")  # of the optional files `prompts` and `characters`


class TreeWriter:
    """Writes trees into a folder, one after another.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for name in ("prompts", "characters"):
            (folder / name).unlink(missing_ok=True)
        self._files = {name: open(folder / name, "wb", buffering=1 << 20) for name in FILES}  # noqa: SIM115 - `close`
        self.tokens = self.sequences = self.trees = 0

    def add(
        self, tree: Tree, prompt: int | None = None, characters: Many[int] | None = None
    ) -> None:
        """Write a tree.

        Args:
            prompt: tokens of its prompt, of every tree or of none; None: up to the first trained
                one.
            characters: of the answer of every sequence, of every tree or of none.
        """
        if prompt is not None:
            self._write_counts("prompts", [prompt])
        if characters is not None:
            self._write_counts("characters", characters)
        for sequence in tree:
            self._write("tokens", (sequence.tokens.astype(np.uint32) << 1) | sequence.trained)
            self.tokens += len(sequence.tokens)
            self._write("sequences", self.tokens)
        self.sequences += len(tree)
        self.trees += 1
        self._write("trees", self.sequences)

    def _write_counts(self, name: str, counts: Many[int]) -> None:
        if name not in self._files:
            self._files[name] = open(self._folder / name, "wb", buffering=1 << 20)  # noqa: SIM115 - `close`
        self._files[name].write(np.asarray(counts, COUNT).tobytes())

    def _write(self, name: str, value: np.ndarray | int) -> None:
        self._files[name].write(np.asarray(value, FILES[name]).tobytes())

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NumberWriter:
    """Writes the numbers of trees into a folder, one tree after another.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.total = 0
        self._numbers: IO[bytes] = open(folder / "numbers", "wb", buffering=1 << 20)  # noqa: SIM115 - `close`
        self._ends: IO[bytes] = open(folder / "ends", "wb", buffering=1 << 20)  # noqa: SIM115

    def add(self, numbers: Many[float] | np.ndarray) -> None:
        self._numbers.write(np.asarray(numbers, "<f4").tobytes())
        self.total += len(numbers)
        self._ends.write(np.asarray(self.total, "<u8").tobytes())

    def close(self) -> None:
        self._numbers.close()
        self._ends.close()

    def __enter__(self) -> NumberWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _starts(counts: Iterable[int]) -> list[int]:
    """Where each folder's items start in the common numbering, then how many there are."""
    return [0, *accumulate(counts)]


def _locate(starts: list[int], i: int) -> tuple[int, int]:
    """The folder that holds item i of the common numbering, and the item's number in it."""
    if not 0 <= i < starts[-1]:
        raise IndexError(i)
    folder = bisect.bisect_right(starts, i) - 1
    return folder, i - starts[folder]


class Numbers(Many[np.ndarray]):
    """The numbers of each tree, [n] float32, from the folders that `NumberWriter` wrote.

    Trees are numbered through, folder after folder.
    """

    def __init__(self, *folders: Path) -> None:
        self._parts = [
            (_map(folder / "numbers", np.dtype("<f4")), _map(folder / "ends", np.dtype("<u8")))
            for folder in folders
        ]
        self._starts = _starts(len(ends) for _, ends in self._parts)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override] - no slices
        part, k = _locate(self._starts, i)
        numbers, ends = self._parts[part]
        start = int(ends[k - 1]) if k else 0
        return np.array(numbers[start : int(ends[k])])


class Trees(Many[Tree]):
    """The trees of the folders that `TreeWriter` wrote, numbered through, folder after folder."""

    def __init__(self, *folders: Path) -> None:
        # opened now: the folders may be renamed while their trees are read
        self._prompts, self._characters = (
            [_map(folder / name, COUNT) for folder in folders if (folder / name).is_file()]
            for name in ("prompts", "characters")
        )
        self._parts = [
            {name: _map(folder / name, dtype) for name, dtype in FILES.items()}
            for folder in folders
        ]
        self._starts = _starts(len(part["trees"]) for part in self._parts)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Tree:  # type: ignore[override] - no slices
        number, k = _locate(self._starts, i)
        part = self._parts[number]
        first = int(part["trees"][k - 1]) if k else 0
        last = int(part["trees"][k])
        start = int(part["sequences"][first - 1]) if first else 0
        tree = []
        for end in part["sequences"][first:last].tolist():
            tree.append(_sequence(part["tokens"][start:end]))
            start = end
        return Tree(tuple(tree))

    def prompt_lengths(self) -> np.ndarray | None:
        """[trees] tokens of every tree's prompt; None where the mask shows where it ends."""
        if len(self._prompts) < len(self._parts):
            return None
        return np.concatenate(self._prompts).astype(np.int64)

    def characters(self) -> np.ndarray:
        """[L] characters of the answer of every sequence, of trees whose answers are compared."""
        assert len(self._characters) == len(self._parts), "no answers are compared"
        return np.concatenate(self._characters).astype(np.int64)

    def ends(self) -> set[int]:
        """The ids of all tokens that end a sequence."""
        last = [part["tokens"][part["sequences"].astype(np.int64) - 1] >> 1 for part in self._parts]
        return set(np.unique(np.concatenate(last)).tolist())

    def digest(self) -> str:
        """SHA-256 of all tokens and masks, and of their division into sequences and trees."""
        hashed = hashlib.sha256()
        for part in self._parts:
            for name in FILES:
                hashed.update(f"{name} {len(part[name])} ".encode())
                hashed.update(part[name].data)
        return hashed.hexdigest()

    def lengths(self) -> np.ndarray:
        """[L] tokens of each sequence."""
        return np.concatenate(
            [np.diff(part["sequences"].astype(np.int64), prepend=0) for part in self._parts]
        )


def _sequence(packed: np.ndarray) -> Sequence:
    return Sequence((packed >> 1).astype(np.int64), (packed & 1).astype(bool))


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
