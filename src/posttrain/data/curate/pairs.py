"""Preferences as a graph: what repeats, contradicts or forms cycles among the answers to one
prompt.

A pair is an edge between two answers to a prompt. So is a labelled answer: a good one is better
than no answer, and no answer is better than a bad one. Therefore one set of rules holds for both.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from pydantic import Field

from posttrain.core.errors import DataError
from posttrain.core.settings import Settings
from posttrain.data.curate.cycles import components
from posttrain.data.curate.groups import numbered
from posttrain.data.curate.pair_table import OPPOSED, SPLIT, Table
from posttrain.data.formats import Example
from posttrain.data.rows import Row

# the findings, by the names under which a run reports them
TIE, NO_MARGIN, SPLIT_VOTE = "both sides are the same", "margin 0", "votes are split evenly"
BELOW = "margin below --min-margin"
CONTRADICTION = "contradiction"
DISGUISE = "contradiction in disguise: case, punctuation, spaces"
NEAR_CONTRADICTION = "contradiction of a near-duplicate"
CYCLE, DUPLICATE, NEAR = "in a cycle", "duplicate", "near-duplicate"
SAME_WORDS = "sides differ in case, punctuation or spaces alone"
AGAINST = "votes against the chosen side"
NEGATIVE, UNCLEAR = "margin below 0", "votes not understood"

Fate = Literal["drop", "keep"]


class Rules(Settings):
    """What becomes of the rows of each finding."""

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
    without a margin that is needed.

    Args:
        margins: whether every row must have one.
    Attributes:
        kind: "pairs" or "labels"; empty before the first row.
    """

    def __init__(self, margins: bool) -> None:
        self.margins, self.kind, self.first = margins, "", ""

    def __call__(self, row: Row, example: Example) -> None:
        kind = ""
        if len(example.answers) >= 2:
            kind = "pairs"
        elif example.label is not None:
            kind = "labels"
        if not kind:
            raise DataError(
                "the row is neither a pair nor a labelled answer",
                where=row.where,
                cure=(
                    "give chosen and rejected, or prompt, completion and label; or name the file's "
                    "columns: --data FILE,chosen=better,rejected=worse"
                ),
            )
        if self.kind and kind != self.kind:
            raise DataError(
                f"the row is of {kind}, and the data began as {self.kind} ({self.first})",
                where=row.where,
                cure="care for the two kinds by two commands, each with an --out of its own",
            )
        if example.margin is None and self.margins:
            raise DataError(
                "there is no margin, which --min-margin compares",
                where=row.where,
                cure=(
                    "leave --min-margin out, fill the margin in, or name its column: --data "
                    "FILE,margin=gap"
                ),
            )
        self.kind, self.first = kind, self.first or row.where


class Fates:
    """What becomes of every row: it stays, or leaves for one reason, the first.

    Attributes:
        reasons: the reasons, by number; "" is that of rows that stay.
        reason: [R] number in `reasons`.
        of: [R] the row that it repeats or contradicts, -1 for none.
        found: finding → how many rows it was true of when its turn came, dropped or not.
        cycle: [R] number of the cycle's component, -1 for none.
    """

    def __init__(self, count: int) -> None:
        self.reasons, self.found = [""], Counter[str]()
        self.reason = np.zeros(count, np.int8)
        self.of, self.cycle = np.full(count, -1), np.full(count, -1)

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


def clean(table: Table, rules: Rules) -> Fates:
    """What becomes of every row. Each finding looks only at the rows that stayed before it."""
    fates = Fates(len(table))
    _mark_ties(fates, table, rules)
    _mark_contradictions(fates, table, rules)
    nodes = table.alike if rules.on_disguise == "drop" else table.answers
    rows = np.flatnonzero(fates.stays & (nodes[:, 0] != nodes[:, 1]))
    fates.cycle[rows] = _cycles(nodes[rows])
    fates.mark(CYCLE, fates.cycle >= 0, rules.on_cycle == "drop")
    repeated = earlier(table.answers, fates.stays)
    fates.mark(DUPLICATE, repeated >= 0, rules.on_duplicate == "drop", repeated)
    if table.near is not None and rules.near is not None:
        against, repeated = table.near.find(fates.stays, rules.near)
        drop = rules.on_contradiction == "drop"
        fates.mark(NEAR_CONTRADICTION, against >= 0, drop, against)
        fates.mark(NEAR, repeated >= 0, True, repeated)
    return fates


def _mark_ties(fates: Fates, table: Table, rules: Rules) -> None:
    """Rows without a winner, and findings that are only counted."""
    drop = rules.on_tie == "drop"
    answers, alike, margins = table.answers, table.alike, table.margins
    fates.mark(TIE, answers[:, 0] == answers[:, 1], drop)
    fates.mark(NO_MARGIN, margins == 0, drop)
    fates.mark(SPLIT_VOTE, table.flagged(SPLIT), drop)
    if rules.min_margin is not None:
        fates.mark(BELOW, margins < rules.min_margin)
    fates.mark(SAME_WORDS, alike[:, 0] == alike[:, 1], drop=False)
    fates.mark(AGAINST, table.flagged(OPPOSED), drop=False)
    fates.mark(NEGATIVE, margins < 0, drop=False)
    fates.found[UNCLEAR] = table.unclear


def _mark_contradictions(fates: Fates, table: Table, rules: Rules) -> None:
    exactly = opposite(table.answers, fates.stays)
    loosely = opposite(table.alike, fates.stays)
    fates.mark(CONTRADICTION, exactly >= 0, rules.on_contradiction == "drop", exactly)
    disguised = (loosely >= 0) & (exactly < 0)
    fates.mark(DISGUISE, disguised, rules.on_disguise == "drop", loosely)


def _keys(edges: np.ndarray) -> np.ndarray:
    """[R] one number for every ordered pair."""
    return edges[:, 0] * (int(edges.max(initial=0)) + 1) + edges[:, 1]


def opposite(edges: np.ndarray, active: np.ndarray) -> np.ndarray:
    """[R] the first active row with the opposite edge; -1 if there is none, or the row is not
    active.
    """
    rows = np.flatnonzero(active & (edges[:, 0] != edges[:, 1]))
    first_opposite = np.full(len(edges), -1)
    if len(rows):
        known, first = np.unique(_keys(edges)[rows], return_index=True)
        wanted = _keys(edges[:, ::-1])[rows]
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        first_opposite[rows] = np.where(known[at] == wanted, rows[first[at]], -1)
    return first_opposite


def contradicted(edges: np.ndarray) -> int:
    """How many rows also stand the other way round: the same two answers to the same prompt, the
    other one preferred; or an answer that is good here and bad there.

    Args:
        edges: [R, 2] uint64, hashes of the better and the worse answer after its prompt.
    """
    answers = numbered(edges.ravel()).reshape(-1, 2)
    return int((opposite(answers, np.ones(len(answers), bool)) >= 0).sum())


def earlier(edges: np.ndarray, active: np.ndarray) -> np.ndarray:
    """[R] the first active row with the same edge; -1 if it is the row itself, or the row is not
    active.
    """
    rows = np.flatnonzero(active)
    _, first, inverse = np.unique(_keys(edges)[rows], return_index=True, return_inverse=True)
    first_same = np.full(len(edges), -1)
    itself = first[inverse] == np.arange(len(rows))
    first_same[rows] = np.where(itself, -1, rows[first[inverse]])
    return first_same


def _cycles(edges: np.ndarray) -> np.ndarray:
    """[E] the component of each edge, for components of three answers or more: two answers that
    beat each other are a contradiction.
    """
    component = components(edges)
    inside = np.flatnonzero(component >= 0)
    answers = np.stack([np.tile(component[inside], 2), edges[inside].T.ravel()])
    answers_of_component = np.bincount(np.unique(answers, axis=1)[0], minlength=1)
    large = np.flatnonzero(answers_of_component > 2)
    return np.where(np.isin(component, large), np.searchsorted(large, component), -1)
