"""Settings of an evaluation's tasks: the package's own by name, and others as `TASK=FILE`.

No torch here, so that help and validation are instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from posttrain.core.errors import ConfigError
from posttrain.core.settings import Needs, ReadsRows, Settings
from posttrain.data.settings import Rows, Source, Sourced, optional_unescaped

OWN = ("perplexity", "exact", "choice", "prefer", "win")  # each is a field of `TaskSettings`


class TaskSource(Source):
    """Rows, and the task that is put to them: `FILE.py:NAME=PATH[,KEY=VALUE]…`."""

    task: str = Field(min_length=1, description="FILE.py:NAME, or the name of a registered task")


def _parse(value: Any) -> Any:
    """`TASK=SOURCE`, or a mapping of the fields → a TaskSource."""
    if isinstance(value, str):
        name, sign, rest = value.partition("=")
        if not sign or not rest:
            raise ConfigError(
                f"{value!r} does not say which task and which file", cure="write TASK=FILE"
            )
    elif isinstance(value, dict):
        rest = {str(key): given for key, given in value.items()}
        name = rest.pop("task", "")
    else:
        return value
    source = TypeAdapter(Sourced).validate_python(rest)
    return TaskSource(task=name, **source.model_dump())


class TaskSettings(Settings):
    """Which tasks are put to which rows."""

    perplexity: Rows = Field(
        (), description="held-out text; files are given like --data of posttrain sft"
    )
    exact: Rows = Field((), description="questions with the answer that must be written")
    choice: Rows = Field((), description="rows with question, choices and answer_index")
    prefer: Rows = Field(
        (), description="pairs of chosen and rejected answers, to be told apart by likelihood"
    )
    win: Rows = Field(
        (), description="prompts whose written answers --scorer scores; with --against, who wins"
    )
    task: Annotated[tuple[Annotated[TaskSource, BeforeValidator(_parse)], ...], ReadsRows()] = (
        Field((), description="a task of yours and its rows: FILE.py:NAME=ROWS")
    )
    match: Annotated[Literal["exact", "contains", "number"], Needs("exact", "task")] = Field(
        "exact",
        description=(
            "when a written answer is right: the same text, the text in it, or the same last number"
        ),
    )
    judge_thinking: Annotated[bool, Needs("exact", "win", "task")] = Field(
        False, description="judge all that was written, not the answer without its thinking"
    )
    choice_delimiter: Annotated[
        str | None, AfterValidator(optional_unescaped), Needs("choice", "task")
    ] = Field(
        None,
        description=(
            "text between a question and its choices. Unset: a space in plain text, nothing after "
            "the chat template, and never one more where there is white space"
        ),
    )
    max_tokens: Annotated[int, Needs("exact", "win", "task")] = Field(
        64, ge=1, description="tokens of a written answer at most"
    )

    def task_sources(self) -> Iterator[tuple[str, Source]]:
        """Every task by name, and the rows it is put to."""
        for name in OWN:
            for source in getattr(self, name):
                yield name, source
        for source in self.task:
            yield source.task, source

    @property
    def needs_scorer(self) -> bool:
        """Whether answers are written that a scorer has to score."""
        return bool(self.win)
