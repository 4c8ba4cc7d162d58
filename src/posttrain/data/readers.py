"""Readers of files, one row at a time: JSON lines, JSON arrays, CSV and text; Parquet
is read by `data.parquet`.

Files are streamed: what is held is a row, and a row has a limit (`core.limits`).

Left out: Arrow and Excel files, archives of many files.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

from posttrain.core import limits
from posttrain.core.errors import DataError
from posttrain.core.limits import RAISE, limit, megabytes
from posttrain.data import parquet
from posttrain.data.rows import JSON, ProgressCallback, Row, RowOrError, kind

TO_UTF8 = "convert the file: iconv -f LATIN1 -t UTF-8"
BRACKETS = 50  # a row with fewer is not looked at for what is nested too deep
LINE = 64  # bytes that a line counts for beside its own, where many are held
PART = 2**20  # bytes of a JSON array that are read at a time


def suffix_of(path: Path) -> str:
    """The ending that says what a file holds: `.jsonl` of `rows.jsonl.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_file(path: Path, progress: ProgressCallback) -> Iterator[RowOrError]:
    """The rows of one file, in order.

    Raises:
        DataError: the ending is unknown, or the file is damaged or cannot be read.
    """
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise DataError(
            f"{path}: no reader for {suffix or 'a file without an ending'}",
            cure=f"give one of {', '.join(READERS)}, or these with .gz",
        )
    if path.suffix == ".gz" and suffix == ".parquet":
        raise DataError(f"{path}: Parquet inside gzip cannot be read", cure="gunzip it")
    lines_read = 0

    def count(bytes_read: int) -> None:
        nonlocal lines_read
        lines_read += 1
        progress(bytes_read)

    try:
        yield from READERS[suffix](path, count)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the compressed file is damaged or cut off: {error}",
            where=f"{path}:{lines_read + 1}",
            cure="get the file again",
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}",
            cure="check the file and its permissions",
        ) from error


@contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """Opens a file, decompressed; also gives a function that returns the compressed bytes read."""
    with (
        open(path, "rb") as raw,
        gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else nullcontext(raw) as file,
    ):
        _check_encoding(file.peek(4)[:4], path)
        yield file, raw.tell  # type: ignore[misc] - a GzipFile is read like any other


_FOREIGN_STARTS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "gzip"),
    (b"PAR1", "Parquet"),
)


def _check_encoding(start: bytes, path: Path) -> None:
    for signature, name in _FOREIGN_STARTS:
        if not start.startswith(signature):
            continue
        cure = "give it the ending it should have"
        if name.startswith("UTF"):
            cure = f"convert it: iconv -f {name} -t UTF-8"
        raise DataError(f"the file is {name}, not UTF-8 text", where=f"{path}:1", cure=cure)


def _lines(path: Path, progress: ProgressCallback) -> Iterator[bytes]:
    """A file's lines with their line ends; a byte order mark is removed.

    Raises:
        DataError: a line, or a stretch of blank lines, is longer than a row may be.
    """
    most, blank = limit(limits.ROW), 0
    with _open(path) as (file, bytes_read):
        lines = iter(lambda: file.readline(most + 1), b"")
        for number, raw in enumerate(lines, 1):
            blank = blank + len(raw) + LINE if raw.isspace() else 0
            if len(raw) > most or blank > most:
                what = f"a line of more than {megabytes(most)}"
                raise DataError(
                    what if len(raw) > most else f"{most // LINE:,} blank lines or more",
                    where=f"{path}:{number}",
                    cure=f"put one row on a line; a JSON array belongs in a file that ends in "
                    f".json; {RAISE}",
                )
            progress(bytes_read())
            yield raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw


def _json_lines(path: Path, progress: ProgressCallback) -> Iterator[RowOrError]:
    for number, raw in enumerate(_lines(path, progress), 1):
        if raw.strip():
            yield _parsed(raw, f"{path}:{number}")


def _parsed(raw: bytes, where: str) -> RowOrError:
    """A line of JSON as a row."""
    try:
        value = JSON.decode(raw.rstrip().decode())
    except UnicodeDecodeError as error:
        what, cure = f"byte {error.start + 1} of the line is not UTF-8", TO_UTF8
    except json.JSONDecodeError as error:
        what, cure = f"not JSON: {error.msg} at character {error.pos + 1}", "one JSON object a line"
    except (ValueError, RecursionError) as error:
        # a repeated key, a number of thousands of digits, thousands of nested brackets
        what, cure = f"not readable JSON: {error}", "correct or remove the row"
    else:
        return _row(value, where, raw, "one JSON object a line")
    return DataError(what, where=where, cure=cure), raw


def _row(value: Any, where: str, raw: bytes, shape: str) -> RowOrError:
    """A value that JSON held, as a row.

    Args:
        shape: what the file should hold.
    """
    if not isinstance(value, dict):
        return DataError(f"{kind(value)}, not an object", where=where, cure=shape), raw
    many = raw.count(b"{") + raw.count(b"[") > BRACKETS
    if many and _is_deeper(value, depth := limit(limits.DEPTH)):
        what = f"objects and lists are nested more than {depth} deep"
        return DataError(what, where=where, cure="correct or remove the row"), raw
    return Row(value, where, raw)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether objects and lists lie more than `depth` deep in one another."""
    level = [value]
    for _ in range(depth):
        inside: list[Any] = []
        for one in level:
            inside += one.values() if isinstance(one, dict) else one
        level = [one for one in inside if isinstance(one, (dict, list))]
    return bool(level)


def _read_whole(path: Path) -> str:
    """The text of a file that is one row."""
    most = limit(limits.ROW)
    with _open(path) as (file, _):
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(
            f"{path} is one text of more than {megabytes(most)}",
            cure='split it, or write JSON lines (.jsonl), one {"text": …} a line; ' + RAISE,
        )
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        lines = data[: error.start].split(b"\n")
        raise DataError(
            f"byte {len(lines[-1]) + 1} of the line is not UTF-8",
            where=f"{path}:{len(lines)}",
            cure=TO_UTF8,
        ) from None


def _json(path: Path, progress: ProgressCallback) -> Iterator[RowOrError]:
    """A JSON array of objects, or JSON lines under the name .json."""
    with _open(path) as (file, _):
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        yield from _json_array(path)
    else:
        yield from _json_lines(path, progress)


class _Window:
    """The text of a file, of which a part is held: what is read of it and not yet used.

    Attributes:
        path: of the file. text: what is held. at: where in it the reader is.
        over: the file holds no more.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path, self.text, self.at, self.over = path, "", 0, False
        self._file = file
        self._line, self._counted = 1, 0  # the line's number at a place in the text
        self._before = 0  # bytes of the first line that are not held any more
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def where(self, at: int | None = None) -> str:
        """`file:line` of the reader, or of a place after it."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        beyond = 0 if at is None else self.text.count("\n", self.at, at)
        return f"{self.path}:{self._line + beyond}"

    def more(self) -> bool:
        """Hold more of the file, and nothing before the reader; False at the file's end."""
        self.where()
        used, self.text, self.at, self._counted = self.text[: self.at], self.text[self.at :], 0, 0
        _, newline, tail = used.rpartition("\n")
        self._before = len(tail.encode()) + (0 if newline else self._before)
        data = self._file.read(max(PART, len(self.text)))
        self.over = not data
        try:
            self.text += self._decoder.decode(data, final=self.over)
        except UnicodeDecodeError as error:
            before = self.text.encode() + error.object[: error.start]
            lines = before.split(b"\n")
            start = len(lines[-1]) + (self._before if len(lines) == 1 else 0)
            raise DataError(
                f"byte {start + 1} of the line is not UTF-8",
                where=f"{self.path}:{self._line + len(lines) - 1}",
                cure=TO_UTF8,
            ) from None
        return not self.over

    def sign(self) -> str:
        """The next sign that is no space; empty at the file's end.

        Raises:
            DataError: there are more spaces than a row may have bytes.
        """
        spaces = 0
        while True:
            match = _SPACES.match(self.text, self.at)
            assert match is not None  # an empty match, where there is no space
            spaces, self.at = spaces + match.end() - self.at, match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if spaces > (most := limit(limits.ROW)):
                raise DataError(
                    f"more than {megabytes(most)} of spaces", where=self.where(), cure=RAISE
                )
            if not self.more():
                return ""


_SPACES = re.compile(r"\s*")
_NOTHING_AFTER = "correct the file: nothing after here can be read"


def _json_array(path: Path) -> Iterator[RowOrError]:
    """The elements of the array that a file holds, one at a time.

    Raises:
        DataError: the array is cut off, an element is not JSON or larger than a row may be, or
            something follows the array.
    """
    with _open(path) as (file, _):
        window = _Window(file, path)
        window.more()
        window.at = window.text.index("[") + 1
        first = True
        while (sign := window.sign()) != "]":
            if not first:
                if sign != ",":
                    raise DataError(
                        "the array is cut off, or a comma is missing",
                        where=window.where(),
                        cure=_NOTHING_AFTER,
                    )
                window.at += 1
                window.sign()
            first = False
            where = window.where()
            value, end = _array_element(window)
            raw = window.text[window.at : end].encode("utf-8", "surrogatepass")
            window.at = end
            yield _row(value, where, raw, "an array of objects")
        window.at += 1
        if window.sign():
            raise DataError(
                "there is something after the array's end",
                where=window.where(),
                cure="one array in a file",
            )


def _array_element(window: _Window) -> tuple[Any, int]:
    """The JSON value at which a window's reader is, and where it ends."""
    while True:
        what, at = "", window.at
        try:
            value, end = JSON.raw_decode(window.text, window.at)
            if window.over or end < len(window.text):
                return value, end
        except json.JSONDecodeError as error:
            what, at = error.msg, error.pos
            # what is cut off is wrong at its end, or from where a text begins
            cut = error.pos > len(window.text) - 16 or error.msg.startswith("Unterminated string")
            if not cut:
                break
        except (ValueError, RecursionError) as error:
            what = str(error)
            break
        if len(window.text) - window.at > (most := limit(limits.ROW)):
            raise DataError(
                f"an element of more than {megabytes(most)}",
                where=window.where(),
                cure=f"make it smaller; {RAISE}",
            )
        if not window.more() and what:
            break
    raise DataError(f"not JSON: {what}", where=window.where(at), cure=_NOTHING_AFTER) from None


def _csv(path: Path, progress: ProgressCallback, separator: str) -> Iterator[RowOrError]:
    most = limit(limits.ROW)
    csv.field_size_limit(most)
    row, row_lines = bytearray(), 0  # of the row that is being read

    def lines() -> Iterator[str]:
        nonlocal row_lines
        for raw in _lines(path, progress):
            row.extend(raw)
            row_lines += 1
            if len(row) + LINE * (row_lines - 1) > most:
                raise csv.Error(
                    f"a row of more than {megabytes(most)} or {most // LINE:,} lines, or a quote "
                    f"that is not closed; {RAISE}"
                )
            # a byte that is not UTF-8 spoils its own row only
            yield raw.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            raw = bytes(row)
            row.clear()
            row_lines = 0
            if not cells:
                continue
            error = _row_error(cells, raw, header, where)
            if not header:
                if error:
                    raise error
                header = cells
            elif error:
                yield error, raw
            else:
                yield Row(dict(zip(header, cells, strict=True)), where, raw)
    except csv.Error as error:
        raise DataError(
            f"not CSV: {error}",
            where=f"{path}:{line}",
            cure="double the quotes inside quoted text, and close them",
        ) from None


def _row_error(cells: list[str], raw: bytes, header: list[str], where: str) -> DataError | None:
    """What is wrong with the cells of a row; without a header yet, the row is the header."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return DataError(
            f"byte {error.start + 1} of the row is not UTF-8", where=where, cure=TO_UTF8
        )
    if header and len(cells) != len(header):
        return DataError(
            f"{len(cells)} cells, where the header has {len(header)}",
            where=where,
            cure="put text with commas, quotes or line breaks into double quotes",
        )
    if not header and (len(set(cells)) < len(cells) or not all(name.strip() for name in cells)):
        return DataError(
            f"the header names a column twice or not at all: {', '.join(cells[:50])}",
            where=where,
            cure="the first line names every column once",
        )
    if not header and len(cells) == 1 and any(sign in cells[0] for sign in ",;\t|"):
        return DataError(
            f"the header is one column, {cells[0]!r}",
            where=where,
            cure="separate columns by commas (.csv) or tabs (.tsv)",
        )
    return None


def _text(path: Path, progress: ProgressCallback) -> Iterator[RowOrError]:
    """One document: the whole file."""
    text = _read_whole(path)
    progress(path.stat().st_size)
    if text.strip():
        yield Row({"text": text.replace("\r\n", "\n")}, f"{path}:1")


READERS: Mapping[str, Callable[[Path, ProgressCallback], Iterator[RowOrError]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_csv, separator=","),
    ".tsv": partial(_csv, separator="\t"),
    ".parquet": parquet.read,
    ".txt": _text,
    ".md": _text,
}
