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


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 50), (7, 20), (50, 50), (499, 1000)])
def test_exact_shares_are_clopper_and_pearsons(hits: int, n: int) -> None:
    interval = scipy.binomtest(hits, n).proportion_ci(0.9, "exact")
    found = stats.exact_share(hits, n, 0.9)
    assert bounds(found) == pytest.approx((interval.low, interval.high), abs=1e-12)


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


def test_a_share_is_wilsons_of_as_many_items_as_the_clusters_are_worth() -> None:
    """Eight items of eight prompts: Wilson's. Four prompts of two, one of them all right, one all
    wrong, two half: Σ(x − ½)² is ½, and 1 that of four single items. With one prompt more that is
    as far off as can be, φ = (½ + 1) / (1 + 1) = ¾, 4 / ¾ = 16/3 items, with Student's t₃.
    """
    right = [1.0] * 4 + [0.0] * 4
    alone = stats.share(right, list(range(8)))
    assert alone == stats.share(right) == stats.wilson(4, 8)
    found = stats.share([1, 1, 1, 0, 1, 0, 0, 0], list("aabbccdd"))
    low, high = stats._wilson(0.5, 16 / 3, scipy.t.ppf(0.975, 3))
    assert bounds(found) == pytest.approx((low, high))
    assert found.method == "Wilson, by cluster"
    # prompts that all say the same are not worth more than their items
    same = stats.share(right, list("abcdabcd"))
    assert bounds(same) == pytest.approx(stats._wilson(0.5, 8 / 1, scipy.t.ppf(0.975, 3)))
    assert stats.share(right, ["a"] * 8) == Estimate(0.5, None, None, 8, stats.ONE_CLUSTER)


# Cavo et al. 2012 and Bentur et al. 2009, as Fagerland, Lydersen and Laake 2014 (Statistics in
# Medicine 33:2850) and the R package contingencytables print them
@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [(6, 16, 161, -0.1240, -0.0054), (1, 7, 21, -0.5172, -0.0260)],
)
def test_paired_shares_are_tangos(gained: int, lost: int, n: int, low: float, high: float) -> None:
    rest = [0.5] * (n - gained - lost)
    after, before = [1.0] * gained + [0.0] * lost + rest, [0.0] * gained + [1.0] * lost + rest
    found = stats.share_difference(after, before)
    assert bounds(found) == pytest.approx((low, high), abs=5e-5)
    assert (found.mean, found.method) == (pytest.approx((gained - lost) / n), "Tango")
    # Bonett and Price 2012: Wald's with one item more of either kind
    b, c = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = scipy.norm.ppf(0.975) * math.sqrt((b + c - (b - c) ** 2) / (n + 2))
    assert bounds(found) == pytest.approx((b - c - half, b - c + half), abs=0.02)
    # what is won is lost seen from the other side
    again = stats.share_difference(before, after)
    assert bounds(again) == pytest.approx((-high, -low), abs=5e-5)


def test_where_nothing_differs_it_is_said_what_can_be_excluded() -> None:
    """Tango's of 0 of n against 0 of n is ± z²/(n + z²), and of n against 0 it ends at 1."""
    square = scipy.norm.ppf(0.975) ** 2
    for value in (0.0, 0.5, 1.0):
        found = stats.share_difference([value] * 20, [value] * 20)
        assert bounds(found) == pytest.approx((-square / (20 + square), square / (20 + square)))
    low, high = bounds(stats.share_difference([1.0] * 20, [0.0] * 20))
    assert high == 1 and 0.6 < low < 0.75
    # 20 prompts of five are at least 20 items, and may be no more
    found = stats.share_difference([1.0] * 100, [1.0] * 100, [i // 5 for i in range(100)])
    square = scipy.t.ppf(0.975, 19) ** 2
    assert bounds(found)[1] == pytest.approx(square / (20 + square))


def test_differences_of_shares_stay_between_minus_1_and_1() -> None:
    rng = np.random.default_rng(8)
    for _ in range(300):
        n = int(rng.integers(1, 8))
        after, before = (rng.choice([0.0, 0.5, 1.0], n).tolist() for _ in "ab")
        clusters = rng.integers(0, n, n).tolist()
        for found in (
            stats.share_difference(after, before),
            stats.share_difference(after, before, clusters),
        ):
            if found.low is not None:
                low, high = bounds(found)
                assert -1 <= low <= found.mean <= high <= 1
                assert high - low > 0.01


def test_few_that_differ_say_little_of_how_much_others_would() -> None:
    """Two of 100 differ, by 1 and by 2: the interval reaches as far as that of 1½ of 100."""
    after = [1.0, 2.0] + [0.0] * 98
    found, alone = stats.difference(after, [0.0] * 100), stats.mean(after)
    share = stats.share_difference([0.5, 1.0] + [0.0] * 98, [0.0] * 100)
    assert bounds(found)[1] == pytest.approx(2 * bounds(share)[1])
    assert bounds(found)[0] == min(bounds(alone)[0], 2 * bounds(share)[0])
    assert found.method == "Student's t, few differ"


def test_a_difference_of_ratios_over_the_same_items() -> None:
    """Half of the items are left out of one: as an independent mean of the taken ones against all,
    by leaving one out.
    """
    rng = np.random.default_rng(9)
    x, take = rng.normal(size=200), (rng.random(200) < 0.5).astype(float)
    found = stats.ratio_difference((x * take, take), (x, np.ones(200)))  # type: ignore[arg-type]
    whole = (x * take).sum() / take.sum() - x.mean()
    out = [
        np.delete(x * take, i).sum() / np.delete(take, i).sum() - np.delete(x, i).mean()
        for i in range(200)
    ]
    error = math.sqrt(199 / 200 * ((np.array(out) - np.mean(out)) ** 2).sum())
    low, high = bounds(found)
    assert found.mean == pytest.approx(whole)
    assert (high - low) / 2 == pytest.approx(scipy.t.ppf(0.975, 199) * error, rel=2e-2)


def test_ties_vary_less_than_right_and_wrong() -> None:
    """Σ(x − ½)² of 1, ½, ½, 0 is ½, and of 1, 1, 0, 0 it is 1: 4 / ((½ + 1) / (1 + 1)) items."""
    assert bounds(stats.share([1, 0.5, 0.5, 0])) == pytest.approx(
        stats._wilson(0.5, 4 / 0.75, scipy.norm.ppf(0.975))
    )


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


def test_where_there_is_no_interval_it_is_said_why() -> None:
    assert stats.mean([2.0]) == Estimate(2.0, None, None, 1, stats.ONE_ITEM)
    assert stats.mean([1.0, 3.0], ["a", "a"]) == Estimate(2.0, None, None, 2, stats.ONE_CLUSTER)
    assert stats.ratio([6.0], [3.0]) == Estimate(2.0, None, None, 1, stats.ONE_ITEM)
    assert stats.difference([3.0], [1.0]) == Estimate(2.0, None, None, 1, stats.ONE_ITEM)
    # an interval without width would say that the next value is the same, too
    for same in ([0.1] * 7, [0.0] * 7, [1 / 3] * 1000):
        found = stats.mean(same)
        assert (found.low, found.high, found.method) == (None, None, stats.NO_SPREAD)
    z = scipy.norm.ppf(0.975)
    assert stats.share([1.0]).low == pytest.approx(1 / (1 + z**2))  # Wilson's has one
