"""Whether an answer is the one that was wanted."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(
    r"(?:(?<!\w)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)  # in 3-5 there is no -5


def exact(answer: str, wanted: str) -> bool:
    """The same text, spacing apart."""
    return answer.split() == wanted.split()


def contains(answer: str, wanted: str) -> bool:
    """The wanted text stands somewhere in the answer, as whole words; case and spacing apart."""
    said, meant = (" ".join(text.casefold().split()) for text in (answer, wanted))
    return re.search(rf"(?<!\w){re.escape(meant)}(?!\w)", said) is not None


def number(answer: str, wanted: str) -> bool:
    """The last number of the answer is the last number that was wanted; thousands may have
    commas.
    """
    said, meant = _last(answer), _last(wanted)
    return said is not None and said == meant


def _last(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


MATCHES = {"exact": exact, "contains": contains, "number": number}
