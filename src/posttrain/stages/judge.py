"""Judges on trial: how often a scorer gives the better answer of a pair the higher score, compared
with content-blind baselines.

The folder holds
    run.json       what was judged: settings, digests of models, data and functions, version
    FILE.jsonl     the record of every pair: both scores
    summary.json   accuracy by file and by category with n, interval and paired differences, and
                   calibration; written last

Rows may have a `category`, or a `subset` as in RewardBench (Lambert et al. 2024, arXiv 2403.13787).
Left out: choices of more than two answers, and answers that are calls of tools.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from posttrain.core.defaults import Device
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.events import Reporter
from posttrain.core.settings import Destination, ReadsModel, ReadsScorer, Settings
from posttrain.core.ties import wins
from posttrain.data.formats import Example, Format
from posttrain.data.messages import Message, Text
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Rows, Source
from posttrain.data.sources import read
from posttrain.data.templates.thinking import reasoning, without_thinking
from posttrain.evals import judging, stats
from posttrain.evals.records import Record, cluster_of, write_records
from posttrain.scoring.score import Response, Score
from posttrain.scoring.scorers import (
    REWARD,
    check_scorer,
    choose_scorer,
    open_scorer,
    refuse_failures,
)
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

CATEGORIES = ("category", "subset")
BATCH = 256  # pairs scored between two reports of progress


class JudgeSettings(Settings):
    """Settings of a trial of judges."""

    data: Rows = Field(
        min_length=1,
        description=(
            "pairs of chosen and rejected answers; files are given like --data of posttrain sft"
        ),
    )
    scorer: Annotated[str, ReadsScorer()] = Field(
        "",
        description=(
            "what judges: reward:FOLDER, longest, shortest, FILE.py:FUNCTION; or give "
            "--reward-model"
        ),
    )
    reward_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="folder or hub id of a reward model that judges"
    )
    against: Annotated[str, ReadsScorer()] = Field(
        "", description="scorer to compare with, pair by pair; or give --against-model"
    )
    against_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="reward model to compare with, pair by pair"
    )
    judge_thinking: bool = Field(
        False, description="judge whole answers, not answers without their thinking"
    )
    out: Annotated[Path, Destination()] = Field(
        description="folder for the results; the same command shows what is there"
    )
    device: Device = ""

    def check(self) -> None:
        _specs(self)


@stage(
    "judge",
    JudgeSettings,
    help="whether a reward model prefers the better answers",
    files=Files(others=lambda settings: [f"{name}.jsonl" for name in _named(settings.data)]),
)
def judge(settings: JudgeSettings, context: Context) -> dict[str, Any]:
    """Put a reward model, or another scorer, on trial: how often it gives the better answer of a
    pair the higher score, by category and compared with content-blind baselines; with --against,
    pair by pair compared with another.
    """
    reporter, specs, named = context.reporter, _specs(settings), _named(settings.data)
    whole = settings.judge_thinking
    pairs = {name: _pairs(source, reporter, whole) for name, source in named.items()}
    scores = {role: _scores(spec, settings.device, pairs, reporter) for role, spec in specs.items()}
    records: dict[str, list[Record]] = {}
    for name in named:
        by_role = {role: by_file[name] for role, by_file in scores.items()}
        records[name] = _records(pairs[name], by_role)
    judged = {name: _summary(of_file, specs) for name, of_file in records.items()}
    context.claim()
    for name, of_file in records.items():
        write_records(context.folder / f"{name}.jsonl", of_file)
    if len(named) > 1:
        every = [record for of_file in records.values() for record in of_file]
        judged = {"all": _summary(every, specs), **judged}
    return {
        "scorer": specs["scorer"],
        "against": specs.get("against"),
        "files": {name: source.path for name, source in named.items()},
        "results": judged,
    }


def _specs(settings: JudgeSettings) -> dict[str, str]:
    """The names of the scorer, and of the one to compare it with, by role.

    Raises:
        ConfigError: there is none, or it is named twice, or wrongly.
    """
    out = {}
    for role, spec, model in (
        ("scorer", settings.scorer, settings.reward_model),
        ("against", settings.against, settings.against_model),
    ):
        option = "--reward-model" if role == "scorer" else "--against-model"
        if spec and model:
            raise ConfigError(
                f"--{role} and {option} both say what judges", cure="give one of them"
            )
        if chosen := choose_scorer(spec, model):
            check_scorer(chosen)
            out[role] = chosen
    if "scorer" not in out:
        raise ConfigError(
            "there is no judge", cure="give --reward-model FOLDER, or --scorer with a name"
        )
    return out


def _named(sources: tuple[Source, ...]) -> dict[str, Source]:
    """Sources by the name of their file."""
    out: dict[str, Source] = {}
    for source in sources:
        name = Path(source.path).name.split(".")[0]
        while name in out or name in ("run", "summary", "all"):
            name += "-2"
        out[name] = source
    return out


# -------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt.

    Attributes:
        chosen: the better one. rejected: the other.
        category: of the row; empty where it has none.
    """

    chosen: Response
    rejected: Response
    category: str


Scores = list[tuple[Score, Score]]  # of each pair, of the chosen and of the rejected response


def _pairs(source: Source, reporter: Reporter, whole: bool) -> list[Pair]:
    """The pairs of a source. Pairs of equal answers are left out, with a message."""
    form, pairs, same = Format("preference", all_read=True), list[Pair](), 0
    for row in read(source, Rejects()):
        example = form.read(row)
        if example.answers[0] == example.answers[1]:
            same += 1
            continue
        given = [row.fields[name] for name in CATEGORIES if row.fields.get(name) is not None]
        chosen, rejected = (
            _response(row, example, answer, whole) for answer in example.answers[:2]
        )
        pairs.append(Pair(chosen, rejected, str(given[0]) if given else ""))
    if same:
        reporter.message(
            f"{source}: {same:,} pairs are left out, in which chosen and rejected are the same"
        )
    if not pairs:
        raise DataError(f"there are no pairs in {source}", cure="check the file")
    return pairs


def _response(row: Row, example: Example, answer: Text, whole: bool) -> Response:
    """An answer as scorers take it, all of it or without its thinking; what comes before its last
    message is part of the prompt.
    """
    if isinstance(answer, str):
        message: Message = {"role": "assistant", "content": answer}
        text = answer if whole else without_thinking(answer)
        return Response(example.prompt, text, row.fields, row.where, message=message)
    last = answer[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        raise DataError(
            "an answer that ends with "
            + ("calls of tools" if last.get("tool_calls") else "another's message"),
            where=row.where,
            cure="remove the row, or what follows the assistant's last message",
        )
    text = without_thinking(last["content"])
    if whole:
        text = "\n\n".join(filter(None, (reasoning(last), last["content"])))
    before = () if isinstance(example.prompt, str) else example.prompt
    turns = answer if len(answer) > 1 else None
    prompt = (*before, *answer[:-1])
    return Response(prompt, text, row.fields, row.where, answer=turns, message=last)


def _scores(
    spec: str, device: str, pairs: dict[str, list[Pair]], reporter: Reporter
) -> dict[str, Scores]:
    """The scores of every file's pairs."""
    scorer = open_scorer(spec, device)
    out: dict[str, Scores] = {}
    for name, group in pairs.items():
        out[name] = []
        with reporter.working(f"judge {name}", len(group)) as progress:
            for a in range(0, len(group), BATCH):
                batch = group[a : a + BATCH]
                scores = scorer(
                    [response for pair in batch for response in (pair.chosen, pair.rejected)]
                )
                refuse_failures(spec, scores)
                out[name] += zip(scores[0::2], scores[1::2], strict=True)
                progress(min(a + BATCH, len(group)))
    return out


def _records(pairs: list[Pair], scores: dict[str, Scores]) -> list[Record]:
    """A record a pair.

    Its values are `chosen`, `rejected` and `correct`, those of the scorer to compare with are
    `against_chosen` and so on; `longer` is by how many characters the chosen response is longer.
    """
    records = []
    for i, pair in enumerate(pairs):
        values: dict[str, float | None] = {"longer": pair.chosen.length - pair.rejected.length}
        meta: dict[str, Any] = {"prompt": pair.chosen.prompt, "category": pair.category}
        for role, of_role in scores.items():
            prefix = "" if role == "scorer" else f"{role}_"
            chosen, rejected = of_role[i]
            values[f"{prefix}chosen"] = chosen.value
            values[f"{prefix}rejected"] = rejected.value
            values[f"{prefix}correct"] = (
                None
                if chosen.value is None or rejected.value is None
                else wins(chosen.value - rejected.value)
            )
            if why := [score.why for score in of_role[i] if score.why]:
                meta[f"{prefix}why"] = "; ".join(dict.fromkeys(why))
        cluster = cluster_of(pair.chosen.prompt)
        records.append(Record(pair.chosen.where, cluster, values, meta=meta))
    return records


# ----------------------------------------------------------------------------------------- accuracy


def _summary(records: list[Record], specs: dict[str, str]) -> dict[str, Any]:
    """Accuracy over the pairs whose two responses have scores, and what it is compared with."""
    judged = _judged(records, "correct", specs["scorer"])
    right = [record.value("correct") for record in judged]
    clusters: list[Hashable] = [record.group for record in judged]
    longer = [record.value("longer") for record in judged]
    accuracy = stats.share(right, clusters).json()
    baselines = judging.compare(right, judging.content_blind(longer), clusters)
    out = {
        "pairs": len(records),
        "judged": len(judged),
        "ties": right.count(0.5),
        "accuracy": accuracy,
        "chance": judging.CHANCE,
        "baselines": baselines,
        "warning": judging.warning(accuracy, baselines),
    }
    out |= judging.by_length(right, longer, clusters)
    categories = [record.meta["category"] for record in judged]
    if any(categories):
        out |= judging.by_category(right, categories, clusters)
    if specs["scorer"].startswith(REWARD):
        margins = [record.value("chosen") - record.value("rejected") for record in judged]
        out["calibration"] = judging.of_margins(margins)
    if "against" in specs:
        both = _judged(judged, "against_correct", specs["against"])
        out["against"] = judging.compare(
            [record.value("correct") for record in both],
            {"against": [record.value("against_correct") for record in both]},
            [record.group for record in both],
        )["against"]
    return out


def _judged(records: list[Record], name: str, spec: str) -> list[Record]:
    """The records that have a value.

    Raises:
        DataError: none has.
    """
    judged = [record for record in records if record.values[name] is not None]
    if not judged:
        raise DataError(
            f"{spec} can judge none of {len(records):,} pairs",
            cure=(
                "verifiers need the wanted answer in a column completion or answer, reward models "
                "answers within their length"
            ),
        )
    return judged
