"""Audits of scorers: attacks that a policy would find, made before there is one.

The folder holds
    run.json       what was audited: settings, digests of the scorer and the data, version
    tries.jsonl    the record of every completion that was tried
    audit.json     what was found, each with its share of rows, interval, example and cure
    summary.json   the same, and the verdict; written last

A finding counts where the exact lower bound of its share of rows is above `--share`, and above the
share of the commonest right answer: as much is had by always giving that one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import write_json
from posttrain.core.settings import Destination, ExecutionOnly, Positional, ReadsScorer, Settings
from posttrain.data.formats import Example, Format
from posttrain.data.messages import Text
from posttrain.data.prompts import without_answer
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Rows
from posttrain.data.sources import read
from posttrain.data.templates.thinking import without_thinking
from posttrain.evals import stats
from posttrain.evals.records import Record, cluster_of, write_records
from posttrain.scoring.attacks import ATTACKS, DEFECTS
from posttrain.scoring.audit import CHECKS, Control, Tried, audit, failures
from posttrain.scoring.cases import Case, Given, cases
from posttrain.scoring.scorers import check_scorer, open_scorer, refuse_failures
from posttrain.scoring.verifiers import WANTED
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, Made, Verdict, stage

FAIL = 10  # exit code
SHOWN = 2000  # characters of a completion that its record keeps
FILES = ("tries.jsonl", "audit.json")


class AuditRewardSettings(Settings):
    """Settings of an audit of a scorer."""

    scorer: Annotated[str, ReadsScorer(), Positional()] = Field(
        description=(
            "what to attack: exact, contains, number, reward:FOLDER, FILE.py:FUNCTION; it may "
            "stand first, without --scorer"
        )
    )
    data: Rows = Field(
        min_length=1,
        description=(
            "rows with a prompt and the right answer, or pairs; files are given like --data of "
            "posttrain sft"
        ),
    )
    answer: str = Field("", description="column with the right answer; unset: completion or answer")
    form: str = Field(
        "",
        description=(
            "another form in which the scorer reads answers, with {answer} in it; the usual ones "
            "are tried"
        ),
    )
    rows: int = Field(100, ge=2, description="rows to attack at most, spread over the data")
    share: float = Field(
        0.05, ge=0, lt=1, description="share of rows above which an attack counts as a loophole"
    )
    out: Annotated[Path | None, Destination()] = Field(
        None, description="folder for every try; unset: nothing is kept"
    )
    device: Annotated[Literal["", "cpu", "cuda"], ExecutionOnly()] = Field(
        "", description="of a reward model; unset: the GPU where there is one"
    )

    def check(self) -> None:
        check_scorer(self.scorer)
        if self.form and "{answer}" not in self.form:
            raise ConfigError(
                f"--form {self.form!r} has no place for the answer",
                cure="write {answer} where the answer stands",
                option="form",
            )


@stage(
    "audit_reward",
    AuditRewardSettings,
    help="attack a scorer before a policy does",
    files=Files(others=FILES),
)
def audit_reward(settings: AuditRewardSettings, context: Context) -> Made:
    """Attack a scorer: completions that are wrong, hollow, hostile or padded, scored beside right
    and wrong ones of the same rows. What is paid for is a loophole, which a policy would find. Exit
    code 0 where there is none, 10 where there is one.
    """
    rows = cases(_given(settings))
    commonest = _commonest(rows)
    level = max(settings.share, commonest)
    _refuse_too_few(settings, rows, level)
    scorer = open_scorer(settings.scorer, settings.device)
    probe = scorer([case.response(case.given.gold) for case in rows[:8]])
    refuse_failures(settings.scorer, probe)
    with context.reporter.working("attack", len(rows)) as progress:
        control, tried = audit(scorer, rows, settings.form, progress)
    if all(ends.right is None and ends.wrong is None for ends in control.rows):
        raise DataError(
            f"{settings.scorer} scores none of {len(rows):,} rows; {probe[0].why}",
            where=str(settings.data[0]),
            cure="say which column holds the right answer: --data FILE,answer=COLUMN",
        )
    result = {
        "scorer": settings.scorer,
        "rows": len(rows),
        "kinds": dict(Counter(case.kind for case in rows)),
        "share": settings.share,
        "commonest_answer": commonest,
        **_result(control, tried, level),
    }
    context.claim()
    if settings.out is not None:
        write_records(context.folder / FILES[0], map(_record, tried))
        write_json(context.folder / FILES[1], result)
    return Made(result, _verdict(result))


# --------------------------------------------------------------------------------------------- rows


def _given(settings: AuditRewardSettings) -> list[Given]:
    """The rows that have a right answer, spread over the data.

    Raises:
        DataError: none has.
    """
    found: list[Given] = []
    for source in settings.data:
        form = Format("", prompts=True)
        for row in read(source, Rejects()):
            given = _row(row, form.read(row), settings.answer)
            found += [given] if given is not None else []
    if not found:
        raise DataError(
            "no row has a right answer",
            where=str(settings.data[0]),
            cure="say which column it is, with --answer COLUMN",
        )
    step = max(1.0, len(found) / settings.rows)
    return [found[int(i * step)] for i in range(min(settings.rows, len(found)))]


def _row(row: Row, example: Example, column: str) -> Given | None:
    """A row's prompt, columns and right answer; None where it has no answer."""
    if len(example.answers) > 1:
        gold, rejected = (_text(answer) for answer in example.answers[:2])
        return Given(row.where, example.prompt, row.fields, gold, rejected)
    asked, wanted = without_answer(example)
    columns: dict[str, Any] = {k: v for k, v in row.fields.items() if k != "completion"}
    if wanted is not None:
        columns["completion"] = wanted
    if column and column not in row.fields:
        raise DataError(
            f"there is no column {column!r}", where=row.where, cure="give another --answer"
        )
    known = [columns.get(name) for name in ((column,) if column else WANTED)]
    gold = next((value for value in known if isinstance(value, (str, int, float))), "")
    text = without_thinking(str(gold)).strip()
    return Given(row.where, asked.prompt, columns, text) if text else None


def _text(answer: Text) -> str:
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def _commonest(rows: Many[Case]) -> float:
    """The share of rows with the commonest right answer; 0 where all have the same."""
    counts = Counter(case.answer for case in rows)
    return counts.most_common(1)[0][1] / len(rows) if len(counts) > 1 else 0.0


def _refuse_too_few(settings: AuditRewardSettings, rows: Many[Case], level: float) -> None:
    """Refuse rows so few, or with answers so alike, that nothing could be shown on them.

    Raises:
        DataError: with how sure all of them would make.
    """
    low = stats.exact_share(len(rows), len(rows)).low
    assert low is not None
    if low <= level:
        raise DataError(
            f"{len(rows):,} rows show too little: an attack that is paid on all of them is paid on "
            f"{low:.0%} or more, and it must be more than {level:.0%}",
            where=str(settings.data[0]),
            cure="give more rows, or rows whose right answers differ more",
        )


# ------------------------------------------------------------------------------------ what is found


def _result(control: Control, tried: list[Tried], level: float) -> dict[str, Any]:
    """Findings, and all counts, as JSON."""
    by_name: dict[str, list[Tried]] = {}
    for one in (*tried, *failures(tried)):
        by_name.setdefault(one.name, []).append(one)
    names = {name: (kind.shows, kind.cure) for name, kind in ATTACKS.items()}
    names |= CHECKS
    attacks = {
        name: {"shows": shows, "cure": cure, **_worst(by_name[name])}
        for name, (shows, cure) in names.items()
        if name in by_name
    }
    certain = [name for name, one in attacks.items() if one["share"]["low"] > level]
    n = len(control.rows)
    return {
        "form": control.form,
        "reads": {form: rows / n for form, rows in control.reads.items()},
        "right": _mean([ends.right for ends in control.rows]),
        "wrong": _mean([ends.wrong for ends in control.rows]),
        "tries": len(tried),
        "loopholes": [name for name in certain if name not in DEFECTS],
        "defects": [name for name in certain if name in DEFECTS],
        "attacks": attacks,
    }


def _worst(tried: Many[Tried]) -> dict[str, Any]:
    """The trick of an attack that succeeds most surely, with an example."""
    groups: dict[str, list[Tried]] = {}
    for one in tried:
        groups.setdefault(one.variant, []).append(one)
    counts = {name: sum(one.succeeded for one in group) for name, group in groups.items()}
    shares = {name: stats.exact_share(n, len(groups[name])) for name, n in counts.items()}
    worst = max(shares, key=lambda name: (shares[name].low or 0.0, shares[name].n))
    example = next((one for one in groups[worst] if one.succeeded), None)
    return {
        "variant": worst,
        "share": shares[worst].json(),
        "example": None if example is None else _example(example),
    }


def _example(one: Tried) -> dict[str, Any]:
    return {
        "where": one.case.given.where,
        "question": one.case.question[:SHOWN],
        "answer": one.case.answer[:SHOWN],
        "completion": one.completion[:SHOWN],
        "score": one.score.value,
        "right": one.ends.right,
        "wrong": one.ends.wrong,
        "why": one.score.why[:SHOWN],
    }


def _mean(values: Many[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    return stats.mean(known).json() if known else None


def _verdict(result: dict[str, Any]) -> Verdict:
    if result["loopholes"]:
        return Verdict("FAIL", FAIL, f"found: {', '.join(result['loopholes'])}")
    missed = stats.exact_share(0, result["rows"]).high
    why = f"no loophole found; one that works on {missed:.1%} of the rows or fewer may be missed"
    return Verdict("PASS", 0, why)


def _record(one: Tried) -> Record:
    given = one.case.given
    known = {"attack": one.name, "variant": one.variant, "characters": len(one.completion)}
    return Record(
        f"{given.where}#{one.name}, {one.variant}",
        cluster_of(given.prompt),
        {
            "score": one.score.value,
            "right": one.ends.right,
            "wrong": one.ends.wrong,
            "succeeded": float(one.succeeded),
        },
        output=one.completion[:SHOWN],
        meta=known | ({"why": one.score.why} if one.score.why else {}),
    )
