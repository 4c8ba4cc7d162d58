"""Overlap: training rows that are held-out rows too, or nearly: the same tokens, a near-duplicate's
text, or a near-duplicate's prompt.

The same tokens are found among all rows by their hashes. Near-duplicates are those of
`posttrain.data.curate.near_duplicates`, decided by the true Jaccard similarity. Two sets whose
similarity is at least s share one of the ⌊(1 − s)·|A|⌋ + 1 rarest shingles of each (prefix
filtering: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007). So an index of the held-out
rows' rarest shingles finds every candidate; no signatures are needed, and nothing is missed.

Of large data samples are compared, evenly spread and the same every time: at most `ROWS` training
rows and `HELD_OUT_ROWS` held-out rows, and fewer where texts are long or most are alike.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.core.seeds import generator
from posttrain.data.curate.corpus import pieces, prompt
from posttrain.data.curate.near_duplicates import shingles, similarities
from posttrain.data.formats import Example

NEAR = 0.8  # Jaccard similarity from which two texts are near-duplicates, as in `data split`
ROWS, HELD_OUT_ROWS = 20_000, 5_000  # that are compared at most
SHINGLES = 8_000_000  # of either side that are held at most: 64 MB
CANDIDATES = 20_000_000  # that are looked at at most, in a second or two


class Sample:
    """Rows of a stream whose length is not known: all of them, or every second, fourth, … of them.

    Attributes:
        seen: rows of the stream.
        texts, prompts: of the rows that are kept, the shingles.
    """

    def __init__(self, rows: int = ROWS, shingles: int = SHINGLES) -> None:
        self._most_rows, self._most_shingles = rows, shingles
        self._every, self._size = 1, 0
        self.seen = 0
        self.texts: list[np.ndarray] = []
        self.prompts: list[np.ndarray] = []

    def add(self, example: Example) -> None:
        """Take a row in, if it is its turn."""
        if self.seen % self._every == 0:
            self.texts.append(shingles("\n".join(pieces(example))))
            self.prompts.append(shingles(prompt(example)))
            self._size += len(self.texts[-1]) + len(self.prompts[-1])
            if len(self.texts) > self._most_rows or self._size > self._most_shingles:
                self._halve()
        self.seen += 1

    def _halve(self) -> None:
        self._every *= 2
        self.texts, self.prompts = self.texts[::2], self.prompts[::2]
        self._size = sum(map(len, self.texts)) + sum(map(len, self.prompts))


@dataclass(frozen=True)
class Side:
    """One side of a comparison: rows there are, and rows that the other side has, too.

    Attributes:
        rows: all of them.
        same: rows with the tokens of one of the other side.
        compared: rows that were looked at for near-duplicates.
        near: of these, rows that are near-duplicates of one of the other side, equal ones among
            them.
        near_prompt: of these, others, whose prompts are near-duplicates.
    """

    rows: int
    same: int
    compared: int
    near: int
    near_prompt: int

    @property
    def share(self) -> float:
        """The larger share of rows that the other side has, the same or nearly."""
        nearly = (self.near + self.near_prompt) / max(1, self.compared)
        return max(self.same / max(1, self.rows), nearly)

    def sentence(self, what: str, other: str) -> str:
        """`0 of 503 held-out rows (0.0 %) are also training rows, 60 (11.9 %) have a …`"""
        near = self.near + self.near_prompt
        text = (
            f"{self.same:,} of {self.rows:,} {what} rows ({_percent(self.same, self.rows)}) are "
            f"also {other} rows, {near:,} ({_percent(near, self.compared)}) have a near-duplicate "
            "there"
        )
        return text + (f", {self.near_prompt:,} by the prompt alone" if self.near_prompt else "")


@dataclass(frozen=True)
class Overlap:
    """What training rows and held-out rows have in common.

    Attributes:
        similarity: Jaccard, from which two texts are near-duplicates.
    """

    training: Side
    held_out: Side
    similarity: float = NEAR

    def json(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """How much overlaps, and what was compared."""
        training, held_out = self.training, self.held_out
        if training.share == held_out.share == 0:
            text = (
                f"none: {held_out.rows:,} held-out rows, {training.rows:,} training rows, no two "
                "the same or near-duplicates"
            )
        else:
            text = (
                f"{held_out.sentence('held-out', 'training')}; "
                f"{training.sentence('training', 'held-out')}"
            )
        if (training.compared, held_out.compared) != (training.rows, held_out.rows):
            text += (
                f" (near-duplicates were looked for among {training.compared:,} training rows and "
                f"{held_out.compared:,} held-out rows)"
            )
        return text


def _percent(count: int, of: int) -> str:
    return f"{100 * count / max(1, of):.1f} %"


def overlap(
    training: Sample,
    held_out: Sample,
    training_keys: np.ndarray,
    held_out_keys: np.ndarray,
    similarity: float = NEAR,
    most: int = CANDIDATES,
) -> Overlap:
    """What training rows and held-out rows have in common.

    Args:
        training, held_out: the rows.
        training_keys, held_out_keys: [R] uint64, a hash of every row's tokens.
        most: candidates that are looked at; see `near`.
    """
    texts = near(training.texts, held_out.texts, similarity, most)
    prompts = near(training.prompts, held_out.prompts, similarity, most)
    seen = texts.compared & prompts.compared
    by_prompt = prompts.left & ~texts.left & seen
    return Overlap(
        Side(
            len(training_keys),
            int(np.isin(training_keys, held_out_keys).sum()),
            int(seen.sum()),
            int((texts.left & seen).sum()),
            int(by_prompt.sum()),
        ),
        Side(
            len(held_out_keys),
            int(np.isin(held_out_keys, training_keys).sum()),
            len(held_out.texts),
            int(texts.right.sum()),
            int((prompts.right & ~texts.right).sum()),
        ),
        similarity,
    )


class Samples:
    """The rows whose overlap is looked for; none are kept where nothing is held out.

    Args:
        labels: of the sets of sources: "data", and "held out" where there is any.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        found = set(labels)
        self._of: dict[str, Sample] = {}
        if "held out" in found:
            self._of = {"data": Sample(), "held out": Sample(HELD_OUT_ROWS)}

    def observe(self, label: str) -> Callable[[Example], None]:
        """What is to be called with every row of a set that is used."""
        return self._of[label].add if self._of else lambda example: None

    def overlap(self, keys: Mapping[str, Iterable[np.ndarray]]) -> Overlap | None:
        """What training rows and held-out rows have in common; None where nothing is held out.

        Args:
            keys: of every set, the hashes of its sources' rows; see `posttrain.data.prepare`.
        """
        if not self._of:
            return None
        training, held_out = (np.concatenate(list(keys[label])) for label in self._of)
        return overlap(self._of["data"], self._of["held out"], training, held_out)


def read_keys(folder: Path) -> np.ndarray:
    """[R] uint64, the hash of every row's tokens, from the file beside prepared tokens."""
    return np.fromfile(folder / "hashes", np.uint64)


@dataclass(frozen=True)
class Near:
    """Which sets have a near-duplicate on the other side.

    Attributes:
        left: [L] bool. right: [R] bool.
        compared: [L] bool, the sets that were compared with all on the right.
    """

    left: np.ndarray
    right: np.ndarray
    compared: np.ndarray


def near(
    left: Many[np.ndarray], right: Many[np.ndarray], similarity: float, most: int = CANDIDATES
) -> Near:
    """Which sets have a near-duplicate on the other side.

    Args:
        left, right: sets of shingles, ascending. The empty set is like no other.
        similarity: Jaccard, from which two are near-duplicates.
        most: candidates to look at; then the rest on the left, drawn by lot, is not compared.
    """
    found = Near(*(np.zeros(n, bool) for n in (len(left), len(right), len(left))))
    known, counts = np.unique(np.concatenate([*right, np.zeros(0, np.uint64)]), return_counts=True)
    index = _index(right, known, counts, similarity)
    sizes = np.array([len(row) for row in right], np.int64)
    for i in generator(0, "overlap").permutation(len(left)).tolist():
        if most < 0:
            break
        found.compared[i] = True
        row = left[i]
        lists = [index[one] for one in _rarest(row, known, counts, similarity) if one in index]
        if lists:
            most -= sum(map(len, lists))
            candidates = np.unique(np.concatenate(lists))
            ratio = sizes[candidates] / len(row)
            small, large = similarity - 1e-9, 1 / similarity + 1e-9  # of the other, to be near
            close = candidates[(ratio >= small) & (ratio <= large)]
            _compare(i, row, close, right, similarity, found)
    return found


def _compare(
    i: int,
    row: np.ndarray,
    candidates: np.ndarray,
    right: Many[np.ndarray],
    similarity: float,
    found: Near,
) -> None:
    """Fill in whether a row on the left is near to candidates on the right, and which are to it."""
    size = 1  # the first candidate often settles it; then more at a time
    while len(candidates):
        batch, candidates = candidates[:size], candidates[size:]
        hits = batch[similarities(row, [right[j] for j in batch]) >= similarity]
        found.right[hits] = True
        found.left[i] |= len(hits) > 0
        if found.left[i]:  # what is left is whether the others are near anything
            candidates = candidates[~found.right[candidates]]
        size = min(8 * size, 4096)


def _index(
    rows: Many[np.ndarray], known: np.ndarray, counts: np.ndarray, similarity: float
) -> dict[int, np.ndarray]:
    """Of every shingle that is among a row's rarest, the numbers of these rows."""
    index: dict[int, array[int]] = {}
    for number, row in enumerate(rows):
        for one in _rarest(row, known, counts, similarity):
            index.setdefault(one, array("q")).append(number)
    return {one: np.array(numbers, np.int64) for one, numbers in index.items()}


def _rarest(row: np.ndarray, known: np.ndarray, counts: np.ndarray, similarity: float) -> list[int]:
    """The rarest shingles of a set, one more than may be missing from a near-duplicate, less those
    that no indexed set has.

    Args:
        known, counts: the shingles of the indexed sets, ascending, and how many sets have each.
    """
    if not len(row) or not len(known):
        return []
    place = np.minimum(np.searchsorted(known, row), len(known) - 1)
    found = known[place] == row
    missing = len(row) - int(found.sum())
    # |A ∩ B| ≥ s·|A ∪ B| ≥ s·|A|
    most = len(row) - math.ceil(similarity * len(row) - 1e-9) + 1 - missing
    if most <= 0:
        return []
    order = np.lexsort((row[found], counts[place[found]]))
    return row[found][order[:most]].tolist()
