"""Sources of rows: files, folders and hub data sets. One row at a time.

Left out: remote file systems (the hub apart).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.core.errors import DataError, nearest
from posttrain.core.extras import require
from posttrain.core.files import sha256_input
from posttrain.data.readers import READERS, Item, Told, first_line, read_file, suffix_of
from posttrain.data.rows import Rejects, Row
from posttrain.data.settings import Source

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read(source: Source, rejects: Rejects, told: Told = lambda read: None) -> Iterator[Row]:
    """The rows of a source in the order of its files, renamed to our columns; at most
    `source.limit` of them.

    Args:
        source: where from.
        rejects: counts the rows and takes those that cannot be read.
        told: hears how many bytes of the files have been read.
    Raises:
        DataError: there is no such file, it is damaged, no row has a column that is named, or a row
            cannot be read and rejects are not written.
    """
    found = files(source)
    items: Iterator[Item] = _hub(source) if found is None else _files(found, told)
    missing, row = set(source.columns.values()), None
    for item in islice(items, source.limit):
        rejects.read += 1
        if isinstance(item, Row):
            row = item
            missing -= row.fields.keys()
            yield _renamed(row, source.columns) if source.columns else row
        else:
            rejects.add(*item)
    if missing and row is not None:
        name = min(missing)
        raise DataError(
            f"no row of {source} has the column {name!r}, which --data names;"
            f" {nearest(name, row.fields)}",
            cure="correct its name, or leave it out",
        )


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    """A row under our column names. What the mapping does not name keeps its name, unless a mapped
    one takes it.
    """
    kept = {k: v for k, v in row.fields.items() if k not in columns and k not in columns.values()}
    taken = {ours: row.fields[theirs] for ours, theirs in columns.items() if theirs in row.fields}
    return Row({**kept, **taken}, row.where, row.raw)


def _files(found: list[Path], told: Told) -> Iterator[Item]:
    before = 0
    for path in found:
        yield from read_file(path, lambda inside, before=before: told(before + inside))
        before += path.stat().st_size
        told(before)


def files(source: Source) -> list[Path] | None:
    """The files of a source, or None for a hub data set or a saved one.

    Raises:
        DataError: no file is there.
    """
    path = Path(source.path)
    if os.path.isfile(path):  # unlike Path's, it takes any text, however long
        return [path]
    if os.path.isdir(path):
        return None
    if source.path == "-" or os.path.exists(path):
        raise DataError(
            f"{path} is a pipe or a device, not a file: data are read more than once, which these"
            " cannot be",
            cure=(
                "write it to a file first, with the ending that says what it holds: … > rows.jsonl"
            ),
        )
    if found := sorted(
        Path(p) for p in glob.glob(source.path, recursive=True) if os.path.isfile(p)
    ):
        return found
    if HUB_ID.fullmatch(source.path) and suffix_of(path) not in READERS:
        return None
    raise DataError(f"there is no file {path}", cure="check the path")


def digest(source: Source) -> dict[str, str]:
    """What identifies a source's content: the SHA-256 of its files, or the commit of a hub data
    set.
    """
    found = files(source)
    if found is None and Path(source.path).is_dir():
        found = sorted(
            p for p in Path(source.path).rglob("*") if p.is_file() and not p.name.startswith(".")
        )
    if found is not None:
        return {str(path): sha256_input(path) for path in found}
    return {source.path: _commit(source.path)}


def size(source: Source) -> int:
    """Bytes to read, 0 where that is not known."""
    return sum(path.stat().st_size for path in files(source) or ())


# ----------------------------------------------------------------------------------------- datasets


def _hub(source: Source) -> Iterator[Item]:
    """Rows of a data set through `datasets`: a hub id, a folder of files or one that `save_to_disk`
    wrote.
    """
    datasets: Any = require("datasets", extra="data", purpose="reading folders and hub data sets")
    path = Path(source.path)
    try:
        if path.is_dir() and (
            (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
        ):
            loaded = datasets.load_from_disk(str(path))
            rows = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        elif path.is_dir():
            splits = datasets.load_dataset_builder(str(path), source.subset).config.data_files or {}
            if (
                source.subset is None and not (path / "README.md").is_file()
            ):  # which may name other subsets
                _check_folder(path, splits)
            found = [Path(one) for one in splits.get(source.split, ())]
            if found and all(suffix_of(one) in READERS for one in found):
                yield from _files(
                    found, lambda read: None
                )  # file and line, and nothing converted on the way
                return
            rows = datasets.load_dataset(
                str(path), source.subset, split=source.split, streaming=True
            )
        else:
            rows = datasets.load_dataset(
                source.path,
                source.subset,
                split=source.split,
                streaming=True,
                revision=_commit(source.path),
            )
        yield from _numbered(rows, f"{source.path}[{source.split}]")
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"cannot load the data set {source.path}: {type(error).__name__}: {first_line(error)}",
            cure="check its name, split and subset, and the connection; or give a local file",
        ) from error


def _check_folder(folder: Path, splits: Mapping[Any, list[str]]) -> None:
    """Refuse a folder with files of data that `datasets`, which goes by names and the most frequent
    ending, puts in no split.
    """
    known = {Path(path).resolve() for some in splits.values() for path in some}
    for path in sorted(folder.rglob("*")):
        hidden = any(
            part.startswith((".", "__", "dataset_info")) for part in path.relative_to(folder).parts
        )
        if (
            suffix_of(path) in READERS.keys() - {".txt", ".md"}
            and path.is_file()
            and not hidden
            and path.resolve() not in known
        ):
            raise DataError(
                f"{path} would be left out: by the names of the files it is in no split",
                where=str(folder),
                cure=f"name the files themselves: --data '{folder}/*{path.suffix}'",
            )


def _numbered(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Row]:
    for number, fields in enumerate(rows, 1):
        yield Row(dict(fields), f"{name}:row {number}")


@cache
def _commit(name: str) -> str:
    """The commit a hub data set stands at, so that a run that goes on tomorrow reads the
    same rows.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:
        raise DataError(
            f"no file {name!r} here, and the hub did not give a data set of that name:"
            f" {type(error).__name__}",
            cure="check the path, or the name and the connection",
        ) from error
