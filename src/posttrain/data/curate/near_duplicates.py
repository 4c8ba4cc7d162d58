"""Near-duplicates: found by MinHash, decided by the true Jaccard similarity.

A text is the set of its shingles: runs of three words, without case and punctuation. Two texts are
    near-duplicates where
|A ∩ B| / |A ∪ B| ≥ near. Comparing all pairs would take R²/2 steps; texts that agree in a band of
their MinHash signatures are the candidates (locality-sensitive hashing, Broder 1997; Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, section 3.4).

A text takes 520 bytes of memory; its shingles are on the disk. datasketch makes the signatures; its
index is not used, because
it takes 8,300 bytes a text. Left out: scripts whose vowel signs are no letters are compared without
    them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from posttrain.core.extras import require

SHINGLE = 3  # words; one edited word in a text of 30 leaves a similarity of 0.8
PERMUTATIONS = 128
MISSED = 1e-3  # chance that no band finds a pair that is exactly as similar as asked
MARGIN = 0.12  # of the estimate from signatures: 3.4 standard errors at 0.8

_ALONE = (  # scripts without spaces: a sign is a word
    "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(
    rf"[{_ALONE}]|[^\W{_ALONE}]+|[-+*/=<>^%&|~#$@\\]"
)  # signs that change what code and sums mean are words


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=2**17)
def _hash(word: str) -> int:
    return key(word)


def key(text: str) -> int:
    """64 bits that stand for a text, the same in every process; 0 for no text."""
    return (
        int.from_bytes(
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
        )
        if text
        else 0
    )


def shingles(text: str) -> np.ndarray:
    """[n] uint64, ascending: hashes of the runs of `SHINGLE` words; of all words where there are
    fewer.
    """
    hashes = np.array([_hash(word) for word in words(text)], np.uint64)
    n = min(SHINGLE, len(hashes))
    out = np.zeros(len(hashes) - n + 1 if n else 0, np.uint64)
    for i in range(n):
        out = (
            out * np.uint64(0x9E3779B97F4A7C15) + hashes[i : len(hashes) - n + 1 + i]
        )  # wraps, as a hash may
    return np.unique(out)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two ascending arrays without repeats; 0 where both are empty."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


def bands(near: float) -> tuple[int, int]:
    """How many bands a signature is cut into, and how many values one has.

    With b bands of r values a pair of similarity s meets in one with probability 1 - (1 - sʳ)ᵇ. The
    longest bands that miss no more than `MISSED` of the pairs at `near` send the fewest others to
    be compared.
    """
    rows = max(
        (r for r in range(1, PERMUTATIONS + 1) if (1 - near**r) ** (PERMUTATIONS // r) <= MISSED),
        default=1,
    )
    return PERMUTATIONS // rows, rows


class Prints:
    """The signatures of texts, numbered as they were added.

    Args:
        path: file for the shingles, 8 bytes each.
    Attributes:
        keys: 64 bits a text; equal for equal texts, 0 for an empty one.
    """

    def __init__(self, path: Path) -> None:
        sketch: Any = require("datasketch", extra="data", purpose="finding near-duplicates")
        self._hash = sketch.MinHash(PERMUTATIONS, seed=1, hashfunc=int)
        self._path, self._file = path, open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._mapped: np.ndarray | None = None
        self._ends = array("q", [0])
        self._signatures = bytearray()
        self._keys = array("Q")

    def __enter__(self) -> Prints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> np.ndarray:
        return np.array(self._keys, np.uint64)

    @property
    def signatures(self) -> np.ndarray:
        """[R, PERMUTATIONS] uint32."""
        return np.frombuffer(self._signatures, np.uint32).reshape(-1, PERMUTATIONS)

    def add(self, text: str) -> int:
        """Take a text in; returns its number."""
        found = shingles(text)
        self._hash.clear()
        for start in range(0, len(found), 1024):  # a book at once would take a kilobyte a word
            self._hash.update_batch((found[start : start + 1024] >> np.uint64(32)).tolist())
        self._signatures += self._hash.hashvalues.astype(np.uint32).tobytes()
        self._file.write(found.tobytes())
        self._mapped = None
        self._ends.append(self._ends[-1] + len(found))
        self._keys.append(key(text) if len(found) else 0)
        return len(self) - 1

    def shingles(self, number: int) -> np.ndarray:
        """[n] of one text, from the disk."""
        if self._mapped is None:
            self._file.flush()
            self._mapped = (
                np.memmap(self._path, np.uint64, "r") if self._ends[-1] else np.empty(0, np.uint64)
            )
        return self._mapped[self._ends[number] : self._ends[number + 1]]

    def similarities(self, i: int, others: Sequence[int]) -> np.ndarray:
        """[n] the true Jaccard similarity of a text to others, all of which have words; see
        `jaccard`.
        """
        mine, theirs = self.shingles(i), [self.shingles(j) for j in others]
        lengths = np.array(list(map(len, theirs)))
        flat = np.concatenate(theirs)
        hits = mine[np.minimum(np.searchsorted(mine, flat), len(mine) - 1)] == flat
        both = np.add.reduceat(hits, np.cumsum(lengths) - lengths, dtype=np.int64)
        return both / (len(mine) + lengths - both)


class _Sets:
    """Numbers in sets that only grow together (union-find); a set is known by its least number."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> tuple[int, int]:
        """Returns the least number of the joined set, and the one that is no longer."""
        low, high = sorted((self.find(i), self.find(j)))
        self.parent[high] = low
        return low, high


def equal(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of the rows that have a key in common, ascending, where there are several."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[len(keys) > 0], np.diff(keys[order]) != 0]))
    ends = np.append(starts[1:], len(keys))
    for several in np.flatnonzero(ends - starts > 1):
        yield order[starts[several] : ends[several]]


def clusters(prints: Prints, near: float, same: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Which texts belong together: near-duplicates, near-duplicates of those, and so on.

    Args:
        prints: the texts.
        near: Jaccard similarity from which two are near-duplicates.
        same: [R] uint64 keys, of which equal ones belong together as well; 0 is none.
    Returns: [R] the least number in the cluster of each.
    """
    sets = _Sets(len(prints))
    for keys in (prints.keys, *same):
        for run in equal(keys):
            if keys[run[0]]:
                for i in run[1:].tolist():
                    sets.join(int(run[0]), i)
    signatures = prints.signatures
    filled = np.flatnonzero(prints.keys)  # texts without a word are like no other
    count, rows = bands(near)
    for band in range(count):
        values = np.zeros(len(filled), np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            values = values * np.uint64(0x9E3779B97F4A7C15) + signatures[filled, column]
        for run in equal(values):
            _join(sets, filled[run], prints, signatures, near, band, rows)
    return np.array([sets.find(i) for i in range(len(prints))], np.int64)


def _join(
    sets: _Sets,
    run: np.ndarray,
    prints: Prints,
    signatures: np.ndarray,
    near: float,
    band: int,
    rows: int,
) -> None:
    """Join the near-duplicates among candidates.

    Not compared are those that are together already, or met in an earlier band.
    """
    roots = np.array([sets.find(i) for i in run.tolist()])
    if (roots == roots[0]).all():
        return
    for at in range(1, len(run)):
        others = run[:at][roots[:at] != roots[at]]
        met = (signatures[others, : band * rows] == signatures[run[at], : band * rows]).reshape(
            len(others), band, rows
        )
        others = others[~met.all(axis=2).any(axis=1)]
        for j in _near(
            prints,
            int(run[at]),
            others,
            near,
            signatures,
            lambda i, j: sets.find(i) != sets.find(j),
        ):
            low, high = sets.join(int(run[at]), j)
            roots[roots == high] = low


def _near(
    prints: Prints,
    i: int,
    others: np.ndarray,
    near: float,
    signatures: np.ndarray,
    wanted: Callable[[int, int], bool] = lambda i, j: True,
) -> Iterator[int]:
    """Those of `others` that are near i, beginning with those that seem the most similar.

    Args:
        wanted: asked just before i is compared with j, because what was found may have settled it.
    """
    estimate = (signatures[others] == signatures[i]).mean(axis=1)
    likely = np.flatnonzero(estimate >= near - MARGIN)
    rest, size = others[likely[np.argsort(-estimate[likely], kind="stable")]].tolist(), 1
    while rest:
        some, rest, size = (
            [j for j in rest[:size] if wanted(i, j)],
            rest[size:],
            min(8 * size, 4096),
        )  # the first often decides
        if some:
            yield from (
                j
                for j, found in zip(some, prints.similarities(i, some), strict=True)
                if found >= near
            )


def like(prints: Prints, near: float, labels: np.ndarray, first: int) -> np.ndarray:
    """Which texts are near one of the `first` ones.

    Args:
        prints: the texts.
        near: Jaccard similarity from which two are near-duplicates.
        labels: [R] of `clusters`.
    Returns: [R] number of the most similar of the first that is near, -1 where none is, and for the
        first themselves.
    """
    signatures, out = prints.signatures, np.full(len(prints), -1)
    for group in equal(labels):
        others = group[group < first]
        for i in group[group >= first] if len(others) else ():
            out[i] = next(_near(prints, int(i), others, near, signatures), -1)
    return out


def repeats(prints: Prints, near: float, labels: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """For every text, the one it repeats.

    Of near-duplicates the first by rank stays, and no two that stay are near.

    Args:
        prints: the texts.
        near: Jaccard similarity from which two are near-duplicates.
        labels: [R] of `clusters`.
        rank: [R] the order of preference; those below 0 are not looked at.
    Returns: [R] number of the text it repeats, -1 where it stays.
    """
    signatures, out = prints.signatures, np.full(len(prints), -1)
    for group in equal(labels):
        stay: list[int] = []
        for i in group[np.argsort(rank[group], kind="stable")]:
            if rank[i] >= 0:
                out[i] = next(_near(prints, int(i), np.array(stay, np.int64), near, signatures), -1)
                if out[i] < 0:
                    stay.append(int(i))
    return out
