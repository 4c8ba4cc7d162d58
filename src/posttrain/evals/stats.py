"""Means with intervals. The unit is the item, or the cluster of items that are not independent;
every interval is two-sided. What each holds, simulated: docs/explanation/intervals.md.

Sources: Wilson 1927 for shares, Clopper and Pearson 1934 for those whose level must hold whatever
the share; Tango 1998 for paired differences of shares; Kish 1965 and Korn and Graubard 1998 for how
many independent items weighted or clustered ones are worth; Miller 2024 (arXiv 2411.00640) for
paired differences and clusters; the delta method for ratios. The quantiles are those of
`scipy.stats`; they come from `scipy.special`, which is imported when an interval is computed, so
that the help of a command does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass
from typing import Any

LEVEL = 0.95  # of an interval: how often it holds the true value
WILSON, TANGO, STUDENT = "Wilson", "Tango", "Student's t"
EXACT = "Clopper-Pearson"
# why there is no interval
ONE_ITEM, ONE_CLUSTER, NO_SPREAD = "one item", "one cluster", "no spread"
ROUNDING = 1e-12  # of the values' size: a smaller standard error is none
FEW = 20  # items that differ, below which their spread says little
# units that vary as much as they can, added to what was seen: few units that differ tell little
# of how much units vary
PRIOR = 1.0


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: over the items.
        low, high: ends of the interval; None where there is none.
        n: items.
        method: whose interval it is; where there is none, why.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    method: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)


# ------------------------------------------------------------------------------------------- shares


def wilson(hits: float, n: int, level: float = LEVEL) -> Estimate:
    """A share of independent items with Wilson's interval, which stays inside 0 … 1 and holds its
    level near both ends.

    Args:
        hits: items that are right; a tie is one half. n: items, above 0.
        level: of the interval.
    """
    return Estimate(hits / n, *_wilson(hits / n, n, _normal(level)), n, WILSON)


def exact_share(hits: int, n: int, level: float = LEVEL) -> Estimate:
    """A share of independent items with Clopper and Pearson's interval, which holds its level or
    more whatever the share and however few the items.

    Args:
        hits: items that are right. n: items, above 0.
        level: of the interval.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Estimate(hits / n, low, high, n, EXACT)


def share(
    right: Many[float],
    clusters: Many[Hashable] | None = None,
    weights: Many[float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """A share of items that may come in clusters, with Wilson's interval for as many independent
    items as they are worth; see `_Units`.

    Args:
        right: one an item, in 0 … 1: right, a tie (½), or wrong.
        clusters, weights, level: see `mean`.
    """
    units = _Units(right, clusters, weights)
    p = units.mean
    if units.too_few:
        return Estimate(p, None, None, units.items, ONE_CLUSTER)
    low, high = _wilson(p, units.worth(p * (1 - p)), units.quantile(level))
    return Estimate(p, low, high, units.items, units.named(WILSON))


def share_difference(
    after: Many[float],
    before: Many[float],
    clusters: Many[Hashable] | None = None,
    weights: Many[float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """The mean of after − before, item by item, of values in 0 … 1, with Tango's interval. It stays
    inside −1 … 1, and where no item differs it says what difference can be excluded.

    A difference of ½ counts as half of one that is whole.

    Args:
        after, before: one an item, in 0 … 1: right, a tie (½), or wrong.
        clusters, weights, level: see `mean`.
    """
    gaps = [a - b for a, b in zip(after, before, strict=True)]
    units = _Units(gaps, clusters, weights)
    if units.too_few:
        return Estimate(units.mean, None, None, units.items, ONE_CLUSTER)
    gained = units.mean_of([max(0.0, gap) for gap in gaps])
    lost = units.mean_of([max(0.0, -gap) for gap in gaps])
    n = units.worth(gained + lost - units.mean**2)
    low, high = _tango(gained * n, lost * n, n, units.quantile(level))
    return Estimate(units.mean, low, high, units.items, units.named(TANGO))


class _Units:
    """Independent units: clusters of items, or items that are their own.

    Args:
        values: one an item.
        clusters, weights: see `mean`.
    Attributes:
        items: how many. mean: over the items.
    """

    def __init__(
        self, values: Many[float], clusters: Many[Hashable] | None, weights: Many[float] | None
    ) -> None:
        self.items = len(values)
        self._weights = [1.0] * len(values) if weights is None else weights
        self._total = math.fsum(self._weights)
        self.mean = self.mean_of(values)
        self._unit: dict[Hashable, float] = {}  # of every unit the weight
        sums: dict[Hashable, float] = {}
        names = range(len(values)) if clusters is None else clusters
        for name, value, weight in zip(names, values, self._weights, strict=True):
            self._unit[name] = self._unit.get(name, 0.0) + weight
            sums[name] = sums.get(name, 0.0) + weight * (value - self.mean)
        self._residuals = list(sums.values())
        self._alone = len(self._unit) == self.items
        self._bounded = not self._alone or weights is not None

    def mean_of(self, values: Many[float]) -> float:
        """The mean of other values of the items."""
        pairs = zip(self._weights, values, strict=True)
        return math.fsum(weight * value for weight, value in pairs) / self._total

    @property
    def too_few(self) -> bool:
        """Whether all items are one cluster, which says nothing of how clusters vary."""
        return len(self._unit) < 2 and not self._alone

    def named(self, method: str) -> str:
        return method if self._alone else f"{method}, by cluster"

    def quantile(self, level: float) -> float:
        """The normal distribution's; of clusters, whose variance is estimated, Student's t's."""
        return _normal(level) if self._alone else _student(level, len(self._unit) - 1)

    def worth(self, variance: float) -> float:
        """How many independent items tell as much as these, (Σ w)² / Σ w² / φ over the units.

        φ = (Σ w²(x − x̄)² + κ) / (Σ w²·v + κ) is how much the units' means x vary, compared with
        single items. κ is `PRIOR` units that vary as much as they can, so that where few units
        differ a unit counts as little more than one item. Items in clusters, or with weights, are
        never worth more than they are; values between 0 and 1, as ties, vary less than 0s and 1s.

        Args:
            variance: v, of a single item.
        """
        squares = math.fsum(weight * weight for weight in self._unit.values())
        prior = PRIOR * squares / len(self._unit)
        seen = math.fsum(residual * residual for residual in self._residuals)
        factor = (seen + prior) / (squares * variance + prior)
        items = math.fsum(weight * weight for weight in self._weights) if self._bounded else 0.0
        return self._total**2 / max(items, squares * factor)


def _wilson(p: float, n: float, quantile: float) -> tuple[float, float]:
    """The ends of Wilson's interval of a share p of n items, which need be no whole number."""
    square = quantile * quantile / n
    middle = (p + square / 2) / (1 + square)
    half = quantile / (1 + square) * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _tango(gained: float, lost: float, n: float, quantile: float) -> tuple[float, float]:
    """The ends of Tango's score interval of a difference of paired shares: all δ with

    (b − c − nδ)² ≤ z²·n·(2q + δ(1 − δ)),  q the likeliest share of lost items given δ:
    2n·q² + (δ(2n − b + c) − b − c)·q − cδ(1 − δ) = 0

    Args:
        gained, lost: b and c, items of n on which only the first, or only the second, is right;
            they need be no whole numbers.
    Source: Tango 1998, Statistics in Medicine 17:891, equations 8 and 9.
    """
    from scipy.optimize import brentq

    def beyond(delta: float) -> float:
        """Above 0 where δ is outside of the interval."""
        linear = delta * (2 * n - gained + lost) - gained - lost
        root = math.sqrt(max(0.0, linear * linear + 8 * n * lost * delta * (1 - delta)))
        variance = (root - linear) / (2 * n) + delta * (1 - delta)
        return (gained - lost - n * delta) ** 2 - quantile**2 * n * variance

    middle, edge = (gained - lost) / n, 1e-12  # at ±1 the variance, and with it all, is 0
    low = high = middle
    if middle > -1 + edge:
        low = float(brentq(beyond, -1.0, middle - edge, xtol=1e-12))  # type: ignore[arg-type]
    if middle < 1 - edge:
        high = float(brentq(beyond, middle + edge, 1.0, xtol=1e-12))  # type: ignore[arg-type]
    return low, high


# ------------------------------------------------------------------------------- means of any value


def mean(
    values: Many[float],
    clusters: Many[Hashable] | None = None,
    weights: Many[float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """A mean with its clustered standard error, √(C/(C−1)·Σ_c(Σ_{i∈c} w_i(x_i − x̄))²) / Σ w, and
    Student's t with C − 1 degrees of freedom. Values that are all the same have no interval: they
    say nothing of how far others may be.

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


def difference(
    after: Many[float],
    before: Many[float],
    clusters: Many[Hashable] | None = None,
    weights: Many[float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """The mean of after − before, item by item: the paired difference. See `share_difference` for
    values in 0 … 1.

    Where fewer than `FEW` items differ, and less than half, their spread tells little of what
    others would do. The interval then reaches at least as far as that of a share of items that
    differ, by as much as the most different one.
    """
    gaps = [a - b for a, b in zip(after, before, strict=True)]
    found = mean(gaps, clusters, weights, level)
    different = sum(gap != 0 for gap in gaps)
    if found.low is None or found.high is None or different >= min(FEW, len(gaps) / 2):
        return found
    most = max(map(abs, gaps))
    gained, lost = ([max(0.0, sign * gap / most) for gap in gaps] for sign in (1, -1))
    shares = share_difference(gained, lost, clusters, weights, level)
    assert shares.low is not None and shares.high is not None
    low, high = min(found.low, most * shares.low), max(found.high, most * shares.high)
    return Estimate(found.mean, low, high, found.n, f"{found.method}, few differ")


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
    total = math.fsum(counts)
    centre = math.fsum(sums) / total
    size = math.fsum(map(abs, sums)) / total
    residuals = [(s - centre * c) / total for s, c in zip(sums, counts, strict=True)]
    return _student_interval(centre, residuals, clusters, size, level)


def ratio_difference(
    after: tuple[Many[float], Many[float]],
    before: tuple[Many[float], Many[float]],
    clusters: Many[Hashable] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """Σ sums / Σ counts after, less the same before, over the same items by the delta method.

    Counts may be 0: a share over some of the items is compared with one over others, or over all.

    Args:
        after, before: sums and counts, one of each an item.
        clusters, level: see `mean`.
    """
    centres, size, residuals = [], 0.0, [0.0] * len(after[0])
    for sign, (sums, counts) in ((1, after), (-1, before)):
        total = math.fsum(counts)
        centre = math.fsum(sums) / total
        centres.append(centre)
        size += math.fsum(map(abs, sums)) / total
        for i, (value, count) in enumerate(zip(sums, counts, strict=True)):
            residuals[i] += sign * (value - centre * count) / total
    return _student_interval(centres[0] - centres[1], residuals, clusters, size, level)


def _student_interval(
    centre: float,
    residuals: Many[float],
    clusters: Many[Hashable] | None,
    size: float,
    level: float,
) -> Estimate:
    """An estimate whose error is the sum of its items' residuals, those of a cluster together.

    Args:
        size: of the values, beside which rounding is nothing.
    """
    n = len(residuals)
    sums: dict[Hashable, float] = {}
    for name, residual in zip(range(n) if clusters is None else clusters, residuals, strict=True):
        sums[name] = sums.get(name, 0.0) + residual
    units = len(sums)
    if units < 2:
        return Estimate(centre, None, None, n, ONE_ITEM if n < 2 else ONE_CLUSTER)
    error = math.sqrt(units / (units - 1) * math.fsum(r * r for r in sums.values()))
    if error <= ROUNDING * size:
        return Estimate(centre, None, None, n, NO_SPREAD)
    half = _student(level, units - 1) * error
    method = STUDENT if units == n else f"{STUDENT}, by cluster"
    return Estimate(centre, centre - half, centre + half, n, method)


def _normal(level: float) -> float:
    """The normal distribution's quantile at which a two-sided interval of that level ends."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


def _student(level: float, degrees: int) -> float:
    """Student's t's quantile at which a two-sided interval of that level ends."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))
