"""Which part a row goes to, so that nothing leaks: near-duplicates, and rows with the same prompt,
stand on one side.

Two passes, neither of which keeps the rows: sign every row (1), write every row where it belongs
(2). Memory holds about 600 bytes a row, twice that with rows to keep away from; shingles are on the
disk.
"""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from posttrain.core.seeds import generator
from posttrain.data.curate.corpus import Corpus, line, pieces, prompt
from posttrain.data.curate.near_duplicates import Prints, clusters, key, like

NEAR, PROMPT = "near-duplicate of a row of --against", "near-duplicate of a prompt of --against"


def sign(
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


def write(
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
