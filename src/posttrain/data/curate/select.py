"""Rank the rows of large sets by relevance to a target, and take the best that are good and no
repeats.

Three passes, none of which keeps the rows: learn what is common to all (1), score (2), fetch the
best (3). Memory holds five bytes a row, and about 1,300 bytes a fetched row; what stands in them is
on the disk.
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
from posttrain.data.curate.near_duplicates import Prints, clusters, like, repeats
from posttrain.data.curate.quality import QualitySettings, faults, signals
from posttrain.data.curate.relevance import Space, relevance

BATCH = 256  # rows that are made into vectors at once
# rows fetched beyond twice as many as wanted, so that repeats among them rarely need another pass
SLACK = 1000

IN_TARGET, PROMPT_IN_TARGET = "near-duplicate of a target row", "prompt of a target row"
EXACT, NEAR, LESS = (
    "the same as a better row",
    "near-duplicate of a better row",
    "less relevant than the chosen",
)
FAULTS = (
    "",
    *(name for name in QualitySettings.model_fields if name != "quality"),
)  # numbered, so that a row keeps a byte


@dataclass(frozen=True)
class Selection:
    """What became of the rows.

    Attributes:
        rows: rows chosen.
        left_out: reason → rows, each row under one reason.
        cosines: relevance of the first and of the last chosen row, and the mean over all usable
            ones that are good.
    """

    rows: int
    left_out: dict[str, int]
    cosines: dict[str, float]


def select(
    corpus: Corpus,
    target: Corpus,
    space: Space,
    bounds: QualitySettings,
    *,
    keep: int,
    nearest: int,
    near: float,
    dedupe: bool,
    against_target: bool,
    folder: Path,
) -> Selection:
    """Write the `keep` best rows to `folder`: `chosen.jsonl`, and `scores.jsonl` with a line for
    each.

    Args:
        corpus: the large sets.
        target: the rows to be like.
        space: where the cosine is taken.
        bounds: of the quality signals.
        nearest: target rows of which the mean cosine is taken.
        near: Jaccard similarity from which two rows are near-duplicates.
        dedupe: of near-duplicates leave out all but the best.
        against_target: leave out near-duplicates of target rows, and rows with near-duplicates of
            their prompts.
    Raises:
        DataError: a row cannot be used, or nothing is left.
    """
    for texts in _batches((text for _, text in _texts(corpus, "learn")), BATCH):
        space.observe(texts)
    if not corpus.usable:
        raise DataError(
            "there is no usable row", where=str(corpus.sources[0]), cure="give other --data"
        )
    with Pool(folder) as pool:
        goal = space.vectors(list(pool.fix(target)))
        cosines, why = _score(corpus, space, goal, bounds, nearest)
        good = np.flatnonzero(why == 0)
        if not len(good):
            raise DataError(
                "no row is within the bounds of quality",
                where=str(corpus.sources[0]),
                cure="look at the bounds, or give --quality off",
            )
        ranked = good[np.argsort(-cosines[good], kind="stable")]
        window, before = min(2 * keep + SLACK, len(ranked)), 0
        while True:
            pool.fetch(corpus, ranked[before:window], before)
            fate = pool.fates(near, dedupe, against_target)
            if sum(not f for f in fate) >= keep or window == len(ranked):
                break
            window, before = min(2 * window, len(ranked)), window
        left_out = Counter(
            f"outside --{FAULTS[i].replace('_', '-')}" for i in why[why > 0].tolist()
        )
        chosen = [rank for rank, f in enumerate(fate) if not f][:keep]
        reached = chosen[-1] + 1 if len(chosen) == keep else len(fate)
        left_out.update(f for f in fate[:reached] if f)
        left_out[LESS] = len(ranked) - reached
        with (
            open(folder / "chosen.jsonl", "wb") as rows,
            open(folder / "scores.jsonl", "w", encoding="utf-8") as scores,
        ):
            for place, rank in enumerate(chosen, 1):
                about, raw = pool.row(rank)
                rows.write(raw)
                scores.write(
                    json.dumps(
                        {
                            "rank": place,
                            "relevance": round(float(cosines[ranked[rank]]), 6),
                            **about,
                        },
                        ensure_ascii=False,
                    )
                    + "\n"
                )
    assert corpus.usable == len(chosen) + sum(left_out.values()), (
        "rows in = rows out + left out + rejected"
    )
    best = cosines[ranked[chosen]] if chosen else np.zeros(1)
    return Selection(
        len(chosen),
        {k: n for k, n in left_out.items() if n},
        {
            "first": float(best[0]),
            "last": float(best[-1]),
            "mean_of_all": float(cosines[good].mean()),
        },
    )


T = TypeVar("T")


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """itertools.batched, which Python 3.11 lacks."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def _texts(corpus: Corpus, doing: str) -> Iterator[tuple[list[str], str]]:
    """Pieces and text of every row."""
    for _, example in corpus.rows(doing):
        parts = pieces(example)
        yield parts, "\n".join(parts)


def _score(
    corpus: Corpus, space: Space, goal: Any, bounds: QualitySettings, nearest: int
) -> tuple[np.ndarray, np.ndarray]:
    """[R] relevance, and [R] the number of the first bound that a row is outside of, 0 where it is
    good.
    """
    cosines, why = array("f"), array("b")
    for batch in _batches(_texts(corpus, "score"), BATCH):
        numbers = [
            FAULTS.index(next(faults(signals(parts), bounds), "")) if bounds.quality == "on" else 0
            for parts, _ in batch
        ]
        why.extend(numbers)
        good = [text for (_, text), number in zip(batch, numbers, strict=True) if not number]
        found = iter(relevance(space.vectors(good), goal, nearest) if good else ())
        cosines.extend(0.0 if number else float(next(found)) for number in numbers)
    return np.array(cosines, np.float32), np.array(why, np.int8)


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
        self._ranks: list[int] = []
        self._fixed = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self._spool.close()
        self._texts.__exit__(*error)
        self._prompts.__exit__(*error)

    def fix(self, target: Corpus) -> Iterator[str]:
        """Take the target rows in, and pass their texts on.

        Raises:
            DataError: there is none.
        """
        for _, example in target.rows("target"):
            yield self._add(pieces(example), prompt(example), -1)
            self._fixed += 1
        if not self._fixed:
            raise DataError(
                "the target has no usable row",
                where=str(target.sources[0]),
                cure="give another --target",
            )

    def _add(self, parts: list[str], asked: str, rank: int) -> str:
        text = "\n".join(parts)
        self._texts.add(text)
        self._prompts.add(asked)
        self._ranks.append(rank)
        return text

    def fetch(self, corpus: Corpus, numbers: np.ndarray, first: int) -> None:
        """Read the rows with these numbers; they are ranked in this order, from `first` on."""
        ranks = dict(zip(numbers.tolist(), range(first, first + len(numbers)), strict=True))
        for number, (row, example) in enumerate(corpus.rows("fetch")):
            if (rank := ranks.get(number)) is None:
                continue
            parts = pieces(example)
            self._add(parts, prompt(example), rank)
            self._starts[rank] = self._spool.seek(0, 2)
            found = {k: round(v, 4) for k, v in signals(parts).items()}
            self._spool.write(
                json.dumps({"where": row.where, **found}, ensure_ascii=False).encode()
                + b"\n"
                + line(row)
            )

    def fates(self, near: float, dedupe: bool, against_target: bool) -> list[str]:
        """By rank, why a row is left out; empty where it is not."""
        rank = np.array(self._ranks)
        out = [""] * (len(rank) - self._fixed)
        labels = clusters(self._texts, near)
        if against_target:
            asked = like(self._prompts, near, clusters(self._prompts, near), self._fixed)
            whole = like(self._texts, near, labels, self._fixed)
            for i in np.flatnonzero((asked >= 0) | (whole >= 0)):
                out[rank[i]] = IN_TARGET if whole[i] >= 0 else PROMPT_IN_TARGET
        if dedupe:
            left = np.array([r if r >= 0 and not out[r] else -1 for r in self._ranks])
            keys, of = self._texts.keys, repeats(self._texts, near, labels, left)
            for i in np.flatnonzero(of >= 0):
                out[rank[i]] = EXACT if keys[i] == keys[of[i]] else NEAR
        return out

    def row(self, rank: int) -> tuple[dict[str, Any], bytes]:
        """Where a row stands and its signals, and its line."""
        self._spool.seek(self._starts[rank])
        return json.loads(self._spool.readline()), self._spool.readline()
