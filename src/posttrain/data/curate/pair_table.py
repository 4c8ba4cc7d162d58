"""A table of preferences: what is known of every row, without its texts.

Memory holds a few hundred bytes a row. An answer is known by 16 bytes of a hash of its prompt and
itself, twice: exactly, but for white space, and loosely, as its words without case and punctuation.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from posttrain.data.curate.bias import LOOKS, looks
from posttrain.data.curate.groups import numbered
from posttrain.data.curate.near_duplicates import words
from posttrain.data.curate.near_pairs import NearPairs
from posttrain.data.formats import Example
from posttrain.data.messages import Text, answer_text, as_text
from posttrain.data.rows import JSON, Row

# bits of a row: the votes have no winner, or the rejected side wins; other answers to its prompt
# cannot be found; its label is good
SPLIT, OPPOSED, NO_SHARED_PROMPT, GOOD = 1, 2, 4, 8
DIGEST = 16  # bytes


def votes(value: Any) -> dict[str, int] | None:
    """Votes for each side or answer; None if there are none, or they cannot be understood.

    Args:
        value: an object of counts, a list of names, or a list of three or more numbers, one a voter
            (two numbers may be counts).
    """
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = JSON.decode(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict):
        if not all(_is_integer(count) and count >= 0 for count in value.values()):
            return None
        counts = {str(name): count for name, count in value.items()}
        return counts if sum(counts.values()) else None
    if not isinstance(value, (list, tuple)) or not value:
        return None
    names = all(isinstance(vote, str) for vote in value)
    numbers = len(value) > 2 and all(_is_integer(vote) for vote in value)
    return dict(Counter(map(str, value))) if names or numbers else None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --------------------------------------------------------------------------------- what is the same


def exact(text: str) -> str:
    """A text with every run of white space as one space."""
    return " ".join(text.split())


def loose(text: str) -> str:
    """The words of a text without case and punctuation, then its marks and symbols; the text itself
    where this is nothing.

    Marks and symbols, such as vowel signs and emoji, change what a text says.
    """
    signs = ""
    if not text.isascii():
        for character in unicodedata.normalize("NFKC", text):
            if character > "\x7f" and unicodedata.category(character) in ("Mn", "Mc", "So"):
                signs += character
    return " ".join(words(text)) + signs or exact(text)


def _normalised(part: Text, role: str, normalise: Callable[[str], str]) -> list[Any]:
    """The messages of a prompt or answer with their texts normalised; plain text is one message of
    the given role.
    """
    if isinstance(part, str):
        return [[role, normalise(part), {}]] if part.strip() else []
    messages = []
    for message in part:
        others = {key: value for key, value in message.items() if key not in ("role", "content")}
        messages.append([message["role"], normalise(message["content"]), others])
    return messages


def _digest(value: Any, salt: bytes = b"") -> bytes:
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.blake2b(salt + text, digest_size=DIGEST).digest()


def _digest_numbers(digests: bytearray) -> np.ndarray:
    """[n] equal numbers for equal digests, in the order in which they come first."""
    return numbered(np.frombuffer(digests, f"S{DIGEST}"))


def sides(example: Example) -> tuple[Text | None, Text | None]:
    """The better and the worse answer. Beside a labelled answer, None stands for no answer.

    A third answer, to imitate, is not compared.
    """
    if example.label is None:
        return example.answers[0], example.answers[1]
    return (example.answers[0], None) if example.label else (None, example.answers[0])


def _no_shared_prompt(example: Example) -> bool:
    """Whether other answers to the same prompt cannot be found: there is no prompt, or two answers
    are conversations that begin with different questions.
    """
    if example.prompt == ():
        return True
    return example.label is not None and not as_text(example.prompt).strip()


class Places:
    """Where rows stand, in a dozen bytes each: `file:` is kept once, and each row's number."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}
        self._head, self._number = array("i"), array("q")

    def add(self, where: str) -> None:
        match = re.fullmatch(r"(.*?)(0|[1-9]\d{0,17})", where, re.DOTALL)
        head, number = (match[1], int(match[2])) if match else (where, -1)
        self._head.append(self._heads.setdefault(head, len(self._heads)))
        self._number.append(number)

    def __getitem__(self, i: int) -> str:
        head = next(head for head, number in self._heads.items() if number == self._head[i])
        return head if self._number[i] < 0 else f"{head}{self._number[i]}"


class Table:
    """What is known of every row, in order.

    Args:
        near: takes the texts, if near-duplicates are to be found.
    Attributes:
        where: place of each row.
        margins: [R] NaN where there is none.
        agreement: [R] share of the most frequent vote, NaN where there is none.
        unclear: how many rows have votes that cannot be read.
    """

    def __init__(self, near: NearPairs | None = None) -> None:
        self.near, self.where, self.unclear = near, Places(), 0
        self._exact, self._loose, self._prompts = bytearray(), bytearray(), bytearray()
        self._margins, self._agreement, self._looks = array("d"), array("d"), array("I")
        self._flags = array("B")

    def __len__(self) -> int:
        return len(self._margins)

    def add(self, row: Row, example: Example) -> None:
        """Take a row in."""
        both = sides(example)
        context = [example.tools, example.kwargs]  # with other tools it is another prompt
        for normalise, digests in ((exact, self._exact), (loose, self._loose)):
            prompt = _digest([_normalised(example.prompt, "user", normalise), context])
            if normalise is exact:
                self._prompts += prompt
            for side in both:
                answer = None
                if side is not None:
                    answer = _normalised(side, "assistant", normalise)
                digests += _digest(answer, prompt)
        better, worse = map(answer_text, both)
        self._looks.extend(looks(better))
        self._looks.extend(looks(worse))
        if self.near is not None:
            self.near.add(as_text(example.prompt), better, worse)
        self.where.add(row.where)
        self._margins.append(math.nan if example.margin is None else example.margin)
        flags = self._vote_flags(row.fields.get("votes"))
        flags += NO_SHARED_PROMPT * _no_shared_prompt(example)
        flags += GOOD * bool(example.label)
        self._flags.append(flags)

    def _vote_flags(self, value: Any) -> int:
        counts = votes(value)
        if counts is None:
            self.unclear += value not in (None, "", [], {})
            self._agreement.append(math.nan)
            return 0
        most, second = sorted([*counts.values(), 0], reverse=True)[:2]
        self._agreement.append(most / sum(counts.values()))
        opposed = counts.get("rejected", 0) > counts.get("chosen", 0)
        return SPLIT * (most == second) + OPPOSED * opposed

    @cached_property
    def answers(self) -> np.ndarray:
        """[R, 2] the better and the worse answer to its prompt: equal numbers for equal ones."""
        return _digest_numbers(self._exact).reshape(-1, 2)

    @cached_property
    def alike(self) -> np.ndarray:
        """[R, 2] the same, with equal numbers for answers that are loosely the same."""
        return _digest_numbers(self._loose).reshape(-1, 2)

    @cached_property
    def prompts(self) -> np.ndarray:
        """[R] the prompt, numbered in the order of their first rows."""
        return _digest_numbers(self._prompts)

    @cached_property
    def looks(self) -> np.ndarray:
        """[R, 2, LOOKS] of the better and the worse answer."""
        return np.array(self._looks, np.uint32).reshape(-1, 2, LOOKS)

    @property
    def margins(self) -> np.ndarray:
        return np.array(self._margins)

    @property
    def agreement(self) -> np.ndarray:
        return np.array(self._agreement)

    def flagged(self, bit: int) -> np.ndarray:
        """[R] whether a bit is set: `SPLIT`, `OPPOSED`, `NO_SHARED_PROMPT` or `GOOD`."""
        return (np.array(self._flags, np.uint8) & bit) > 0

    @property
    def good(self) -> np.ndarray:
        """[R] of labelled answers: whether the answer is good."""
        return self.flagged(GOOD)

    def digest(self, i: int) -> str:
        """A name for the prompt of a row, the same in whatever order rows come."""
        return self._prompts[DIGEST * i : DIGEST * (i + 1)].hex()
