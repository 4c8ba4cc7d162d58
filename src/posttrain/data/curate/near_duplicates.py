"""Near-duplicates: found by MinHash, decided by the true Jaccard similarity.

A text is the set of its shingles: runs of three words, without case and punctuation. Two texts are
near-duplicates where |A ∩ B| / |A ∪ B| ≥ near. Comparing all pairs would take R²/2 steps; texts
that agree in a band of their MinHash signatures are the candidates (locality-sensitive hashing,
Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4).

A text takes 520 bytes of memory; its shingles are on the disk. datasketch makes the signatures; its
index is not used, because it takes 8,300 bytes a text.

Left out: in scripts whose vowel signs are no letters, texts are compared without these signs.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.core.extras import require
from posttrain.data.curate.groups import equal

SHINGLE = 3  # words; one edited word in a text of 30 leaves a similarity of 0.8
PERMUTATIONS = 128
MISSED = 1e-3  # chance that no band finds a pair whose similarity is exactly the threshold
MARGIN = 0.12  # of the estimate from signatures: 3.4 standard errors at 0.8
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash of a run of numbers

# in scripts without spaces every character is a word
_NO_SPACES = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# signs that change what code and sums mean are words
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[-+*/=<>^%&|~#$@\\]")


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=2**17)
def _hash(word: str) -> int:
    return key(word)


def key(text: str) -> int:
    """64 bits that stand for a text, the same in every process; 0 for no text."""
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def shingles(text: str) -> np.ndarray:
    """[n] uint64, ascending: hashes of the runs of `SHINGLE` words; of all words where there are
    fewer.
    """
    hashes = np.array([_hash(word) for word in words(text)], np.uint64)
    size = min(SHINGLE, len(hashes))
    if not size:
        return np.zeros(0, np.uint64)
    count = len(hashes) - size + 1
    return np.unique(_combined([hashes[start : start + count] for start in range(size)]))


def _combined(columns: Sequence[np.ndarray]) -> np.ndarray:
    """[R] uint64: one hash of several columns of [R] numbers."""
    combined = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        combined = combined * MULTIPLIER + column  # wraps, as a hash may
    return combined


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two ascending arrays without repeats; 0 where both are empty."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def similarities(own: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """[n] the Jaccard similarity of a set to others, none of them empty; see `jaccard`."""
    lengths = np.array(list(map(len, others)))
    flat = np.concatenate(others)
    hits = own[np.minimum(np.searchsorted(own, flat), len(own) - 1)] == flat
    shared = np.add.reduceat(hits, np.cumsum(lengths) - lengths, dtype=np.int64)
    return shared / (len(own) + lengths - shared)


def bands(near: float) -> tuple[int, int]:
    """How many bands a signature is cut into, and how many values a band has.

    With b bands of r values a pair of similarity s agrees in a band with probability
    1 - (1 - sʳ)ᵇ. The longest bands that miss no more than `MISSED` of the pairs at `near` leave
    the fewest other pairs to compare.
    """
    rows = 1
    for candidate in range(1, PERMUTATIONS + 1):
        if (1 - near**candidate) ** (PERMUTATIONS // candidate) <= MISSED:
            rows = candidate
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

    def __exit__(self, *error: object) -> None:
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
        hashes = shingles(text)
        self._hash.clear()
        for start in range(0, len(hashes), 1024):  # a book at once would take a kilobyte a word
            self._hash.update_batch((hashes[start : start + 1024] >> np.uint64(32)).tolist())
        self._signatures += self._hash.hashvalues.astype(np.uint32).tobytes()
        self._file.write(hashes.tobytes())
        self._mapped = None
        self._ends.append(self._ends[-1] + len(hashes))
        self._keys.append(key(text) if len(hashes) else 0)
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
        return similarities(self.shingles(i), [self.shingles(j) for j in others])


class _Sets:
    """Disjoint sets of numbers, with union and find; a set is known by its least number."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> tuple[int, int]:
        """Join two sets; returns their least numbers, that of the joined set first."""
        low, high = sorted((self.find(i), self.find(j)))
        self.parent[high] = low
        return low, high


class _Search:
    """Finds near-duplicates among candidates: by signature first, then by true similarity.

    Args:
        prints: the texts.
        near: Jaccard similarity from which two are near-duplicates.
    """

    def __init__(self, prints: Prints, near: float) -> None:
        self.prints, self.near, self.signatures = prints, near, prints.signatures

    def near_to(
        self, i: int, others: np.ndarray, wanted: Callable[[int, int], bool] = lambda i, j: True
    ) -> Iterator[int]:
        """Those of `others` that are near i, beginning with those that seem the most similar.

        Args:
            wanted: called just before i is compared with j: what was found may have settled it.
        """
        estimates = (self.signatures[others] == self.signatures[i]).mean(axis=1)
        likely = np.flatnonzero(estimates >= self.near - MARGIN)
        by_estimate = likely[np.argsort(-estimates[likely], kind="stable")]
        candidates = others[by_estimate].tolist()
        size = 1  # the first candidate often settles it; then more at a time
        while candidates:
            batch, candidates = candidates[:size], candidates[size:]
            size = min(8 * size, 4096)
            batch = [j for j in batch if wanted(i, j)]
            if not batch:
                continue
            for j, similarity in zip(batch, self.prints.similarities(i, batch), strict=True):
                if similarity >= self.near:
                    yield j

    def join(self, sets: _Sets, run: np.ndarray, band: int, rows: int) -> None:
        """Join the near-duplicates among texts that agree in a band.

        Not compared are those that are in one set already, or agreed in an earlier band.
        """
        roots = np.array([sets.find(i) for i in run.tolist()])
        if (roots == roots[0]).all():
            return

        def apart(i: int, j: int) -> bool:
            return sets.find(i) != sets.find(j)

        for position in range(1, len(run)):
            i = int(run[position])
            others = run[:position][roots[:position] != roots[position]]
            others = others[~self._agreed(i, others, band, rows)]
            for j in self.near_to(i, others, apart):
                low, high = sets.join(i, j)
                roots[roots == high] = low

    def _agreed(self, i: int, others: np.ndarray, band: int, rows: int) -> np.ndarray:
        """[n] which of the others agree with i in a band before this one."""
        values = slice(0, band * rows)
        agree = self.signatures[others, values] == self.signatures[i, values]
        return agree.reshape(len(others), band, rows).all(axis=2).any(axis=1)


def clusters(prints: Prints, near: float, equal_keys: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Which texts belong together: near-duplicates, near-duplicates of those, and so on.

    Args:
        prints: the texts.
        near: Jaccard similarity from which two are near-duplicates.
        equal_keys: [R] uint64 keys; texts with an equal key belong together, too. 0 is no key.
    Returns: [R] the least number in the cluster of each.
    """
    sets, search = _Sets(len(prints)), _Search(prints, near)
    for keys in (prints.keys, *equal_keys):
        for group in equal(keys):
            if keys[group[0]]:
                for i in group[1:].tolist():
                    sets.join(int(group[0]), i)
    with_words = np.flatnonzero(prints.keys)  # a text without words is like no other
    count, rows = bands(near)
    for band in range(count):
        values = range(band * rows, (band + 1) * rows)
        columns = [search.signatures[with_words, value] for value in values]
        for group in equal(_combined(columns)):
            search.join(sets, with_words[group], band, rows)
    return np.array([sets.find(i) for i in range(len(prints))], np.int64)


def near_reference(prints: Prints, near: float, labels: np.ndarray, references: int) -> np.ndarray:
    """Which texts are near a reference text.

    Args:
        prints: the texts, the references first.
        near: Jaccard similarity from which two are near-duplicates.
        labels: [R] of `clusters`.
        references: how many there are.
    Returns: [R] number of the most similar reference that is near; -1 where none is, and for the
        references themselves.
    """
    search, nearest = _Search(prints, near), np.full(len(prints), -1)
    for group in equal(labels):
        inside = group[group < references]
        if len(inside):
            for i in group[group >= references]:
                nearest[i] = next(search.near_to(int(i), inside), -1)
    return nearest


def repeats(prints: Prints, near: float, labels: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """For every text, the one it repeats.

    Of near-duplicates the first by rank stays, and no two that stay are near.

    Args:
        prints: the texts.
        near: Jaccard similarity from which two are near-duplicates.
        labels: [R] of `clusters`.
        rank: [R] the order of preference; texts with a rank below 0 are not looked at.
    Returns: [R] number of the text it repeats, -1 where it stays.
    """
    search, repeated = _Search(prints, near), np.full(len(prints), -1)
    for group in equal(labels):
        stay: list[int] = []
        for i in group[np.argsort(rank[group], kind="stable")]:
            if rank[i] < 0:
                continue
            repeated[i] = next(search.near_to(int(i), np.array(stay, np.int64)), -1)
            if repeated[i] < 0:
                stay.append(int(i))
    return repeated
