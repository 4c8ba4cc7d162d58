"""How good a judge of answers is: how often it prefers the better one, compared with content-blind
baselines, and whether its confidence is calibrated.

A pair on which both answers have the same score counts one half. Pairs of one prompt are not
independent: intervals are those of `posttrain.evals.stats.share`, clustered by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from posttrain.core.ties import wins
from posttrain.evals import stats
from posttrain.evals.stats import Estimate

BINS = 10
BASELINES = ("longest", "shortest")
CHANCE = 0.5  # the accuracy on pairs of a judge that tosses a coin
ENOUGH = 20  # items from which on a judge is held against baselines


def compare(
    right: Many[float], others: dict[str, list[float]], clusters: Many[Hashable]
) -> dict[str, Any]:
    """Compare with other judges of the same items: how often they are right, and the paired
    difference.

    Args:
        right: of this judge, one an item. others: of the others, by name.
    Returns: JSON, by name.
    """
    return {
        name: {
            **stats.share(other, clusters).json(),
            "difference": stats.share_difference(right, other, clusters).json(),
        }
        for name, other in others.items()
    }


def margins(
    now: Many[float], before: Many[float] | None, clusters: Many[Hashable]
) -> dict[str, Any]:
    """What the margins of pairs come to, and what has changed since before training, pair by pair.

    Args:
        now, before: of every pair its margin; no `before` where there is none.
    Returns: JSON: `margin` with its interval; `difference` of accuracy and margin, and
        `margin_size_before`, the mean of |before|.
    """
    out: dict[str, Any] = {"margin": stats.mean(now, clusters).json()}
    if before is not None:
        out["margin_size_before"] = math.fsum(map(abs, before)) / len(before)
        right, was_right = ([wins(margin) for margin in side] for side in (now, before))
        out["difference"] = {
            "accuracy": stats.share_difference(right, was_right, clusters).json(),
            "margin": stats.difference(now, before, clusters).json(),
        }
    return out


def content_blind(longer: Many[float] | np.ndarray) -> dict[str, list[float]]:
    """The baselines that see lengths alone.

    Args:
        longer: by how many characters the better answer of each pair is longer; see
            `posttrain.data.messages.answer_length`.
    """
    longest = wins(np.asarray(longer, float))
    return {"longest": longest.tolist(), "shortest": (1 - longest).tolist()}


def by_category(
    right: Many[float], categories: Many[str], clusters: Many[Hashable]
) -> dict[str, Any]:
    """Accuracy in every category, and the mean of these, which counts each category the same, as
    RewardBench does.

    The mean's interval adds up the squares of the distances to the categories' own ends, below and
    above apart (Newcombe 1998; Zou and Donner 2008).
    """
    which: dict[str, list[int]] = {}
    for i, name in enumerate(categories):
        which.setdefault(name, []).append(i)
    each = {
        name: stats.share([right[i] for i in indices], [clusters[i] for i in indices])
        for name, indices in sorted(which.items())
    }
    mean = mean_over(list(each.values()), len(right))
    return {
        "categories": {name: estimate.json() for name, estimate in each.items()},
        "mean_over_categories": mean.json(),
    }


def mean_over(shares: Many[Estimate], n: int) -> Estimate:
    """The mean of independent shares."""
    middle = math.fsum(share.mean for share in shares) / len(shares)
    below: list[float] = []
    above: list[float] = []
    for share in shares:
        if share.low is None or share.high is None:
            return Estimate(middle, None, None, n, share.method)
        below.append(share.mean - share.low)
        above.append(share.high - share.mean)
    low, high = (math.hypot(*gaps) / len(shares) for gaps in (below, above))
    return Estimate(middle, middle - low, middle + high, n, "squares added")


def calibration(
    logits: Many[float] | np.ndarray, outcomes: Many[float] | np.ndarray, low: float = 0.0
) -> dict[str, Any]:
    """Whether σ(logit) is how often it is so: bins of equal width, the expected calibration error,
    and what would mend it.

    error = Σ_bins n_b/n · |share that is so − mean σ|

    With few items the error is above 0 even where the model is right: each bin's share is uncertain
    by about √(¼/n_b).

    Args:
        logits: [n]. outcomes: [n] 1 where it is so, 0 where not.
        low: the least probability there can be; ½ for the size of a margin.
    Returns: JSON. `temperature` T makes the likelihood of the outcomes greatest under σ(logit / T),
        and `error_calibrated` is the error then; None where every T or none is better than another.
    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    z, y = np.asarray(logits, float), np.asarray(outcomes, float)
    error, bins = _bins(z, y, low)
    scale = _scale(z, y)
    return {
        "n": len(z),
        "error": error,
        "bins": bins,
        "temperature": None if scale is None else 1 / scale,
        "error_calibrated": None if scale is None else _bins(z * scale, y, low)[0],
    }


def of_margins(margins: Many[float] | np.ndarray) -> dict[str, Any]:
    """Calibration of a judge of pairs: σ(|margin|) is its confidence in the answer it prefers."""
    size = np.abs(np.asarray(margins, float))
    return calibration(size, wins(np.asarray(margins, float)), low=0.5)


def _bins(z: np.ndarray, y: np.ndarray, low: float) -> tuple[float, list[dict[str, Any]]]:
    p = 1 / (1 + np.exp(-np.clip(z, -700, 700)))
    edges = np.linspace(low, 1, BINS + 1)
    which = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, BINS - 1)
    error, bins = 0.0, []
    for b in range(BINS):
        inside = which == b
        if n := int(inside.sum()):
            share = stats.wilson(float(y[inside].sum()), n)
            predicted = float(p[inside].mean())
            error += n / len(z) * abs(share.mean - predicted)
            bins.append(
                {
                    "from": float(edges[b]),
                    "to": float(edges[b + 1]),
                    "said": predicted,
                    **share.json(),
                }
            )
    return error, bins


def _scale(z: np.ndarray, y: np.ndarray) -> float | None:
    """1/T that makes Σ log-likelihood greatest: the zero of its derivative Σ z·(y − σ(sz)), which
    falls in s.
    """
    from scipy.optimize import brentq

    def slope(s: float) -> float:
        return float((z * (y - 1 / (1 + np.exp(-np.clip(s * z, -700, 700))))).sum())

    if not slope(0.0) > 0:
        return None  # more often wrong than right, weighed by size: no temperature mends that
    if bool(np.all((z == 0) | (z * (2 * y - 1) == np.abs(z)))):
        return None  # always right
    high = 1.0
    while slope(high) > 0:
        high *= 2
    root: Any = brentq(slope, 0.0, high, xtol=1e-12)
    return float(root)


def by_length(right: Many[float], longer: Many[float], clusters: Many[Hashable]) -> dict[str, Any]:
    """Accuracy on the pairs whose chosen answer is the longer, and on those whose chosen answer is
    the shorter. Returns: JSON.

    Args:
        longer: by how much the chosen answer of each pair is longer.
    """
    out: dict[str, Any] = {}
    for side, sign in (("longer", 1), ("shorter", -1)):
        indices = [i for i, more in enumerate(longer) if sign * more > 0]
        where = (
            stats.share([right[i] for i in indices], [clusters[i] for i in indices])
            if indices
            else None
        )
        out |= {
            f"{side}_chosen": len(indices),
            f"accuracy_{side}_chosen": where.mean if where else None,
            f"where_{side}_chosen": where.json() if where else None,
        }
    return out


def correlation(a: Many[float], b: Many[float]) -> float | None:
    """Pearson's; None where one does not vary."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    x, y = x - x.mean(), y - y.mean()
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / spread if spread else None


def warning(accuracy: dict[str, Any], others: dict[str, Any], what: str = "pairs") -> str:
    """A sentence where the judge is not shown to be better than the best of the content-blind
    baselines; empty where it is.

    Args:
        accuracy: of `stats.share`, JSON. others: of `compare`. what: the items, for the sentence.
    """
    if accuracy["n"] < ENOUGH:
        return ""
    best = max(others, key=lambda name: others[name]["mean"])
    gap = others[best]["difference"]
    if gap["low"] is not None and gap["low"] > 0:
        return ""
    return (
        f"not shown to be better than “{best}”, which is blind to content: right on "
        f"{accuracy['mean']:.3f} and {others[best]['mean']:.3f} of {accuracy['n']:,} {what}, a "
        f"difference of {gap['mean']:+.3f} [{_bound(gap['low'])}, {_bound(gap['high'])}]"
    )


def _bound(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
