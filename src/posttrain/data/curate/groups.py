"""Equal values in an array: numbered, or as groups of their rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def numbered(values: np.ndarray) -> np.ndarray:
    """[n] equal numbers for equal values, from 0 in the order in which values occur first."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def equal(keys: np.ndarray) -> Iterator[np.ndarray]:
    """For every key that several rows have: the numbers of these rows, ascending."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[len(keys) > 0], np.diff(keys[order]) != 0]))
    ends = np.append(starts[1:], len(keys))
    for group in np.flatnonzero(ends - starts > 1):
        yield order[starts[group] : ends[group]]
