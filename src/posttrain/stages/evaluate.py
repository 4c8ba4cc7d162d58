"""Evaluation: what a model can do, and what changed since another.

The folder holds
    run.json            what was evaluated: settings, digests of models, data and scorers, version
    TASK-FILE.jsonl     the record of every item; TASK-FILE.against.jsonl those of the other model
    summary.json        every metric with n, mean and interval, and paired differences
    manifest.json       digests of all of these; written last

The tasks are those of `posttrain.evals.tasks`, and users' own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from posttrain.core.console import estimate
from posttrain.core.defaults import UNSET_BUDGET, Device
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.events import Reporter
from posttrain.core.journal import RECORDS, Journal
from posttrain.core.settings import Destination, ExecutionOnly, ReadsModel, ReadsScorer, Settings
from posttrain.data.settings import PromptingSettings, Source
from posttrain.evals.records import Record, read_records, write_records
from posttrain.evals.settings import OWN, TaskSettings
from posttrain.evals.stats import LEVEL, Estimate
from posttrain.evals.task import Task, read_rows
from posttrain.scoring.scorers import check_scorer, choose_scorer
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

if TYPE_CHECKING:
    from posttrain.data.chat import Chat
    from posttrain.data.prompting import Prompting
    from posttrain.data.rows import Row
    from posttrain.evals.subject import Options, Subject

ITEMS = "items"  # journals of records, while the evaluation lasts
BLOCK = 256  # rows that are asked, and written down, at a time


class EvaluateSettings(Settings):
    """Settings of an evaluation."""

    model: Annotated[str, ReadsModel()] = Field(
        description="Hugging Face folder or hub id of the model to evaluate"
    )
    out: Annotated[Path, Destination()] = Field(
        description="folder for the results; the same command continues what is there"
    )
    against: Annotated[str | None, ReadsModel()] = Field(
        None, description="model to compare with, item by item"
    )
    tasks: TaskSettings = TaskSettings()  # type: ignore[call-arg]
    scorer: Annotated[str, ReadsScorer()] = Field(
        "",
        description=(
            "of --win: exact, contains, number, longest, shortest or FILE.py:FUNCTION; or give "
            "--reward-model"
        ),
    )
    reward_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="reward model that scores the answers of --win"
    )
    max_length: int = Field(
        1024,
        ge=2,
        description="tokens of a scored sequence at most; longer text is scored in windows",
    )
    prompting: PromptingSettings = PromptingSettings()  # type: ignore[call-arg]
    budget: Annotated[int | None, ExecutionOnly(rounding=True)] = Field(
        None, ge=2, description=f"tokens a forward pass. {UNSET_BUDGET}"
    )
    device: Device = ""

    @property
    def models(self) -> dict[str, str]:
        """The models to ask, by role: `model`, and `against` where there is one."""
        return {"model": self.model, **({"against": self.against} if self.against else {})}

    @property
    def scorer_spec(self) -> str:
        """The name of the scorer; empty where there is none."""
        return choose_scorer(self.scorer, self.reward_model)

    def check(self) -> None:
        if not any(True for _ in self.tasks.task_sources()):
            options = ", ".join(f"--{name}" for name in (*OWN, "task"))
            raise ConfigError("there is nothing to evaluate on", cure=f"give {options} with a file")
        scorers = [spec for spec in (self.scorer, self.reward_model) if spec]
        scored = self.tasks.needs_scorer or bool(self.tasks.task)
        missing = self.tasks.needs_scorer and not scorers
        if len(scorers) > 1 or (scorers and not scored) or missing:
            raise ConfigError(
                "--win needs a judge, and a judge needs --win",
                cure="give --scorer or --reward-model, one of them",
                option="win",
            )
        if scorers:
            check_scorer(self.scorer_spec)


@dataclass(frozen=True)
class Evaluation:
    """A task put to the rows of one source.

    Attributes:
        name: of its files and its place in the summary.
        task: what is asked.
        source: the rows.
    """

    name: str
    task: Task
    source: Source

    def file(self, role: str) -> str:
        """The name of the records' file: `role` is `model` or `against`."""
        suffix = "" if role == "model" else f".{role}"
        return f"{self.name}{suffix}.jsonl"


def _record_files(settings: EvaluateSettings) -> list[str]:
    """The files of records that an evaluation writes."""
    return [
        evaluation.file(role)
        for evaluation in _evaluations(settings)
        for role in ("model", "against")
    ]


@stage(
    "eval",
    EvaluateSettings,
    help="what a model can do, and what changed since another",
    files=Files(others=_record_files, scratch=(ITEMS,)),
)
def evaluate(settings: EvaluateSettings, context: Context) -> dict[str, Any]:
    """Evaluate a model on held-out text, questions and choices, or on tasks of yours; with
    --against, item by item against another.
    """
    evaluations = _evaluations(settings)
    if not context.began:
        _check_rows(settings, evaluations, context.reporter)
    promptings = _promptings(settings, context.reporter)
    records = {role: _records_of(settings, role, evaluations, context) for role in settings.models}
    return {
        "model": settings.model,
        "against": settings.against,
        "prompting": {role: vars(prompting) for role, prompting in promptings.items()},
        "level": LEVEL,
        "tasks": {one.name: _results(one, records) for one in evaluations},
    }


# ----------------------------------------------------------------------------- before anything runs


def _evaluations(settings: EvaluateSettings) -> list[Evaluation]:
    """Everything to evaluate, each with a name of its own."""
    from posttrain.evals.tasks import find_task

    evaluations: dict[str, Evaluation] = {}
    for spec, source in settings.tasks.task_sources():
        task = find_task(spec)
        name = f"{task.name}-{Path(source.path).name.split('.')[0]}"
        while name in evaluations:
            name += "-2"
        evaluations[name] = Evaluation(name, task, source)
    return list(evaluations.values())


def _check_rows(
    settings: EvaluateSettings, evaluations: list[Evaluation], reporter: Reporter
) -> None:
    """Refuse rows that one of the models cannot take, before anything runs.

    Raises:
        DataError: a task's check refuses a row.
    """
    from posttrain.data.tokens import Encoder
    from posttrain.engine.load import load_tokenizer, resolve

    read = [(evaluation.task.check, read_rows(evaluation.source)) for evaluation in evaluations]
    checked = [(check, rows) for check, rows in read if check]
    for path in settings.models.values() if checked else ():
        tokenizer = load_tokenizer(resolve(path))
        chat = _chat(settings, tokenizer, _prompting(settings, path))
        if settings.tasks.choice and chat.prompt_template is None and chat.lead:
            reporter.message(
                f"{path}: the chat template begins answers with {chat.lead!r}, and choices are "
                "scored right after the prompt, as lm-eval does; --template-kwargs "
                "enable_thinking=false puts it into the prompt, where the template knows that"
            )
        for check_rows, rows in checked:
            check_rows(chat, Encoder(tokenizer), _max_length(settings, path), rows)


def _prompting(settings: EvaluateSettings, path: str) -> Prompting:
    """How a model is asked: as it remembers, and as the settings say."""
    from posttrain.data.prompting import Prompting
    from posttrain.engine.load import resolve

    return Prompting.read(resolve(path)).overridden(settings.prompting)


def _promptings(settings: EvaluateSettings, reporter: Reporter) -> dict[str, Prompting]:
    """How each model is asked, by role; says so where it is out of the ordinary."""
    from posttrain.data.prompting import Prompting
    from posttrain.engine.load import resolve

    promptings: dict[str, Prompting] = {}
    for role, path in settings.models.items():
        promptings[role] = _prompting(settings, path)
        if described := promptings[role].described(Prompting.read(resolve(path))):
            reporter.note("prompts", f"{role}: {described}")
    return promptings


def _chat(settings: EvaluateSettings, tokenizer: Any, prompting: Prompting) -> Chat:
    from posttrain.data.chat import Chat

    chat = Chat.of(tokenizer, prompting)
    chat.delimiter = settings.tasks.choice_delimiter
    return chat


def _max_length(settings: EvaluateSettings, path: str) -> int:
    """Tokens of a sequence that a model scores at most."""
    from posttrain.engine.load import longest_position, resolve

    return min(settings.max_length, longest_position(resolve(path)) or settings.max_length)


# ------------------------------------------------------------------------------------------- asking


def _records_of(
    settings: EvaluateSettings, role: str, evaluations: list[Evaluation], context: Context
) -> dict[str, list[Record]]:
    """One model's records of every evaluation; those that were made before are read back: from
    the journal of this run, or from the files of a finished one that are as it left them.
    """
    path, reporter = settings.models[role], context.reporter
    records: dict[str, list[Record]] = {}
    loaded: _LoadedModel | None = None
    for evaluation in evaluations:
        name, file = evaluation.name, context.folder / evaluation.file(role)
        if file.name in context.intact:
            records[name] = _relocated(read_records(file), evaluation.source)
            continue
        rows = read_rows(evaluation.source)
        key = {"identity": context.inputs.identity(), "role": role, "name": name}
        journal = Journal(context.folder / ITEMS / file.stem, key, message=reporter.message)
        if (done := _complete(journal, len(rows))) is not None:
            records[name] = _relocated(done, evaluation.source)
            write_records(file, records[name])
            continue
        loaded = loaded or _LoadedModel(settings, path, reporter)
        records[name] = loaded.records(evaluation, rows, journal, context)
        _account(evaluation, len(rows), records[name], loaded.subject.max_length, reporter)
        context.claim()  # not before: a bad row can be corrected
        write_records(file, records[name])
        chances = evaluation.task.chances(records[name])
        for metric, found in evaluation.task.estimates(records[name]).items():
            label = evaluation.task.metrics[metric].label or metric
            by_chance = f", chance {chances[metric]:.3f}" if metric in chances else ""
            measured = f"{shown(found.json())}{by_chance}"
            reporter.note("measured", f"{role} {name}, {label}: {measured}")
    return records


def _complete(journal: Journal, rows: int) -> list[Record] | None:
    """The records of a journal that has those of all rows."""
    if not (journal.folder / RECORDS).is_file():
        return None
    with journal:
        if len(journal) * BLOCK < rows:
            return None
        return [Record(**record) for entry in journal for record in entry.value]


@dataclass
class _LoadedModel:
    """A loaded model that answers block by block, so that what was answered outlives a kill."""

    settings: EvaluateSettings
    path: str
    reporter: Reporter
    label: str = ""
    first: int = 0
    rows: int = 0
    subject: Subject = field(init=False)

    def __post_init__(self) -> None:
        self.subject = _subject(self.settings, self.path, self.reporter, self._progress)

    def _progress(self, done: int, total: int) -> None:
        """How far a block is, as rows of the whole."""
        size = min(BLOCK, self.rows - self.first)
        self.reporter.progress(self.label, self.first + size * done // max(1, total), self.rows)

    def records(
        self, evaluation: Evaluation, rows: list[Row], journal: Journal, context: Context
    ) -> list[Record]:
        """The records of rows: those in the journal, and then the others."""
        self.label, self.rows = evaluation.name, len(rows)
        with journal:
            for self.first in range(len(journal) * BLOCK, len(rows), BLOCK):
                block = evaluation.task.ask(self.subject, rows[self.first : self.first + BLOCK])
                if len(rows) > BLOCK:
                    context.claim()
                context.check_inputs()
                journal.append([vars(record) for record in block])
                journal.flush()
            records = [Record(**record) for entry in journal for record in entry.value]
            return _relocated(records, evaluation.source)


def _relocated(records: list[Record], source: Source) -> list[Record]:
    """Records of a file that may have been moved since some of them were made, each item named by
    where the file is now, so that two models' records pair.
    """
    path = Path(source.path)
    if not path.is_file():
        return records
    relocated: list[Record] = []
    for record in records:
        _, sign, line = record.item.partition(f"{path.name}:")
        relocated.append(replace(record, item=f"{path}:{line}") if sign else record)
    return relocated


def _account(
    evaluation: Evaluation, rows: int, records: list[Record], max_length: int, reporter: Reporter
) -> None:
    """Say how many rows gave no record.

    Raises:
        DataError: none gave one, or two records are of one item.
    """
    if not records:
        raise DataError(
            f"nothing of {evaluation.source} can be scored",
            cure=(
                "look at the file; or raise --max-length, or lower "
                "--max-tokens, if its rows are long"
            ),
        )
    items = {record.item for record in records}
    if len(items) < len(records):
        raise DataError(
            f"the task {evaluation.task.name} gives several records of one item",
            where=str(evaluation.source),
            cure="give every record an item of its own, for example ROW#1, ROW#2",
        )
    if (left_out := rows - len(items)) > 0:
        reporter.message(
            f"{evaluation.name}: {left_out:,} of {rows:,} rows are left out: they do not fit "
            f"{max_length:,} tokens, or hold nothing to score"
        )


def _subject(
    settings: EvaluateSettings, path: str, reporter: Reporter, progress: Callable[[int, int], None]
) -> Subject:
    """A model, loaded, with how it is talked to."""
    from posttrain.engine.policy import Policy
    from posttrain.evals.subject import Subject

    policy = Policy.load(path, device=settings.device)
    policy.tell = reporter.message
    for note in policy.notes:
        reporter.message(note)
    return Subject(
        policy,
        _chat(settings, policy.tokenizer, policy.prompting.overridden(settings.prompting)),
        policy.budget(settings.budget, settings.max_length),
        _max_length(settings, path),
        progress,
        _options(settings),
    )


def _options(settings: EvaluateSettings) -> Options:
    from posttrain.evals.subject import Options

    tasks = settings.tasks
    return Options(
        tasks.max_tokens, tasks.match, settings.scorer_spec, tasks.judge_thinking, settings.device
    )


# ------------------------------------------------------------------------------------------ results


def _results(
    evaluation: Evaluation, records: Mapping[str, Mapping[str, list[Record]]]
) -> dict[str, Any]:
    """The metrics of an evaluation, and differences where there is a model to compare with."""
    name, task = evaluation.name, evaluation.task
    after = records["model"][name]
    results: dict[str, Any] = {
        "task": task.name,
        "file": evaluation.source.path,
        "labels": {name: metric.label or name for name, metric in task.metrics.items()},
        "metrics": _json(task.estimates(after)),
        "chance": task.chances(after),
    }
    if "against" in records:
        before = records["against"][name]
        results["against"] = _json(task.estimates(before))
        results["difference"] = _json(task.differences(after, before))
    return results


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: value.json() for name, value in estimates.items()}


def shown(value: dict[str, Any]) -> str:
    """`0.512 [0.468, 0.556], n = 500`"""
    return f"{estimate(value)}, n = {value['n']:,}"
