"""Readers of files, one row at a time: JSON lines, JSON arrays, CSV, Parquet and text.

Left out: Arrow and Excel files, archives of many files.
"""

from __future__ import annotations

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

from posttrain.core.errors import DataError
from posttrain.core.extras import require
from posttrain.data.rows import JSON, Row, kind

TO_UTF8 = "convert the file: iconv -f LATIN1 -t UTF-8"
LONGEST_LINE = 64 * 2**20  # bytes; a longer line means that the file's name is wrong
LARGEST_WHOLE = 2**31  # bytes of a file that has to be read in one piece

ProgressCallback = Callable[[int], None]  # called with the number of bytes read so far
RowOrError = Row | tuple[DataError, bytes]  # a row, or an error with the bytes that caused it


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
    """A file's lines with their line ends; a byte order mark is removed."""
    with _open(path) as (file, bytes_read):
        lines = iter(lambda: file.readline(LONGEST_LINE + 1), b"")
        for number, raw in enumerate(lines, 1):
            if len(raw) > LONGEST_LINE:
                raise DataError(
                    f"a line of more than {LONGEST_LINE // 2**20} MB",
                    where=f"{path}:{number}",
                    cure="put one row on a line; a JSON array belongs in a file that ends in .json",
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
        if isinstance(value, dict):
            return Row(value, where, raw)
        what, cure = f"{kind(value)}, not an object", "one JSON object a line"
    return DataError(what, where=where, cure=cure), raw


def _read_whole(path: Path) -> str:
    """The text of a file that cannot be read in parts."""
    with _open(path) as (file, _):
        data = file.read(LARGEST_WHOLE + 1)
    if len(data) > LARGEST_WHOLE:
        raise DataError(
            f"{path} holds more than {LARGEST_WHOLE // 2**30} GB and cannot be read line by line",
            cure="convert it to JSON lines (.jsonl), one row a line",
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


_SPACES = re.compile(r"\s*")


def _skip_spaces(text: str, position: int) -> int:
    match = _SPACES.match(text, position)
    assert match is not None  # an empty match, where there is no space
    return match.end()


def _json_array(path: Path) -> Iterator[RowOrError]:
    """The elements of the array that a file holds, one at a time.

    Raises:
        DataError: the array is cut off, an element is not JSON, or something follows the array.
    """
    text = _read_whole(path)
    position = _skip_spaces(text, text.index("[") + 1)
    line, line_counted_to = 1, 0
    first = True
    while not text.startswith("]", position):
        if not first:
            if not text.startswith(",", position):
                raise DataError(
                    "the array is cut off, or a comma is missing",
                    where=_line_of(path, text, position),
                    cure="correct the file: nothing after here can be read",
                )
            position = _skip_spaces(text, position + 1)
        first = False
        line += text.count("\n", line_counted_to, position)
        line_counted_to = position
        value, end = _array_element(path, text, position, line)
        raw = text[position:end].encode("utf-8", "surrogatepass")
        where = f"{path}:{line}"
        if isinstance(value, dict):
            yield Row(value, where, raw)
        else:
            what = f"{kind(value)}, not an object"
            yield DataError(what, where=where, cure="an array of objects"), raw
        position = _skip_spaces(text, end)
    if text[position + 1 :].strip():
        raise DataError(
            "there is something after the array's end",
            where=_line_of(path, text, position),
            cure="one array in a file",
        )


def _array_element(path: Path, text: str, position: int, line: int) -> tuple[Any, int]:
    """The JSON value that begins at a position, and where it ends."""
    try:
        return JSON.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        what = str(error)
        if isinstance(error, json.JSONDecodeError):
            what, line = error.msg, error.lineno
        raise DataError(
            f"not JSON: {what}",
            where=f"{path}:{line}",
            cure="correct the file: nothing after here can be read",
        ) from None


def _line_of(path: Path, text: str, position: int) -> str:
    return f"{path}:{text.count(chr(10), 0, position) + 1}"


def _csv(path: Path, progress: ProgressCallback, separator: str) -> Iterator[RowOrError]:
    csv.field_size_limit(LONGEST_LINE)
    row_lines: list[bytes] = []  # lines of the row that is being read

    def lines() -> Iterator[str]:
        for raw in _lines(path, progress):
            row_lines.append(raw)
            # a byte that is not UTF-8 spoils its own row only
            yield raw.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            raw = b"".join(row_lines)
            row_lines.clear()
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
            f"the header names a column twice or not at all: {', '.join(cells)}",
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


def _parquet(path: Path, progress: ProgressCallback) -> Iterator[RowOrError]:
    pq: Any = require("pyarrow.parquet", extra="data", purpose="reading Parquet files")
    arrow: Any = require("pyarrow", extra="data", purpose="reading Parquet files")
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(
                    f"the file names a column twice: {', '.join(names)}",
                    where=f"{path}:row 1",
                    cure="rename one",
                )
            rows, file_bytes = max(1, file.metadata.num_rows), path.stat().st_size
            for batch in file.iter_batches(batch_size=256):
                for fields, raw in _batch_rows(batch):
                    number += 1
                    progress(file_bytes * number // rows)
                    where = f"{path}:row {number}"
                    if isinstance(fields, dict):
                        yield Row(fields, where)
                        continue
                    what = f"a value cannot be read: {fields}"
                    yield DataError(what, where=where, cure="correct or remove the row"), raw
    except (arrow.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's, not Arrow's
        raise DataError(
            f"not Parquet, damaged or cut off: {first_line(error)}",
            where=f"{path}:row {number + 1}",
            cure="get the file again",
        ) from None


def _batch_rows(batch: Any) -> Iterator[tuple[dict[str, Any] | str, bytes]]:
    """The rows of an Arrow batch as dictionaries.

    A row that Python cannot hold (text that is not UTF-8, a date of the year 12000) comes as the
    reason and the bytes that Arrow holds.
    """
    try:
        yield from ((fields, b"") for fields in batch.to_pylist())
    except (ValueError, OverflowError, LookupError) as error:
        if len(batch) == 1:
            yield first_line(error), batch.serialize().to_pybytes()
        else:
            for i in range(len(batch)):
                yield from _batch_rows(batch.slice(i, 1))


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


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
    ".parquet": _parquet,
    ".txt": _text,
    ".md": _text,
}
