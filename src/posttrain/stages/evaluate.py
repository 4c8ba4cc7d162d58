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
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.core.console import ConsoleObserver, open_reporter
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import explained_writes, lock, remove_partial, write_atomic, write_json
from posttrain.core.identity import check, claim
from posttrain.core.settings import Settings, assemble
from posttrain.core.version import __version__
from posttrain.data.settings import Source, Sourced
from posttrain.data.sources import digest as data_digest

if TYPE_CHECKING:
    from posttrain.evals.tasks import Record, Subject
    from posttrain.scoring.scorers import Scorer

TASKS = ("perplexity", "exact", "choice", "prefer", "win")


class EvaluateSettings(Settings):
    """Settings of an evaluation."""

    model: str = Field(description="Hugging Face folder or hub id of the model to evaluate")
    out: Path = Field(
        description="folder for the results; the same command continues what is there"
    )
    against: str | None = Field(None, description="model to compare with, item by item")
    perplexity: tuple[Sourced, ...] = Field(
        (), description="held-out text; files are given like --data of posttrain sft"
    )
    exact: tuple[Sourced, ...] = Field(
        (), description="questions with the answer that must be written"
    )
    choice: tuple[Sourced, ...] = Field(
        (), description="rows with question, choices and answer_index"
    )
    prefer: tuple[Sourced, ...] = Field(
        (), description="pairs of chosen and rejected answers, to be told apart by likelihood"
    )
    win: tuple[Sourced, ...] = Field(
        (), description="prompts whose written answers --scorer judges; with --against, who wins"
    )
    scorer: str = Field(
        "",
        description="of --win: exact, contains, number, longest, shortest; or give --reward-model",
    )
    reward_model: str | None = Field(
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
    budget: int | None = Field(
        None, ge=2, description="tokens a forward pass. Unset: 4096 on a CPU, 16384 on a GPU"
    )
    device: Literal["", "cpu", "cuda"] = Field("", description="unset: the GPU where there is one")


def evaluate(*, quiet: bool = False, **settings: Any) -> dict[str, Any]:
    """Evaluate a model, in one line; returns the summary.

    `posttrain.evaluate(model="runs/first/model", against="path/to/base", exact="held-out.jsonl",
    out="runs/first-eval")`

    Raises:
        PosttrainError: with what is wrong and the cure.
    """
    for name in TASKS:
        if isinstance(settings.get(name), (str, Path, Source)):
            settings[name] = (settings[name],)
    for name in ("model", "against", "reward_model"):
        if isinstance(settings.get(name), Path):
            settings[name] = str(settings[name])
    return run(assemble(EvaluateSettings, settings), open_reporter(quiet=quiet))


def run(settings: EvaluateSettings, observer: ConsoleObserver) -> dict[str, Any]:
    """Evaluate, or go on with an evaluation, or say that it is done; returns the summary.

    Raises:
        PosttrainError: nothing to do, or a file or model that cannot be used.
    """
    chosen = list(_chosen(settings))
    if not chosen:
        raise ConfigError(
            "there is nothing to evaluate on",
            cure=f"give {', '.join(f'--{t}' for t in TASKS)} with a file",
        )
    if bool(settings.win) != bool(settings.scorer or settings.reward_model) or (
        settings.scorer and settings.reward_model
    ):
        raise ConfigError(
            "--win needs a judge, and a judge needs --win",
            cure="give --scorer or --reward-model, one of them",
        )
    from posttrain.engine.load import digest, resolve

    folder, models = (
        settings.out,
        {"model": settings.model, **({"against": settings.against} if settings.against else {})},
    )
    judges = {"reward_model": settings.reward_model} if settings.reward_model else {}
    fixed = settings.model_dump(
        mode="json", exclude={"out", "device", "budget", "model", "against", "reward_model"}
    )
    identity = {
        "settings": fixed,
        "models_sha256": {
            name: digest(resolve(path)) for name, path in {**models, **judges}.items()
        },
        "data_sha256": {k: v for _, source, _ in chosen for k, v in data_digest(source).items()},
    }
    with lock(folder), explained_writes(folder):
        check(
            folder,
            identity,
            (
                "summary.json",
                *(f"{name}{end}.jsonl" for name, _, _ in chosen for end in ("", ".against")),
            ),
        )
        if (folder / "summary.json").is_file():
            observer.note("finished", f"{folder} already holds this evaluation; nothing to do")
            return json.loads((folder / "summary.json").read_text())
        if not (folder / "run.json").is_file():
            _check_choices(settings, models, chosen)
        remove_partial(folder)
        records = {
            role: _records(settings, path, role, chosen, folder, identity, observer)
            for role, path in models.items()
        }
        summary = {
            "posttrain": __version__,
            "model": settings.model,
            "against": settings.against,
            "models_sha256": identity["models_sha256"],
            "tasks": _compare(chosen, records),
        }
        write_json(folder / "summary.json", summary)
    return summary


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
    folder: Path,
    identity: dict[str, Any],
    observer: ConsoleObserver,
) -> dict[str, list[Record]]:
    """What one model makes of every item; tasks that are done are read back."""
    from posttrain.evals import comparing, tasks

    files = {
        name: folder / f"{name}{'' if role == 'model' else '.against'}.jsonl"
        for name, _, _ in chosen
    }
    found: dict[str, list[Record]] = {}
    subject: Subject | None = None
    for name, source, task in chosen:
        if files[name].is_file() and (folder / "run.json").is_file():
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
        claim(folder, identity, __version__)  # not before: a bad row can be corrected
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
    for reason in policy.notes:
        observer.message(reason)
    budget = policy.budget(settings.budget)
    chat = Chat(policy.tokenizer, prompt_template=settings.prompt_template)
    if settings.prompt_template is None and (settings.exact or settings.win):
        policy.set_chat(
            chat.template.source, chat.stop
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
