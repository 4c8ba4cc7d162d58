"""Judges on trial: how often a scorer gives the better answer of a pair the higher score, beside
scorers that read nothing.

The folder holds
    run.json       what was judged: settings, digests of models and data, version
    FILE.jsonl     one line a pair: both scores
    summary.json   accuracy by file and by category with n, interval and paired differences, and
                   calibration; written last

Rows may have a `category`, or a `subset` as in RewardBench (Lambert et al. 2024, arXiv 2403.13787).
Left out: choices of more than two answers, and answers that are calls of tools.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import write_atomic
from posttrain.core.settings import Destination, ExecutionOnly, ReadsModel, ReadsScorer, Settings
from posttrain.data.formats import Example, Format
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Rows, Source
from posttrain.data.sources import read
from posttrain.evals import judging
from posttrain.scoring.scorers import SCORERS, Item, Scorer
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

if TYPE_CHECKING:
    from posttrain.data.messages import Text

CATEGORIES = ("category", "subset")
CHUNK = 256  # pairs judged at a time, between two words on how far it is
Record = dict[str, Any]  # JSON of a pair


class JudgeSettings(Settings):
    """Settings of a trial of judges."""

    data: Rows = Field(
        min_length=1,
        description=(
            "pairs of chosen and rejected answers; files are given like --data of posttrain sft"
        ),
    )
    scorer: Annotated[str, ReadsScorer()] = Field(
        "", description="what judges: reward:FOLDER, longest, shortest; or give --reward-model"
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
    out: Annotated[Path, Destination()] = Field(
        description="folder for the results; the same command shows what is there"
    )
    device: Annotated[Literal["", "cpu", "cuda"], ExecutionOnly()] = Field(
        "", description="unset: the GPU where there is one"
    )

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
    pair the higher score, by category and beside scorers that read nothing; with --against, pair by
    pair beside another.
    """
    observer, specs, named = context.observer, _specs(settings), _named(settings.data)
    pairs = {name: _pairs(source, observer) for name, source in named.items()}
    scores = {role: _judged(spec, settings.device, pairs, observer) for role, spec in specs.items()}
    records = {
        name: _records(pairs[name], {role: found[name] for role, found in scores.items()})
        for name in named
    }
    judged = {name: _summary(some, specs) for name, some in records.items()}
    context.claim()
    for name, some in records.items():
        write_atomic(
            context.folder / f"{name}.jsonl",
            "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in some),
        )
    if len(named) > 1:
        judged = {
            "all": _summary([one for some in records.values() for one in some], specs),
            **judged,
        }
    return {
        "scorer": specs["scorer"],
        "against": specs.get("against"),
        "files": {name: source.path for name, source in named.items()},
        "results": judged,
    }


def _specs(settings: JudgeSettings) -> dict[str, str]:
    """The scorer, and the one to compare it with, as `posttrain.evals.scorers.open_scorer` takes
    them.
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
        if spec and spec not in SCORERS and not spec.startswith("reward:"):
            from posttrain.core.errors import nearest

            raise ConfigError(
                f"there is no scorer {spec!r}", cure=f"{nearest(spec, SCORERS)}; or reward:FOLDER"
            )
        if spec or model:
            out[role] = spec or f"reward:{model}"
    if "scorer" not in out:
        raise ConfigError(
            "nothing is said of what judges",
            cure="give --reward-model FOLDER, or --scorer with a name",
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

Pair = tuple[Item, Item, str]  # the chosen answer, the rejected one, and the category
Scored = list[list[float | None]]  # of each pair the scores of both


def _pairs(source: Source, observer: ConsoleObserver) -> list[Pair]:
    """The pairs of a source. Pairs whose answers are the same are left out, and that is said."""
    form, found, same = Format("preference"), [], 0
    for row in read(source, Rejects()):
        example = form.read(row)
        if example.answers[0] == example.answers[1]:
            same += 1
            continue
        category = next(
            (str(row.fields[name]) for name in CATEGORIES if row.fields.get(name) is not None), ""
        )
        found.append(
            (
                _item(row, example, example.answers[0]),
                _item(row, example, example.answers[1]),
                category,
            )
        )
    if same:
        observer.message(
            f"{source}: {same:,} pairs are left out, in which chosen and rejected are the same"
        )
    if not found:
        raise DataError(f"there are no pairs in {source}", cure="check the file")
    return found


def _item(row: Row, example: Example, answer: Text) -> Item:
    """An answer as scorers take it: what comes before its last message is part of the prompt."""
    if isinstance(answer, str):
        return Item(example.prompt, answer, row.fields, row.where)
    last = answer[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        raise DataError(
            "an answer that ends with "
            + ("calls of tools" if last.get("tool_calls") else "another's message"),
            where=row.where,
            cure="remove the row, or what follows the assistant's last message",
        )
    before = () if isinstance(example.prompt, str) else example.prompt
    return Item((*before, *answer[:-1]), last["content"], row.fields, row.where)


def _judged(
    spec: str, device: str, pairs: dict[str, list[Pair]], observer: ConsoleObserver
) -> dict[str, Scored]:
    """Every file's pairs, scored."""
    from posttrain.evals.scorers import open_scorer

    scorer: Scorer = open_scorer(spec, device)
    out: dict[str, Scored] = {}
    for name, some in pairs.items():
        out[name] = []
        with observer.working(f"judge {name}", len(some)) as told:
            for a in range(0, len(some), CHUNK):
                part = some[a : a + CHUNK]
                found = scorer(
                    [item for chosen, rejected, _ in part for item in (chosen, rejected)]
                )
                out[name] += [found[i : i + 2] for i in range(0, len(found), 2)]
                told(min(a + CHUNK, len(some)))
    return out


def _records(pairs: list[Pair], scores: dict[str, Scored]) -> list[Record]:
    out = []
    for i, (chosen, rejected, category) in enumerate(pairs):
        one: Record = {
            "where": chosen.where,
            "category": category,
            "prompt": json.dumps(chosen.prompt, ensure_ascii=False),
            "longer": len(chosen.answer) - len(rejected.answer),
        }
        for role, found in scores.items():
            a, b = found[i]
            prefix = "" if role == "scorer" else "against_"
            one[f"{prefix}chosen"], one[f"{prefix}rejected"] = a, b
            one[f"{prefix}correct"] = None if a is None or b is None else judging.hits([a - b])[0]
        out.append(one)
    return out


# --------------------------------------------------------------------------------- what it comes to


def _summary(records: list[Record], specs: dict[str, str]) -> dict[str, Any]:
    """Accuracy over the pairs of which both answers have a score, and what it is held against."""
    some = [one for one in records if one["correct"] is not None]
    if not some:
        raise DataError(
            f"{specs['scorer']} can judge none of {len(records):,} pairs",
            cure=(
                "verifiers need the wanted answer in a column completion or answer, reward models"
                " answers within their length"
            ),
        )
    right: list[float] = [one["correct"] for one in some]
    prompts: list[Hashable] = [one["prompt"] for one in some]
    blind = judging.content_blind([one["longer"] for one in some])
    accuracy = judging.rate(right, prompts).json()
    others = judging.beside(right, blind, prompts)
    out = {
        "pairs": len(records),
        "judged": len(some),
        "ties": right.count(0.5),
        "accuracy": accuracy,
        "baselines": others,
        "warning": judging.warning(accuracy, others),
    }
    out |= judging.by_length(right, [one["longer"] for one in some], prompts)
    if any(one["category"] for one in some):
        out |= judging.by_category(right, [one["category"] for one in some], prompts)
    if specs["scorer"].startswith("reward:"):
        out["calibration"] = judging.of_margins([one["chosen"] - one["rejected"] for one in some])
    if "against" in specs:
        both = [one for one in some if one["against_correct"] is not None]
        if not both:
            raise DataError(
                f"{specs['against']} can judge none of the pairs", cure="compare with another"
            )
        both_prompts: list[Hashable] = [one["prompt"] for one in both]
        out["against"] = judging.beside(
            [one["correct"] for one in both],
            {"against": [one["against_correct"] for one in both]},
            both_prompts,
        )["against"]
    return out
