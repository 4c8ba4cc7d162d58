"""Means with intervals. The unit is the item, or the cluster of items that are not independent;
every interval is two-sided.

Sources: Wilson 1927 for shares; Miller 2024 (arXiv 2411.00640) for paired differences and clusters;
the delta method for ratios; Kish 1965 for the effective size of a weighted sample. The quantiles
are those of `scipy.stats`; they come from `scipy.special`, which is imported when an interval is
computed, so that the help of a command does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass
from typing import Any

LEVEL = 0.95  # of an interval: how often it holds the true value


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: over the items.
        low, high: ends of the interval; None where one item, or one cluster, says nothing about
            spread.
        n: items.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def wilson(hits: float, n: int, level: float = LEVEL) -> Estimate:
    """A share of independent items with Wilson's interval, which stays inside 0 … 1 and holds its
    level near both ends.

    Args:
        hits: items that are right; a tie is one half. n: items, above 0.
        level: of the interval.
    """
    return Estimate(hits / n, *_wilson(hits / n, n, level), n)


def share(
    right: Many[float],
    clusters: Many[Hashable] | None = None,
    weights: Many[float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """A share of items that may come in clusters.

    The interval is Wilson's, for Σ w and (Σ w)² / Σ w² items where items have weights. Where items
    of one cluster stand together it is the wider one of that and the clustered one of `mean`.

    Args:
        right: one an item, in 0 … 1: right, a tie (½), or wrong.
        clusters, weights, level: see `mean`.
    """
    n = len(right)
    if weights is None:
        total, effective, hits = float(n), float(n), math.fsum(right)
    else:
        total = math.fsum(weights)
        effective = total * total / math.fsum(w * w for w in weights)
        hits = math.fsum(w * x for w, x in zip(weights, right, strict=True))
    low, high = _wilson(hits / total, effective, level)
    if clusters is None or len(set(clusters)) == n:
        return Estimate(hits / total, low, high, n)
    wide = mean(right, clusters, weights, level)
    if wide.low is None or wide.high is None:
        return wide
    low, high = max(0.0, min(low, wide.low)), min(1.0, max(high, wide.high))
    return Estimate(hits / total, low, high, n)


def mean(
    values: Many[float],
    clusters: Many[Hashable] | None = None,
    weights: Many[float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """A mean with its clustered standard error, √(C/(C−1)·Σ_c(Σ_{i∈c} w_i(x_i − x̄))²) / Σ w, and
    Student's t with C − 1 degrees of freedom.

    Args:
        values: one an item.
        clusters: items of one cluster are not independent; None: every item is its own.
        weights: how much each item counts, above 0; None: all the same.
        level: of the interval.
    """
    if weights is None:
        return ratio(values, [1.0] * len(values), clusters, level)
    sums = [w * x for w, x in zip(weights, values, strict=True)]
    return ratio(sums, weights, clusters, level)


def ratio(
    sums: Many[float],
    counts: Many[float],
    clusters: Many[Hashable] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """Σ sums / Σ counts by the delta method, for example a loss a token from the loss and the
    tokens of every item.

    Args:
        sums, counts: one of each an item.
        clusters, level: see `mean`.
    """
    n, total = len(sums), math.fsum(counts)
    centre = math.fsum(sums) / total
    residuals: dict[Hashable, float] = {}
    for i, (value, count) in enumerate(zip(sums, counts, strict=True)):
        key = i if clusters is None else clusters[i]
        residuals[key] = residuals.get(key, 0.0) + value - centre * count
    c = len(residuals)
    if c < 2:
        return Estimate(centre, None, None, n)
    error = math.sqrt(c / (c - 1) * math.fsum(r * r for r in residuals.values())) / total
    half = _student(level, c - 1) * error
    return Estimate(centre, centre - half, centre + half, n)


def difference(
    after: Many[float],
    before: Many[float],
    clusters: Many[Hashable] | None = None,
    weights: Many[float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """The mean of after − before, item by item: the paired difference."""
    gaps = [a - b for a, b in zip(after, before, strict=True)]
    return mean(gaps, clusters, weights, level)


def _wilson(p: float, n: float, level: float) -> tuple[float, float]:
    """The ends of Wilson's interval of a share p of n items, which need be no whole number."""
    z = _normal(level)
    square = z * z / n
    middle = (p + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _normal(level: float) -> float:
    """The normal distribution's quantile at which a two-sided interval of that level ends."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


def _student(level: float, degrees: int) -> float:
    """Student's t's quantile at which a two-sided interval of that level ends."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))
