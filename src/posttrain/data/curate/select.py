"""Rank the rows of large sets by relevance to a target, and take the best that are good and no
repeats.

Three passes, none of which keeps the rows: learn what is common to all rows (1), score them (2),
fetch the best (3). Memory holds five bytes a row, and about 1,300 bytes a fetched row; the rows'
texts are on the disk.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.curate.corpus import Corpus, line, pieces, prompt
from posttrain.data.curate.near_duplicates import Prints, clusters, near_reference, repeats
from posttrain.data.curate.quality import QualitySettings, faults, signals
from posttrain.data.curate.relevance import Space, relevance
from posttrain.data.rows import json_line

BATCH = 256  # rows that are made into vectors at once
# rows fetched beyond twice as many as wanted, so that repeats among them rarely need another pass
SLACK = 1000

IN_TARGET, PROMPT_IN_TARGET = "near-duplicate of a target row", "prompt of a target row"
EXACT, NEAR = "the same as a better row", "near-duplicate of a better row"
LESS = "less relevant than the chosen"
# numbered, so that a row keeps a byte; 0 is no fault
FAULTS = ("", *(name for name in QualitySettings.model_fields if name != "quality"))


@dataclass(frozen=True)
class Criteria:
    """Which rows are taken.

    Attributes:
        keep: how many rows.
        bounds: of the quality signals.
        nearest: target rows of which the mean cosine is taken.
        near: Jaccard similarity from which two rows are near-duplicates.
        dedupe: of near-duplicates leave out all but the best.
        against_target: leave out near-duplicates of target rows, and rows with near-duplicates of
            their prompts.
    """

    keep: int
    bounds: QualitySettings
    nearest: int
    near: float
    dedupe: bool
    against_target: bool


@dataclass(frozen=True)
class Selection:
    """What became of the rows.

    Attributes:
        rows: rows chosen.
        left_out: reason → rows, each row under one reason.
        cosines: relevance of the `first` and the `last` chosen row, and `mean_of_all`, the mean
            over all rows within the bounds of quality.
    """

    rows: int
    left_out: dict[str, int]
    cosines: dict[str, float]


def select(
    corpus: Corpus, target: Corpus, space: Space, criteria: Criteria, folder: Path
) -> Selection:
    """Write the best rows to `folder`: `chosen.jsonl`, and `scores.jsonl` with a line for each.

    Args:
        corpus: the large sets.
        target: the rows to be like.
        space: where the cosine is taken.
        criteria: which rows are taken.
    Raises:
        DataError: a row cannot be used, or nothing is left.
    """
    for batch in _batches(_texts(corpus, "learn"), BATCH):
        space.observe([text for _, text in batch])
    if not corpus.usable:
        raise DataError(
            "there is no usable row", where=str(corpus.sources[0]), cure="give other --data"
        )
    with Pool(folder) as pool:
        target_vectors = space.vectors(list(pool.add_target(target)))
        cosines, fault_numbers = _score(corpus, space, target_vectors, criteria)
        good = np.flatnonzero(fault_numbers == 0)
        if not len(good):
            raise DataError(
                "no row is within the bounds of quality",
                where=str(corpus.sources[0]),
                cure="look at the bounds, or give --quality off",
            )
        ranked = good[np.argsort(-cosines[good], kind="stable")]
        reasons = _fetch_best(pool, corpus, ranked, criteria)
        chosen = [rank for rank, reason in enumerate(reasons) if not reason][: criteria.keep]
        _write(pool, chosen, cosines[ranked], folder)
    # rows behind the last chosen one are less relevant, whatever else they are
    examined = chosen[-1] + 1 if len(chosen) == criteria.keep else len(reasons)
    left_out = Counter(_bound(number) for number in fault_numbers[fault_numbers > 0].tolist())
    left_out.update(reason for reason in reasons[:examined] if reason)
    left_out[LESS] = len(ranked) - examined
    assert corpus.usable == len(chosen) + left_out.total(), (
        "rows in = rows out + left out + rejected"
    )
    best = cosines[ranked[chosen]] if chosen else np.zeros(1)
    return Selection(
        len(chosen),
        {reason: count for reason, count in left_out.items() if count},
        {
            "first": float(best[0]),
            "last": float(best[-1]),
            "mean_of_all": float(cosines[good].mean()),
        },
    )


def _bound(number: int) -> str:
    """The reason for which a row with this fault is left out."""
    return f"outside --{FAULTS[number].replace('_', '-')}"


def _fetch_best(pool: Pool, corpus: Corpus, ranked: np.ndarray, criteria: Criteria) -> list[str]:
    """Fetch rows by rank until enough of them stay, or all are fetched.

    Returns: by rank, why a fetched row is left out; empty if it is not.
    """
    fetched, end = 0, min(2 * criteria.keep + SLACK, len(ranked))
    while True:
        pool.fetch(corpus, ranked[fetched:end], fetched)
        reasons = pool.reasons(criteria)
        if reasons.count("") >= criteria.keep or end == len(ranked):
            return reasons
        fetched, end = end, min(2 * end, len(ranked))


def _write(pool: Pool, chosen: list[int], cosines: np.ndarray, folder: Path) -> None:
    """Write the chosen rows and a line of scores for each.

    Args:
        chosen: ranks. cosines: by rank.
    """
    with open(folder / "chosen.jsonl", "wb") as rows, open(folder / "scores.jsonl", "wb") as scores:
        for place, rank in enumerate(chosen, 1):
            about, raw = pool.row(rank)
            rows.write(raw)
            cosine = round(float(cosines[rank]), 6)
            entry = {"rank": place, "relevance": cosine, **about}
            scores.write(json_line(entry))


T = TypeVar("T")


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """itertools.batched, which Python 3.11 lacks."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def _texts(corpus: Corpus, purpose: str) -> Iterator[tuple[list[str], str]]:
    """Pieces and text of every row."""
    for _, example in corpus.rows(purpose):
        row_pieces = pieces(example)
        yield row_pieces, "\n".join(row_pieces)


def _score(
    corpus: Corpus, space: Space, target_vectors: Any, criteria: Criteria
) -> tuple[np.ndarray, np.ndarray]:
    """[R] relevance, 0 for rows outside a bound; [R] the number in `FAULTS` of the first such
    bound, 0 for good rows.
    """
    cosines, fault_numbers = array("f"), array("b")
    for batch in _batches(_texts(corpus, "score"), BATCH):
        numbers = [_fault(row_pieces, criteria.bounds) for row_pieces, _ in batch]
        good = [i for i, number in enumerate(numbers) if not number]
        batch_cosines = np.zeros(len(batch), np.float32)
        if good:
            vectors = space.vectors([batch[i][1] for i in good])
            batch_cosines[good] = relevance(vectors, target_vectors, criteria.nearest)
        fault_numbers.extend(numbers)
        cosines.extend(batch_cosines.tolist())
    return np.array(cosines, np.float32), np.array(fault_numbers, np.int8)


def _fault(row_pieces: list[str], bounds: QualitySettings) -> int:
    """The number in `FAULTS` of the first bound that a row is outside of; 0 if it is good."""
    if bounds.quality == "off":
        return 0
    return FAULTS.index(next(faults(signals(row_pieces), bounds), ""))


class Pool:
    """The rows that may be chosen: their lines and shingles on the disk, their signatures in
    memory. Target rows come first.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._spool: IO[bytes] = open(folder / "spool", "w+b")  # noqa: SIM115 - closed by __exit__
        self._texts, self._prompts = Prints(folder / "texts"), Prints(folder / "prompts")
        self._starts: dict[int, int] = {}  # rank → where in the spool
        self._ranks: list[int] = []  # of every text; -1 for target rows
        self._targets = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._spool.close()
        self._texts.__exit__(*error)
        self._prompts.__exit__(*error)

    def add_target(self, target: Corpus) -> Iterator[str]:
        """Take the target rows in, and pass their texts on.

        Raises:
            DataError: there is none.
        """
        for _, example in target.rows("target"):
            yield self._add(pieces(example), prompt(example), -1)
            self._targets += 1
        if not self._targets:
            raise DataError(
                "the target has no usable row",
                where=str(target.sources[0]),
                cure="give another --target",
            )

    def _add(self, row_pieces: list[str], row_prompt: str, rank: int) -> str:
        text = "\n".join(row_pieces)
        self._texts.add(text)
        self._prompts.add(row_prompt)
        self._ranks.append(rank)
        return text

    def fetch(self, corpus: Corpus, numbers: np.ndarray, first: int) -> None:
        """Read the rows with these numbers; they get ranks in this order, from `first` on."""
        ranks = dict(zip(numbers.tolist(), range(first, first + len(numbers)), strict=True))
        for number, (row, example) in enumerate(corpus.rows("fetch")):
            rank = ranks.get(number)
            if rank is None:
                continue
            row_pieces = pieces(example)
            self._add(row_pieces, prompt(example), rank)
            self._starts[rank] = self._spool.seek(0, 2)
            values = {name: round(value, 4) for name, value in signals(row_pieces).items()}
            self._spool.write(json_line({"where": row.where, **values}) + line(row))

    def reasons(self, criteria: Criteria) -> list[str]:
        """By rank, why a row is left out; empty if it is not."""
        ranks, near = np.array(self._ranks), criteria.near
        reasons = [""] * (len(ranks) - self._targets)
        labels = clusters(self._texts, near)
        if criteria.against_target:
            prompt_labels = clusters(self._prompts, near)
            near_prompt = near_reference(self._prompts, near, prompt_labels, self._targets) >= 0
            near_text = near_reference(self._texts, near, labels, self._targets) >= 0
            for i in np.flatnonzero(near_prompt | near_text):
                reasons[ranks[i]] = IN_TARGET if near_text[i] else PROMPT_IN_TARGET
        if criteria.dedupe:
            left = np.array([r if r >= 0 and not reasons[r] else -1 for r in self._ranks])
            keys, repeated = self._texts.keys, repeats(self._texts, near, labels, left)
            for i in np.flatnonzero(repeated >= 0):
                reasons[ranks[i]] = EXACT if keys[i] == keys[repeated[i]] else NEAR
        return reasons

    def row(self, rank: int) -> tuple[dict[str, Any], bytes]:
        """Where a row stands and its signals, and its line."""
        self._spool.seek(self._starts[rank])
        return json.loads(self._spool.readline()), self._spool.readline()
