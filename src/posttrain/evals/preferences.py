"""How chosen answers look beside rejected ones, with intervals: what a content-blind baseline
could know.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from posttrain.core.ties import wins
from posttrain.data.curate.bias import MARKDOWN, Sides
from posttrain.evals import stats

PREDICTIVE = 0.6  # the share of pairs from which length alone counts as predicting the choice


def measure(sides: Sides, prompts: np.ndarray) -> dict[str, Any]:
    """Shares and means over pairs.

    Args:
        sides: of the pairs.
        prompts: [P] number of the prompt: pairs of one prompt are not independent.
    Returns: JSON. Shares are of the pairs in which the two sides differ; `equal` are the others.
    """
    return {
        "pairs": len(prompts),
        "prompts": len(np.unique(prompts)),
        "longer": {unit: share(sides.signs[unit], prompts) for unit in ("characters", "words")},
        "log_length_ratio": (
            stats.mean(sides.log_ratio.tolist(), prompts.tolist()).json() if len(prompts) else None
        ),
        "more_markdown": {
            name: share(sides.signs[name], prompts) for name in ("markdown", *MARKDOWN)
        },
    }


def change(before: Sides, taken: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """How much every share and mean of `measure` is different among the pairs that were taken, over
    the same pairs and so paired.

    Args:
        before: all pairs. taken: [P] whether each was taken. prompts: [P] as for `measure`.
    Returns: JSON by the name of what was measured; what cannot be compared is left out.
    """
    weights = {name: (signs != 0).astype(float) for name, signs in before.signs.items()}
    values = {name: wins(signs) for name, signs in before.signs.items()}
    weights["log_length_ratio"] = np.ones(len(prompts))
    values["log_length_ratio"] = before.log_ratio
    changes: dict[str, Any] = {}
    for name, all_weights in weights.items():
        left = all_weights * taken
        if left.sum():
            found = stats.ratio_difference(
                ((values[name] * left).tolist(), left.tolist()),
                ((values[name] * all_weights).tolist(), all_weights.tolist()),
                prompts.tolist(),
            )
            changes[name] = found.json()
    return changes


def share(signs: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """How often the chosen side has more, of the pairs that differ.

    The interval is that of `posttrain.evals.stats.share`, clustered by prompt.
    """
    differ = signs != 0
    n = int(differ.sum())
    equal = len(signs) - n
    if not n:
        return {"mean": None, "low": None, "high": None, "n": 0, "equal": equal}
    more = wins(signs[differ]).tolist()
    return {**stats.share(more, prompts[differ].tolist()).json(), "equal": equal}


def length_warning(measured: dict[str, Any], cure: str = "--balance-length") -> str:
    """A sentence where length alone predicts the choice; empty where it does not.

    Length in characters, as that of the baselines “longest” and “shortest”. The cure takes as many
    of both.
    """
    longer = measured["longer"]["characters"]
    low, high, mean = longer["low"], longer["high"], longer["mean"]
    if low is None or high is None or (high >= 1 - PREDICTIVE and low <= PREDICTIVE):
        return ""
    side, baseline = "longer", "longest"
    if high < 1 - PREDICTIVE:
        side, baseline = "shorter", "shortest"
        low, high, mean = 1 - high, 1 - low, 1 - mean
    rest = f" ({longer['equal']:,} have equally many)" if longer["equal"] > longer["n"] else ""
    return (
        f"length alone predicts the choice: the {side} answer, in characters, is the chosen one in "
        f"{mean:.3f} [{low:.3f}, {high:.3f}] of n = {longer['n']:,} pairs{rest}. What is "
        f"trained on them has to beat “{baseline}”; {cure} takes as many of both"
    )


def spread(margins: np.ndarray, agreement: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """What is known of margins and votes, over the rows that have them; those that none has are
    left out.
    """
    out: dict[str, Any] = {}
    if (present := ~np.isnan(margins)).any():
        known = margins[present]
        out["margin"] = {
            "least": float(known.min()),
            "most": float(known.max()),
            "mean": stats.mean(known.tolist(), prompts[present].tolist()).json(),
        }
    if (present := ~np.isnan(agreement)).any():
        known = agreement[present]
        out["votes"] = {
            "agreement": stats.mean(known.tolist(), prompts[present].tolist()).json(),
            "unanimous": share(np.where(known == 1, 1, -1), prompts[present]),
        }
    return out
