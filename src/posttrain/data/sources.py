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
from posttrain.data.readers import READERS, read_file, suffix_of
from posttrain.data.rows import ProgressCallback, Rejects, Row, RowOrError, first_line
from posttrain.data.settings import Source

LONGEST_PATH = 4096  # characters; no system opens a longer one
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read(
    source: Source, rejects: Rejects, progress: ProgressCallback = lambda bytes_read: None
) -> Iterator[Row]:
    """The rows of a source in the order of its files, renamed to our columns and without those that
    it ignores; at most `source.limit` of them.

    Args:
        source: where from.
        rejects: counts the rows and takes those that cannot be read.
        progress: called with the bytes read so far, over all files.
    Raises:
        DataError: there is no such file, it is damaged, no row has a column that is named, or a row
            cannot be read and rejects are not written.
    """
    paths = files(source)
    items = _from_datasets(source) if paths is None else _from_files(paths, progress)
    missing, row = {*source.columns.values(), *source.ignore}, None
    for item in islice(items, source.limit):
        rejects.read += 1
        if not isinstance(item, Row):
            rejects.add(*item)
            continue
        row = item
        missing -= row.fields.keys()
        yield _renamed(row, source) if source.columns or source.ignore else row
    if missing and row is not None:
        name = min(missing)
        raise DataError(
            f"no row of {source} has the column {name!r}, which --data names; "
            f"{nearest(name, row.fields)}",
            cure="correct its name, or leave it out",
        )


def _renamed(row: Row, source: Source) -> Row:
    """A row under our column names, without what is ignored.

    A column that the mapping does not name keeps its name, unless a mapped one takes that name.
    """
    columns = source.columns
    mapped = {ours: row.fields[theirs] for ours, theirs in columns.items() if theirs in row.fields}
    taken = {*columns, *columns.values(), *source.ignore}
    others = {name: value for name, value in row.fields.items() if name not in taken}
    return Row({**others, **mapped}, row.where, row.raw)


def _from_files(paths: list[Path], progress: ProgressCallback) -> Iterator[RowOrError]:
    bytes_before = 0
    for path in paths:
        yield from read_file(path, lambda inside, before=bytes_before: progress(before + inside))
        bytes_before += path.stat().st_size
        progress(bytes_before)


def files(source: Source) -> list[Path] | None:
    """The files of a source, or None for a hub data set or a saved one.

    Raises:
        DataError: no file is there.
    """
    path = Path(source.path)
    if os.path.isfile(path):  # unlike Path's method, it takes text of any length
        return [path]
    if os.path.isdir(path):
        return None
    if source.path == "-" or os.path.exists(path):
        raise DataError(
            f"{path} is a pipe or a device, not a file: data are read more than once, which these "
            "cannot be",
            cure=(
                "write it to a file first, with the ending that says what it holds: … > rows.jsonl"
            ),
        )
    if len(source.path) > LONGEST_PATH:  # matching a pattern takes the square of its length
        raise DataError(
            f"there is no file of {len(source.path):,} characters: {source.path[:80]}…",
            cure="check the path",
        )
    matches = [Path(name) for name in glob.glob(source.path, recursive=True)]
    if paths := sorted(match for match in matches if match.is_file()):
        return paths
    if HUB_ID.fullmatch(source.path) and suffix_of(path) not in READERS:
        return None
    raise DataError(f"there is no file {path}", cure="check the path")


def digest(source: Source) -> dict[str, str]:
    """Path of a file of a source, or hub id → its SHA-256, or the commit."""
    return dict(digests(source).values())


def on_hub(source: Source) -> bool:
    """Whether a source is a hub data set, which its name identifies, and not files."""
    return files(source) is None and not os.path.isdir(source.path)


def digests(source: Source) -> dict[str, tuple[str, str]]:
    """What identifies a source's content: the SHA-256 of its files, or the commit of a hub data
    set.

    Returns: name of a file in the source → its path and digest. The name holds what decides how the
        file is read and nothing of where it lies: its ending, in a folder its path from there.
    """
    paths, folder = files(source), Path(source.path)
    if paths is None and folder.is_dir():
        inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        shown = [path for path in inside if not path.name.startswith(".")]
        named = {f"/{path.relative_to(folder).as_posix()}": path for path in shown}
    elif paths is None:
        return {"": (source.path, _commit(source.path))}
    elif len(paths) == 1:
        named = {suffix_of(paths[0]): paths[0]}
    else:
        named = {f"/{i}{suffix_of(path)}": path for i, path in enumerate(paths, 1)}
    return {name: (str(path), sha256_input(path)) for name, path in named.items()}


def size(source: Source) -> int:
    """Bytes to read; 0 where the size is not known."""
    return sum(path.stat().st_size for path in files(source) or ())


# ----------------------------------------------------------------------------------------- datasets


def _from_datasets(source: Source) -> Iterator[RowOrError]:
    """Rows of a data set through `datasets`: a hub id, a folder of files or one that `save_to_disk`
    wrote.
    """
    datasets: Any = require("datasets", extra="data", purpose="reading folders and hub data sets")
    folder = Path(source.path)
    try:
        if folder.is_dir() and not _saved_to_disk(folder):
            paths = _split_files(datasets, source)
            _refuse_archives(paths)
            if paths and all(suffix_of(path) in READERS for path in paths):
                # read here, so that rows know file and line and no value is converted
                yield from _from_files(paths, lambda bytes_read: None)
                return
        yield from _numbered(_load(datasets, source), f"{source.path}[{source.split}]")
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"cannot load the data set {source.path}: {type(error).__name__}: {first_line(error)}",
            cure="check its name, split and subset, and the connection; or give a local file",
        ) from error


def _load(datasets: Any, source: Source) -> Iterable[dict[str, Any]]:
    """The rows of a data set as `datasets` gives them."""
    folder = Path(source.path)
    if folder.is_dir() and _saved_to_disk(folder):
        loaded = datasets.load_from_disk(str(folder))
        return loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
    name, options = str(folder), {}
    if not folder.is_dir():
        name, options = source.path, {"revision": _commit(source.path)}
    return datasets.load_dataset(name, source.subset, split=source.split, streaming=True, **options)


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _split_files(datasets: Any, source: Source) -> list[Path]:
    """The files that `datasets` puts into the split, by their names."""
    folder = Path(source.path)
    splits = datasets.load_dataset_builder(str(folder), source.subset).config.data_files or {}
    # a README.md may name other subsets
    if source.subset is None and not (folder / "README.md").is_file():
        _check_folder(folder, splits)
    return [Path(path) for path in splits.get(source.split, ())]


ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".lz4")


def _refuse_archives(paths: list[Path]) -> None:
    """Refuse files that hold files: what they expand to, and how deep, is not known before."""
    for path in paths:
        if suffix_of(path) in ARCHIVES or (
            path.suffix.lower() in ARCHIVES and suffix_of(path) not in READERS
        ):
            raise DataError(f"{path} is an archive", cure="unpack it, and give the files in it")


def _check_folder(folder: Path, splits: Mapping[Any, list[str]]) -> None:
    """Refuse a folder with a data file that `datasets` puts into no split.

    `datasets` goes by the files' names and the most frequent ending.
    """
    in_a_split = {Path(path).resolve() for paths in splits.values() for path in paths}
    endings = READERS.keys() - {".txt", ".md"}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith((".", "__", "dataset_info")) for part in parts):
            continue
        if suffix_of(path) in endings and path.is_file() and path.resolve() not in in_a_split:
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
    """The commit a hub data set stands at, so that a resumed run reads the same rows."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:
        raise DataError(
            f"no file {name!r} here, and the hub did not give a data set of that name: "
            f"{type(error).__name__}",
            cure="check the path, or the name and the connection",
        ) from error
