"""Pairs: care for preferences before anything is trained on them.

It writes (where `--out` is a folder, without the first part of the names)
    clean.jsonl            the rows that stay, as their files have them, or converted
    clean.removed.jsonl    the others, each with its reason, its place and the row that it repeats
                           or contradicts
    clean.rejects.jsonl    rows that could not be read, with --on-bad-row reject
    clean.summary.json     all counts, findings, length and markdown of the chosen sides, settings,
                           digests

Left out: a majority of contradicting rows is not taken; balance is of how often the chosen side is
longer, not of by how much.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.seeds import generator
from posttrain.core.settings import Destination, Needs, Settings
from posttrain.data.curate import convert
from posttrain.data.curate.bias import Sides, balanced, compare
from posttrain.data.curate.corpus import Corpus, line
from posttrain.data.curate.near_pairs import NearPairs
from posttrain.data.curate.pair_table import NO_SHARED_PROMPT, Table
from posttrain.data.curate.pairs import Check, Fates, Rules, clean
from posttrain.data.rows import Row
from posttrain.data.settings import OnBadRow, RowFormat, Rows
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

BALANCE = "taken out by --balance-length"
SHOWN = 20  # cycles, and rows of one, that the summary names


class PairsSettings(Settings):
    """Settings of caring for preferences."""

    data: Rows = Field(
        min_length=1,
        description=(
            "the preferences, given like --data of posttrain sft: pairs, or answers with a label"
        ),
    )
    out: Annotated[Path, Destination()] = Field(
        description=(
            "NAME.jsonl for the rows that stay, with NAME.removed.jsonl and NAME.summary.json "
            "beside it; or a folder for all of them"
        )
    )
    to: Literal["", "pairs", "labels"] = Field(
        "",
        description=(
            "what to write: prompt, chosen, rejected; or prompt, completion, "
            "label. Unset: what the data are"
        ),
    )
    rules: Rules = Rules()  # type: ignore[call-arg]
    balance_length: bool = Field(
        False,
        description=(
            "of pairs with the longer side chosen and pairs with the shorter side chosen "
            "take equally many, by lot"
        ),
    )
    pairs_per_prompt: Annotated[int, Needs("to", value="pairs")] = Field(
        4, ge=1, description="from labels to pairs: pairs of one prompt at most, by lot"
    )
    keep_ambiguous: Annotated[bool, Needs("to", value="labels")] = Field(
        False,
        description=(
            "from pairs to labels: also write an answer that is chosen in one pair and "
            "rejected in another, once as good and once as bad"
        ),
    )
    format: RowFormat = ""
    on_bad_row: OnBadRow = "stop"
    seed: int = Field(0, ge=0, description="of what is chosen by lot")


@dataclass
class Plan:
    """What to write.

    Attributes:
        kind, to: "pairs" or "labels".
        answers: [R, 2] from pairs to labels: "" to write the answer, else why not.
        pairs: [P, 2] from labels to pairs: the rows of the good and the bad answer. possible: pairs
            there could be.
        before, change: of `--balance-length`, the pairs before it, and what it changed; `sides` are
            those that are written, `prompts` their prompts.
    """

    kind: str
    to: str
    answers: np.ndarray | None = None
    pairs: np.ndarray | None = None
    possible: int = 0
    sides: Sides | None = None
    prompts: np.ndarray | None = None
    before: dict[str, Any] | None = None
    change: dict[str, Any] | None = None


@stage(
    "data_pairs",
    PairsSettings,
    help="care for preferences: contradictions, cycles, length bias; convert them",
    makes={"rows": "rows.jsonl", "removed": "removed.jsonl"},
    files=Files(others=("rejects.jsonl",), at_once=True, single_file=True),
)
def data_pairs(settings: PairsSettings, context: Context) -> dict[str, Any]:
    """Care for preferences before training on them: ties, repeats, contradictions and cycles are
    removed, each row with its reason; how well length and markdown alone tell the chosen side is
    measured; pairs become labelled answers, or labelled answers pairs.
    """
    folder, check = context.folder, Check(settings.rules.min_margin is not None)
    corpus = Corpus(
        settings.data,
        folder,
        context.reporter,
        rejects="rejects.jsonl" if settings.on_bad_row == "reject" else "",
        format=settings.format,
        check=check,
        all_read=not settings.to,
    )
    table, fates = _read(corpus, settings.rules, folder)
    plan = _plan(settings, check.kind, table, fates)
    written, refused = _write(corpus, plan, table, fates, folder)
    return {**_account(corpus, plan, fates, written, refused), **_findings(plan, table, fates)}


def _read(corpus: Corpus, rules: Rules, folder: Path) -> tuple[Table, Fates]:
    """The first pass: what is known of every row, and what becomes of it."""
    with ExitStack() as stack:
        table = Table(stack.enter_context(NearPairs(folder)) if rules.near is not None else None)
        for row, example in corpus.rows("read"):
            table.add(row, example)
        if not len(table):
            raise DataError(
                "there is no usable row", where=str(corpus.sources[0]), cure="give other --data"
            )
        return table, clean(table, rules)


def _plan(settings: PairsSettings, kind: str, table: Table, fates: Fates) -> Plan:
    """What is converted into what, and what is left out for it."""
    plan = Plan(kind, settings.to or kind)
    if plan.to == kind == "labels" and settings.balance_length:
        raise ConfigError(
            "--balance-length compares the two sides of pairs, and these rows are labelled answers",
            cure="add --to pairs, or leave --balance-length out",
        )
    if plan.to != kind:
        fates.mark(convert.NO_PROMPT, table.flagged(NO_SHARED_PROMPT))
    if kind == "pairs":
        _measure(settings, plan, table, fates, np.stack([np.flatnonzero(fates.stays)] * 2, axis=1))
        if plan.to == "labels":
            plan.answers = convert.labelled(table.answers, fates.stays, settings.keep_ambiguous)
    elif plan.to == "pairs":
        good = table.good
        answers = np.where(good, table.answers[:, 0], table.answers[:, 1])
        rows = convert.Labelled(table.prompts, answers, good, fates.stays)
        pairs, why, plan.possible = convert.paired(
            rows, settings.pairs_per_prompt, settings.seed, table.digest
        )
        for reason in (convert.ONLY_GOOD, convert.ONLY_BAD, convert.OVER):
            fates.mark(reason, why == reason)
        plan.pairs = _measure(settings, plan, table, fates, pairs)
    if not fates.stays.any():
        reasons = ", ".join(f"{name}: {count:,}" for name, count in fates.removed().items())
        raise DataError(
            f"nothing is left of {len(table):,} usable rows; {reasons}",
            where=str(settings.data[0]),
            cure=(
                "look at those rows; --on-tie keep, --on-contradiction keep and their like let such"
                " rows stay"
            ),
        )
    return plan


def _measure(
    settings: PairsSettings, plan: Plan, table: Table, fates: Fates, pairs: np.ndarray
) -> np.ndarray:
    """Compare the sides of pairs and, where that is asked for, balance them; returns the pairs that
    are left.

    Args:
        pairs: [P, 2] the rows of the better and the worse answer.
    """
    from posttrain.evals.preferences import change, measure

    def compared(rows: np.ndarray) -> tuple[Sides, np.ndarray]:
        return (
            compare(table.looks[rows[:, 0], 0], table.looks[rows[:, 1], 1]),
            table.prompts[rows[:, 0]],
        )

    plan.sides, plan.prompts = compared(pairs)
    if settings.balance_length:
        plan.before = measure(plan.sides, plan.prompts)
        take = balanced(plan.sides.signs["characters"], generator(settings.seed, "balance"))
        plan.change = change(plan.sides, take, plan.prompts)
        left = fates.stays
        left[pairs[take].ravel()] = False
        fates.mark(BALANCE, left)
        pairs = pairs[take]
        plan.sides, plan.prompts = compared(pairs)
    return pairs


def _write(
    corpus: Corpus, plan: Plan, table: Table, fates: Fates, folder: Path
) -> tuple[int, Counter[str]]:
    """The second pass: every row to its file; returns rows written, and answers that were not by
    reason.
    """
    written, refused = 0, Counter[str]()
    places = np.full(len(table), -1)
    with ExitStack() as stack:

        def new(name: str, mode: str = "wb") -> IO[bytes]:
            return stack.enter_context(open(folder / name, mode))

        kept, removed, spool = new("rows.jsonl"), new("removed.jsonl"), new("spool", "w+b")
        for number, (row, example) in enumerate(corpus.rows("write")):
            if fates.reason[number]:
                removed.write(line(Row(_removed(row, number, table, fates), "")))
            elif plan.kind == plan.to:
                written += kept.write(line(row)) > 0
            elif plan.answers is not None:
                for side, why in enumerate(plan.answers[number]):
                    made = convert.as_label(example, side, _extra(row))
                    refused[why] += 1
                    if why:
                        made = {
                            "where": row.where,
                            "reason": why,
                            "side": ("chosen", "rejected")[side],
                            "row": made,
                        }
                    (removed if why else kept).write(line(Row(made, "")))
            else:
                places[number] = spool.tell()
                spool.write(
                    line(
                        Row(dict(zip(("head", "answer"), convert.parts(example), strict=True)), "")
                    )
                )
        for good, bad in plan.pairs if plan.pairs is not None else ():
            (head, chosen), (_, rejected) = (_fetched(spool, int(places[i])) for i in (good, bad))
            written += kept.write(line(Row(convert.as_pair(head, chosen, rejected), ""))) > 0
    return written + refused.pop("", 0), refused


def _removed(row: Row, number: int, table: Table, fates: Fates) -> dict[str, Any]:
    """A row that leaves, and why."""
    other = {"of": table.where[int(fates.of[number])]} if fates.of[number] >= 0 else {}
    circle = {"cycle": int(fates.cycle[number]) + 1} if fates.cycle[number] >= 0 else {}
    return {
        "where": row.where,
        "reason": fates.reasons[fates.reason[number]],
        **other,
        **circle,
        "row": row.fields,
    }


def _extra(row: Row) -> dict[str, Any]:
    return {
        name: row.fields[name]
        for name in ("margin", "votes")
        if row.fields.get(name) not in (None, "")
    }


def _fetched(spool: IO[bytes], place: int) -> tuple[dict[str, Any], Any]:
    spool.seek(place)
    held = json.loads(spool.readline())
    return held["head"], held["answer"]


def _account(
    corpus: Corpus, plan: Plan, fates: Fates, written: int, refused: Counter[str]
) -> dict[str, Any]:
    """What became of every row, and of every answer where pairs became labels."""
    used = int(fates.stays.sum())
    assert corpus.read == used + sum(fates.removed().values()) + corpus.rejected, (
        "rows in = rows used + removed + rejected"
    )
    if plan.answers is not None:
        assert written + refused.total() == 2 * used, "two answers a pair"
    else:
        assert written == (used if plan.pairs is None else len(plan.pairs)), (
            "what was planned was written"
        )
    return {
        "kind": plan.kind,
        "to": plan.to,
        "rows": corpus.read,
        "used": used,
        "removed": fates.removed(),
        "rejected": corpus.rejected,
        "rejected_reasons": corpus.reasons,
        "written": written,
        "answers_left_out": dict(refused),
        **({"possible_pairs": plan.possible} if plan.pairs is not None else {}),
    }


def _findings(plan: Plan, table: Table, fates: Fates) -> dict[str, Any]:
    """Findings, cycles, and how the sides of the pairs look."""
    from posttrain.evals.preferences import length_warning, measure, spread

    circles = []
    for number in range(min(SHOWN, int(fates.cycle.max(initial=-1)) + 1)):
        rows = np.flatnonzero(fates.cycle == number)
        circles.append(
            {
                "cycle": number + 1,
                "answers": len(np.unique(table.alike[rows])),
                "rows": len(rows),
                "first": [table.where[i] for i in rows[:SHOWN].tolist()],
            }
        )
    bias = (
        measure(plan.sides, plan.prompts)
        if plan.sides is not None and plan.prompts is not None
        else None
    )
    if bias and plan.change is not None:
        bias["change"] = plan.change
    warning = length_warning(bias) if bias else ""
    return {
        "prompts": len(np.unique(table.prompts)),
        "findings": {name: count for name, count in fates.found.items() if count},
        "cycles": {
            "components": int(fates.cycle.max(initial=-1)) + 1,
            "rows": int((fates.cycle >= 0).sum()),
            "first": circles,
        },
        **spread(table.margins, table.agreement, table.prompts),
        "bias": bias,
        "bias_before_balance": plan.before,
        "warnings": [warning] if warning else [],
    }
