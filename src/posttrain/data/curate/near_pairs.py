"""Near-duplicates among pairs: prompt and both answers are near, each on its own.

Were the whole pair one text, two pairs with the same long prompt and other short answers would be
near. Memory holds about 1,700 bytes a row; shingles are on the disk.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data.curate.near_duplicates import Prints, clusters, jaccard, key


class NearPairs:
    """The texts of pairs, numbered as they were added.

    Args:
        folder: for the shingles.
    """

    def __init__(self, folder: Path) -> None:
        self._prompts, self._answers = Prints(folder / "prompts"), Prints(folder / "answers")
        self._keys: tuple[array[int], array[int]] = array("Q"), array("Q")

    def __enter__(self) -> NearPairs:
        return self

    def __exit__(self, *error: Any) -> None:
        self._prompts.__exit__(*error)
        self._answers.__exit__(*error)

    def add(self, prompt: str, better: str, worse: str) -> None:
        for which, text in ((0, prompt), (1, better), (1, worse)):
            (self._prompts, self._answers)[which].add(text)
            self._keys[which].append(
                key("=" + " ".join(text.split()))
            )  # of no text, too, which is like no text

    def find(self, active: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
        """Which rows contradict or repeat another.

        Args:
            active: [R] the rows to look at.
            near: Jaccard similarity from which two texts are near.
        Returns: [R] the first row that says nearly the opposite, and [R] the first that stays and
            says nearly the same; -1 where there is none.
        """
        against, repeated = np.full(len(active), -1), np.full(len(active), -1)
        asked = clusters(self._prompts, near, [np.array(self._keys[0], np.uint64)])
        answers = clusters(self._answers, near, [np.array(self._keys[1], np.uint64)]).reshape(-1, 2)
        groups: dict[tuple[int, int, int], list[int]] = {}
        for i in np.flatnonzero(active).tolist():
            low, high = sorted(answers[i].tolist())
            groups.setdefault((int(asked[i]), low, high), []).append(i)
        for group in groups.values():
            said: list[int] = []  # rows with something of their own to say
            for i in group:
                for j in said:
                    way = self._way(i, j, near)
                    if way > 0 and repeated[i] < 0:
                        repeated[i] = j
                    elif way < 0:
                        against[i] = against[i] if against[i] >= 0 else j
                        against[j] = against[j] if against[j] >= 0 else i
                if repeated[i] < 0:
                    said.append(i)
            for i in group:  # whoever repeats a contradicted row is contradicted
                if repeated[i] >= 0 and against[i] < 0 <= against[repeated[i]]:
                    against[i] = against[repeated[i]]
            for i in group:
                if against[i] >= 0:
                    repeated[i] = -1
        return against, repeated

    def _way(self, i: int, j: int, near: float) -> int:
        """+1 where two rows say nearly the same, -1 where nearly the opposite, 0 where neither."""
        if self._similarity(0, i, j) < near:
            return 0
        straight = [self._similarity(1, 2 * i + side, 2 * j + side) for side in (0, 1)]
        crossed = [self._similarity(1, 2 * i + side, 2 * j + 1 - side) for side in (0, 1)]
        if min(crossed) >= near and sum(crossed) > sum(straight):
            return -1
        return 1 if min(straight) >= near else 0

    def _similarity(self, which: int, i: int, j: int) -> float:
        if self._keys[which][i] == self._keys[which][j]:
            return 1.0
        prints = (self._prompts, self._answers)[which]
        return jaccard(prints.shingles(i), prints.shingles(j))
