"""Readers of files, one row at a time: JSON lines, JSON arrays, CSV, Parquet and text.

Left out: Arrow and Excel files, archives of many files.
"""

from __future__ import annotations

import csv
import gzip
import json
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
LONGEST = (
    64 * 2**20
)  # bytes of a line; a longer one is no row but a file that is not what its name says
WHOLE = 2**31  # bytes of a file that has to be read as a whole

Told = Callable[[int], None]  # hears how many bytes have been read
Item = Row | tuple[DataError, bytes]  # a row, or why it is none and what the file has there


def suffix_of(path: Path) -> str:
    """The ending that says what a file holds."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_file(path: Path, told: Told) -> Iterator[Item]:
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise DataError(
            f"{path}: no reader for {suffix or 'a file without an ending'}",
            cure=f"give one of {', '.join(READERS)}, or these with .gz",
        )
    if path.suffix == ".gz" and suffix == ".parquet":
        raise DataError(f"{path}: Parquet inside gzip cannot be read", cure="gunzip it")
    at = [0]
    try:
        yield from READERS[suffix](path, _heard(told, at))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the compressed file is damaged or cut off: {error}",
            where=f"{path}:{at[0] + 1}",
            cure="get the file again",
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}",
            cure="check the file and its permissions",
        ) from error


def _heard(told: Told, at: list[int]) -> Told:
    """`told`, with the rows counted on the way."""

    def heard(position: int) -> None:
        at[0] += 1
        told(position)

    return heard


@contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """A file, decompressed, and how far in the compressed one it stands."""
    with (
        open(path, "rb") as raw,
        gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else nullcontext(raw) as file,
    ):
        _check_encoding(file.peek(4)[:4], path)
        yield file, raw.tell  # type: ignore[misc] - a GzipFile is read like any other


def _check_encoding(start: bytes, path: Path) -> None:
    for mark, name in (
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
        (b"\x1f\x8b", "gzip"),
        (b"PAR1", "Parquet"),
    ):
        if start.startswith(mark):
            cure = (
                f"convert it: iconv -f {name} -t UTF-8"
                if name.startswith("UTF")
                else "give it the ending it should have"
            )
            raise DataError(f"the file is {name}, not UTF-8 text", where=f"{path}:1", cure=cure)


def _lines(path: Path, told: Told) -> Iterator[bytes]:
    """A file's lines with their ends; the first without a byte order mark."""
    with _open(path) as (file, position):
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            if len(raw) > LONGEST:
                raise DataError(
                    f"a line of more than {LONGEST // 2**20} MB",
                    where=f"{path}:{number}",
                    cure="put one row on a line; a JSON array belongs in a file that ends in .json",
                )
            told(position())
            yield raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw


def _json_lines(path: Path, told: Told) -> Iterator[Item]:
    for number, raw in enumerate(_lines(path, told), 1):
        if raw.strip():
            yield _parsed(raw, f"{path}:{number}")


def _parsed(raw: bytes, where: str) -> Item:
    """A line of JSON, or why it is none."""
    try:
        value = JSON.decode(raw.rstrip().decode())
    except UnicodeDecodeError as error:
        what, cure = f"byte {error.start + 1} of the line is not UTF-8", TO_UTF8
    except json.JSONDecodeError as error:
        what, cure = f"not JSON: {error.msg} at character {error.pos + 1}", "one JSON object a line"
    except (
        ValueError,
        RecursionError,
    ) as error:  # a key twice; a number of thousands of digits; thousands of brackets
        what, cure = f"not readable JSON: {error}", "correct or remove the row"
    else:
        if isinstance(value, dict):
            return Row(value, where, raw)
        what, cure = f"{kind(value)}, not an object", "one JSON object a line"
    return DataError(what, where=where, cure=cure), raw


def _whole(path: Path) -> str:
    """A file that cannot be read in parts."""
    with _open(path) as (file, _):
        data = file.read(WHOLE + 1)
    if len(data) > WHOLE:
        raise DataError(
            f"{path} holds more than {WHOLE // 2**30} GB and cannot be read line by line",
            cure="convert it to JSON lines (.jsonl), one row a line",
        )
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].split(b"\n")
        raise DataError(
            f"byte {len(before[-1]) + 1} of the line is not UTF-8",
            where=f"{path}:{len(before)}",
            cure=TO_UTF8,
        ) from None


def _json(path: Path, told: Told) -> Iterator[Item]:
    """A JSON array of objects, or JSON lines under the name .json."""
    with _open(path) as (file, _):
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] != b"[":
        yield from _json_lines(path, told)
        return
    text = _whole(path)
    at, line = text.index("[") + 1, 1
    counted = 0
    first = True
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise DataError(
                    "there is something after the array's end",
                    where=f"{path}:{text.count(chr(10), 0, at) + 1}",
                    cure="one array in a file",
                )
            return
        if not first:
            if text[at : at + 1] != ",":
                raise DataError(
                    "the array is cut off, or a comma is missing",
                    cure="correct the file: nothing after here can be read",
                    where=f"{path}:{text.count(chr(10), 0, at) + 1}",
                )
            at += 1
            while at < len(text) and text[at].isspace():
                at += 1
        first = False
        line += text.count("\n", counted, at)
        counted = at
        where = f"{path}:{line}"
        try:
            value, end = JSON.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            what, line = (
                (error.msg, error.lineno)
                if isinstance(error, json.JSONDecodeError)
                else (error, line)
            )
            raise DataError(
                f"not JSON: {what}",
                where=f"{path}:{line}",
                cure="correct the file: nothing after here can be read",
            ) from None
        raw = text[at:end].encode("utf-8", "surrogatepass")
        told(0)
        yield (
            Row(value, where, raw)
            if isinstance(value, dict)
            else (
                DataError(f"{kind(value)}, not an object", where=where, cure="an array of objects"),
                raw,
            )
        )
        at = end


def _csv(path: Path, told: Told, separator: str) -> Iterator[Item]:
    csv.field_size_limit(LONGEST)
    taken: list[bytes] = []  # lines of the row that is being read

    def lines() -> Iterator[str]:
        for raw in _lines(path, told):
            taken.append(raw)
            yield raw.decode(
                "utf-8", "surrogateescape"
            )  # so that other bytes spoil their own row only

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            raw = b"".join(taken)
            taken.clear()
            if not cells:
                continue
            error = _misread(cells, raw, header, where)
            if header:
                yield (
                    (error, raw)
                    if error
                    else Row(dict(zip(header, cells, strict=True)), where, raw)
                )
            elif error:
                raise error
            header = header or cells
    except csv.Error as error:
        raise DataError(
            f"not CSV: {error}",
            where=f"{path}:{line}",
            cure="double the quotes inside quoted text, and close them",
        ) from None


def _misread(cells: list[str], raw: bytes, header: list[str], where: str) -> DataError | None:
    """What is wrong with the cells of a row, or of the header itself where there is none yet."""
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


def _parquet(path: Path, told: Told) -> Iterator[Item]:
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
            total, whole = max(1, file.metadata.num_rows), path.stat().st_size
            for batch in file.iter_batches(batch_size=256):
                for fields, raw in _plain(batch):
                    number += 1
                    told(whole * number // total)
                    where = f"{path}:row {number}"
                    yield (
                        Row(fields, where)
                        if isinstance(fields, dict)
                        else (
                            DataError(
                                f"a value cannot be read: {fields}",
                                where=where,
                                cure="correct or remove the row",
                            ),
                            raw,
                        )
                    )
    except (arrow.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's, not Arrow's
        raise DataError(
            f"not Parquet, damaged or cut off: {first_line(error)}",
            where=f"{path}:row {number + 1}",
            cure="get the file again",
        ) from None


def _plain(batch: Any) -> Iterator[tuple[dict[str, Any] | str, bytes]]:
    """The rows of an Arrow batch; of one that Python cannot hold (text that is not UTF-8, a date of
    the year 12000) why, and what Arrow holds.
    """
    try:
        yield from ((fields, b"") for fields in batch.to_pylist())
    except (ValueError, OverflowError, LookupError) as error:
        if len(batch) == 1:
            yield first_line(error), batch.serialize().to_pybytes()
        else:
            for i in range(len(batch)):
                yield from _plain(batch.slice(i, 1))


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _text(path: Path, told: Told) -> Iterator[Item]:
    """One document: the whole file."""
    text = _whole(path)
    told(path.stat().st_size)
    if text.strip():
        yield Row({"text": text.replace("\r\n", "\n")}, f"{path}:1")


READERS: Mapping[str, Callable[[Path, Told], Iterator[Item]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_csv, separator=","),
    ".tsv": partial(_csv, separator="\t"),
    ".parquet": _parquet,
    ".txt": _text,
    ".md": _text,
}
