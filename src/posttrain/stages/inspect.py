"""Inspect: what a model would be trained on.

Of the model only the tokenizer and the configuration are read, not the weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from posttrain.core.defaults import TOKEN_BUDGET
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import explained_writes, write_atomic
from posttrain.core.settings import Destination, Needs, ReadsModel, Settings
from posttrain.data.settings import DataSettings
from posttrain.data.sources import files
from posttrain.stages import dataset
from posttrain.stages.folders import Files
from posttrain.stages.soundness import tell_overlap
from posttrain.stages.stage import Context, Made, Verdict, stage

if TYPE_CHECKING:
    from posttrain.data.inspect import Report


class InspectSettings(Settings):
    """Settings of looking at data."""

    model: Annotated[str, ReadsModel(weights=False)] = Field(
        description="Hugging Face folder or hub id of the model to train; its weights are not read"
    )
    examples: int = Field(3, ge=0, description="rows of each source to show token by token")
    rows: Annotated[tuple[str, ...], Needs("examples")] = Field(
        ("first",),
        min_length=1,
        description=(
            "which: first, spread (a random sample that is always the same), or the numbers "
            "of lines, for example 17 42"
        ),
    )
    html: Annotated[Path | None, Destination()] = Field(
        None, description="file for the same as a page to open in a browser and to share"
    )
    batch_size: int = Field(
        8, ge=1, description="sequences an optimiser step, for measuring how batches fill"
    )
    budget: int | None = Field(
        None,
        ge=2,
        description=(
            "tokens a forward pass, for measuring how batches fill. Unset: "
            f"{TOKEN_BUDGET['cpu']}, or the longest sequence"
        ),
    )
    out: Annotated[Path | None, Destination()] = Field(
        None,
        description=(
            "NAME.jsonl for the rows that --on-bad-row reject sets aside; or a folder for them, the"
            " page and the numbers. Unset: nothing is kept"
        ),
    )
    data: DataSettings

    @property
    def folder(self) -> Path | None:
        return None if self.out is None or self.out.suffix == ".jsonl" else self.out

    def check(self) -> None:
        _check_outputs(self)
        dataset.peek(self.data)

    @field_validator("rows")
    @classmethod
    def _known(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        if rows not in (("first",), ("spread",)) and not all(
            row.isdecimal() and int(row) for row in rows
        ):
            raise ValueError("neither first, nor spread, nor numbers from 1")
        return rows


@dataclass(frozen=True)
class Inspection:
    """What is shown of an inspection: the report, and the page that was asked for."""

    report: Report
    html: Path | None


@stage(
    "data_inspect",
    InspectSettings,
    help="see what a model would be trained on, token by token",
    makes={"page": "page.html"},
    files=Files(others=("rejects.jsonl",)),
)
def data_inspect(settings: InspectSettings, context: Context) -> Made:
    """See what a model would be trained on: rows token by token, what is trained in them and why,
    what becomes of every row, how long sequences are and how batches fill. Of the model only its
    tokenizer and configuration are read.
    """
    from posttrain.data.inspect import inspect
    from posttrain.engine.load import load_tokenizer, longest_position, resolve
    from posttrain.report.inspect_page import page

    base = resolve(settings.model)
    prompting = dataset.prompting_of(settings.data, base, context.reporter)
    chat = dataset.chat_of(settings.data, load_tokenizer(base), prompting)
    longest = dataset.max_length(settings.data, longest_position(base))
    rejects = settings.out
    if settings.folder is not None:
        reject = settings.data.on_bad_row == "reject"
        rejects = context.folder / "rejects.jsonl" if reject else None
    report = inspect(
        settings.data,
        chat,
        max_length=longest,
        examples=settings.examples,
        rows=settings.rows,
        batch_size=settings.batch_size,
        budget=settings.budget,
        rejects=rejects,
        reporter=context.reporter,
    )
    for note in chat.notes:
        context.reporter.message(note)
    tell_overlap(report.overlap, context.reporter)
    context.claim()
    kept = context.folder / "page.html" if settings.folder is not None else None
    for path in filter(None, (kept, settings.html)):
        with explained_writes(path.parent):
            write_atomic(path, page(report))
    return Made(_summary(report), _verdict(report), Inspection(report, settings.html))


def _summary(report: Report) -> dict[str, Any]:
    """The numbers of a report."""
    lengths, packing = report.lengths, report.packing
    quantiles: dict[str, int | None] = {}
    for name, share in (("median", 0.5), ("90%", 0.9), ("99%", 0.99), ("longest", 1.0)):
        quantiles[name] = lengths.quantile(share) if lengths.n else None
    return {
        "sources": [
            {"source": part.name, "held_out": part.held_out, **part.account.json()}
            for part in report.parts
        ],
        "max_length": report.max_length,
        "lengths": {"n": lengths.n, "over": lengths.over(report.max_length), **quantiles},
        "packing": vars(packing) if packing else None,
        "overlap": report.overlap and report.overlap.json(),
    }


def _verdict(report: Report) -> Verdict:
    """Whether training would take the data."""
    try:
        report.check()
    except DataError as error:
        return Verdict("FAIL", error.exit_code, str(error))
    return Verdict("PASS", 0)


def _check_outputs(settings: InspectSettings) -> None:
    """Files to write must not be the data, and one for rejects needs rejecting."""
    if settings.out and not settings.folder and settings.data.on_bad_row != "reject":
        raise ConfigError(
            "--out is the file for rows that are set aside, and a bad row stops the work",
            cure="add --on-bad-row reject, or leave --out out; --html FILE writes the page",
        )
    read = {
        path.resolve()
        for source in (*settings.data.data, *settings.data.validation)
        for path in files(source) or ()
    }
    rejects = None if settings.folder else settings.out
    for name, path in (("html", settings.html), ("out", rejects)):
        if path and path.resolve() in read:
            raise ConfigError(
                f"--{name} {path} is one of the files of data", cure=f"choose another --{name}"
            )
        if path and os.path.exists(path) and not os.path.isfile(path):
            raise ConfigError(
                f"--{name} {path} is {'a folder' if path.is_dir() else 'no file'}",
                cure=f"give a file: --{name} {path / 'name'}",
            )
