"""Split rows so that nothing leaks: near-duplicates, and rows with the same prompt, stand on one
side.

Two passes, neither of which keeps the rows: sign every row (1), write every row where it belongs
(2). Memory holds about 600 bytes a row, twice that with `--against`; shingles are on the disk. The
folder holds
    NAME.jsonl      one file a part: rows in the order of the input, as their files have them
    against.jsonl   with --against: rows that were left out, because they are like rows of those
                    files
    rejects.jsonl   with --on-bad-row reject: rows that could not be read; against-rejects.jsonl,
                    those of --against
    split.json      what became of all rows, clusters, settings, digests of the inputs
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import atomic_folder, explained_writes, sha256_file, write_json
from posttrain.core.seeds import generator
from posttrain.core.settings import Settings
from posttrain.core.version import __version__
from posttrain.data.curate.corpus import Corpus, line, pieces, prompt, same, scratch
from posttrain.data.curate.near_duplicates import Prints, clusters, key, like
from posttrain.data.settings import FormatName, Sourced

NEAR, PROMPT = "near-duplicate of a row of --against", "near-duplicate of a prompt of --against"
TAKEN = ("against", "rejects", "against-rejects", "split")
SHOWN = 3  # rows of the largest cluster, and of those left out, that the summary shows


def _parts(parts: dict[str, float]) -> dict[str, float]:
    """Shares of named parts."""
    for name in parts:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII) or name in TAKEN:
            raise ValueError(
                f"{name!r} cannot be the name of a part: letters, digits, - and _, and not"
                f" {', '.join(TAKEN)}"
            )
    if abs(sum(parts.values()) - 1) > 1e-6:
        raise ValueError(f"the shares add up to {sum(parts.values()):g}, not to 1")
    return parts


class SplitSettings(Settings):
    """Settings of splitting rows."""

    data: tuple[Sourced, ...] = Field(
        min_length=1, description="the rows to split, given like --data of posttrain sft"
    )
    out: Path = Field(description="folder for the parts, one file each, and split.json")
    parts: Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_parts)] = Field(
        {"train": 0.9, "validation": 0.05, "test": 0.05},
        min_length=1,
        description="NAME=SHARE …, which add up to 1",
    )
    near: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Jaccard similarity of 3-word shingles from which rows are near-duplicates",
    )
    against: tuple[Sourced, ...] = Field(
        (),
        description=(
            "rows to keep away from, such as evaluation sets: near-duplicates of "
            "them and of their prompts are left out"
        ),
    )
    format: FormatName = Field(
        "", description="format of the rows of --data; unset: found from the first row's columns"
    )
    on_bad_row: Literal["stop", "reject"] = Field(
        "stop",
        description=(
            "stop at a row that cannot be used, or write it to rejects.jsonl with the reason and"
            " go on"
        ),
    )
    seed: int = Field(0, ge=0, description="of which cluster goes where")


def run(settings: SplitSettings, observer: ConsoleObserver) -> dict[str, Any]:
    """Split and write the rows; returns what split.json says.

    Raises:
        PosttrainError: a file or row cannot be used, a part would be empty, or the folder holds
            something else.
    """
    out, reject = settings.out, settings.on_bad_row == "reject"
    with explained_writes(out.parent), scratch(out) as hidden, atomic_folder(out) as folder:
        corpus = Corpus(
            settings.data,
            hidden,
            observer,
            rejects="rejects.jsonl" if reject else "",
            format=settings.format,
        )
        against = Corpus(
            settings.against, hidden, observer, rejects="against-rejects.jsonl" if reject else ""
        )
        identity = {
            "settings": settings.model_dump(mode="json", exclude={"out"}),
            "inputs": {**corpus.digests(), **against.digests()},
        }
        _free(settings, identity)
        with Prints(hidden / "texts") as texts, Prints(hidden / "prompts") as prompts:
            labels, reasons = _sign(corpus, against, texts, prompts, settings.near)
        kept = np.array([not reason for reason in reasons], bool)
        if not kept.any():
            raise DataError(
                "no row is left to split",
                where=str(settings.data[0]),
                cure=(
                    "give other --data"
                    if not len(kept)
                    else "all are like rows of --against; look at those"
                ),
            )
        names = list(settings.parts)
        part = np.full(len(kept), -1)
        part[kept] = assign(labels[kept], list(settings.parts.values()), settings.seed)
        counts = {name: int((part == i).sum()) for i, name in enumerate(names)}
        sizes = np.unique_counts(labels[kept])
        if empty := next((name for name, count in counts.items() if not count), None):
            raise DataError(
                f"the part {empty!r} would be empty: {int(kept.sum()):,} rows in"
                f" {len(sizes.values):,} clusters, the largest of {int(sizes.counts.max()):,}",
                where=str(settings.data[0]),
                cure="give it a larger share, or more rows, or raise --near",
            )
        largest = np.flatnonzero(kept & (labels == sizes.values[sizes.counts.argmax()]))
        shown = _write(corpus, folder, names, part, set(largest[:SHOWN].tolist()))
        for name in ("rejects.jsonl", "against-rejects.jsonl"):
            if (hidden / name).exists():
                (hidden / name).replace(folder / name)
        left_out = Counter(filter(None, reasons))
        assert corpus.read == sum(counts.values()) + left_out.total() + corpus.rejected, (
            "rows in = rows out"
        )
        result = {
            "posttrain": __version__,
            "identity": identity,
            "rows": corpus.read,
            "parts": counts,
            "left_out": dict(left_out),
            "rejected": corpus.rejected,
            "rejected_reasons": corpus.reasons,
            "against_rows": against.usable,
            "against_rejected": against.rejected,
            "clusters": len(sizes.values),
            "cluster_sizes": {
                str(size): count for size, count in sorted(Counter(sizes.counts.tolist()).items())
            },
            "largest_cluster": {
                "rows": len(largest),
                "part": names[part[largest[0]]],
                "first": shown,
            },
            "sha256": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / "split.json", result)
    return result


def _free(settings: SplitSettings, identity: dict[str, Any]) -> None:
    """Check that the folder, which will be replaced, holds nothing but what this command wrote into
    it.
    """
    out = settings.out
    there = sorted(out.iterdir()) if out.is_dir() else [out]
    same(out / "split.json", identity, there)
    ours = {"split.json", *(f"{name}.jsonl" for name in (*settings.parts, *TAKEN))}
    if foreign := next((path for path in there if path.exists() and path.name not in ours), None):
        raise ConfigError(
            f"{out} also holds {foreign.name}, which no run of ours wrote",
            cure="choose another --out; nothing there was touched",
        )


def _sign(
    corpus: Corpus, against: Corpus, texts: Prints, prompts: Prints, near: float
) -> tuple[np.ndarray, list[str]]:
    """The first pass: [R] the cluster of every row, and [R] why it is left out, empty where it is
    not.
    """
    asked = array("Q")
    for source, doing in ((against, "against"), (corpus, "sign")):
        for _, example in source.rows(doing) if source.sources else ():
            texts.add("\n".join(pieces(example)))
            question = prompt(example)
            asked.append(key(question.strip()))
            if against.sources:
                prompts.add(question)
    first = against.usable
    labels = clusters(texts, near, same=[np.array(asked, np.uint64)])
    reasons = [""] * corpus.usable
    if first:
        for prints, found, reason in (
            (prompts, clusters(prompts, near), PROMPT),
            (texts, labels, NEAR),
        ):
            for i in np.flatnonzero(like(prints, near, found, first) >= 0).tolist():
                reasons[i - first] = reason
    return labels[first:], reasons


def assign(labels: np.ndarray, shares: list[float], seed: int) -> np.ndarray:
    """Put clusters into parts. No part is off by as much as one cluster of those that were put
    last.

    A cluster goes to the part that lacks most. Clusters larger than the smallest part is to be go
    first, largest first; then the others in random order.

    Args:
        labels: [R] the cluster of each row.
        shares: of the parts; they add up to 1.
        seed: of the order.
    Returns: [R] number of the part.
    """
    found = np.unique_all(labels)
    order = generator(seed, "split").permutation(len(found.values))
    smallest = min(shares) * len(labels)
    counts = found.counts[order]
    order = order[np.argsort(np.where(counts > smallest, -counts, 0), kind="stable")]
    lacks = np.array(shares) * len(labels)
    part = np.empty(len(found.values), np.int64)
    for cluster in order:
        part[cluster] = to = int(lacks.argmax())
        lacks[to] -= found.counts[cluster]
    return part[found.inverse_indices]


def _write(
    corpus: Corpus, folder: Path, names: list[str], part: np.ndarray, show: set[int]
) -> list[dict[str, str]]:
    """The second pass: every row to its file; returns place and beginning of the rows to show."""
    shown = []
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}.jsonl", "wb")) for name in names]
        left = (
            stack.enter_context(open(folder / "against.jsonl", "wb")) if (part < 0).any() else None
        )
        for number, (row, example) in enumerate(corpus.rows("write")):
            file = files[part[number]] if part[number] >= 0 else left
            assert file is not None
            file.write(line(row))
            if number in show:
                shown.append({"where": row.where, "text": "\n".join(pieces(example))[:200]})
    return shown
