"""Evaluation: what a model can do, and what changed since another.

The folder holds
    run.json            what was evaluated: settings, digests of models, data and scorers, version
    TASK-FILE.jsonl     the record of every item; TASK-FILE.against.jsonl those of the other model
    summary.json        every metric with n, mean and interval, and paired differences; written last

The tasks are those of `posttrain.evals.tasks`, and users' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver, open_reporter
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import explained_writes, lock, remove_partial, write_json
from posttrain.core.identity import check, claim
from posttrain.core.settings import Settings, assemble
from posttrain.core.version import __version__
from posttrain.data.settings import Source
from posttrain.data.sources import digest as data_digest
from posttrain.evals.records import Record, read_records, write_records
from posttrain.evals.settings import OWN, TaskSettings
from posttrain.evals.stats import LEVEL
from posttrain.evals.task import Task, read_rows
from posttrain.scoring.scorers import check_scorer, choose_scorer, scorer_digest

if TYPE_CHECKING:
    from posttrain.evals.subject import Options, Subject


class EvaluateSettings(Settings):
    """Settings of an evaluation."""

    model: str = Field(description="Hugging Face folder or hub id of the model to evaluate")
    out: Path = Field(
        description="folder for the results; the same command continues what is there"
    )
    against: str | None = Field(None, description="model to compare with, item by item")
    tasks: TaskSettings = TaskSettings()  # type: ignore[call-arg]
    scorer: str = Field(
        "",
        description=(
            "of --win: exact, contains, number, longest, shortest or FILE.py:FUNCTION; or give"
            " --reward-model"
        ),
    )
    reward_model: str | None = Field(
        None, description="reward model that scores the answers of --win"
    )
    max_length: int = Field(
        1024,
        ge=2,
        description="tokens of a scored sequence at most; longer text is scored in windows",
    )
    prompt_template: str | None = Field(
        None,
        description=(
            "ask in plain text, the question written like this; {prompt} stands for it. Unset: the"
            " chat template"
        ),
    )
    budget: int | None = Field(
        None, ge=2, description="tokens a forward pass. Unset: 4096 on a CPU, 16384 on a GPU"
    )
    device: Literal["", "cpu", "cuda"] = Field("", description="unset: the GPU where there is one")

    @property
    def models(self) -> dict[str, str]:
        """The models to ask, by role: `model`, and `against` where there is one."""
        return {"model": self.model, **({"against": self.against} if self.against else {})}

    @property
    def scorer_spec(self) -> str:
        """The name of the scorer; empty where there is none."""
        return choose_scorer(self.scorer, self.reward_model)


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
        return f"{self.name}{'' if role == 'model' else f'.{role}'}.jsonl"


def evaluate(*, quiet: bool = False, **settings: Any) -> dict[str, Any]:
    """Evaluate a model, in one line; returns the summary.

    `posttrain.evaluate(model="runs/first/model", against="path/to/base", exact="held-out.jsonl",
    out="runs/first-eval")`

    Args:
        quiet: show nothing but trouble.
        settings: the command line's options, with underscores (`posttrain eval --help`).
    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    for name in (*OWN, "task"):
        if isinstance(settings.get(name), (str, Path, Source, Mapping)):
            settings[name] = (settings[name],)
    for name in ("model", "against", "reward_model"):
        if isinstance(settings.get(name), Path):
            settings[name] = str(settings[name])
    return run(assemble(EvaluateSettings, settings), open_reporter(quiet=quiet))


def run(settings: EvaluateSettings, observer: ConsoleObserver) -> dict[str, Any]:
    """Evaluate, or go on with an evaluation, or say that it is done; returns the summary.

    Raises:
        PosttrainError: nothing to do, or a file, model, task or scorer that cannot be used.
    """
    _check(settings)
    evaluations = _evaluations(settings)
    folder, models, identity = settings.out, settings.models, _identity(settings, evaluations)
    files = [evaluation.file(role) for evaluation in evaluations for role in ("model", "against")]
    with lock(folder), explained_writes(folder):
        check(folder, identity, ("summary.json", *files))
        if (folder / "summary.json").is_file():
            observer.note("finished", f"{folder} already holds this evaluation; nothing to do")
            return json.loads((folder / "summary.json").read_text())
        if not (folder / "run.json").is_file():
            _check_rows(settings, evaluations)
        remove_partial(folder)
        records = {role: _asked(settings, role, evaluations, identity, observer) for role in models}
        summary = {
            "posttrain": __version__,
            "model": settings.model,
            "against": settings.against,
            "models_sha256": identity["models_sha256"],
            "level": LEVEL,
            "tasks": {one.name: _results(one, records) for one in evaluations},
        }
        write_json(folder / "summary.json", summary)
    return summary


# ----------------------------------------------------------------------------- before anything runs


def _check(settings: EvaluateSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: nothing to do; a scorer without something to score, or the reverse.
    """
    asked = any(True for _ in settings.tasks.task_sources())
    if not asked:
        options = ", ".join(f"--{name}" for name in (*OWN, "task"))
        raise ConfigError("there is nothing to evaluate on", cure=f"give {options} with a file")
    scorers = [spec for spec in (settings.scorer, settings.reward_model) if spec]
    scored = settings.tasks.needs_scorer or bool(settings.tasks.task)
    if (
        len(scorers) > 1
        or (scorers and not scored)
        or (settings.tasks.needs_scorer and not scorers)
    ):
        raise ConfigError(
            "--win needs a judge, and a judge needs --win",
            cure="give --scorer or --reward-model, one of them",
        )
    if scorers:
        check_scorer(settings.scorer_spec)


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


def _identity(settings: EvaluateSettings, evaluations: list[Evaluation]) -> dict[str, Any]:
    """Everything the result depends on."""
    from posttrain.engine.load import digest, resolve
    from posttrain.evals.tasks import task_digest

    models = {role: digest(resolve(path)) for role, path in settings.models.items()}
    spec = settings.scorer_spec
    if settings.reward_model:
        models["reward_model"] = scorer_digest(spec)
    code = {spec: "" if settings.reward_model else scorer_digest(spec)}
    code |= {one.task.name: task_digest(one.task) for one in evaluations}
    outside = {"out", "device", "budget", "model", "against", "reward_model"}
    identity: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", exclude=outside),
        "models_sha256": models,
        "data_sha256": {k: v for one in evaluations for k, v in data_digest(one.source).items()},
    }
    if users := {name: value for name, value in code.items() if value}:
        identity["code_sha256"] = users
    return identity


def _check_rows(settings: EvaluateSettings, evaluations: list[Evaluation]) -> None:
    """Refuse rows that one of the models cannot take, before anything runs.

    Raises:
        DataError: a task's check refuses a row.
    """
    from posttrain.data.chat import Chat
    from posttrain.data.tokens import Encoder
    from posttrain.engine.load import load_tokenizer, resolve

    checked = [(one.task.check, read_rows(one.source)) for one in evaluations if one.task.check]
    for path in settings.models.values() if checked else ():
        tokenizer = load_tokenizer(resolve(path))
        chat = Chat(tokenizer, prompt_template=settings.prompt_template)
        for check_rows, rows in checked:
            assert check_rows is not None
            check_rows(chat, Encoder(tokenizer), _max_length(settings, path), rows)


def _max_length(settings: EvaluateSettings, path: str) -> int:
    """Tokens of a sequence that a model scores at most."""
    from posttrain.engine.load import longest_position, resolve

    return min(settings.max_length, longest_position(resolve(path)) or settings.max_length)


# ------------------------------------------------------------------------------------------- asking


def _asked(
    settings: EvaluateSettings,
    role: str,
    evaluations: list[Evaluation],
    identity: dict[str, Any],
    observer: ConsoleObserver,
) -> dict[str, list[Record]]:
    """One model's records of every evaluation; those that are there are read back."""
    folder, path = settings.out, settings.models[role]
    records: dict[str, list[Record]] = {}
    subject: Subject | None = None
    for evaluation in evaluations:
        name, file = evaluation.name, folder / evaluation.file(role)
        if file.is_file() and (folder / "run.json").is_file():
            records[name] = read_records(file)
            continue
        rows = read_rows(evaluation.source)
        subject = subject or _subject(settings, path, observer, name)
        records[name] = evaluation.task.ask(subject, rows)
        _account(evaluation, len(rows), records[name], subject.max_length, observer)
        claim(folder, identity, __version__)  # not before: a bad row can be corrected
        write_records(file, records[name])
        for metric, estimate in evaluation.task.estimates(records[name]).items():
            text = shown(estimate.json())
            observer.note("measured", f"{Path(path).name} {name} {metric}: {text}")
    return records


def _account(
    evaluation: Evaluation,
    rows: int,
    records: list[Record],
    max_length: int,
    observer: ConsoleObserver,
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
        observer.message(
            f"{evaluation.name}: {left_out:,} of {rows:,} rows are left out: they do not fit"
            f" {max_length:,} tokens, or hold nothing to score"
        )


def _subject(
    settings: EvaluateSettings, path: str, observer: ConsoleObserver, label: str
) -> Subject:
    """A model, loaded, with how it is talked to."""
    from posttrain.data.chat import Chat
    from posttrain.engine.policy import Policy
    from posttrain.evals.subject import Subject

    policy = Policy.load(path, device=settings.device)
    for reason in policy.notes:
        observer.message(reason)
    budget = policy.budget(settings.budget)
    return Subject(
        policy,
        Chat(policy.tokenizer, prompt_template=settings.prompt_template),
        max(budget, settings.max_length),
        _max_length(settings, path),
        partial(observer.progress, label),
        _options(settings),
    )


def _options(settings: EvaluateSettings) -> Options:
    from posttrain.evals.subject import Options

    tasks = settings.tasks
    return Options(tasks.max_tokens, tasks.match, settings.scorer_spec, settings.device)


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
        "labels": {metric: one.label or metric for metric, one in task.metrics.items()},
        "metrics": {metric: one.json() for metric, one in task.estimates(after).items()},
    }
    if "against" in records:
        before = records["against"][name]
        differences = task.differences(after, before)
        results["against"] = {metric: one.json() for metric, one in task.estimates(before).items()}
        results["difference"] = {metric: one.json() for metric, one in differences.items()}
    return results


def shown(estimate: dict[str, Any]) -> str:
    """`0.512 [0.468, 0.556], n = 500`"""
    interval = (
        "" if estimate["low"] is None else f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    )
    return f"{estimate['mean']:.3f}{interval}, n = {estimate['n']:,}"
