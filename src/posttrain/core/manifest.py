"""A manifest: the files that were made, with size, time of writing and digest; written last.

    {"files": {"model/config.json": {"size": 605, "mtime_ns": 1764201600000000000,
                                     "sha256": "5bd0…"}, …},
     "sha256": "…"}    of "files", so that damage to the manifest itself is noticed

Where it stands, everything it names was on the disk before. A check compares sizes and times, and
reads a file where its time moved, or where all contents are asked for. Files that the manifest does
not name are not looked at: a README.md may be added.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from posttrain.core.files import fsync, sha256_file, sha256_json, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """A file as it was made: bytes, time of writing, digest."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file.

    Attributes:
        name: of the file, or of a folder that is gone, from the manifest's folder. what: as the end
            of a sentence.
    """

    name: str
    what: str

    @property
    def top(self) -> str:
        """The file or folder beside the manifest that it is, or lies in."""
        return self.name.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.name} {self.what}"


def entries(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Flush files to the disk and take their digests.

    Args:
        names: of files and folders in `folder`; those that are not there are left out.
    Returns: path from `folder` → entry.
    """
    made: dict[str, Entry] = {}
    for name in names:
        for path in _files(folder / name):
            fsync(path)
            status = path.stat()  # before it is read: what is written meanwhile moves the time
            made[path.relative_to(folder).as_posix()] = Entry(
                status.st_size, status.st_mtime_ns, sha256_file(path)
            )
    return made


def _files(path: Path) -> Iterator[Path]:
    """The file, or all files of the folder; the folders' own entries are flushed."""
    if path.is_file():
        yield path
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            yield from _files(inner)
        fsync(path)


def write(path: Path, made: Mapping[str, Entry]) -> None:
    """Write the manifest; it is whole or absent."""
    files = {name: asdict(entry) for name, entry in made.items()}
    write_json(path, {"files": files, "sha256": sha256_json(files)})


def add(path: Path, names: Iterable[str]) -> None:
    """Name more files beside the manifest in it, or their new content."""
    write(path, {**(read(path) or {}), **entries(path.parent, names)})


def read(path: Path) -> dict[str, Entry] | None:
    """What a manifest says; None where it is not there, or not as it was written."""
    try:
        content = json.loads(path.read_bytes())
        if content["sha256"] != sha256_json(content["files"]):
            return None
        return {name: Entry(**entry) for name, entry in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def damage(
    path: Path, *, content: bool = False, only: Collection[str] | None = None
) -> list[Damage]:
    """What is not as the manifest says; of a damaged manifest nothing but that.

    Args:
        content: read every file; else only those whose time of writing moved.
        only: names of the files to look at; None: all.
    """
    if not path.is_file():
        return [Damage(path.name, "is missing")]
    made = read(path)
    if made is None:
        return [Damage(path.name, "is damaged, so that nothing it names can be checked")]
    found: dict[str, Damage] = {}
    for name, entry in made.items():
        if only is not None and name not in only:
            continue
        top = name.partition("/")[0]
        if not (path.parent / top).exists():
            found[top] = Damage(top, "is missing")
        elif what := _changed(path.parent / name, entry, content):
            found[name] = Damage(name, what)
    return list(found.values())


def _changed(path: Path, entry: Entry, content: bool) -> str:
    """What is wrong with a file, as the end of a sentence; empty where nothing is."""
    if not path.is_file():
        return "is missing"
    try:
        status = path.stat()
        if status.st_size < entry.size:
            return f"was cut: {status.st_size:,} of {entry.size:,} bytes are left"
        if status.st_size > entry.size:
            return f"has grown from {entry.size:,} to {status.st_size:,} bytes"
        unread = status.st_mtime_ns == entry.mtime_ns and not content
        return "" if unread or sha256_file(path) == entry.sha256 else "was changed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def sentence(found: list[Damage]) -> str:
    """The first damage, and how many files more have one."""
    more = len(found) - 1
    return f"{found[0]} (and {more} more)" if more else str(found[0])
