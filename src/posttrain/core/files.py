"""Files that are whole or absent: atomic writes, digests, the lock on a run folder, and the one
reader of the JSON that runs leave.
"""

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
from typing import IO, Any

from posttrain.core.errors import CheckpointError, PosttrainError

PARTIAL = (  # prefix of what is being written; anything that still has it was never finished
    ".partial-"
)

LOCK = ".lock"  # in every folder that a run writes into, also when it is done


# what file systems answer that cannot flush a folder: some of networks and in user space
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk; a file system that cannot flush folders keeps
    their entries in its own way.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDER_FLUSH):
            error.filename = str(path)
            raise
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    # half a character of a file's name is written as an escape, which JSON reads back
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with open(partial, "wb") as file:
        file.write(content)
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
            shutil.rmtree(aside, ignore_errors=True)  # NFS keeps what is open; swept later
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
        file = open(path, "a+", errors="replace")  # noqa: SIM115 - held until the run ends
    except OSError as error:
        raise system_error(error, folder) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip()
            raise PosttrainError(
                f"another run (process {holder if holder.isdecimal() else 'unknown'}) is writing "
                f"to {folder}",
                cure="wait for it, stop it, or choose another --out",
            ) from None
        except OSError as error:
            _remove_unused(folder)
            raise CheckpointError(
                f"cannot lock {folder}, and without a lock two processes could write there at "
                f"once: {error.strerror or error}",
                cure="choose another --out, or mount the file system with locks (NFS: with lockd, "
                "Lustre: -o flock)",
            ) from error
        try:
            _sign(file, folder)
            yield lambda: _check_held(file.fileno(), path)
        except BaseException:
            if not wait and _is_held(file.fileno(), path):
                _remove_unused(folder)
            raise


def _sign(file: IO[str], folder: Path) -> None:
    """Leave this process's id in the lock."""
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    except OSError as error:
        raise write_error(error, folder) from error


def _remove_unused(folder: Path) -> None:
    """Remove a locked folder that nothing was written into."""
    with contextlib.suppress(OSError):  # which must not hide the error that brought us here
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


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


# -------------------------------------------------------------------------- errors of the system

_AGAIN = "see the reason; then run the same command again"
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
    errno.EISDIR: (
        "a folder stands where a file is to be",
        "move it away, or choose another --out",
    ),
    errno.EEXIST: (
        "a file stands where a folder is to be",
        "move it away, or choose another --out",
    ),
    errno.ENOTDIR: (
        "a part of the path is a file, and no folder",
        "move it away, or choose another path",
    ),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "give a shorter name"),
    errno.ELOOP: ("it is a link that leads back to itself", "remove the link"),
}


def write_error(error: OSError, path: Path, kept: str = "") -> CheckpointError:
    """The message for a write that failed; `kept` says what is still good."""
    why, cure = _REASONS.get(error.errno or 0, (error.strerror or str(error), _AGAIN))
    return CheckpointError(f"cannot write {path}: {why}{'. ' + kept if kept else ''}", cure=cure)


def system_error(error: OSError, place: Path | None = None) -> PosttrainError:
    """The message for what the system says of a file, whatever was done with it.

    Args:
        place: where it was, if the error does not name a file.
    """
    named = error.filename if isinstance(error.filename, str) else None
    path = named if named is not None else place
    if error.errno in _REASONS and path is not None:
        return write_error(error, Path(path))
    why = error.strerror or str(error) or type(error).__name__
    return CheckpointError(f"{path}: {why}" if path is not None else why, cure=_AGAIN)


@contextlib.contextmanager
def explained_writes(folder: Path) -> Iterator[None]:
    """Turn the system's errors about files into ones with a cure. Others pass: those of connections
    and processes, and names that are not there outside `folder`.
    """
    try:
        yield
    except OSError as error:
        if not _is_of_disk(error, folder):
            raise
        raise system_error(error, folder) from error


def _is_of_disk(error: OSError, folder: Path) -> bool:
    # subclasses of libraries have numbers of their own
    is_systems = type(error).__module__ == "builtins" and error.errno in errno.errorcode
    if isinstance(error, ConnectionError | BlockingIOError | ChildProcessError | InterruptedError):
        return False
    if isinstance(error, FileNotFoundError):  # of the run's own folder, somebody removed a part
        named = error.filename if isinstance(error.filename, str) else None
        return named is not None and Path(named).is_relative_to(folder)
    return is_systems


# ------------------------------------------------------------------------- JSON that a run left


@contextlib.contextmanager
def state_of(path: Path, cure: str, line: int | None = None) -> Iterator[None]:
    """Read and use what a run wrote to a file: where it turns out to be cut, damaged or somebody
    else's, there is one error that names the file.

    Args:
        cure: what to do then.
        line: of the file, where one is read alone.
    Raises:
        CheckpointError: with the file, and the line where there is one.
    """
    try:
        yield
    except json.JSONDecodeError as error:
        line, why = line or error.lineno, f"it is cut off or damaged ({error.msg})"
        if not error.doc.strip():
            why = "it is empty"
    except UnicodeDecodeError:
        why = "it is damaged: not UTF-8"
    except RecursionError:
        why = "it is damaged: thousands of nested brackets"
    except OSError as error:
        why = error.strerror or str(error)
    except KeyError as error:
        why = f"it has no {error}"
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        why = f"it is not what a run writes there ({reason})"
    else:
        return
    where = str(path) if line is None else f"{path}:{line}"
    raise CheckpointError(f"this file of a run cannot be used: {why}", where=where, cure=cure)


def read_state(path: Path, cure: str, **fields: type) -> dict[str, Any]:
    """The JSON object that a run wrote to a file.

    Args:
        cure: what to do where it cannot be used.
        fields: what it must have, and of which types.
    Raises:
        CheckpointError: it cannot be read, is cut off or damaged, or is not what a run writes.
    """
    with state_of(path, cure):
        state = json.loads(path.read_bytes())
        if not isinstance(state, dict):
            raise TypeError(f"{type(state).__name__}, not an object")
        for name, kind in fields.items():
            if not isinstance(state[name], kind):
                raise TypeError(f"{name} is {type(state[name]).__name__}, not {kind.__name__}")
        return state
