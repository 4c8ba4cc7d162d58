"""What answers look like, apart from what they say: their length and their markdown.

A preference for the longer or the more decorated answer is easily learned, and easily mistaken for
one for the better answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

MARKDOWN = {
    "headings": re.compile(r"^#{1,6}\s+\S", re.MULTILINE),
    "bullets": re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])\s+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code": re.compile(r"```|`[^`\n]+`"),
}
MOST = 65_535  # of one kind that are counted
LOOKS = 2 + len(MARKDOWN)  # numbers an answer


def looks(text: str) -> list[int]:
    """[LOOKS] characters, words between spaces, and how often each kind of markdown stands in an
    answer.
    """
    return [
        len(text),
        len(text.split()),
        *(min(MOST, sum(1 for _ in find.finditer(text))) for find in MARKDOWN.values()),
    ]


@dataclass(frozen=True)
class Sides:
    """How the chosen answers look beside the rejected ones.

    Attributes:
        signs: name → [P] +1 where the chosen one has more, -1 where the rejected one has, 0 where
            they have equally much.
        log_ratio: [P] ln(characters of the chosen one / characters of the rejected one).
    """

    signs: dict[str, np.ndarray]
    log_ratio: np.ndarray


def compare(chosen: np.ndarray, rejected: np.ndarray) -> Sides:
    """Args: what `looks` says of the chosen and of the rejected answers, [P, LOOKS] each."""
    a, b = chosen.astype(np.int64), rejected.astype(np.int64)
    signs = {
        "characters": a[:, 0] - b[:, 0],
        "words": a[:, 1] - b[:, 1],
        "markdown": (a[:, 2:] - b[:, 2:]).sum(axis=1),
    }
    signs.update((name, a[:, 2 + i] - b[:, 2 + i]) for i, name in enumerate(MARKDOWN))
    ratio = np.log(np.maximum(1, a[:, 0])) - np.log(np.maximum(1, b[:, 0]))
    return Sides({name: np.sign(gap) for name, gap in signs.items()}, ratio)


def balanced(sign: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[P] which pairs to take so that the chosen answer is the longer one as often as the shorter
    one; equal ones all stay.

    Args:
        sign: [P] of `Sides.signs`.
        rng: chooses among those of which there are too many.
    """
    take = np.ones(len(sign), bool)
    sides = [np.flatnonzero(sign > 0), np.flatnonzero(sign < 0)]
    fewest = min(map(len, sides))
    for side in sides:
        take[rng.permutation(side)[fewest:]] = False
    return take
