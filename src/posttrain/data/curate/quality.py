"""Quality signals of a row, and the bounds outside which it is left out.

After Gopher (Rae et al. 2021, table A1) and C4 (Raffel et al. 2020, section 2.2), which filter web
pages. Rows of demonstrations are shorter and may be code or sums, so the bounds here are wider:
they take out what is broken, not what is plain.

Left out: signals of one language (stop words), models that judge quality, and blocklists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from posttrain.core.settings import Needs, Settings
from posttrain.data.curate.near_duplicates import words

NGRAM = 5  # words
ENDS = tuple(".!?:;)]}\"'`…。！？」』”’»")


class QualitySettings(Settings):
    """Bounds of the quality signals."""

    quality: Literal["on", "off"] = Field(
        "on", description="leave out rows outside the bounds; off leaves none out"
    )
    min_words: Annotated[int, Needs("quality", value="on")] = Field(
        3, ge=0, description="words of a row at least"
    )
    max_words: Annotated[int, Needs("quality", value="on")] = Field(
        100_000, ge=1, description="words of a row at most"
    )
    max_word_length: Annotated[float, Needs("quality", value="on")] = Field(
        12.0, gt=0, description="mean characters of a word at most; more is no text but data"
    )
    min_letters: Annotated[float, Needs("quality", value="on")] = Field(
        0.25,
        ge=0,
        le=1,
        description="share of letters among the characters, spaces apart, at least",
    )
    max_symbols: Annotated[float, Needs("quality", value="on")] = Field(
        0.1, ge=0, description="# and … for every word at most"
    )
    max_repeated_lines: Annotated[float, Needs("quality", value="on")] = Field(
        0.3, ge=0, le=1, description="share of a text in lines that stood before at most"
    )
    max_repeated_ngrams: Annotated[float, Needs("quality", value="on")] = Field(
        0.3, ge=0, le=1, description="share of a text's runs of 5 words that stood before at most"
    )


Signals = dict[str, float]

# signal: (setting that bounds it, whether it bounds from below)
BOUNDS = {
    "words": (("min_words", True), ("max_words", False)),
    "word_length": (("max_word_length", False),),
    "letters": (("min_letters", True),),
    "symbols": (("max_symbols", False),),
    "repeated_lines": (("max_repeated_lines", False),),
    "repeated_ngrams": (("max_repeated_ngrams", False),),
    "ends": (),
}


def signals(pieces: list[str]) -> Signals:
    """The quality signals of a row.

    The repetition is that of the worst piece: an answer may quote its prompt, and two answers may
    agree.

    Args:
        pieces: prompt and answers, or messages.
    Returns: `words`; `word_length`, mean, in characters; `letters`, share; `symbols`, for every
        word; `repeated_lines` and `repeated_ngrams`, shares; `ends`, 1 if the last piece ends with
        punctuation.
    """
    text, words_of = "\n".join(pieces), [words(piece) for piece in pieces]
    count = sum(map(len, words_of))
    word_characters = sum(len(word) for piece in words_of for word in piece)
    letters = sum(map(str.isalpha, text))
    visible = len(text) - sum(map(str.isspace, text))
    return {
        "words": count,
        "word_length": _share(word_characters, count),
        "letters": _share(letters, visible),
        "symbols": _share(len(re.findall(r"#|…|\.\.\.", text)), count),
        "repeated_lines": max(map(_repeated_lines, pieces), default=0.0),
        "repeated_ngrams": max(map(_repeated_ngrams, words_of), default=0.0),
        "ends": float(bool(pieces) and pieces[-1].rstrip().endswith(ENDS)),
    }


def faults(values: Signals, bounds: QualitySettings) -> Iterator[str]:
    """The bounds that a row is outside of, by the name of the setting."""
    if bounds.quality == "off":
        return
    for signal, limits in BOUNDS.items():
        for name, below in limits:
            value, limit = values[signal], getattr(bounds, name)
            if value < limit if below else value > limit:
                yield name


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _repeated_lines(piece: str) -> float:
    """The share of characters in lines that repeat an earlier one.

    Characters, not lines: closing brackets then weigh little.
    """
    lines = [line for line in map(str.strip, piece.splitlines()) if line]
    if not lines:
        return 0.0
    return 1 - sum(map(len, set(lines))) / sum(map(len, lines))


def _repeated_ngrams(piece_words: list[str]) -> float:
    """The share of runs of `NGRAM` words that repeat an earlier one."""
    ngrams = list(zip(*(piece_words[i:] for i in range(NGRAM)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
