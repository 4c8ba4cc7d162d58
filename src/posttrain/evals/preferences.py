"""How chosen answers look beside rejected ones, with intervals: what a content-blind baseline
could know.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from posttrain.core.ties import wins
from posttrain.data.curate.bias import MARKDOWN, Sides
from posttrain.evals import stats

TELLING = 0.6  # of the pairs, from which on length alone is said to predict the choice


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


def telling(measured: dict[str, Any], cure: str = "--balance-length") -> str:
    """A sentence where length alone predicts the choice; empty where it does not.

    The cure takes as many of both.
    """
    for unit, found in measured["longer"].items():
        known = found["low"] is not None and found["high"] is not None
        if known and (found["low"] > TELLING or found["high"] < 1 - TELLING):
            longer = found["low"] > TELLING
            name = "longest" if longer else "shortest"
            part = (
                found
                if longer
                else {"mean": 1 - found["mean"], "low": 1 - found["high"], "high": 1 - found["low"]}
            )
            rest = f" ({found['equal']:,} have equally many)" if found["equal"] > found["n"] else ""
            return (
                f"length alone predicts the choice: the {'longer' if longer else 'shorter'} answer,"
                f" in {unit}, is the chosen one in {part['mean']:.3f} [{part['low']:.3f}, "
                f"{part['high']:.3f}] of n = {found['n']:,} pairs{rest}. What is trained on them "
                f"has to beat “{name}”; {cure} takes as many of both"
            )
    return ""


def spread(margins: np.ndarray, agreement: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """What is known of margins and votes, over the rows that have them; those that none has are
    left out.
    """
    out: dict[str, Any] = {}
    if (there := ~np.isnan(margins)).any():
        some = margins[there]
        out["margin"] = {
            "least": float(some.min()),
            "most": float(some.max()),
            "mean": stats.mean(some.tolist(), prompts[there].tolist()).json(),
        }
    if (there := ~np.isnan(agreement)).any():
        some = agreement[there]
        out["votes"] = {
            "agreement": stats.mean(some.tolist(), prompts[there].tolist()).json(),
            "unanimous": share(np.where(some == 1, 1, -1), prompts[there]),
        }
    return out
