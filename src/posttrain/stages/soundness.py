"""Whether what a run will measure can be believed: rows that are both trained on and held out, and
preferences that contradict each other. Found while the rows are prepared, and said before step 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.core.events import Reporter
from posttrain.data.curate.overlap import Overlap
from posttrain.data.curate.pairs import contradicted

SMALL = 0.01  # share of rows that overlap, up to which it is said where quiet is not asked for


def tell_overlap(found: Overlap | None, reporter: Reporter) -> None:
    """Say how much overlaps; where it is much, also where quiet is asked for."""
    if found is None:
        return
    if max(found.held_out.share, found.training.share) <= SMALL:
        reporter.note("overlap", found.sentence())
        return
    reporter.message(
        f"training and held-out data overlap: {found.sentence()}. A model looks better than it is "
        "on rows that it has seen: posttrain data split makes parts that share nothing, and its "
        "--against leaves out what another file has"
    )


def tell_contradictions(folders: Iterable[Path], reporter: Reporter) -> dict[str, Any] | None:
    """Count preferences of the training data that also stand the other way round, and say so.

    Returns: JSON; None where no answers are compared.
    """
    files = [folder / "edges" for folder in folders if (folder / "edges").is_file()]
    if not files:
        return None
    edges = np.concatenate([np.fromfile(file, np.uint64).reshape(-1, 2) for file in files])
    rows, opposed = len(edges), contradicted(edges)
    if opposed:
        reporter.message(
            f"{opposed:,} of {rows:,} preferences ({100 * opposed / rows:.1f} %) contradict each "
            "other: the same answers to the same prompt also stand the other way round, and the "
            "model learns neither. posttrain data pairs removes them"
        )
    return {"rows": rows, "contradicted": opposed}
