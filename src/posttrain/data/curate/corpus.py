"""Rows of several sources, read as often as it takes: what does not fit into memory is read
again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from posttrain.core.console import ConsoleObserver
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import PARTIAL
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
        with self.observer.working(doing, sum(map(size, self.sources)), "bytes") as told:
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


# ------------------------------------------------------------------------------------------ outputs


@contextlib.contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder beside an output for what is being made; gone afterwards, and emptied of what a
    killed run left.
    """
    folder = beside.with_name(f"{PARTIAL}{beside.name}-scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def same(summary: Path, identity: dict[str, Any], writes: Sequence[Path]) -> None:
    """Accept outputs that are not there, or that the same command on the same data wrote.

    Args:
        summary: JSON with the `identity` of what wrote the outputs.
        identity: JSON of this run: group → name → value.
        writes: what would be written over.
    Raises:
        ConfigError: something else wrote them.
    """
    there = [path for path in (summary, *writes) if path.exists()]
    if not there:
        return
    cure = "choose another --out, or delete what is there; nothing was touched"
    try:
        before = json.loads(summary.read_text())["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{there[0]} is there, and no run of ours that finished wrote it", cure=cure
        ) from None
    now = json.loads(json.dumps(identity))  # so that a tuple equals the list it was written as
    if changed := sorted(
        name
        for group in now
        for name in now[group].keys() | before.get(group, {}).keys()
        if now[group].get(name) != before.get(group, {}).get(name)
    ):
        raise ConfigError(
            f"{summary.parent} holds another run's {summary.name}; different:"
            f" {', '.join(changed[:4])}",
            cure=cure,
        )
