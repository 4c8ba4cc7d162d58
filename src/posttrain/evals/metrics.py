"""Metrics: what records come to, for one model and for one compared with another on the same items.

    Mean("score")                mean of a value; the difference is paired
    Share("correct")             mean of a value that is 1, ½ or 0, with the interval of a share
    Ratio("nats", "tokens")      Σ of one value over Σ of another
    Perplexity("nats", "words")  exp of such a ratio
    Wins("score")                how often the value is above another model's, in a comparison

Records that lack a value are left out of the metrics that read it; n says how many were counted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

from posttrain.core.ties import wins
from posttrain.evals import stats
from posttrain.evals.records import Record
from posttrain.evals.stats import LEVEL, Estimate

Pairs = Many[tuple[Record, Record]]  # of every item the record of each of two models


class Metric(Protocol):
    """A number that records come to."""

    @property
    def label(self) -> str:
        """What tables call it; empty: its name."""
        ...

    def estimate(self, records: Many[Record], level: float = LEVEL) -> Estimate | None:
        """Of one model; None where only a comparison has it, or no record has the value."""
        ...

    def difference(self, pairs: Pairs, level: float = LEVEL) -> Estimate | None:
        """After − before, item by item; None where the two cannot be compared."""
        ...


def paired(after: Many[Record], before: Many[Record]) -> list[tuple[Record, Record]]:
    """The records of the items that both have, in the order of `after`."""
    others = {record.item: record for record in before}
    return [(record, others[record.item]) for record in after if record.item in others]


@dataclass(frozen=True)
class Mean:
    """The mean of a value."""

    value: str
    label: str = ""

    def estimate(self, records: Many[Record], level: float = LEVEL) -> Estimate | None:
        known = _known(records, self.value)
        if not known:
            return None
        values = [float(record.value(self.value)) for record in known]
        interval = stats.share if _binary(values) else stats.mean
        return interval(values, _clusters(known), _weights(known), level)

    def difference(self, pairs: Pairs, level: float = LEVEL) -> Estimate | None:
        return _paired_difference(pairs, self.value, level)


@dataclass(frozen=True)
class Share:
    """The share of items that are right: the mean of a value that is 1, ½ or 0.

    Attributes:
        chance: the share that guessing gets right, or the name of the value that says it of each
            record; None where there is no guessing.
    """

    value: str
    label: str = ""
    chance: float | str | None = None

    def estimate(self, records: Many[Record], level: float = LEVEL) -> Estimate | None:
        known = _known(records, self.value)
        if not known:
            return None
        values = [float(record.value(self.value)) for record in known]
        return stats.share(values, _clusters(known), _weights(known), level)

    def difference(self, pairs: Pairs, level: float = LEVEL) -> Estimate | None:
        return _paired_difference(pairs, self.value, level, shares=True)


@dataclass(frozen=True)
class Ratio:
    """Σ of one value over Σ of another, items being the units.

    Attributes:
        top, bottom: names of the values.
        scale: the ratio is multiplied by it.
    """

    top: str
    bottom: str
    label: str = ""
    scale: float = 1.0

    def estimate(self, records: Many[Record], level: float = LEVEL) -> Estimate | None:
        known = _known(_known(records, self.top), self.bottom)
        if not known:
            return None
        sums = [self.scale * record.weight * record.value(self.top) for record in known]
        counts = [record.weight * record.value(self.bottom) for record in known]
        return stats.ratio(sums, counts, _clusters(known), level)

    def difference(self, pairs: Pairs, level: float = LEVEL) -> Estimate | None:
        """None where the two count an item differently, as two tokenizers do."""
        known = [pair for pair in pairs if all(_has(record, self.top) for record in pair)]
        if not known or any(a.value(self.bottom) != b.value(self.bottom) for a, b in known):
            return None
        after = [a for a, _ in known]
        gaps = [self.scale * a.weight * (a.value(self.top) - b.value(self.top)) for a, b in known]
        counts = [record.weight * record.value(self.bottom) for record in after]
        return stats.ratio(gaps, counts, _clusters(after), level)


@dataclass(frozen=True)
class Perplexity:
    """exp(Σ of one value over Σ of another), the values being nats; its interval is that of the
    ratio. Two models are compared by the ratio.
    """

    top: str
    bottom: str
    label: str = ""

    def estimate(self, records: Many[Record], level: float = LEVEL) -> Estimate | None:
        ratio = Ratio(self.top, self.bottom).estimate(records, level)
        if ratio is None:
            return None
        mean, low, high = (_exp(value) for value in (ratio.mean, ratio.low, ratio.high))
        assert mean is not None
        return Estimate(mean, low, high, ratio.n)

    def difference(self, pairs: Pairs, level: float = LEVEL) -> Estimate | None:
        return None


@dataclass(frozen=True)
class Wins:
    """How often a value is above that of the other model; a tie counts one half."""

    value: str
    label: str = ""
    chance: float = 0.5

    def estimate(self, records: Many[Record], level: float = LEVEL) -> Estimate | None:
        return None

    def difference(self, pairs: Pairs, level: float = LEVEL) -> Estimate | None:
        known = [pair for pair in pairs if all(_has(record, self.value) for record in pair)]
        if not known:
            return None
        after = [a for a, _ in known]
        right = [wins(a.value(self.value) - b.value(self.value)) for a, b in known]
        return stats.share(right, _clusters(after), _weights(after), level)


def chance(metric: Metric, records: Many[Record]) -> float | None:
    """The share that guessing gets right on the records, by `Share.chance` and its like; None where
    there is none.
    """
    given = getattr(metric, "chance", None)
    if not isinstance(given, str):
        return given
    known = _known(records, given)
    total = math.fsum(record.weight for record in known)
    return math.fsum(r.weight * r.value(given) for r in known) / total if known else None


def _paired_difference(
    pairs: Pairs, name: str, level: float, shares: bool = False
) -> Estimate | None:
    """Of a value; `shares`: it is in 0 … 1."""
    known = [pair for pair in pairs if all(_has(record, name) for record in pair)]
    if not known:
        return None
    after, before = ([float(pair[k].value(name)) for pair in known] for k in (0, 1))
    interval = stats.difference
    if shares or _binary([*after, *before]):
        interval = stats.share_difference
    first = [record for record, _ in known]
    return interval(after, before, _clusters(first), _weights(first), level)


def _binary(values: Many[float]) -> bool:
    """Whether values are 0 or 1, and both occur: then they are shares, whatever they stand for."""
    return set(values) == {0.0, 1.0}


def _exp(value: float | None) -> float | None:
    """The largest number there is in place of one that is larger."""
    return None if value is None else math.exp(min(value, math.log(sys.float_info.max)))


def _has(record: Record, name: str) -> bool:
    value = record.values.get(name)
    return value is not None and math.isfinite(value)


def _known(records: Many[Record], name: str) -> list[Record]:
    return [record for record in records if _has(record, name)]


def _clusters(records: Many[Record]) -> list[str]:
    return [record.group for record in records]


def _weights(records: Many[Record]) -> list[float] | None:
    """None where all count the same."""
    weights = [record.weight for record in records]
    return None if len(set(weights)) < 2 else weights
