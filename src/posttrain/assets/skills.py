"""Sixteen instruction skills whose answers can be checked, in five levels.

skill       1                   2                 3                 4                  5
plus        up to 20            2 + 1 digits      2 + 2 digits      3 + 2 digits       3 + 3 digits,
            three numbers
minus       up to 20            2 − 1 digits      2 − 2 digits      3 − 2 digits       3 − 3 digits
times       up to 10 x 10       up to 12 x 30     2 x 1 digits      3 x 1 digits       2 x 2 digits
compare     2 numbers           3                 4 of 3 digits     second of 4        largest −
            smallest
sort        3 numbers           4, also down      5                 5 of 3 digits      7
sequence    steps 1, 2, 5, 10   2 … 9             also falling      a gap              doubling,
            growing steps
story       one step            larger numbers    a product         two steps          three steps
calendar    hours               days              months            20 … 200 days      forth and
            back
convert     into small units    more units        into large ones   mixed amounts      split amounts
code        one variable        two               a call            updates            a loop
alphabet    3 words             4                 a shared letter   5, also backwards  6
reverse     3 words             4                 5                 letters of a word  of a longer
            word
count       words               one word          letters           of two words       one letter
edit        capitals, ends      the n-th          replace, append   remove, swap       two of them
form        separator           numbers, quotes   first n, repeat   capitals           sorted,
            lengths
passage     2 people            3                 6 facts           who of four        over a friend
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from posttrain.assets import literacy, numeracy
from posttrain.assets.numeracy import Problem
from posttrain.assets.wordings import WORDINGS
from posttrain.assets.words import (
    ANIMALS,
    COLOURS,
    DAYS,
    FAMILY,
    FIRST,
    FOODS,
    JOBS,
    LANDS,
    MONTHS,
    RIVERS,
    TOWNS,
    WORDS,
    Draw,
    Item,
    Split,
    normalise,
    split_of,
)
from posttrain.core.errors import ConfigError, nearest

SKILLS: Final[dict[str, Callable[[Draw, int], Problem]]] = {
    "plus": numeracy.plus,
    "minus": numeracy.minus,
    "times": numeracy.times,
    "compare": numeracy.compare,
    "sort": numeracy.sort,
    "sequence": numeracy.sequence,
    "story": numeracy.story,
    "calendar": numeracy.calendar,
    "convert": numeracy.convert,
    "code": numeracy.code,
    "alphabet": literacy.alphabet,
    "reverse": literacy.reverse,
    "count": literacy.count,
    "edit": literacy.edit,
    "form": literacy.form,
    "passage": literacy.passage,
}

POOLS: Final = (
    DAYS,
    MONTHS,
    FIRST,
    FAMILY,
    TOWNS,
    JOBS,
    ANIMALS,
    FOODS,
    COLOURS,
    LANDS,
    RIVERS,
    WORDS,
    tuple(map(str.upper, WORDS)),
)


def problem(draw: Draw, split: Split, skill: str, level: int) -> Problem:
    """The next problem of the stream that belongs to the split."""
    while True:
        candidate = SKILLS[skill](draw, level)
        if split_of(f"{candidate.kind} {candidate.key}") == split:
            return candidate


def item(draw: Draw, split: Split, skill: str, level: int) -> Item:
    """The next item of the stream: a problem, worded as an instruction.

    >>> item(Draw(0, "example"), "test", "plus", 1)["skill"]
    'plus'
    """
    drawn = problem(draw, split, skill, level)
    question = draw.pick(WORDINGS[drawn.kind].instructions).format(**drawn.slots)
    return Item(
        skill=skill,
        level=level,
        key=f"{drawn.kind} {drawn.key}",
        question=question,
        answer=drawn.answer,
        solution=drawn.solution,
    )


class Exercise(NamedTuple):
    """A problem in the wordings of pretraining."""

    question: str
    answer: str
    solution: str
    statement: str


def exercise(draw: Draw, skill: str, level: int) -> Exercise:
    """A problem of the train split, worded as a textbook exercise and as a statement."""
    drawn = problem(draw, "train", skill, level)
    wording = WORDINGS[drawn.kind]
    return Exercise(
        draw.pick(wording.exercises).format(**drawn.slots),
        drawn.answer,
        drawn.solution,
        draw.pick(wording.statements).format(**drawn.slots, answer=drawn.answer),
    )


def chosen_skills(names: Sequence[str] = ()) -> tuple[str, ...]:
    """The named skills, or all.

    Raises:
        ConfigError: a name is no skill.
    """
    for name in names:
        if name not in SKILLS:
            raise ConfigError(f"there is no skill {name!r}", cure=nearest(name, SKILLS))
    return tuple(names) or tuple(SKILLS)


def mistakes(draw: Draw, question: str, answer: str) -> Iterator[str]:
    """Wrong answers that look right, without end and with repeats: a number nearly hit, another
    order, another word of the kind.
    """
    kind = next((pool for pool in POOLS if answer in pool), ())
    if kind:
        in_question = [word for word in kind if f" {word}" in question]
        guesses = in_question * 3 + draw.sample(kind, 4)
    else:
        guesses = [answer[1:], answer[:-1], answer * 2]
    while True:
        guess = _mistake(draw, answer.split(), guesses)
        if normalise(guess) not in ("", normalise(answer)):
            yield guess


def _mistake(draw: Draw, words: list[str], guesses: Sequence[str]) -> str:
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    bare = [word.rstrip(",;") for word in words]
    if numbers and len(words) < 6 and bare == words:  # one number, or '3 hours and 20 minutes'
        i = draw.pick(numbers)
        number = int(words[i])
        off_by = draw.pick((-10, -2, -1, 1, 2, 10) if number > 12 else (-1, 1, 2, 3))
        words[i] = str(abs(number + off_by))
    elif len(words) == 1:
        return draw.pick(guesses)
    elif len(set(bare)) < 3:  # one word, repeated
        words = (words * 4)[: draw.between(1, 7)]
    else:  # two words change places; commas stay where they are
        i, j = draw.sample(range(len(words)), 2)
        tails = [word[len(short) :] for word, short in zip(words, bare, strict=True)]
        bare[i], bare[j] = bare[j], bare[i]
        words = [short + tail for short, tail in zip(bare, tails, strict=True)]
    return " ".join(words)
