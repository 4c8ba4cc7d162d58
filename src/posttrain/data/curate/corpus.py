"""Rows of several sources, read as often as it takes: what does not fit into memory is read
again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import DataError
from posttrain.data.formats import Example, Format, Message, Text
from posttrain.data.readers import suffix_of
from posttrain.data.rows import Rejects, Row, plain
from posttrain.data.settings import FormatName, Source
from posttrain.data.sources import digest, read, size


class Corpus:
    """The usable rows of some sources, in order. Memory holds one at a time.

    Args:
        sources: where from.
        folder: takes `rejects` with the rows that cannot be used, when the first pass is done.
        rejects: name of that file; empty stops at the first such row.
        format: of the rows; empty: found from each source's first.
        check: raises a DataError for a row that is well formed and still cannot be used.

    Attributes:
        read: rows of the first pass, usable or not. rejected: those that were not. reasons: why not
            → how many.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        folder: Path,
        observer: ConsoleObserver,
        *,
        rejects: str = "",
        format: FormatName = "",
        check: Callable[[Row, Example], None] = lambda row, example: None,
    ) -> None:
        self.sources, self.folder, self.observer, self.format, self.check = (
            sources,
            folder,
            observer,
            format,
            check,
        )
        self.read = self.rejected = self.passes = 0
        self.reasons: dict[str, int] = {}
        self._rejects = rejects

    @property
    def usable(self) -> int:
        return self.read - self.rejected

    def digests(self) -> dict[str, str]:
        """What identifies the content: file → SHA-256, or data set → commit."""
        return {name: value for source in self.sources for name, value in digest(source).items()}

    def rows(self, doing: str) -> Iterator[tuple[Row, Example]]:
        """One pass.

        Args:
            doing: what it is for, a word or two.
        Raises:
            DataError: a row cannot be used and rejects are not written, or the files are no longer
                what they were.
        """
        first, self.passes = self.passes == 0, self.passes + 1
        rejects = Rejects(
            self.folder / (self._rejects if first else "again.jsonl") if self._rejects else None
        )
        used = 0
        try:
            for row, example in self._pass(doing, rejects):
                used += 1
                yield row, example
        finally:
            rejects.close()
        rejects.balance(used)
        if first:
            self.read, self.rejected, self.reasons = (
                rejects.read,
                rejects.count,
                dict(rejects.reasons),
            )
        elif (rejects.read, rejects.count) != (self.read, self.rejected):
            raise DataError(
                f"the data changed while it was read: {self.read:,} rows, now {rejects.read:,}",
                where=str(self.sources[0]),
                cure="run the command again when nothing writes to it",
            )

    def _pass(self, doing: str, rejects: Rejects) -> Iterator[tuple[Row, Example]]:
        before = 0
        with bar(self.observer, doing, sum(map(size, self.sources))) as told:
            for source in self.sources:
                reader = Format(self.format)
                for row in read(
                    source, rejects, lambda inside, before=before: told(before + inside)
                ):
                    try:
                        example = reader.read(row)
                        self.check(row, example)
                    except DataError as error:
                        rejects.add(error, row)
                    else:
                        yield row, example
                before += size(source)


@contextlib.contextmanager
def bar(observer: ConsoleObserver, doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes in a terminal, nothing elsewhere; gives the function that moves it."""
    if observer.quiet or not observer.console.is_terminal:
        yield lambda done: None
        return
    with Progress(
        TextColumn(f"[bold]{doing:<9}[/bold]"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=observer.console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total or None)
        shown = 0

        def told(done: int) -> None:
            nonlocal shown
            if done - shown > total // 500:  # a redraw a row would take longer than the row
                shown = done
                progress.update(task, completed=done)

        yield told


def line(row: Row) -> bytes:
    """A row as a line of JSON: byte for byte as its file has it, else its fields as an object."""
    if row.raw is not None and suffix_of(Path(row.where.rpartition(":")[0])) not in (
        ".csv",
        ".tsv",
    ):
        raw = row.raw.rstrip(b"\r\n")
        if (
            b"\n" not in raw and b"\r" not in raw
        ):  # an object of a JSON array may go over several lines
            return row.raw if row.raw.endswith(b"\n") else raw + b"\n"
    text = json.dumps(row.fields, ensure_ascii=False, default=plain)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # half surrogates as their escapes


# --------------------------------------------------------------------------------------------- text


def pieces(example: Example) -> list[str]:
    """What stands in a row: the prompt, then every answer; of a conversation every message."""
    return [
        piece for part in (example.prompt, *example.answers) for piece in _pieces(part) if piece
    ]


def prompt(example: Example) -> str:
    """What an answer is asked for with: the prompt, or what stands before a conversation's first
    answer; may be empty.
    """
    given: Text = example.prompt
    if not given and example.answers and not isinstance(example.answers[0], str):
        given = tuple(takewhile(lambda message: message["role"] != "assistant", example.answers[0]))
    return "\n".join(_pieces(given))


def said(part: Text) -> str:
    """What stands in a prompt or an answer, as one text."""
    return "\n".join(_pieces(part))


def _pieces(part: Text) -> list[str]:
    return [part] if isinstance(part, str) else [_said(message) for message in part]


def _said(message: Message) -> str:
    calls = message.get("tool_calls")
    return message["content"] + (
        json.dumps(calls, ensure_ascii=False, default=str) if calls else ""
    )
