"""Which rows are trained on, and how they become tokens.

No torch here, so that help and validation are instant.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from posttrain.core.errors import ConfigError, nearest
from posttrain.core.settings import (
    DEEPEST,
    ReadsFile,
    ReadsRows,
    Settings,
    Unless,
    assemble,
    too_deep,
)

COLUMNS = (
    "text",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "reference",
    "margin",
    "votes",
    "label",
    "completions",
    "labels",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "tools",
    "chat_template_kwargs",
    "question",
    "choices",
    "answer_index",
)


class Source(Settings):
    """Where rows come from, how many are taken and how often.

    On the command line it is `PATH[,KEY=VALUE]…`, for example
    `train.jsonl,weight=2,limit=1000,prompt=question`.
    """

    path: str = Field(
        min_length=1, description="file, folder, quoted glob, or hub id of a data set"
    )
    split: str = Field("train", description="split of a folder or hub data set")
    subset: str | None = Field(None, description="configuration of a hub data set")
    weight: float | None = Field(
        None, gt=0, description="share of an epoch's rows, beside the other sources' weights"
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of an epoch's rows, whatever the others are: for replay",
    )
    epochs: float = Field(1.0, gt=0, description="passes over this source in one epoch of the run")
    limit: int | None = Field(None, ge=1, description="rows at most: the first ones")
    columns: dict[str, str] = Field(default_factory=dict, description="our column → the file's")
    ignore: tuple[str, ...] = Field((), description="columns of the file that are not read")

    @model_validator(mode="after")
    def _one_way(self) -> Source:
        if self.share is not None and (self.weight is not None or self.epochs != 1):
            raise ConfigError(
                f"{self.path} has a share, which leaves no room for a weight or epochs of its own",
                cure="give share=, or weight= or epochs=",
            )
        return self

    def __str__(self) -> str:
        return self.path


def _parse(value: Any) -> Any:
    """A Source from `PATH,key=value` or a mapping of its fields.

    Raises:
        ConfigError: with the field and the file.
    """
    if not isinstance(value, (str, Path, dict)):
        return value
    if isinstance(value, dict):
        fields = {str(key): field for key, field in value.items()}
    else:
        fields = _fields(str(value))
    if "path" not in fields:
        raise ConfigError(f"{value!r} does not say which file", cure="give path, the file, too")
    path = str(fields["path"])
    try:
        return assemble(Source, fields)
    except ConfigError as error:
        if not error.what.startswith(path):  # errors of the source as a whole name it already
            error.what = f"{path if isinstance(value, dict) else str(value)!r}: {error.what}"
        raise


def _fields(text: str) -> dict[str, Any]:
    """The fields of `PATH,key=value`. A path may have commas of its own."""
    options = [name for name in Source.model_fields if name not in ("path", "columns")]
    path = text
    fields: dict[str, Any] = {}
    columns: dict[str, str] = {}
    while not os.path.exists(path) and "," in path:
        path, _, option = path.rpartition(",")
        key, equals, value = option.partition("=")
        if not equals or key not in (*options, *COLUMNS):
            raise ConfigError(
                f"{text!r}: {option!r} is not KEY=VALUE with a known key",
                cure=nearest(key, (*options, *COLUMNS)),
            )
        if key == "ignore":  # may come several times
            fields[key] = (value, *fields.get(key, ()))
            continue
        target = fields if key in options else columns
        if key in target:
            raise ConfigError(f"{text!r} gives {key} twice", cure="give it once")
        target[key] = value
    return {"path": path, "columns": columns, **fields}


def json_values(value: Any) -> Any:
    """Text from the command line as the JSON it is (`true`, `3`); other text stays text."""
    if not isinstance(value, dict):
        return value
    parsed = {}
    for key, text in value.items():
        try:
            parsed[key] = json.loads(text) if isinstance(text, str) else text
            deep = too_deep(parsed[key])
        except RecursionError:
            deep = True
        except ValueError:  # no JSON, or a number of thousands of digits
            parsed[key] = text
            continue
        if deep:
            raise ConfigError(
                f"{key} holds brackets in brackets, more than {DEEPEST} deep", cure="write it flat"
            )
    return parsed


_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def unescaped(text: str) -> str:
    """Text from a command line or a file, with `\\n` and `\\t` as what they stand for."""
    return re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], text)


def optional_unescaped(text: str | None) -> str | None:
    """The same of text that may be absent."""
    return None if text is None else unescaped(text)


def _template(text: str | None) -> str | None:
    text = optional_unescaped(text)
    if text and "{prompt}" not in text:
        raise ValueError(f"{text!r} does not contain {{prompt}}; write it where the prompt goes")
    return text


class PromptingSettings(Settings):
    """How the model is prompted, where not as it was trained; see `posttrain.data.prompting`."""

    prompt_template: Annotated[str | None, AfterValidator(_template)] = Field(
        None,
        description=(
            "plain text in place of the chat template, the prompt written like this; {prompt} "
            "stands for it, \\n for a line break. Unset: as the model was trained, else the chat "
            "template; '' is the chat template"
        ),
    )
    template_kwargs: Annotated[
        dict[str, Any], BeforeValidator(json_values), Unless("prompt_template")
    ] = Field(
        default_factory=dict,
        description=(
            "KEY=VALUE handed to the chat template, for example enable_thinking=false; what is not "
            "given is as the model was trained"
        ),
    )
    system: str | None = Field(
        None,
        description=(
            "system prompt of conversations that have none. Unset: as the model was trained, else "
            "none; '' is none"
        ),
    )
    stop: tuple[Annotated[str, AfterValidator(unescaped)], ...] = Field(
        (),
        description=(
            "texts that end a written answer and are no part of it, \\n for a line break. Unset: "
            "as the model was trained, else a blank line after a plain-text prompt; '' is none"
        ),
    )


FormatName = Literal[
    "",
    "messages",
    "sharegpt",
    "alpaca",
    "preference",
    "label",
    "steps",
    "prompt-completion",
    "text",
    "prompt",
]
Sourced = Annotated[Source, BeforeValidator(_parse)]
Rows = Annotated[tuple[Sourced, ...], ReadsRows()]  # the type of a setting that reads rows


RowFormat = Annotated[
    FormatName,
    Field(description="format of the rows of --data; unset: found from the first row's columns"),
]
Similarity = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="Jaccard similarity of 3-word shingles from which rows are near-duplicates",
    ),
]
OnBadRow = Annotated[
    Literal["stop", "reject"],
    Field(
        description=(
            "stop at a row that cannot be used, or write it to rejects.jsonl (NAME.rejects.jsonl "
            "beside a single file) with the reason and go on"
        )
    ),
]


class DataSettings(Settings):
    """Which rows are trained on, and how they become tokens."""

    data: Rows = Field(
        min_length=1,
        description=(
            "JSONL, JSON, Parquet, CSV or text files, folders, or hub ids; each may be followed by "
            ",weight= ,share= ,epochs= ,limit= ,split= ,subset= ,ignore=COLUMN, and by our name of "
            "a column = the file's (prompt=question)"
        ),
    )
    validation: Rows = Field((), description="held-out rows, given like --data")
    on_bad_row: OnBadRow = "stop"
    format: FormatName = Field(
        "", description="shape of the rows; unset: found from the first row's columns"
    )
    chat_template: Annotated[Path | None, ReadsFile(), Unless("prompt_template")] = Field(
        None,
        description=(
            "file with the chat template to use and to save with the model; unset: the model's own,"
            " or a default"
        ),
    )
    prompting: PromptingSettings = PromptingSettings()  # type: ignore[call-arg]
    train_on: Literal["all", "last"] = Field(
        "all", description="which of a conversation's answers are trained"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description=(
            "tokens of a sequence at most. Unset: 1024, or as many as the model can address"
        ),
    )
    truncate: Literal["", "right", "left", "split", "drop"] = Field(
        "",
        description=(
            "what becomes of a longer one: cut at the end, cut at the start, split into several, or"
            " left out. Unset: text is split, all else cut at the end"
        ),
    )
