"""Near-duplicates among pairs: the prompt and both answers are near, each on its own.

If the whole pair were one text, two pairs with the same long prompt and different short answers
would be near. Memory holds about 1,700 bytes a row; shingles are on the disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from posttrain.data.curate.near_duplicates import Prints, clusters, jaccard, key


class NearPairs:
    """The texts of pairs, numbered as they were added.

    Args:
        folder: for the shingles.
    """

    def __init__(self, folder: Path) -> None:
        self._prompts = _Texts(folder / "prompts")
        self._answers = _Texts(folder / "answers")  # 2i and 2i + 1 are the answers of pair i

    def __enter__(self) -> NearPairs:
        return self

    def __exit__(self, *error: object) -> None:
        self._prompts.prints.__exit__(*error)
        self._answers.prints.__exit__(*error)

    def add(self, prompt: str, better: str, worse: str) -> None:
        self._prompts.add(prompt)
        self._answers.add(better)
        self._answers.add(worse)

    def find(self, active: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
        """Which rows contradict or repeat another.

        Args:
            active: [R] the rows to look at.
            near: Jaccard similarity from which two texts are near.
        Returns: [R] the first row that says nearly the opposite, and [R] the first row that stays
            and says nearly the same; -1 where there is none.
        """
        against, repeated = np.full(len(active), -1), np.full(len(active), -1)
        for group in self._candidates(active, near):
            self._compare(group, near, against, repeated)
        return against, repeated

    def _candidates(self, active: np.ndarray, near: float) -> Iterable[list[int]]:
        """Active rows whose prompts lie in one cluster, and whose answers lie in the same two."""
        prompts = self._prompts.clusters(near)
        answers = self._answers.clusters(near).reshape(-1, 2)
        groups: dict[tuple[int, int, int], list[int]] = {}
        for i in np.flatnonzero(active).tolist():
            low, high = sorted(answers[i].tolist())
            groups.setdefault((int(prompts[i]), low, high), []).append(i)
        return groups.values()

    def _compare(
        self, group: list[int], near: float, against: np.ndarray, repeated: np.ndarray
    ) -> None:
        """Fill in what the rows of a group contradict or repeat."""
        distinct: list[int] = []  # rows that repeat none before them
        for i in group:
            for j in distinct:
                agreement = self._agreement(i, j, near)
                if agreement > 0 and repeated[i] < 0:
                    repeated[i] = j
                elif agreement < 0:
                    against[i] = against[i] if against[i] >= 0 else j
                    against[j] = against[j] if against[j] >= 0 else i
            if repeated[i] < 0:
                distinct.append(i)
        for i in group:  # a row that repeats a contradicted row is contradicted, too
            if repeated[i] >= 0 and against[i] < 0 <= against[repeated[i]]:
                against[i] = against[repeated[i]]
        for i in group:
            if against[i] >= 0:
                repeated[i] = -1

    def _agreement(self, i: int, j: int, near: float) -> int:
        """+1 where two rows say nearly the same, -1 where nearly the opposite, 0 where neither."""
        if self._prompts.similarity(i, j) < near:
            return 0
        similarity = self._answers.similarity
        straight = [similarity(2 * i + side, 2 * j + side) for side in (0, 1)]
        crossed = [similarity(2 * i + side, 2 * j + 1 - side) for side in (0, 1)]
        if min(crossed) >= near and sum(crossed) > sum(straight):
            return -1
        return 1 if min(straight) >= near else 0


class _Texts:
    """Texts of which equal ones are near, even if they have no words."""

    def __init__(self, path: Path) -> None:
        self.prints = Prints(path)
        self._keys = array("Q")

    def add(self, text: str) -> None:
        self.prints.add(text)
        self._keys.append(key("=" + " ".join(text.split())))  # empty texts have a key, too

    def clusters(self, near: float) -> np.ndarray:
        return clusters(self.prints, near, [np.array(self._keys, np.uint64)])

    def similarity(self, i: int, j: int) -> float:
        if self._keys[i] == self._keys[j]:
            return 1.0
        return jaccard(self.prints.shingles(i), self.prints.shingles(j))
