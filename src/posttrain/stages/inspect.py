"""Inspect: what a model would be trained on.

Of the model only the tokenizer and the configuration are read, not the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError
from posttrain.core.files import explained_writes
from posttrain.core.settings import Settings
from posttrain.data.settings import DataSettings
from posttrain.data.sources import files
from posttrain.stages import dataset

if TYPE_CHECKING:
    from posttrain.data.inspect import Report


class InspectSettings(Settings):
    """Settings of looking at data."""

    model: str = Field(
        description="Hugging Face folder or hub id of the model to train; its weights are not read"
    )
    examples: int = Field(3, ge=0, description="rows of each source to show token by token")
    rows: tuple[str, ...] = Field(
        ("first",),
        min_length=1,
        description=(
            "which: first, spread (a random sample that is always the same), or the numbers "
            "of lines, for example 17 42"
        ),
    )
    html: Path | None = Field(
        None, description="file for the same as a page to open in a browser and to share"
    )
    batch_size: int = Field(
        8, ge=1, description="sequences an optimiser step, for measuring how batches fill"
    )
    budget: int | None = Field(
        None,
        ge=2,
        description=(
            "tokens a forward pass, for measuring how batches fill. Unset: 4096, or the longest"
            " sequence"
        ),
    )
    out: Path | None = Field(
        None,
        description="file for the rows that --on-bad-row reject sets aside; unset: only counted",
    )
    data: DataSettings

    @field_validator("rows")
    @classmethod
    def _known(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        if rows not in (("first",), ("spread",)) and not all(
            row.isdecimal() and int(row) for row in rows
        ):
            raise ValueError("neither first, nor spread, nor numbers from 1")
        return rows


def run(settings: InspectSettings, observer: ConsoleObserver) -> Report:
    """Read the data as `posttrain sft` would.

    Raises:
        PosttrainError: a model, file or row cannot be used, or a setting contradicts another.
    """
    _check_outputs(settings)
    dataset.peek(settings.data)  # what is wrong with the files is told before anything is loaded
    from posttrain.data.inspect import inspect
    from posttrain.engine.load import load_tokenizer, longest_position, resolve

    base = resolve(settings.model)
    chat = dataset.chat_of(settings.data, load_tokenizer(base))
    with explained_writes(settings.out.parent if settings.out else Path()):
        report = inspect(
            settings.data,
            chat,
            max_length=dataset.max_length(settings.data, longest_position(base)),
            examples=settings.examples,
            rows=settings.rows,
            batch_size=settings.batch_size,
            budget=settings.budget,
            rejects=settings.out,
            observer=observer,
        )
    for note in chat.notes:
        observer.message(note)
    return report


def _check_outputs(settings: InspectSettings) -> None:
    """Files to write must not be the data, and one for rejects needs rejecting."""
    if settings.out and settings.data.on_bad_row != "reject":
        raise ConfigError(
            "--out is the file for rows that are set aside, and a bad row stops the work",
            cure="add --on-bad-row reject, or leave --out out; --html FILE writes the page",
        )
    read = {
        path.resolve()
        for source in (*settings.data.data, *settings.data.validation)
        for path in files(source) or ()
    }
    for name, path in (("html", settings.html), ("out", settings.out)):
        if path and path.resolve() in read:
            raise ConfigError(
                f"--{name} {path} is one of the files of data", cure=f"choose another --{name}"
            )
        if path and path.is_dir():
            raise ConfigError(
                f"--{name} {path} is a folder", cure=f"give a file: --{name} {path / 'name'}"
            )
