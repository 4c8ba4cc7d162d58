"""Scorers: what an answer is worth. Verifiers, length and learned rewards are all `items → scores`.

    exact, contains, number   1 where the answer is the one that the row wants, else 0; see
                              `posttrain.scoring.match`
    longest, shortest         the answer's length in characters, or minus that: content-blind
                              baselines
    reward:FOLDER             a reward model; see `posttrain.evals.scorers`

A scorer that cannot judge an item says None, which is never a 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from posttrain.data.messages import Text
from posttrain.scoring.match import MATCHES


@dataclass(frozen=True, slots=True)
class Item:
    """An answer to judge.

    Attributes:
        prompt: what was asked: text, or messages.
        answer: what was answered.
        row: what else is known, by column; verifiers read the wanted answer from `completion` or
            `answer`.
        where: the row it was, for errors.
    """

    prompt: Text
    answer: str
    row: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


Scorer = Callable[[Many[Item]], "list[float | None]"]


def _matched(match: Callable[[str, str], bool], items: Many[Item]) -> list[float | None]:
    wanted = [
        next(
            (
                one.row[name]
                for name in ("completion", "answer")
                if isinstance(one.row.get(name), str)
            ),
            None,
        )
        for one in items
    ]
    return [
        None if want is None else float(match(one.answer, want))
        for one, want in zip(items, wanted, strict=True)
    ]


def longest(items: Many[Item]) -> list[float | None]:
    """The longer the better: what a judge is worth that sees no content."""
    return [float(len(one.answer)) for one in items]


def shortest(items: Many[Item]) -> list[float | None]:
    """The shorter the better."""
    return [-float(len(one.answer)) for one in items]


SCORERS: dict[str, Scorer] = {
    **{name: partial(_matched, match) for name, match in MATCHES.items()},
    "longest": longest,
    "shortest": shortest,
}
