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
from typing import IO

import numpy as np

from posttrain.core.seeds import generator
from posttrain.data.curate.corpus import Corpus, line, pieces, prompt
from posttrain.data.curate.near_duplicates import Prints, clusters, key, near_reference

NEAR, PROMPT = "near-duplicate of a row of --against", "near-duplicate of a prompt of --against"


def sign(
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


def write(
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
