"""Preferences as a graph: what repeats, contradicts or goes in circles among the answers to one
prompt.

A pair is an edge between two answers to a prompt. So is a labelled answer: a good one is better
than no answer, and no answer is better than a bad one. Therefore one set of rules holds for both.

Texts are not kept: memory holds a few hundred bytes a row. An answer is known by 16 bytes of a hash
    of its prompt and itself,
twice: as it is but for white space, and loosely, as its words without case and punctuation.
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
from typing import Any, Literal

import numpy as np
from pydantic import Field

from posttrain.core.errors import DataError
from posttrain.core.settings import Settings
from posttrain.data.curate.bias import LOOKS, looks
from posttrain.data.curate.corpus import said
from posttrain.data.curate.cycles import components
from posttrain.data.curate.near_duplicates import words
from posttrain.data.curate.near_pairs import NearPairs
from posttrain.data.formats import Example
from posttrain.data.messages import Text
from posttrain.data.rows import JSON, Row

TIE, NO_MARGIN, SPLIT_VOTE = "both sides are the same", "margin 0", "votes are split evenly"
BELOW = "margin below --min-margin"
CONTRADICTION, DISGUISE, NEAR_CONTRADICTION = (
    "contradiction",
    "contradiction in disguise: case, punctuation, spaces",
    "contradiction of a near-duplicate",
)
CYCLE, DUPLICATE, NEAR = "in a cycle", "duplicate", "near-duplicate"
SAME_WORDS, AGAINST = (
    "sides differ in case, punctuation or spaces alone",
    "votes against the chosen side",
)
NEGATIVE, UNCLEAR = "margin below 0", "votes not understood"

EVEN, OPPOSED, UNASKED, GOOD = (
    1,
    2,
    4,
    8,
)  # bits of a row: votes have no winner, or the other; no prompt is shared; the label

Fate = Literal["drop", "keep"]


class Rules(Settings):
    """Settings of what is done about each finding."""

    on_tie: Fate = Field(
        "drop",
        description=(
            "pairs without a winner: the same text on both sides, margin 0, votes split evenly"
        ),
    )
    on_duplicate: Fate = Field(
        "drop", description="rows that an earlier one equals but for white space"
    )
    on_contradiction: Fate = Field(
        "drop",
        description=(
            "pairs that also stand the other way round, and answers labelled both "
            "ways: all rows of such a pair or answer"
        ),
    )
    on_disguise: Fate = Field(
        "drop",
        description="the same where prompt or answers differ in case, punctuation and spaces",
    )
    on_cycle: Fate = Field(
        "drop",
        description=(
            "pairs in a circle, A over B, B over C, C over A: all rows of the component, as "
            "nobody knows which are right"
        ),
    )
    near: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "also leave out near-duplicates: prompt and both answers have this "
            "Jaccard similarity of 3-word shingles. Unset: not looked for; 0.8 is usual"
        ),
    )
    min_margin: float | None = Field(
        None, description="leave out pairs whose column margin is below this. Unset: none"
    )


class Check:
    """Raises a DataError for a row that is no preference, or of another kind than the first, or
    lacks a margin that is needed.

    Args:
        margins: whether every row must have one.
    Attributes:
        kind: "pairs" or "labels"; empty before the first row.
    """

    def __init__(self, margins: bool) -> None:
        self.margins, self.kind, self.first = margins, "", ""

    def __call__(self, row: Row, example: Example) -> None:
        found = (
            "pairs" if len(example.answers) >= 2 else "labels" if example.label is not None else ""
        )
        if not found:
            raise DataError(
                "the row is neither a pair nor a labelled answer",
                where=row.where,
                cure=(
                    "give chosen and rejected, or prompt, completion and label; or name the file's"
                    " columns: --data FILE,chosen=better,rejected=worse"
                ),
            )
        if self.kind and found != self.kind:
            raise DataError(
                f"the row is of {found}, and the data began as {self.kind} ({self.first})",
                where=row.where,
                cure="care for the two kinds by two commands, each with an --out of its own",
            )
        if example.margin is None and self.margins:
            raise DataError(
                "there is no margin, which --min-margin compares",
                where=row.where,
                cure=(
                    "leave --min-margin out, fill the margin in, or name its column: --data"
                    " FILE,margin=gap"
                ),
            )
        self.kind, self.first = found, self.first or row.where


def votes(value: Any) -> dict[str, int] | None:
    """Ballots for each side or answer; None where the column is empty or it cannot be told.

    Args:
        value: an object of counts, a list of names, or a list of three or more numbers, one a voter
            (two may be counts).
    """
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = JSON.decode(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict):
        counts = {
            str(k): n
            for k, n in value.items()
            if isinstance(n, int) and not isinstance(n, bool) and n >= 0
        }
        return counts if len(counts) == len(value) and sum(counts.values()) else None
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if all(isinstance(one, str) for one in value) or (
        len(value) > 2 and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    ):
        return dict(Counter(str(one) for one in value))
    return None


# --------------------------------------------------------------------------------- what is the same


def exact(text: str) -> str:
    """A text but for its white space."""
    return " ".join(text.split())


def loose(text: str) -> str:
    """The words of a text without case and punctuation, and signs without which it says something
    else; where there is none, the text.
    """
    signs = (
        ""
        if text.isascii()
        else "".join(
            c
            for c in unicodedata.normalize("NFKC", text)
            if c > "\x7f" and unicodedata.category(c) in ("Mn", "Mc", "So")
        )
    )
    return " ".join(words(text)) + signs or exact(text)


def _spelled(part: Text, role: str, normal: Callable[[str], str]) -> list[Any]:
    """A part of a conversation with its texts made normal. Plain text is what its role says."""
    if isinstance(part, str):
        return [[role, normal(part), {}]] if part.strip() else []
    return [
        [
            m["role"],
            normal(m["content"]),
            {k: v for k, v in m.items() if k not in ("role", "content")},
        ]
        for m in part
    ]


def _digest(value: Any, salt: bytes = b"") -> bytes:
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.blake2b(salt + text, digest_size=16).digest()


def sides(example: Example) -> tuple[Text | None, Text | None]:
    """The better and the worse answer; None is no answer, beside one that has a label.

    A third, to imitate, is not compared.
    """
    if example.label is None:
        return example.answers[0], example.answers[1]
    return (example.answers[0], None) if example.label else (None, example.answers[0])


def _unasked(example: Example) -> bool:
    """Whether another answer to the same prompt cannot be found, or two answers as conversations
    begin with other questions.
    """
    return example.prompt == () or (example.label is not None and not said(example.prompt).strip())


def answer_text(part: Text | None) -> str:
    """What the assistant says in an answer."""
    if part is None or isinstance(part, str):
        return part or ""
    return said(tuple(message for message in part if message["role"] == "assistant"))


class Places:
    """Where rows stand, in a dozen bytes each: `file:` once, and the number behind it."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}
        self._head, self._number = array("i"), array("q")

    def add(self, where: str) -> None:
        found = re.fullmatch(r"(.*?)(0|[1-9]\d{0,17})", where, re.DOTALL)
        head, number = (found[1], int(found[2])) if found else (where, -1)
        self._head.append(self._heads.setdefault(head, len(self._heads)))
        self._number.append(number)

    def __getitem__(self, i: int) -> str:
        head = next(name for name, number in self._heads.items() if number == self._head[i])
        return head if self._number[i] < 0 else f"{head}{self._number[i]}"


class Table:
    """What is known of every row, in order.

    Args:
        near: takes the texts, where near-duplicates are to be found.
    Attributes:
        where: place of each row. margins: [R] NaN where there is none. agreement: [R] share of the
            most frequent vote, NaN
            where there is none. unclear: rows whose votes cannot be read.
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
        better, worse = sides(example)
        around = [example.tools, example.kwargs]  # with other tools it is another prompt
        for normal, held in ((exact, self._exact), (loose, self._loose)):
            asked = _digest([_spelled(example.prompt, "user", normal), around])
            if normal is exact:
                self._prompts += asked
            for side in (better, worse):
                held += _digest(
                    None if side is None else _spelled(side, "assistant", normal), asked
                )
        texts = answer_text(better), answer_text(worse)
        for text in texts:
            self._looks.extend(looks(text))
        if self.near is not None:
            self.near.add(said(example.prompt), *texts)
        self.where.add(row.where)
        self._margins.append(math.nan if example.margin is None else example.margin)
        self._flags.append(
            self._voted(row.fields.get("votes"))
            + UNASKED * _unasked(example)
            + GOOD * bool(example.label)
        )

    def _voted(self, given: Any) -> int:
        ballots = votes(given)
        self.unclear += ballots is None and given not in (None, "", [], {})
        counts = sorted(ballots.values(), reverse=True) if ballots else []
        self._agreement.append(counts[0] / sum(counts) if counts else math.nan)
        against = bool(ballots) and ballots.get("rejected", 0) > ballots.get("chosen", 0)
        return EVEN * (len(counts) > 1 and counts[0] == counts[1]) + OPPOSED * against

    @cached_property
    def answers(self) -> np.ndarray:
        """[R, 2] the better and the worse answer to its prompt: equal numbers for equal ones."""
        return _numbers(self._exact).reshape(-1, 2)

    @cached_property
    def alike(self) -> np.ndarray:
        """[R, 2] the same, with equal numbers for answers that are loosely the same."""
        return _numbers(self._loose).reshape(-1, 2)

    @cached_property
    def prompts(self) -> np.ndarray:
        """[R] the prompt, numbered in the order of their first rows."""
        return _numbers(self._prompts)

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
        """[R] whether a bit is set, one of those at the head of the file."""
        return (np.array(self._flags, np.uint8) & bit) > 0

    @property
    def good(self) -> np.ndarray:
        """[R] of answers with a label: whether it is a good one."""
        return self.flagged(GOOD)

    def digest(self, i: int) -> str:
        """What stands for the prompt of a row, the same in whatever order rows come."""
        return self._prompts[16 * i : 16 * i + 16].hex()


def _numbers(digests: bytearray) -> np.ndarray:
    """[n] equal numbers for equal digests of 16 bytes, in the order in which they come first."""
    _, first, inverse = np.unique(
        np.frombuffer(digests, "S16"), return_index=True, return_inverse=True
    )
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


# ----------------------------------------------------------------------------- what becomes of them


class Fates:
    """What becomes of every row: it stays, or leaves for one reason, the first.

    Attributes:
        reason: [R] number in `reasons`, 0 while it stays. of: [R] the row that it repeats or
            contradicts, -1 for none.
        found: finding → rows that it was true of when its turn came, dropped or not.
        cycle: [R] number of the cycle's component, -1 for none.
    """

    def __init__(self, count: int) -> None:
        self.reasons, self.found = [""], Counter[str]()
        self.reason, self.of, self.cycle = (
            np.zeros(count, np.int8),
            np.full(count, -1),
            np.full(count, -1),
        )

    @property
    def stays(self) -> np.ndarray:
        return self.reason == 0

    def mark(
        self, name: str, rows: np.ndarray, drop: bool = True, of: np.ndarray | None = None
    ) -> None:
        """Count a finding among the rows that stay, and drop them."""
        rows = rows & self.stays
        self.found[name] += int(rows.sum())
        if drop and rows.any():
            if name not in self.reasons:
                self.reasons.append(name)
            self.reason[rows] = self.reasons.index(name)
            if of is not None:
                self.of[rows] = of[rows]

    def removed(self) -> dict[str, int]:
        """Reason → rows."""
        counts = np.bincount(self.reason, minlength=len(self.reasons))
        return {name: int(counts[i]) for i, name in enumerate(self.reasons) if i and counts[i]}


def judge(table: Table, rules: Rules) -> Fates:
    """What becomes of every row. Each finding looks only at the rows that stayed before it."""
    fates, same, alike, margins = Fates(len(table)), table.answers, table.alike, table.margins
    drop = {
        name: getattr(rules, f"on_{name}") == "drop"
        for name in ("tie", "duplicate", "contradiction", "disguise", "cycle")
    }
    fates.mark(TIE, same[:, 0] == same[:, 1], drop["tie"])
    fates.mark(NO_MARGIN, margins == 0, drop["tie"])
    fates.mark(SPLIT_VOTE, table.flagged(EVEN), drop["tie"])
    if rules.min_margin is not None:
        fates.mark(BELOW, margins < rules.min_margin)
    for name, rows in (
        (SAME_WORDS, alike[:, 0] == alike[:, 1]),
        (AGAINST, table.flagged(OPPOSED)),
        (NEGATIVE, margins < 0),
    ):
        fates.mark(name, rows, drop=False)
    fates.found[UNCLEAR] = table.unclear
    swapped, loosely = opposite(same, fates.stays), opposite(alike, fates.stays)
    fates.mark(CONTRADICTION, swapped >= 0, drop["contradiction"], swapped)
    fates.mark(DISGUISE, (loosely >= 0) & (swapped < 0), drop["disguise"], loosely)
    nodes = alike if drop["disguise"] else same
    rows = np.flatnonzero(fates.stays & (nodes[:, 0] != nodes[:, 1]))
    fates.cycle[rows] = _circles(nodes[rows])
    fates.mark(CYCLE, fates.cycle >= 0, drop["cycle"])
    repeated = earlier(same, fates.stays)
    fates.mark(DUPLICATE, repeated >= 0, drop["duplicate"], repeated)
    if table.near is not None and rules.near is not None:
        against, repeated = table.near.find(fates.stays, rules.near)
        fates.mark(NEAR_CONTRADICTION, against >= 0, drop["contradiction"], against)
        fates.mark(NEAR, repeated >= 0, True, repeated)
    return fates


def _keys(edges: np.ndarray) -> np.ndarray:
    """[R] one number for every ordered pair."""
    return edges[:, 0] * (int(edges.max(initial=0)) + 1) + edges[:, 1]


def opposite(edges: np.ndarray, active: np.ndarray) -> np.ndarray:
    """[R] the first active row that says the opposite, -1 where none does or the row is not
    active.
    """
    out, rows = np.full(len(edges), -1), np.flatnonzero(active & (edges[:, 0] != edges[:, 1]))
    if len(rows):
        known, first = np.unique(_keys(edges)[rows], return_index=True)
        wanted = _keys(edges[:, ::-1])[rows]
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        out[rows] = np.where(known[at] == wanted, rows[first[at]], -1)
    return out


def earlier(edges: np.ndarray, active: np.ndarray) -> np.ndarray:
    """[R] the first active row that says the same, -1 where it is the row itself or the row is not
    active.
    """
    out, rows = np.full(len(edges), -1), np.flatnonzero(active)
    _, first, inverse = np.unique(_keys(edges)[rows], return_index=True, return_inverse=True)
    out[rows] = np.where(first[inverse] == np.arange(len(rows)), -1, rows[first[inverse]])
    return out


def _circles(edges: np.ndarray) -> np.ndarray:
    """[E] component of each edge, of those with three answers or more; two that beat each other are
    a contradiction.
    """
    found = components(edges)
    inside = np.flatnonzero(found >= 0)
    members = np.unique(
        np.stack([np.tile(found[inside], 2), edges[inside].T.ravel()]), axis=1
    )  # (component, answer)
    large = np.flatnonzero(np.bincount(members[0], minlength=1) > 2)
    return np.where(np.isin(found, large), np.searchsorted(large, found), -1)
