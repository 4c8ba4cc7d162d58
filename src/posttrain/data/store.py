"""Trees on the disk: token ids and masks of a whole data set, read where they are needed.

Three files of little-endian integers: `tokens` (uint32: id · 2 + trained), `sequences` (uint64:
where each ends in `tokens`) and `trees` (uint64: where each ends in `sequences`). A fourth,
`prompts` (uint32), has the tokens of every tree's prompt where the mask does not show where it
ends. Beside trees may lie numbers, of which every
tree has as many as it likes (labels, margins, log-probabilities): `numbers` (float32) and `ends`
(uint64). Memory holds nothing but what is being read.
"""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Sequence as Many
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from posttrain.data.forest import Sequence, Tree

FILES = {"tokens": np.dtype("<u4"), "sequences": np.dtype("<u8"), "trees": np.dtype("<u8")}
PROMPT = np.dtype("<u4")


class TreeWriter:
    """Writes trees into a folder, one after another.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        (folder / "prompts").unlink(missing_ok=True)
        self._files = {name: open(folder / name, "wb", buffering=1 << 20) for name in FILES}  # noqa: SIM115 - `close`
        self.tokens = self.sequences = self.trees = 0

    def add(self, tree: Tree, prompt: int | None = None) -> None:
        """Write a tree.

        Args:
            prompt: tokens of its prompt, of every tree or of none; None: up to the first trained
                one.
        """
        if prompt is not None:
            if "prompts" not in self._files:
                self._files["prompts"] = open(self._folder / "prompts", "wb", buffering=1 << 20)  # noqa: SIM115 - `close`
            self._files["prompts"].write(np.asarray(prompt, PROMPT).tobytes())
        for one in tree:
            self._write("tokens", (one.tokens.astype(np.uint32) << 1) | one.trained)
            self.tokens += len(one.tokens)
            self._write("sequences", self.tokens)
        self.sequences += len(tree)
        self.trees += 1
        self._write("trees", self.sequences)

    def _write(self, name: str, value: np.ndarray | int) -> None:
        self._files[name].write(np.asarray(value, FILES[name]).tobytes())

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NumberWriter:
    """Writes the numbers of trees into a folder, one tree after another, beginning with tree
    `start`.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.total = 0
        if start:
            ends = np.fromfile(folder / "ends", "<u8", start)
            self.total = int(ends[-1])
            _cut(folder / "ends", 8 * start)
            _cut(folder / "numbers", 4 * self.total)
        mode = "ab" if start else "wb"
        self._numbers: IO[bytes] = open(folder / "numbers", mode, buffering=1 << 20)  # noqa: SIM115 - `close`
        self._ends: IO[bytes] = open(folder / "ends", mode, buffering=1 << 20)  # noqa: SIM115

    def add(self, numbers: Many[float] | np.ndarray) -> None:
        self._numbers.write(np.asarray(numbers, "<f4").tobytes())
        self.total += len(numbers)
        self._ends.write(np.asarray(self.total, "<u8").tobytes())

    def flush(self) -> None:
        for file in (
            self._numbers,
            self._ends,
        ):  # the ends last: one without its numbers would be believed
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self._numbers.close()
        self._ends.close()

    def __enter__(self) -> NumberWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _cut(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


class Numbers(Many[np.ndarray]):
    """The numbers of one or more folders that `NumberWriter` wrote, by tree, numbered through."""

    def __init__(self, *folders: Path) -> None:
        self._parts = [
            (_map(folder / "numbers", np.dtype("<f4")), _map(folder / "ends", np.dtype("<u8")))
            for folder in folders
        ]
        self._starts = [0]
        for _, ends in self._parts:
            self._starts.append(self._starts[-1] + len(ends))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override] - no slices
        if not 0 <= i < len(self):
            raise IndexError(i)
        p = bisect.bisect_right(self._starts, i) - 1
        (numbers, ends), k = self._parts[p], i - self._starts[p]
        return np.array(numbers[int(ends[k - 1]) if k else 0 : int(ends[k])])


class Trees(Many[Tree]):
    """The trees of one or more folders that `TreeWriter` wrote, numbered through."""

    def __init__(self, *folders: Path) -> None:
        # opened now: the folders may be renamed while their trees are read
        self._prompts = [
            _map(folder / "prompts", PROMPT) for folder in folders if (folder / "prompts").is_file()
        ]
        self._parts = [
            {name: _map(folder / name, dtype) for name, dtype in FILES.items()}
            for folder in folders
        ]
        self._starts = [0]
        for part in self._parts:
            self._starts.append(self._starts[-1] + len(part["trees"]))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Tree:  # type: ignore[override] - no slices
        if not 0 <= i < len(self):
            raise IndexError(i)
        p = bisect.bisect_right(self._starts, i) - 1
        part, k = self._parts[p], i - self._starts[p]
        first, last = (int(part["trees"][k - 1]) if k else 0), int(part["trees"][k])
        ends = part["sequences"][max(0, first - 1) : last].tolist()
        begins = ends[:-1] if first else [0, *ends[:-1]]
        ends = ends[1:] if first else ends
        return tuple(_sequence(part["tokens"][a:b]) for a, b in zip(begins, ends, strict=True))

    def prompt_lengths(self) -> np.ndarray | None:
        """[trees] tokens of every tree's prompt; None where the mask shows where it ends."""
        if len(self._prompts) < len(self._parts):
            return None
        return np.concatenate(self._prompts).astype(np.int64)

    def ends(self) -> set[int]:
        """Every token that is a sequence's last."""
        last = [part["tokens"][part["sequences"].astype(np.int64) - 1] >> 1 for part in self._parts]
        return set(np.unique(np.concatenate(last)).tolist())

    def digest(self) -> str:
        """SHA-256 of all tokens and masks, and of how they are cut into sequences and trees."""
        hashed = hashlib.sha256()
        for part in self._parts:
            for name in FILES:
                hashed.update(f"{name} {len(part[name])} ".encode())
                hashed.update(part[name].data)
        return hashed.hexdigest()

    def lengths(self) -> np.ndarray:
        """Tokens of every sequence."""
        return np.concatenate(
            [np.diff(part["sequences"].astype(np.int64), prepend=0) for part in self._parts]
        )


def _sequence(packed: np.ndarray) -> Sequence:
    return Sequence((packed >> 1).astype(np.int64), (packed & 1).astype(bool))


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
