"""Files that are whole or absent: atomic writes, digests, and the lock on a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.core.errors import CheckpointError, PosttrainError

PARTIAL = (  # prefix of what is being written; anything that still has it was never finished
    ".partial-"
)

LOCK = ".lock"  # in every folder that a run writes into, also when it is done


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    with open(partial, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people: indented, keys in the order they have."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name; it appears as `path` only when everything in it is on the
    disk.

    An existing `path` is replaced. On an error the partial folder is removed and the error goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.rglob("*")):
            fsync(file)
        fsync(partial)
        if path.exists():
            # rename() cannot replace a folder that has files in it: the old one steps aside first
            aside = path.with_name(PARTIAL + "old-" + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            os.rename(partial, path)
            shutil.rmtree(aside)
        else:
            os.rename(partial, path)
        fsync(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_partial(folder: Path) -> list[str]:
    """Delete what an interrupted write left in `folder`; returns the names."""
    left = sorted(p for p in folder.glob(PARTIAL + "*")) if folder.is_dir() else []
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [p.name for p in left]


def set_aside(path: Path, *, copy: bool = False) -> Path:
    """Rename what is damaged to `damaged-NAME`, beside what was set aside before; returns the new
    path.

    Args:
        copy: of a file: it also stays where it is.
    """
    aside, number = path.with_name(f"damaged-{path.name}"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"damaged-{number}-{path.name}")
    shutil.copy2(path, aside) if copy else path.rename(aside)
    fsync(path.parent)
    return aside


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SETTLED = 2.0  # seconds since a file was written; a younger one may change unseen by its clock
_digests: dict[Path, tuple[tuple[int, int, int], str]] = {}


def sha256_input(path: Path) -> str:
    """Digest of a file that is an input: read once a process, and again where inode, size or time
    of writing changed.
    """
    status = path.stat()
    state = (status.st_ino, status.st_size, status.st_mtime_ns)
    key = path.resolve()
    if key in _digests and _digests[key][0] == state:
        return _digests[key][1]
    digest = sha256_file(path)
    if time.time() - status.st_mtime > SETTLED:
        _digests[key] = (state, digest)
    return digest


def sha256_json(value: Any) -> str:
    """Digest of a JSON value; key order and PYTHONHASHSEED make no difference."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_folder(
    folder: Path,
    keep: Callable[[Path], bool] = lambda path: True,
    digest: Callable[[Path], str] = sha256_file,
) -> str:
    """Digest over the names and contents of the files directly in `folder` for which `keep`
    holds.

    Args:
        digest: of one file: `sha256_file`, or `sha256_input` for a folder that is an input.
    """
    return sha256_json(
        {p.name: digest(p) for p in sorted(folder.iterdir()) if p.is_file() and keep(p)}
    )


@contextlib.contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[Callable[[], None]]:
    """Hold `folder` for this process. The system drops the lock when the process ends, however it
    ends.

    Args:
        wait: until the process that holds it ends or lets go, instead of an error.
    Yields: a function that raises a CheckpointError where the folder that is held is no longer the
        one at its path: it was deleted, moved or replaced.
    Raises:
        PosttrainError: another process holds it; the message names its process id.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 - held until the run ends
    except OSError as error:
        raise write_error(error, folder) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise PosttrainError(
                f"another run (process {file.read().strip() or 'unknown'}) is writing to {folder}",
                cure="wait for it, stop it, or choose another --out",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield lambda: _check_held(file.fileno(), path)
        except BaseException:
            # nothing was written: leave nothing behind
            if not wait and _is_held(file.fileno(), path) and os.listdir(folder) == [path.name]:
                path.unlink()
                folder.rmdir()
            raise


def _is_held(handle: int, path: Path) -> bool:
    """Whether the lock that is held is the file at its path. An inode that is open is not used
    again, so a new file of that name has another.
    """
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _check_held(handle: int, path: Path) -> None:
    if not _is_held(handle, path):
        raise gone(path.parent)


def gone(path: Path) -> CheckpointError:
    """The message for something of a run that was taken away while the run was at work."""
    return CheckpointError(
        f"{path} was deleted, moved or replaced while the run was at work: the run is not finished",
        cure="put it back, or leave it out; the same command goes on from what is there",
    )


_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EFBIG: (
        "the file would be larger than this process may write",
        "raise the limit (ulimit -f)",
    ),
    errno.EROFS: ("the file system is read-only", "make it writable, or choose another --out"),
    errno.EACCES: (
        "no permission to write",
        "change the folder's permissions, or choose another --out",
    ),
}


def write_error(error: OSError, path: Path, kept: str = "") -> CheckpointError:
    """The message for a write that failed; `kept` says what is still good."""
    why, cure = _REASONS.get(
        error.errno or 0,
        (error.strerror or str(error), "see the reason; then run the same command again"),
    )
    return CheckpointError(f"cannot write {path}: {why}{'. ' + kept if kept else ''}", cure=cure)


@contextlib.contextmanager
def explained_writes(folder: Path) -> Iterator[None]:
    """Turn the system's errors about writing into ones with a cure; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise write_error(error, Path(error.filename) if error.filename else folder) from error
