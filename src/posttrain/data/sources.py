"""Sources of rows: JSON lines, JSON arrays, CSV, Parquet and text files, folders and hub data sets. One row at a time.

Left out: Arrow and Excel files, archives of many files, remote file systems (the hub apart).
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from posttrain.core.errors import DataError
from posttrain.core.extras import require
from posttrain.core.files import sha256_file
from posttrain.data.rows import Rejects, Row, kind
from posttrain.data.settings import Source

LONGEST = 64 * 2**20  # bytes of a line; a longer one is no row but a file that is not what its name says
WHOLE = 2**31  # bytes of a file that has to be read as a whole

Told = Callable[[int], None]  # hears how many bytes have been read
Item = Row | tuple[DataError, bytes]  # a row, or why it is none and what the file has there


def read(source: Source, rejects: Rejects, told: Told = lambda read: None) -> Iterator[Row]:
    """The rows of a source in the order of its files, renamed to our columns; at most `source.limit` of them.

    Args:
        source: where from.
        rejects: counts the rows and takes those that cannot be read.
        told: hears how many bytes of the files have been read.
    Raises:
        DataError: there is no such file, it is damaged, or a row cannot be read and rejects are not written.
    """
    found = files(source)
    items: Iterator[Item] = _hub(source) if found is None else _files(found, told)
    rename = {theirs: ours for ours, theirs in source.columns.items()}
    for item in islice(items, source.limit):
        rejects.read += 1
        if isinstance(item, Row):
            yield _renamed(item, source, rename) if rename else item
        else:
            rejects.add(*item)


def _renamed(row: Row, source: Source, rename: dict[str, str]) -> Row:
    """A row under our column names. What the mapping does not name keeps its name, unless a mapped one takes it."""
    kept = {k: v for k, v in row.fields.items() if k not in rename and k not in source.columns}
    return Row({**kept, **{rename[k]: v for k, v in row.fields.items() if k in rename}}, row.where, row.raw)


def _files(found: list[Path], told: Told) -> Iterator[Item]:
    before = 0
    for path in found:
        yield from _one(path, lambda inside, before=before: told(before + inside))
        before += path.stat().st_size
        told(before)


def files(source: Source) -> list[Path] | None:
    """The files of a source, or None for a hub data set or a saved one.

    Raises:
        DataError: no file is there.
    """
    path = Path(source.path)
    if path.is_file():
        return [path]
    if path.is_dir():
        return None
    if found := sorted(Path(p) for p in glob.glob(source.path, recursive=True) if Path(p).is_file()):
        return found
    if source.path.count("/") == 1 and not path.suffix and not source.path.startswith((".", "~", "/")) and not glob.has_magic(
            source.path):
        return None
    raise DataError(f"there is no file {path}", cure="check the path")


def digest(source: Source) -> dict[str, str]:
    """What identifies a source's content: the SHA-256 of its files, or the commit of a hub data set."""
    found = files(source)
    if found is None and Path(source.path).is_dir():
        found = sorted(p for p in Path(source.path).rglob("*") if p.is_file() and not p.name.startswith("."))
    if found is not None:
        return {str(path): sha256_file(path) for path in found}
    return {source.path: _commit(source.path)}


def size(source: Source) -> int:
    """Bytes to read, 0 where that is not known."""
    return sum(path.stat().st_size for path in files(source) or ())


# ---------------------------------------------------------------------------------------------- files

def _one(path: Path, told: Told) -> Iterator[Item]:
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    readers: dict[str, Callable[[Path, Told], Iterator[Item]]] = {
        ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": partial(_csv, separator=","),
        ".tsv": partial(_csv, separator="\t"), ".parquet": _parquet, ".txt": _text, ".md": _text}
    if suffix not in readers:
        raise DataError(f"{path}: no reader for {suffix or 'a file without an ending'}",
                        cure=f"give one of {', '.join(readers)}, or these with .gz")
    if path.suffix == ".gz" and suffix == ".parquet":
        raise DataError(f"{path}: Parquet inside gzip cannot be read", cure="gunzip it")
    at = [0]
    try:
        yield from readers[suffix](path, _heard(told, at))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the compressed file is damaged or cut off: {error}", where=f"{path}:{at[0] + 1}",
                        cure="get the file again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start + 1} is not UTF-8", where=f"{path}:{at[0] + 1}",
                        cure="convert the file: iconv -f LATIN1 -t UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", cure="check the file and its permissions") from error


def _heard(told: Told, at: list[int]) -> Told:
    """`told`, with the rows counted on the way."""
    def heard(position: int) -> None:
        at[0] += 1
        told(position)

    return heard


def _open(path: Path) -> tuple[IO[bytes], Callable[[], int]]:
    """A file, decompressed, and how far in the compressed one it stands."""
    raw = open(path, "rb")  # noqa: SIM115 - closed with the file that wraps it
    if path.suffix != ".gz":
        _check_encoding(raw.peek(4)[:4], path)
        return raw, raw.tell
    file = gzip.GzipFile(fileobj=raw)
    file.myfileobj = raw  # type: ignore[assignment] - so that closing the one closes the other
    _check_encoding(file.peek(4)[:4], path)
    return file, raw.tell  # type: ignore[return-value]


def _check_encoding(start: bytes, path: Path) -> None:
    for mark, name in ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
                       (b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet")):
        if start.startswith(mark):
            cure = f"convert it: iconv -f {name} -t UTF-8" if name.startswith("UTF") else "give it the ending it should have"
            raise DataError(f"the file is {name}, not UTF-8 text", where=f"{path}:1", cure=cure)


def _lines(path: Path, told: Told) -> Iterator[bytes]:
    """A file's lines with their ends; the first without a byte order mark."""
    file, position = _open(path)
    with file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            if len(raw) == LONGEST:
                raise DataError(f"a line of more than {LONGEST // 2**20} MB", where=f"{path}:{number}",
                                cure="put one row on a line; a JSON array belongs in a file that ends in .json")
            told(position())
            yield raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw


def _json_lines(path: Path, told: Told) -> Iterator[Item]:
    for number, raw in enumerate(_lines(path, told), 1):
        if not raw.isspace():
            yield _parsed(raw, f"{path}:{number}")


def _parsed(raw: bytes, where: str) -> Item:
    """A line of JSON, or why it is none."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        what, cure = f"byte {error.start + 1} of the line is not UTF-8", "convert the file: iconv -f LATIN1 -t UTF-8"
    except json.JSONDecodeError as error:
        what, cure = f"not JSON: {error.msg} at character {error.pos + 1}", "one JSON object a line"
    except (ValueError, RecursionError) as error:  # a key twice; a number of thousands of digits; thousands of brackets
        what, cure = f"not readable JSON: {error}", "correct or remove the row"
    else:
        if isinstance(value, dict):
            return Row(value, where, raw)
        what, cure = f"{kind(value)}, not an object", "one JSON object a line"
    return DataError(what, where=where, cure=cure), raw


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that stands twice would lose one of its values."""
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} stands twice")
    return out


def _whole(path: Path) -> str:
    """A file that cannot be read in parts."""
    file, _ = _open(path)
    with file:
        data = file.read(WHOLE + 1)
    if len(data) > WHOLE:
        raise DataError(f"{path} holds more than {WHOLE // 2**30} GB and cannot be read line by line",
                        cure="convert it to JSON lines (.jsonl), one row a line")
    return data.decode("utf-8-sig")


def _json(path: Path, told: Told) -> Iterator[Item]:
    """A JSON array of objects, or JSON lines under the name .json."""
    file, _ = _open(path)
    with file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] != b"[":
        yield from _json_lines(path, told)
        return
    text = _whole(path)
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    at, line = text.index("[") + 1, 1
    counted = 0
    first = True
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if text[at:at + 1] == "]":
            if text[at + 1:].strip():
                raise DataError("there is something after the array's end", where=f"{path}:{text.count(chr(10), 0, at) + 1}",
                                cure="one array in a file")
            return
        if not first:
            if text[at:at + 1] != ",":
                raise DataError("the array is cut off, or a comma is missing", cure="correct the file: nothing after here can be "
                                "read", where=f"{path}:{text.count(chr(10), 0, at) + 1}")
            at += 1
            while at < len(text) and text[at].isspace():
                at += 1
        first = False
        line += text.count("\n", counted, at)
        counted = at
        where = f"{path}:{line}"
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"not JSON: {what}", where=where, cure="correct the file: nothing after here can be read") from None
        raw = text[at:end].encode("utf-8", "surrogatepass")
        told(0)
        yield Row(value, where, raw) if isinstance(value, dict) else (
            DataError(f"{kind(value)}, not an object", where=where, cure="an array of objects"), raw)
        at = end


def _csv(path: Path, told: Told, separator: str) -> Iterator[Item]:
    csv.field_size_limit(LONGEST)
    lines = (raw.decode() for raw in _lines(path, told))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header) or not all(name.strip() for name in header):
            raise DataError(f"the header names a column twice or not at all: {', '.join(header)}", where=f"{path}:1",
                            cure="the first line names every column once")
        if len(header) == 1 and any(sign in header[0] for sign in ";\t|"):
            raise DataError(f"the header is one column, {header[0]!r}", where=f"{path}:1",
                            cure="separate columns by commas (.csv) or tabs (.tsv)")
        line = reader.line_num
        for cells in reader:
            where, line = f"{path}:{line + 1}", reader.line_num
            if not cells:
                continue
            if len(cells) == len(header):
                yield Row(dict(zip(header, cells, strict=True)), where)
            else:
                yield (DataError(f"{len(cells)} cells, where the header has {len(header)}", where=where,
                                 cure="put text with commas, quotes or line breaks into double quotes"),
                       json.dumps(cells, ensure_ascii=False).encode())
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{path}:{reader.line_num}",
                        cure="double the quotes inside quoted text, and close them") from None


def _parquet(path: Path, told: Told) -> Iterator[Item]:
    pq: Any = require("pyarrow.parquet", extra="data", purpose="reading Parquet files")
    arrow: Any = require("pyarrow", extra="data", purpose="reading Parquet files")
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            total, whole = max(1, file.metadata.num_rows), path.stat().st_size
            for batch in file.iter_batches(batch_size=256):
                for fields in batch.to_pylist():
                    number += 1
                    told(whole * number // total)
                    yield Row(fields, f"{path}:row {number}")
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"not Parquet, damaged or cut off: {first}", where=f"{path}:row {number + 1}",
                        cure="get the file again") from None


def _text(path: Path, told: Told) -> Iterator[Item]:
    """One document: the whole file."""
    text = _whole(path)
    told(path.stat().st_size)
    if text.strip():
        yield Row({"text": text.replace("\r\n", "\n")}, f"{path}:1")


# ---------------------------------------------------------------------------------------------- datasets

def _hub(source: Source) -> Iterator[Row]:
    """Rows of a data set through `datasets`: a hub id, a folder of files or one that `save_to_disk` wrote."""
    datasets: Any = require("datasets", extra="data", purpose="reading folders and hub data sets")
    path = Path(source.path)
    try:
        if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            loaded = datasets.load_from_disk(str(path))
            rows = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            revision = None if path.is_dir() else _commit(source.path)
            rows = datasets.load_dataset(str(path) if path.is_dir() else source.path, source.subset, split=source.split,
                                         streaming=True, revision=revision)
        yield from _numbered(rows, f"{source.path}[{source.split}]")
    except DataError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"cannot load the data set {source.path}: {type(error).__name__}: {first}",
                        cure="check its name, split and subset, and the connection; or give a local file") from error


def _numbered(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Row]:
    for number, fields in enumerate(rows, 1):
        yield Row(dict(fields), f"{name}:row {number}")


def _commit(name: str) -> str:
    """The commit a hub data set stands at, so that a run that goes on tomorrow reads the same rows."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:
        raise DataError(f"no file {name!r} here, and the hub did not give a data set of that name: {type(error).__name__}",
                        cure="check the path, or the name and the connection") from error
