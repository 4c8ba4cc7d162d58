"""Numbers about judges, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from posttrain.evals import judging, stats


def test_content_blind_baselines_by_hand() -> None:
    assert judging.content_blind([3, 0, -1]) == {"longest": [1, 0.5, 0], "shortest": [0, 0.5, 1]}


def test_differences_are_paired() -> None:
    """Right on 3 of 4 and on 2 of 4, differing on one item: Tango's interval of 1 gained of 4."""
    found = judging.compare([1, 1, 1, 0], {"x": [1, 1, 0, 0]}, [0, 1, 2, 3])["x"]
    assert (found["mean"], found["difference"]["mean"]) == (0.5, 0.25)
    assert found["difference"] == stats.share_difference([1, 0, 0, 0], [0] * 4).json()
    # a judge that is always right, against one that never is
    best = judging.compare([1] * 4, {"x": [0] * 4}, [0, 1, 2, 3])["x"]["difference"]
    assert best["mean"] == best["high"] == 1 and 0 < best["low"] < 1


def test_the_mean_over_categories_counts_each_the_same() -> None:
    """1 of 1 and 1 of 4: 0.625, where 2 of 5 is 0.4; below and above, the distances to the
    categories' own ends add up as √(a² + b²)/2.
    """
    found = judging.by_category([1, 1, 0, 0, 0], ["a", "b", "b", "b", "b"], list(range(5)))
    a, b = stats.wilson(1, 1), stats.wilson(1, 4)
    assert found["categories"] == {"a": a.json(), "b": b.json()}
    mean = found["mean_over_categories"]
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    assert mean["mean"] == 0.625
    assert 0.625 - mean["low"] == pytest.approx(math.hypot(1 - a.low, 0.25 - b.low) / 2)
    assert mean["high"] - 0.625 == pytest.approx(math.hypot(a.high - 1, b.high - 0.25) / 2)


def test_margins_move_pair_by_pair() -> None:
    """From margins of ±1 to 2, 1, −1, 3: one pair more is right, and they gain 1, 2, 0 and 2."""
    before, now = [1.0, -1.0, -1.0, 1.0], [2.0, 1.0, -1.0, 3.0]
    found = judging.margins(now, before, [0, 1, 2, 3])
    assert found["margin"] == stats.mean(now).json() and found["margin_size_before"] == 1
    assert found["difference"]["margin"] == stats.mean([1, 2, 0, 2]).json()
    assert found["difference"]["accuracy"] == stats.share_difference([0, 1, 0, 0], [0] * 4).json()
    assert judging.margins(now, None, [0, 1, 2, 3]) == {"margin": stats.mean(now).json()}


def test_calibration_by_hand() -> None:
    """Margins log 3, log 3, log 3, −log 3 say ¾ and are right on ¾: no error.

    Doubled they say 0.9: an error of 0.15, and a temperature of 2 takes it away.
    """
    z = math.log(3)
    found = judging.of_margins([z, z, z, -z])
    assert found["error"] == pytest.approx(0, abs=1e-12) and found["temperature"] == pytest.approx(
        1
    )
    (one,) = found["bins"]
    assert (
        (one["n"], one["mean"]) == (4, 0.75)
        and one["said"] == pytest.approx(0.75)
        and one["from"] <= 0.75 <= one["to"]
    )
    twice = judging.of_margins([2 * z, 2 * z, 2 * z, -2 * z])
    assert twice["error"] == pytest.approx(0.15) and twice["temperature"] == pytest.approx(2)
    assert twice["error_calibrated"] == pytest.approx(0, abs=1e-9)


def test_the_temperature_is_the_likeliest() -> None:
    """Against scipy's minimiser, on logits of labels that are shares, too."""
    rng = np.random.default_rng(0)
    z = rng.normal(0.3, 3, 500)
    y = (rng.random(500) < 1 / (1 + np.exp(-0.4 * z))).astype(float)
    best = minimize_scalar(
        lambda t: float(-(y * -np.logaddexp(0, -z / t) + (1 - y) * -np.logaddexp(0, z / t)).sum()),
        bounds=(0.1, 20),
        method="bounded",
        options={"xatol": 1e-8},
    )
    assert judging.calibration(z, y)["temperature"] == pytest.approx(best.x, rel=1e-4)


def test_no_temperature_where_none_is_best() -> None:
    # always right: the colder the better
    assert judging.of_margins([1, 2, 3])["temperature"] is None
    # more often wrong: none is better than chance
    assert judging.of_margins([-1, -2, 1])["temperature"] is None


def test_a_warning_where_nothing_shows_it_better() -> None:
    right = [1.0] * 30 + [0.0] * 20
    clusters = list(range(50))
    good = judging.compare(
        right, {"longest": [0.0] * 30 + [1.0] * 20, "shortest": [0.5] * 50}, clusters
    )
    accuracy = stats.share(right, clusters).json()
    said = judging.warning(accuracy, good)
    assert "“shortest”" in said and "0.600 and 0.500 of 50 pairs, a difference of +0.100" in said
    better = judging.compare([1.0] * 50, {"longest": [1.0] * 30 + [0.0] * 20}, clusters)
    assert judging.warning(stats.share([1.0] * 50, clusters).json(), better) == ""
    assert judging.warning({**accuracy, "n": 19}, good) == ""  # too few to say


def test_correlation_by_hand() -> None:
    assert judging.correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert judging.correlation([1, 2, 3], [1, 1, 1]) is None
    assert judging.correlation([1, -1, 0], [1, 1, -2]) == pytest.approx(0)
