"""Evaluation: what a model can do, and what changed since another.

The folder holds
    run.json            what was evaluated: settings, digests of models and data, version
    TASK-FILE.jsonl     one line an item: what the model made of it
    summary.json        every metric with n, mean and interval, and paired differences; written last
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver
from posttrain.core.defaults import UNSET_BUDGET, token_budget
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import write_atomic
from posttrain.core.settings import Destination, ExecutionOnly, ReadsModel, ReadsScorer, Settings
from posttrain.data.settings import Rows, Source
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage

if TYPE_CHECKING:
    from posttrain.evals.tasks import Record, Subject
    from posttrain.scoring.scorers import Scorer

TASKS = ("perplexity", "exact", "choice", "prefer", "win")


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
    perplexity: Rows = Field(
        (), description="held-out text; files are given like --data of posttrain sft"
    )
    exact: Rows = Field((), description="questions with the answer that must be written")
    choice: Rows = Field((), description="rows with question, choices and answer_index")
    prefer: Rows = Field(
        (), description="pairs of chosen and rejected answers, to be told apart by likelihood"
    )
    win: Rows = Field(
        (), description="prompts whose written answers --scorer judges; with --against, who wins"
    )
    scorer: Annotated[str, ReadsScorer()] = Field(
        "",
        description="of --win: exact, contains, number, longest, shortest; or give --reward-model",
    )
    reward_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="reward model that judges the answers of --win"
    )
    match: Literal["exact", "contains", "number"] = Field(
        "exact",
        description=(
            "when a written answer is right: the same text, the text in it, or the same last number"
        ),
    )
    max_tokens: int = Field(64, ge=1, description="tokens of a written answer at most")
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
    budget: Annotated[int | None, ExecutionOnly(rounding=True)] = Field(
        None, ge=2, description=f"tokens a forward pass. {UNSET_BUDGET}"
    )
    device: Annotated[Literal["", "cpu", "cuda"], ExecutionOnly()] = Field(
        "", description="unset: the GPU where there is one"
    )

    def check(self) -> None:
        if not any(getattr(self, task) for task in TASKS):
            raise ConfigError(
                "there is nothing to evaluate on",
                cure=f"give {', '.join(f'--{t}' for t in TASKS)} with a file",
            )
        if bool(self.win) != bool(self.scorer or self.reward_model) or (
            self.scorer and self.reward_model
        ):
            raise ConfigError(
                "--win needs a judge, and a judge needs --win",
                cure="give --scorer or --reward-model, one of them",
                option="win",
            )


def _items(settings: EvaluateSettings) -> list[str]:
    """The files of items that an evaluation writes."""
    return [f"{name}{end}.jsonl" for name, _, _ in _chosen(settings) for end in ("", ".against")]


@stage(
    "eval",
    EvaluateSettings,
    help="what a model can do, and what changed since another",
    files=Files(others=_items),
)
def evaluate(settings: EvaluateSettings, context: Context) -> dict[str, Any]:
    """Evaluate a model on held-out text, questions and choices; with --against, item by item
    against another.
    """
    chosen = list(_chosen(settings))
    models = {"model": settings.model}
    if settings.against:
        models["against"] = settings.against
    if not context.began:
        _check_choices(settings, models, chosen)
    records = {
        role: _records(settings, path, role, chosen, context) for role, path in models.items()
    }
    return {
        "model": settings.model,
        "against": settings.against,
        "tasks": _compare(chosen, records),
    }


def _chosen(settings: EvaluateSettings) -> Iterator[tuple[str, Source, str]]:
    """(name, source, task) of everything to evaluate on."""
    seen: set[str] = set()
    for task in TASKS:
        for source in getattr(settings, task):
            name = f"{task}-{Path(source.path).name.split('.')[0]}"
            while name in seen:
                name += "-2"
            seen.add(name)
            yield name, source, task


def _check_choices(
    settings: EvaluateSettings, models: dict[str, str], chosen: list[tuple[str, Source, str]]
) -> None:
    """Refuse multiple-choice items that one of the models cannot take, before anything runs."""
    from posttrain.data.chat import Chat
    from posttrain.data.tokens import Encoder
    from posttrain.engine.load import load_tokenizer, resolve
    from posttrain.evals import tasks

    some = [tasks.rows(source) for _, source, task in chosen if task == "choice"]
    for path in models.values() if some else ():
        tokenizer = load_tokenizer(resolve(path))
        chat, encoder = (
            Chat(tokenizer, prompt_template=settings.prompt_template),
            Encoder(tokenizer),
        )
        for items in some:
            tasks.choices(chat, encoder, _longest(settings, path), items)


def _longest(settings: EvaluateSettings, path: str) -> int:
    """Tokens of a sequence that a model scores at most."""
    from posttrain.engine.load import longest_position, resolve

    return min(settings.max_length, longest_position(resolve(path)) or settings.max_length)


def _records(
    settings: EvaluateSettings,
    path: str,
    role: str,
    chosen: list[tuple[str, Source, str]],
    context: Context,
) -> dict[str, list[Record]]:
    """What one model makes of every item; tasks that are done are read back."""
    from posttrain.evals import comparing, tasks

    folder, observer = context.folder, context.observer
    files = {
        name: folder / f"{name}{'' if role == 'model' else '.against'}.jsonl"
        for name, _, _ in chosen
    }
    found: dict[str, list[Record]] = {}
    subject: Subject | None = None
    for name, source, task in chosen:
        if context.began and files[name].is_file():
            found[name] = [
                json.loads(line)
                for line in files[name].read_text(encoding="utf-8").split("\n")
                if line
            ]
            continue
        items = tasks.rows(source)
        subject = subject or _subject(settings, path, observer, f"{name}")
        if task == "exact":
            found[name] = tasks.exact(
                subject, items, match=settings.match, max_tokens=settings.max_tokens
            )
        elif task == "win":
            found[name] = comparing.win(
                subject, source, _scorer(settings), max_tokens=settings.max_tokens
            )
        else:
            work = {
                "perplexity": tasks.perplexity,
                "choice": tasks.choice,
                "prefer": comparing.prefer,
            }[task]
            found[name] = work(subject, items)
        if not found[name]:
            raise DataError(
                f"nothing of {source} can be scored",
                cure=(
                    "look at the file; or raise --max-length, or lower "
                    "--max-tokens, if its rows are long"
                ),
            )
        if task in ("prefer", "win") and (lost := len(items) - len(found[name])):
            observer.message(
                f"{name}: {lost:,} of {len(items):,} rows do not fit {subject.max_length:,} tokens"
                " and are left out"
            )
        context.claim()  # not before: a bad row can be corrected
        write_atomic(
            files[name], "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found[name])
        )
        for metric, estimate in _arithmetic(task).metrics(task, found[name]).items():
            observer.note(
                "measured", f"{Path(path).name} {name} {metric}: {shown(estimate.json())}"
            )
    return found


def _arithmetic(task: str) -> Any:
    """Where the metrics of a task are."""
    from posttrain.evals import comparing, tasks

    return comparing if task in ("prefer", "win") else tasks


@lru_cache(maxsize=1)
def _judge(spec: str, device: str, digest: str) -> Scorer:
    from posttrain.evals.scorers import open_scorer

    return open_scorer(spec, device)


def _scorer(settings: EvaluateSettings) -> Scorer:
    """What judges written answers; a reward model is loaded once, and again where its files have
    changed.
    """
    if settings.reward_model is None:
        return _judge(settings.scorer, settings.device, "")
    from posttrain.engine.load import digest, resolve

    return _judge(
        f"reward:{settings.reward_model}", settings.device, digest(resolve(settings.reward_model))
    )


def _subject(
    settings: EvaluateSettings, path: str, observer: ConsoleObserver, label: str
) -> Subject:
    from functools import partial

    from posttrain.data.chat import Chat
    from posttrain.engine.policy import Policy
    from posttrain.evals.tasks import Subject

    policy = Policy.load(path, device=settings.device)
    for reason in policy.model.admission.reasons:
        observer.message(reason)
    budget = token_budget(settings.budget, policy.model.device.type)
    chat = Chat(policy.tokenizer, prompt_template=settings.prompt_template)
    if settings.prompt_template is None and (settings.exact or settings.win):
        policy.converse(
            chat.template, chat.stop
        )  # so that answers end where the template ends them
    return Subject(
        policy,
        chat,
        max(budget, settings.max_length),
        _longest(settings, path),
        partial(observer.progress, label),
    )


def _compare(
    chosen: list[tuple[str, Source, str]], records: dict[str, dict[str, list[Record]]]
) -> dict[str, Any]:
    """Metrics of every task, and differences where there is a model to compare with."""
    out: dict[str, Any] = {}
    for name, source, task in chosen:
        mine, arithmetic = records["model"][name], _arithmetic(task)
        one: dict[str, Any] = {
            "task": task,
            "file": source.path,
            "metrics": {k: v.json() for k, v in arithmetic.metrics(task, mine).items()},
        }
        if "against" in records:
            theirs = records["against"][name]
            one["against"] = {k: v.json() for k, v in arithmetic.metrics(task, theirs).items()}
            one["difference"] = {
                k: v.json() for k, v in arithmetic.differences(task, mine, theirs).items()
            }
        out[name] = one
    return out


def shown(estimate: dict[str, Any]) -> str:
    """`0.512 [0.468, 0.556], n = 500`"""
    interval = (
        "" if estimate["low"] is None else f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    )
    return f"{estimate['mean']:.3f}{interval}, n = {estimate['n']:,}"
