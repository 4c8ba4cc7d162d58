"""Verifiers: whether a completion is the answer that the row wants, from its text alone; and the
content-blind baselines, which see nothing but its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence as Many
from decimal import Decimal
from functools import partial

from posttrain.data.templates.thinking import without_thinking
from posttrain.scoring.score import Response, Score, Scorer

WANTED = ("completion", "answer")  # columns with the wanted answer, the first that there is
# in 3-5 there is no -5
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


# ------------------------------------------------------------------------------------------ matches


def same_text(completion: str, wanted: str) -> bool:
    """The same text, spacing apart."""
    return completion.split() == wanted.split()


def contains(completion: str, wanted: str) -> bool:
    """The wanted text stands somewhere in the completion, as whole words; case and spacing
    apart.
    """
    text, part = (" ".join(one.casefold().split()) for one in (completion, wanted))
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def same_number(completion: str, wanted: str) -> bool:
    """The last number of the completion is the last number that was wanted; thousands may have
    commas.
    """
    number = _last_number(completion)
    return number is not None and number == _last_number(wanted)


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


MATCHES: dict[str, Callable[[str, str], bool]] = {
    "exact": same_text,
    "contains": contains,
    "number": same_number,
}


def is_wanted(match: Callable[[str, str], bool], completion: str, wanted: str) -> bool:
    """Whether a completion is the wanted one. Thinking in the wanted answer need not be met, unless
    the completion has some itself.
    """
    thinks = without_thinking(completion) != completion
    return match(completion, without_thinking(wanted)) or (thinks and match(completion, wanted))


# ------------------------------------------------------------------------------------------ scorers


def verify(match: Callable[[str, str], bool], responses: Many[Response]) -> list[Score]:
    """1 where a completion matches the answer that its row wants, else 0; missing where the row
    wants none.
    """
    return [_verified(match, response) for response in responses]


def _verified(match: Callable[[str, str], bool], response: Response) -> Score:
    for name in WANTED:
        wanted = response.columns.get(name)
        if isinstance(wanted, str):
            return Score(float(is_wanted(match, response.completion, wanted)))
    return Score(None, why=f"the row has no wanted answer, a column {' or '.join(WANTED)}")


def longest(responses: Many[Response]) -> list[Score]:
    """Characters of the answer: the longer the better."""
    return [Score(float(response.length)) for response in responses]


def shortest(responses: Many[Response]) -> list[Score]:
    """Minus the characters of the answer: the shorter the better."""
    return [Score(-float(response.length)) for response in responses]


VERIFIERS: dict[str, Scorer] = {name: partial(verify, match) for name, match in MATCHES.items()}
BASELINES: dict[str, Scorer] = {"longest": longest, "shortest": shortest}
