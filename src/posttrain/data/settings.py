"""Which rows are trained on, and how they become tokens.

No torch here, so that help and validation are instant.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from posttrain.core.errors import ConfigError, nearest
from posttrain.core.settings import ReadsFile, ReadsRows, Settings, assemble

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

    On the command line: `PATH[,KEY=VALUE]…`, for example
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
    """`PATH,key=value`, or a mapping of the fields → a Source.

    An error names the field and the file.
    """
    if not isinstance(value, (str, Path, dict)):
        return value
    fields = (
        {str(key): given for key, given in value.items()}
        if isinstance(value, dict)
        else _fields(str(value))
    )
    if "path" not in fields:
        raise ConfigError(
            f"{value!r} does not say which file",
            cure="give path, and beside it what else is to be said",
        )
    try:
        return assemble(Source, fields)
    except ConfigError as error:
        if not error.what.startswith(
            str(fields["path"])
        ):  # as messages that are of the source as a whole do
            error.what = (
                f"{str(fields['path'] if isinstance(value, dict) else value)!r}: {error.what}"
            )
        raise


def _fields(value: str) -> dict[str, Any]:
    own = [name for name in Source.model_fields if name not in ("path", "columns")]
    path, fields, columns = value, {}, {}
    while not os.path.exists(path) and "," in path:  # a path may have commas of its own
        path, _, option = path.rpartition(",")
        key, sign, given = option.partition("=")
        if not sign or key not in (*own, *COLUMNS):
            raise ConfigError(
                f"{value!r}: {option!r} is not KEY=VALUE with a known key",
                cure=nearest(key, (*own, *COLUMNS)),
            )
        if key in (to := fields if key in own else columns):
            raise ConfigError(f"{value!r} gives {key} twice", cure="give it once")
        to[key] = given
    return {"path": path, "columns": columns, **fields}


def json_values(value: Any) -> Any:
    """Values given as text on the command line, as the JSON they are: `true`, `3`, and text where
    it is none.
    """
    if not isinstance(value, dict):
        return value
    out = {}
    for key, given in value.items():
        try:
            out[key] = json.loads(given) if isinstance(given, str) else given
        except json.JSONDecodeError:
            out[key] = given
    return out


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


class DataSettings(Settings):
    """Which rows are trained on, and how they become tokens."""

    data: Rows = Field(
        min_length=1,
        description=(
            "JSONL, JSON, Parquet, CSV or text files, folders, or hub ids; each may be followed by "
            ",weight= ,share= ,epochs= ,limit= ,split= ,subset= or a column of ours=the file's"
        ),
    )
    validation: Rows = Field((), description="held-out rows, given like --data")
    on_bad_row: Literal["stop", "reject"] = Field(
        "stop",
        description=(
            "stop at a row that cannot be used, or write it to rejects.jsonl with the reason and"
            " go on"
        ),
    )
    format: FormatName = Field(
        "", description="shape of the rows; unset: found from the first row's columns"
    )
    prompt_template: str | None = Field(
        None,
        description=(
            "train prompt and completion as plain text, the prompt written like this; {prompt}"
            " stands for it. Unset: they are a question and an answer in the chat template"
        ),
    )
    chat_template: Annotated[Path | None, ReadsFile()] = Field(
        None,
        description=(
            "file with the chat template to use and to save with the model; unset: the model's own,"
            " or a default"
        ),
    )
    template_kwargs: Annotated[dict[str, Any], BeforeValidator(json_values)] = Field(
        default_factory=dict,
        description="KEY=VALUE handed to the chat template, for example enable_thinking=false",
    )
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
