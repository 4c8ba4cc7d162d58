"""What answers look like, apart from what they say: their length and their markdown.

A model easily learns to prefer the longer or the more decorated answer, and such a preference is
easily mistaken for one for the better answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from posttrain.data.messages import answer_length

MARKDOWN = {
    "headings": re.compile(r"^#{1,6}\s+\S", re.MULTILINE),
    "bullets": re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])\s+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code": re.compile(r"```|`[^`\n]+`"),
}
MOST_COUNTED = 65_535  # of one kind of markdown in an answer
LOOKS = 2 + len(MARKDOWN)  # numbers an answer


def looks(text: str) -> list[int]:
    """[LOOKS] characters, words between spaces, and how often each kind of markdown occurs."""
    counts = [answer_length(text), len(text.split())]
    for pattern in MARKDOWN.values():
        occurrences = sum(1 for _ in pattern.finditer(text))
        counts.append(min(MOST_COUNTED, occurrences))
    return counts


@dataclass(frozen=True)
class Sides:
    """How the chosen answers look beside the rejected ones.

    Attributes:
        signs: name → [P] +1 where the chosen one has more, -1 where the rejected one has, 0 where
            both have as many.
        log_ratio: [P] ln(characters of the chosen one / characters of the rejected one).
    """

    signs: dict[str, np.ndarray]
    log_ratio: np.ndarray


def compare(chosen: np.ndarray, rejected: np.ndarray) -> Sides:
    """Compare chosen with rejected answers.

    Args:
        chosen, rejected: [P, LOOKS] `looks` of the answers.
    """
    chosen, rejected = chosen.astype(np.int64), rejected.astype(np.int64)
    gaps = chosen - rejected
    signs = {
        "characters": np.sign(gaps[:, 0]),
        "words": np.sign(gaps[:, 1]),
        "markdown": np.sign(gaps[:, 2:].sum(axis=1)),
    }
    for column, name in enumerate(MARKDOWN, 2):
        signs[name] = np.sign(gaps[:, column])
    characters = np.maximum(1, chosen[:, 0]), np.maximum(1, rejected[:, 0])
    return Sides(signs, np.log(characters[0]) - np.log(characters[1]))


def balanced(sign: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[P] which pairs to take so that the chosen answer is the longer one as often as the shorter
    one. Pairs of equal length all stay.

    Args:
        sign: [P] one of `Sides.signs`.
        rng: chooses among the pairs of which there are too many.
    """
    take = np.ones(len(sign), bool)
    sides = [np.flatnonzero(sign > 0), np.flatnonzero(sign < 0)]
    fewest = min(map(len, sides))
    for side in sides:
        take[rng.permutation(side)[fewest:]] = False
    return take
