"""Metrics of records by hand, alone and in pairs."""

from __future__ import annotations

import math

import pytest

from posttrain.evals import stats
from posttrain.evals.metrics import Mean, Metric, Ratio, Share, Wins, chance, paired
from posttrain.evals.records import Record
from posttrain.evals.stats import Estimate


def records(*values: float | None, clusters: str = "", weight: float = 1.0) -> list[Record]:
    names = clusters or "abcdefgh"
    return [Record(f"{i}", names[i], {"x": v}, weight) for i, v in enumerate(values)]


def estimate(metric: Metric, some: list[Record], level: float = 0.95) -> Estimate:
    found = metric.estimate(some, level)
    assert found is not None
    return found


def difference(metric: Metric, after: list[Record], before: list[Record]) -> Estimate:
    found = metric.difference(paired(after, before))
    assert found is not None
    return found


def test_a_missing_value_is_not_counted_and_is_no_0() -> None:
    some = records(1.0, None, 0.5, math.nan)
    assert estimate(Mean("x"), some) == stats.mean([1, 0.5])
    assert estimate(Share("x"), some) == stats.share([1, 0.5])
    for metric in (Mean("x"), Share("x"), Wins("x"), Ratio("x", "x"), Mean("y")):
        assert metric.estimate(records(None)) is None
        assert metric.difference(paired(records(None), records(1.0))) is None


def test_clusters_weights_and_the_level_are_those_of_the_records() -> None:
    some = records(1, 1, 0, 0, 1, 0, clusters="aabbcc")
    names = list("aabbcc")
    assert estimate(Mean("x"), some, 0.9) == stats.share([1, 1, 0, 0, 1, 0], names, level=0.9)
    twos = [Record(r.item, r.cluster, {"x": 2 * r.value("x")}) for r in some]
    assert estimate(Mean("x"), twos, 0.9) == stats.mean([2, 2, 0, 0, 2, 0], names, level=0.9)
    assert estimate(Share("x"), some, 0.9) == stats.share([1, 1, 0, 0, 1, 0], names, level=0.9)
    some = [*records(2.0, weight=3.0), Record("1", "z", {"x": 0.0})]
    assert estimate(Mean("x"), some) == stats.mean([2, 0], weights=[3, 1])
    some = [*records(1.0, weight=3.0), Record("1", "z", {"x": 0.0})]
    assert estimate(Share("x"), some).mean == 0.75


def test_differences_are_paired_by_item() -> None:
    """Items that one of them lacks are left out, in whatever order the others come."""
    after, before = records(3, 5, 1, 9), records(1, 2, 1.5)[::-1]
    found = difference(Mean("x"), after, before)
    assert found == stats.mean([2, 3, -0.5]) and found.n == 3
    right, wrong = records(1, 1, 0, 1), records(0, 1, 1)[::-1]
    assert difference(Share("x"), right, wrong) == stats.share_difference([1, 1, 0], [0, 1, 1])
    assert difference(Mean("x"), right, wrong) == difference(Share("x"), right, wrong)
    assert difference(Wins("x"), after, before) == stats.wilson(2, 3)
    assert Wins("x").estimate(after) is None


def test_a_ratio_adds_up_first() -> None:
    """(2 + 6) / (1 + 3) = 2, where the mean of ratios is 2, too; (4 + 6) / 4 = 2.5 is not 3."""

    def of(*pairs: tuple[float, float]) -> list[Record]:
        return [Record(f"{i}", values={"nats": a, "n": b}) for i, (a, b) in enumerate(pairs)]

    metric = Ratio("nats", "n", scale=2.0)
    after, before = of((4, 1), (6, 3)), of((2, 1), (3, 3))
    assert estimate(metric, after).mean == 2 * 10 / 4
    assert difference(metric, after, before).mean == pytest.approx(2 * 5 / 4)
    # another tokenizer counts otherwise, so that the two are not comparable
    assert metric.difference(paired(after, of((2, 1), (3, 4)))) is None


def test_what_guessing_comes_to() -> None:
    """One in four and one in two, the second item counting three times: (¼ + 3·½) / 4."""
    some = [
        Record("a", values={"correct": 1.0, "chance": 0.25}),
        Record("b", values={"correct": 0.0, "chance": 0.5}, weight=3.0),
    ]
    assert chance(Share("correct", chance="chance"), some) == (0.25 + 1.5) / 4
    assert chance(Share("correct", chance=0.5), some) == chance(Wins("correct"), some) == 0.5
    assert chance(Share("correct"), some) is chance(Mean("correct"), some) is None
    assert chance(Share("correct", chance="other"), some) is None
