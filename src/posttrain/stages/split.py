"""Split rows so that nothing leaks: near-duplicates, and rows with the same prompt, stand on one
side. How: `posttrain.data.curate.split`.

The folder holds
    NAME.jsonl      one file a part: rows in the order of the input, as their files have them
    against.jsonl   with --against: rows that were left out, because they are like rows of those
                    files
    rejects.jsonl   with --on-bad-row reject: rows that could not be read; against-rejects.jsonl,
                    those of --against
    run.json        settings, digests of the inputs
    summary.json    what became of all rows, clusters
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from posttrain.core.errors import DataError
from posttrain.core.settings import Destination, Settings
from posttrain.data.curate.corpus import Corpus
from posttrain.data.curate.near_duplicates import Prints
from posttrain.data.curate.split import assign, sign, write
from posttrain.data.settings import OnBadRow, RowFormat, Rows, Similarity
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

TAKEN = ("against", "rejects", "against-rejects", "summary", "run")
SHOWN = 3  # rows of the largest cluster that the summary shows


def _parts(parts: dict[str, float]) -> dict[str, float]:
    """Shares of named parts."""
    for name in parts:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII) or name in TAKEN:
            raise ValueError(
                f"{name!r} cannot be the name of a part: letters, digits, - and _, and not "
                f"{', '.join(TAKEN)}"
            )
    if abs(sum(parts.values()) - 1) > 1e-6:
        raise ValueError(f"the shares add up to {sum(parts.values()):g}, not to 1")
    return parts


class SplitSettings(Settings):
    """Settings of splitting rows."""

    data: Rows = Field(
        min_length=1, description="the rows to split, given like --data of posttrain sft"
    )
    out: Annotated[Path, Destination()] = Field(
        description="folder for the parts, one file each, and summary.json"
    )
    parts: Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_parts)] = Field(
        {"train": 0.9, "validation": 0.05, "test": 0.05},
        min_length=1,
        description="NAME=SHARE …, which add up to 1",
    )
    near: Similarity = 0.8
    against: Rows = Field(
        (),
        description=(
            "rows to keep away from, such as evaluation sets: near-duplicates of "
            "them and of their prompts are left out"
        ),
    )
    format: RowFormat = ""
    on_bad_row: OnBadRow = "stop"
    seed: int = Field(0, ge=0, description="of which cluster goes where")


def _makes(settings: SplitSettings) -> dict[str, str]:
    """rows: one output a part, by the names in `parts`."""
    return {name: f"{name}.jsonl" for name in settings.parts}


@stage(
    "data_split",
    SplitSettings,
    help="split rows so that near-duplicates stay on one side",
    makes=_makes,
    files=Files(others=("against.jsonl", "rejects.jsonl", "against-rejects.jsonl"), at_once=True),
)
def data_split(settings: SplitSettings, context: Context) -> dict[str, Any]:
    """Split rows into parts without leaks: near-duplicates, and rows with the same prompt, stand on
    one side. Rows keep their order and their bytes.
    """
    folder, reject = context.folder, settings.on_bad_row == "reject"
    corpus = Corpus(
        settings.data,
        folder,
        context.reporter,
        rejects="rejects.jsonl" if reject else "",
        format=settings.format,
    )
    against = Corpus(
        settings.against,
        folder,
        context.reporter,
        rejects="against-rejects.jsonl" if reject else "",
    )
    with Prints(folder / "texts") as texts, Prints(folder / "prompts") as prompts:
        labels, reasons = sign(corpus, against, texts, prompts, settings.near)
    part = _assigned(settings, labels, reasons)
    names = list(settings.parts)
    counts = {name: int((part == i).sum()) for i, name in enumerate(names)}
    sizes = np.unique_counts(labels[part >= 0])
    largest = np.flatnonzero((part >= 0) & (labels == sizes.values[sizes.counts.argmax()]))
    shown = write(corpus, folder, names, part, set(largest[:SHOWN].tolist()))
    left_out = Counter(filter(None, reasons))
    assert corpus.read == sum(counts.values()) + left_out.total() + corpus.rejected, (
        "rows in = rows out"
    )
    cluster_sizes = Counter(sizes.counts.tolist())
    return {
        "rows": corpus.read,
        "shares": settings.parts,
        "parts": counts,
        "left_out": dict(left_out),
        "rejected": corpus.rejected,
        "rejected_reasons": corpus.reasons,
        "against_rows": against.usable,
        "against_rejected": against.rejected,
        "clusters": len(sizes.values),
        "cluster_sizes": {str(size): count for size, count in sorted(cluster_sizes.items())},
        "largest_cluster": {"rows": len(largest), "part": names[part[largest[0]]], "first": shown},
    }


def _assigned(settings: SplitSettings, labels: np.ndarray, reasons: list[str]) -> np.ndarray:
    """[R] the part of every row, -1 where it is left out.

    Raises:
        DataError: no row is left, or a part would be empty.
    """
    kept = np.array([not reason for reason in reasons], bool)
    where = str(settings.data[0])
    if not len(kept):
        raise DataError("no row is left to split", where=where, cure="give other --data")
    if not kept.any():
        raise DataError(
            "no row is left to split",
            where=where,
            cure="all are like rows of --against; look at those",
        )
    part = np.full(len(kept), -1)
    part[kept] = assign(labels[kept], list(settings.parts.values()), settings.seed)
    sizes = np.unique_counts(labels[kept])
    for i, name in enumerate(settings.parts):
        if not (part == i).any():
            raise DataError(
                f"the part {name!r} would be empty: {int(kept.sum()):,} rows in "
                f"{len(sizes.values):,} clusters, the largest of {int(sizes.counts.max()):,}",
                where=where,
                cure="give it a larger share, or more rows, or raise --near",
            )
    return part
