"""Means with intervals. The unit is the item; every interval is two-sided, 95 %.

Sources: Wilson 1927 for shares; Miller 2024 (arXiv 2411.00640) for paired differences and clusters;
    the delta method for ratios.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass
from typing import Any

Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: over the items.
        low, high: ends of the 95 % interval; None where one item, or one cluster, says nothing
            about spread.
        n: items.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def share(hits: float, n: int) -> Estimate:
    """A share with Wilson's interval: it stays inside 0 … 1 and is honest near both ends."""
    p, square = hits / n, Z * Z / n
    middle = (p + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half), n)


def mean(values: Many[float], clusters: Many[Hashable] | None = None) -> Estimate:
    """A mean with its clustered standard error, √(C/(C−1)·Σ_c(Σ_{i∈c}(x_i − x̄))²)/n, and Student's
    t with C − 1 degrees.

    Args:
        values: one an item.
        clusters: items of one cluster are not independent; None: every item is its own.
    """
    n = len(values)
    centre = math.fsum(values) / n
    sums: dict[Hashable, float] = {}
    for i, value in enumerate(values):
        key = i if clusters is None else clusters[i]
        sums[key] = sums.get(key, 0.0) + value - centre
    return _around(centre, math.sqrt(math.fsum(s * s for s in sums.values())) / n, len(sums), n)


def ratio(sums: Many[float], counts: Many[float]) -> Estimate:
    """Σ sums / Σ counts, items being the units: a loss a token, from the loss and the tokens of
    every item.
    """
    total, n = math.fsum(counts), len(sums)
    centre = math.fsum(sums) / total
    spread = (
        math.sqrt(math.fsum((s - centre * c) ** 2 for s, c in zip(sums, counts, strict=True)))
        / total
    )
    return _around(centre, spread, n, n)


def difference(
    after: Many[float], before: Many[float], counts: Many[float] | None = None
) -> Estimate:
    """The mean of after − before on the same items; with counts, of their sums per count."""
    gaps = [a - b for a, b in zip(after, before, strict=True)]
    return mean(gaps) if counts is None else ratio(gaps, counts)


def _around(centre: float, spread: float, clusters: int, n: int) -> Estimate:
    if clusters < 2:
        return Estimate(centre, None, None, n)
    half = student(clusters - 1) * spread * math.sqrt(clusters / (clusters - 1))
    return Estimate(centre, centre - half, centre + half, n)


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, within 1e-3: Cornish and Fisher's expansion, exact up to
    six degrees.
    """
    if degrees <= 6:
        return (12.706204736, 4.302652730, 3.182446305, 2.776445105, 2.570581836, 2.446911851)[
            degrees - 1
        ]
    z, v = Z, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
