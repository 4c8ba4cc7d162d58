"""Split rows so that nothing leaks: near-duplicates, and rows with the same prompt, go to one side.

Two passes, neither of which keeps the rows: sign every row (1), write every row where it belongs
(2). Memory holds about 600 bytes a row, twice that with `--against`; shingles are on the disk. The
folder holds

    NAME.jsonl              one file a part: rows in the order of the input, as their files have
                            them
    against.jsonl           with --against: rows that were left out because rows of those files are
                            like them
    rejects.jsonl           with --on-bad-row reject: rows that could not be read
    against-rejects.jsonl   the same of --against
    split.json              what became of all rows, clusters, settings, digests of the inputs
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import atomic_folder, explained_writes, sha256_file, write_json
from posttrain.core.seeds import generator
from posttrain.core.settings import Settings
from posttrain.core.version import __version__
from posttrain.data.curate.corpus import Corpus, line, pieces, prompt, same, scratch
from posttrain.data.curate.near_duplicates import Prints, clusters, key, near_reference
from posttrain.data.settings import FormatName, Sourced

NEAR, PROMPT = "near-duplicate of a row of --against", "near-duplicate of a prompt of --against"
TAKEN = ("against", "rejects", "against-rejects", "split")  # names of other files in the folder
SHOWN = 3  # rows of the largest cluster that the summary shows


def _parts(parts: dict[str, float]) -> dict[str, float]:
    """Checks the names and shares of parts."""
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
    seed: int = Field(0, ge=0, description="decides which cluster goes where")


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
        _check_folder(settings, identity)
        with Prints(hidden / "texts") as texts, Prints(hidden / "prompts") as prompts:
            labels, reasons = _sign(corpus, against, texts, prompts, settings.near)
        kept = np.array([not reason for reason in reasons], bool)
        part = _assign_kept(labels, kept, settings)
        clusters_kept = np.unique_counts(labels[kept])
        largest_label = clusters_kept.values[clusters_kept.counts.argmax()]
        largest = np.flatnonzero(kept & (labels == largest_label))
        names = list(settings.parts)
        shown = _write(corpus, folder, names, part, set(largest[:SHOWN].tolist()))
        for name in ("rejects.jsonl", "against-rejects.jsonl"):
            if (hidden / name).exists():
                (hidden / name).replace(folder / name)
        counts = {name: int((part == number).sum()) for number, name in enumerate(names)}
        left_out = Counter(filter(None, reasons))
        assert corpus.read == sum(counts.values()) + left_out.total() + corpus.rejected, (
            "rows in = rows out"
        )
        cluster_sizes = Counter(clusters_kept.counts.tolist())
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
            "clusters": len(clusters_kept.values),
            "cluster_sizes": {str(size): cluster_sizes[size] for size in sorted(cluster_sizes)},
            "largest_cluster": {
                "rows": len(largest),
                "part": names[part[largest[0]]],
                "first": shown,
            },
            "sha256": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / "split.json", result)
    return result


def _assign_kept(labels: np.ndarray, kept: np.ndarray, settings: SplitSettings) -> np.ndarray:
    """[R] the part of every row, -1 for rows that are left out.

    Raises:
        DataError: no row is left, or a part would be empty.
    """
    where = str(settings.data[0])
    if not kept.any():
        cure = "all are like rows of --against; look at those" if len(kept) else "give other --data"
        raise DataError("no row is left to split", where=where, cure=cure)
    part = np.full(len(kept), -1)
    part[kept] = assign(labels[kept], list(settings.parts.values()), settings.seed)
    for number, name in enumerate(settings.parts):
        if not (part == number).any():
            sizes = np.unique_counts(labels[kept]).counts
            raise DataError(
                f"the part {name!r} would be empty: {int(kept.sum()):,} rows in"
                f" {len(sizes):,} clusters, the largest of {int(sizes.max()):,}",
                where=where,
                cure="give it a larger share, or more rows, or raise --near",
            )
    return part


def _check_folder(settings: SplitSettings, identity: dict[str, Any]) -> None:
    """Check that the folder, which will be replaced, holds only what this command wrote into it."""
    out = settings.out
    existing = sorted(out.iterdir()) if out.is_dir() else [out]
    same(out / "split.json", identity, existing)
    ours = {"split.json", *(f"{name}.jsonl" for name in (*settings.parts, *TAKEN))}
    for path in existing:
        if path.exists() and path.name not in ours:
            raise ConfigError(
                f"{out} also holds {path.name}, which no run of ours wrote",
                cure="choose another --out; nothing there was touched",
            )


def _sign(
    corpus: Corpus, against: Corpus, texts: Prints, prompts: Prints, near: float
) -> tuple[np.ndarray, list[str]]:
    """The first pass: [R] the cluster of every row, and why it is left out, empty if it is not."""
    prompt_keys = array("Q")

    def add(source: Corpus, purpose: str) -> None:
        for _, example in source.rows(purpose):
            texts.add("\n".join(pieces(example)))
            row_prompt = prompt(example)
            prompt_keys.append(key(row_prompt.strip()))
            if against.sources:
                prompts.add(row_prompt)

    if against.sources:
        add(against, "against")
    add(corpus, "sign")
    references = against.usable
    labels = clusters(texts, near, [np.array(prompt_keys, np.uint64)])
    reasons = [""] * corpus.usable

    def leave_out(prints: Prints, prints_labels: np.ndarray, reason: str) -> None:
        nearest = near_reference(prints, near, prints_labels, references)
        for i in np.flatnonzero(nearest >= 0).tolist():
            reasons[i - references] = reason

    if references:
        leave_out(prompts, clusters(prompts, near), PROMPT)
        leave_out(texts, labels, NEAR)  # the stronger reason comes last
    return labels[references:], reasons


def assign(labels: np.ndarray, shares: list[float], seed: int) -> np.ndarray:
    """Put clusters into parts. A part's size is off by less than one cluster of those that were
    assigned last.

    A cluster goes to the part that lacks most rows. Clusters larger than the smallest part is to
    be go first, largest first; then the others in random order.

    Args:
        labels: [R] the cluster of each row.
        shares: of the parts; they add up to 1.
        seed: decides the order.
    Returns: [R] number of the part.
    """
    unique = np.unique_all(labels)
    order = generator(seed, "split").permutation(len(unique.values))
    smallest_part = min(shares) * len(labels)
    counts = unique.counts[order]
    large_first = np.where(counts > smallest_part, -counts, 0)
    lacking = np.array(shares) * len(labels)
    part_of_cluster = np.empty(len(unique.values), np.int64)
    for cluster in order[np.argsort(large_first, kind="stable")]:
        part = int(lacking.argmax())
        part_of_cluster[cluster] = part
        lacking[part] -= unique.counts[cluster]
    return part_of_cluster[unique.inverse_indices]


def _write(
    corpus: Corpus, folder: Path, names: list[str], part: np.ndarray, to_show: set[int]
) -> list[dict[str, str]]:
    """The second pass: every row to its file; returns place and beginning of the rows to show."""
    shown = []
    with ExitStack() as stack:

        def new_file(name: str) -> IO[bytes]:
            return stack.enter_context(open(folder / f"{name}.jsonl", "wb"))

        files = dict(enumerate(map(new_file, names)))
        if (part < 0).any():
            files[-1] = new_file("against")
        for number, (row, example) in enumerate(corpus.rows("write")):
            files[int(part[number])].write(line(row))
            if number in to_show:
                shown.append({"where": row.where, "text": "\n".join(pieces(example))[:200]})
    return shown
