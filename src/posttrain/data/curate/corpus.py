"""Rows of several sources, read again as often as needed instead of being held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from posttrain.core.errors import DataError
from posttrain.core.events import Reporter
from posttrain.data.formats import Example, Format
from posttrain.data.messages import Text, as_text, texts
from posttrain.data.readers import suffix_of
from posttrain.data.rows import Rejects, Row, json_line
from posttrain.data.settings import FormatName, Source
from posttrain.data.sources import digest, read, size


class Corpus:
    """The usable rows of some sources, in order. Memory holds one at a time.

    Args:
        sources: where from.
        folder: takes the file of rejected rows when the first pass is done.
        reporter: shows progress.
        rejects: name of that file; empty: the first unusable row is an error.
        format: of the rows; empty: found from each source's first.
        check: raises a DataError for a row that is well formed and still cannot be used.
        all_read: whether rows stay as they are, so that nothing beside what is read is lost.

    Attributes:
        read: rows of the first pass, usable or not.
        rejected: rows that were not usable. reasons: why not → how many.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        folder: Path,
        reporter: Reporter,
        *,
        rejects: str = "",
        format: FormatName = "",
        check: Callable[[Row, Example], None] = lambda row, example: None,
        all_read: bool = True,
    ) -> None:
        self.sources, self.folder, self.reporter = sources, folder, reporter
        self.format, self.check, self.all_read = format, check, all_read
        self.read = self.rejected = self.passes = 0
        self.reasons: dict[str, int] = {}
        self._rejects = rejects

    @property
    def usable(self) -> int:
        return self.read - self.rejected

    def digests(self) -> dict[str, str]:
        """What identifies the content: file → SHA-256, or data set → commit."""
        digests: dict[str, str] = {}
        for source in self.sources:
            digests.update(digest(source))
        return digests

    def rows(self, purpose: str) -> Iterator[tuple[Row, Example]]:
        """One pass.

        Args:
            purpose: what the pass is for, in a word or two.
        Raises:
            DataError: a row cannot be used and rejects are not written, or the files are no longer
                what they were.
        """
        first_pass = self.passes == 0
        self.passes += 1
        name = self._rejects if first_pass else "again.jsonl"
        rejects = Rejects(self.folder / name if self._rejects else None)
        used = 0
        try:
            for row, example in self._pass(purpose, rejects):
                used += 1
                yield row, example
        finally:
            rejects.close()
        rejects.balance(used)
        if first_pass:
            self.read, self.rejected = rejects.read, rejects.count
            self.reasons = dict(rejects.reasons)
        elif (rejects.read, rejects.count) != (self.read, self.rejected):
            raise DataError(
                f"the data changed while it was read: {self.read:,} rows, now {rejects.read:,}",
                where=str(self.sources[0]),
                cure="run the command again when nothing writes to it",
            )

    def _pass(self, purpose: str, rejects: Rejects) -> Iterator[tuple[Row, Example]]:
        bytes_before, total = 0, sum(map(size, self.sources))
        with self.reporter.working(purpose, total, "bytes") as progress:
            for source in self.sources:
                form = Format(self.format, all_read=self.all_read)

                def progress_within(inside: int, before: int = bytes_before) -> None:
                    progress(before + inside)

                for row in read(source, rejects, progress_within):
                    try:
                        example = form.read(row)
                        self.check(row, example)
                    except DataError as error:
                        rejects.add(error, row)
                    else:
                        yield row, example
                bytes_before += size(source)


def line(row: Row) -> bytes:
    """A row as a line of JSON: byte for byte as its file has it, else its fields as an object."""
    file = Path(row.where.rpartition(":")[0])
    if row.raw is not None and suffix_of(file) not in (".csv", ".tsv"):
        raw = row.raw.rstrip(b"\r\n")
        # an element of a JSON array may span several lines
        if b"\n" not in raw and b"\r" not in raw:
            return row.raw if row.raw.endswith(b"\n") else raw + b"\n"
    return json_line(row.fields)


# --------------------------------------------------------------------------------------------- text


def pieces(example: Example) -> list[str]:
    """The texts of a row: the prompt, then every answer; of a conversation every message."""
    found: list[str] = []
    for part in (example.prompt, *example.answers):
        found += [text for text in texts(part) if text]
    return found


def prompt(example: Example) -> str:
    """What is answered: the prompt, or what a conversation says before its first answer.

    May be empty.
    """
    given: Text = example.prompt
    if not given and example.answers and not isinstance(example.answers[0], str):
        given = tuple(takewhile(lambda message: message["role"] != "assistant", example.answers[0]))
    return as_text(given)
