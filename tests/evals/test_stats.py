"""Intervals against scipy and other formulas, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy

from posttrain.evals import stats
from posttrain.evals.stats import Estimate


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


def test_a_share_by_hand() -> None:
    # z² = 3.8415; (0.8 + 0.19207) / 1.38415 ± 1.95996 / 1.38415 · √(0.016 + 0.0096037)
    found = stats.wilson(8, 10)
    assert (found.mean, found.n) == (0.8, 10)
    assert bounds(found) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 50), (7, 20), (50, 50), (499, 1000)])
def test_shares_are_wilsons(hits: int, n: int) -> None:
    interval = scipy.binomtest(hits, n).proportion_ci(0.95, "wilson")
    assert bounds(stats.wilson(hits, n)) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_every_interval_has_the_level_it_is_asked_for(level: float) -> None:
    x = np.random.default_rng(6).normal(3, 2, 12)
    before = x - np.random.default_rng(7).normal(0.2, 1, 12)
    test = scipy.binomtest(7, 20).proportion_ci(level, "wilson")
    clusters = list("aabbccddeeff")
    means = x.reshape(6, 2).mean(1)
    for found, expected in (
        (stats.wilson(7, 20, level), (test.low, test.high)),
        (stats.share([1.0] * 7 + [0.0] * 13, level=level), (test.low, test.high)),
        (stats.mean(x, level=level), scipy.t.interval(level, 11, x.mean(), scipy.sem(x))),
        (
            stats.mean(x, clusters, level=level),
            scipy.t.interval(level, 5, x.mean(), scipy.sem(means)),
        ),
        (
            stats.difference(x, before, level=level),
            scipy.t.interval(level, 11, (x - before).mean(), scipy.sem(x - before)),
        ),
    ):
        assert bounds(found) == pytest.approx(tuple(map(float, expected)), abs=1e-9)


def test_a_share_is_wilsons_and_wider_where_clusters_repeat() -> None:
    """Eight items of eight prompts: Wilson.

    The same in two prompts that are all right and all wrong: clustered, and so 0 … 1. Where items
    of a cluster differ as much as any, Wilson's is the wider one.
    """
    right = [1.0] * 4 + [0.0] * 4
    assert stats.share(right, list(range(8))) == stats.share(right) == stats.wilson(4, 8)
    found = stats.share(right, ["a"] * 4 + ["b"] * 4)
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 8)
    assert stats.share(right, list("abcdabcd")) == stats.wilson(4, 8)
    assert stats.share(right, ["a"] * 8) == Estimate(0.5, None, None, 8)


def test_weights_count_an_item_as_often_as_they_say() -> None:
    """3·1 + 1·0 of 4: ¾, where the unweighted mean is ½.

    Residuals 3·(1 − ¾) and 1·(0 − ¾) are ±¾: √(2/1 · 2·(¾)²)/4 = 0.375, times t₁ = 12.706. The
    share's interval is Wilson's for 4²/10 = 1.6 items. Equal weights change nothing.
    """
    found = stats.mean([1, 0], weights=[3, 1])
    assert found.mean == 0.75
    assert bounds(found)[1] - 0.75 == pytest.approx(12.706205 * 0.375, rel=1e-6)
    share = stats.share([1, 0], weights=[3, 1])
    assert (share.mean, share.n) == (0.75, 2)
    square = scipy.norm.ppf(0.975) ** 2 / 1.6
    half = math.sqrt(square * (0.75 * 0.25 + square / 4)) / (1 + square)
    middle = (0.75 + square / 2) / (1 + square)
    assert bounds(share) == pytest.approx((middle - half, middle + half))
    x = [0.5, 2.0, 1.0]
    assert bounds(stats.mean(x, weights=[7.0] * 3)) == pytest.approx(bounds(stats.mean(x)))
    assert bounds(stats.share([1, 1, 0], weights=[7.0] * 3)) == pytest.approx(
        bounds(stats.share([1, 1, 0]))
    )


def test_a_mean_is_scipys() -> None:
    x = np.random.default_rng(0).normal(3, 2, 30)
    low, high = scipy.t.interval(0.95, 29, x.mean(), scipy.sem(x))
    found = stats.mean(x.tolist())
    assert (found.mean, found.n) == (pytest.approx(x.mean()), 30)
    assert bounds(found) == pytest.approx((low, high), abs=1e-9)


def test_clusters_of_one_size_are_the_mean_of_their_means() -> None:
    x = np.random.default_rng(1).normal(size=(12, 5)) + np.random.default_rng(2).normal(
        size=(12, 1)
    )
    low, high = scipy.t.interval(0.95, 11, x.mean(), scipy.sem(x.mean(1)))
    found = stats.mean(x.ravel().tolist(), np.repeat(np.arange(12), 5).tolist())
    assert found.n == 60
    assert bounds(found) == pytest.approx((low, high), abs=1e-9)
    alone = bounds(stats.mean(x.ravel().tolist()))
    assert high - low > 1.5 * (alone[1] - alone[0])


def test_a_ratio_is_the_jackknifes() -> None:
    """The delta method and leaving one out agree where there are many items."""
    draw = np.random.default_rng(3)
    n = draw.integers(5, 40, 400)
    s = 2.0 * n + draw.normal(size=400) * np.sqrt(n)
    left_out = (s.sum() - s) / (n.sum() - n)
    error = math.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    found = stats.ratio(s.tolist(), n.tolist())
    low, high = bounds(found)
    assert found.mean == pytest.approx(s.sum() / n.sum())
    assert (high - low) / 2 == pytest.approx(scipy.t.ppf(0.975, 399) * error, rel=5e-3)
    # with one count everywhere it is the mean
    assert bounds(stats.ratio([3 * x for x in s], [3] * 400)) == pytest.approx(
        bounds(stats.mean(s.tolist()))
    )


def test_a_difference_is_the_paired_t_test() -> None:
    draw = np.random.default_rng(4)
    before = draw.normal(size=50)
    after = before + 0.3 + 0.1 * draw.normal(size=50)
    interval = scipy.ttest_rel(after, before).confidence_interval(0.95)
    assert bounds(stats.difference(after.tolist(), before.tolist())) == pytest.approx(
        (interval.low, interval.high), abs=1e-9
    )


def test_one_item_or_one_cluster_has_no_interval() -> None:
    assert stats.mean([2.0]) == Estimate(2.0, None, None, 1)
    assert stats.mean([1.0, 3.0], ["a", "a"]) == Estimate(2.0, None, None, 2)
    assert stats.ratio([6.0], [3.0]) == Estimate(2.0, None, None, 1)
    assert stats.difference([3.0], [1.0]) == Estimate(2.0, None, None, 1)
    z = scipy.norm.ppf(0.975)
    assert stats.share([1.0]).low == pytest.approx(1 / (1 + z**2))  # Wilson's has one


def test_intervals_hold_the_truth_19_times_in_20() -> None:
    draw = np.random.default_rng(5)
    times = 1500
    held = dict.fromkeys(("share", "mean", "clusters", "ratio"), 0)
    for _ in range(times):
        group = np.repeat(draw.normal(size=15), 4)
        n = draw.integers(1, 20, 40)
        for name, truth, found in (
            ("share", 0.9, stats.wilson(int(draw.binomial(40, 0.9)), 40)),
            ("mean", 0.0, stats.mean(draw.normal(size=5).tolist())),
            (
                "clusters",
                0.0,
                stats.mean(
                    (group + draw.normal(size=60)).tolist(), np.repeat(np.arange(15), 4).tolist()
                ),
            ),
            ("ratio", 2.0, stats.ratio((2 * n + draw.normal(size=40) * n).tolist(), n.tolist())),
        ):
            low, high = bounds(found)
            held[name] += low <= truth <= high
    # three standard errors of a share of 1500 are 0.017; the delta method is a little short at 40
    # items
    for name, n in held.items():
        assert 0.95 - (0.035 if name == "ratio" else 0.017) < n / times < 0.95 + 0.025, (
            name,
            n / times,
        )
