"""An append-only journal: records that are made once and read back after a kill.

A folder holds

    records.jsonl   a header with the key, then one line a record, then a seal when it is complete
    arrays.bin      the records' arrays, one after another; absent where there are none
    .lock           held by the process that writes

Every line is JSON and begins with a digest of itself, of its arrays and of every line before it:

    {"digest": "5bd0…", "record": {"value": …, "arrays": {"logprobs": ["<f4", [17]]}}}

so that a record that was cut, changed, moved or lost is noticed when the journal is opened; what
stands before it is kept, and what stood after it is to be made again. A record that `append` has
returned from survives the end of the process, and every `block` of them, and a closed journal, the
end of the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import weakref
from array import array
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from posttrain.core.errors import CheckpointError
from posttrain.core.files import fsync, lock
from posttrain.core.identity import differences

RECORDS, ARRAYS = "records.jsonl", "arrays.bin"
BLOCK = 64  # records between two flushes to the disk
DIGEST = 16  # hexadecimal digits
# A line is its head, its body (JSON, digested as it is written) and its tail. All kinds are names
# of six letters, so that a body begins at the same place.
HEAD = '{{"digest": "{digest}", "{kind}": '
HEAD_SIZE = len(HEAD.format(digest="0" * DIGEST, kind="record"))
KIND = slice(HEAD_SIZE - len('record": '), HEAD_SIZE - len('": '))
TAIL = b"}\n"
KINDS = ("header", "record", "sealed")


@dataclass(frozen=True)
class Entry:
    """A record: a JSON value, and arrays by name."""

    value: Any = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """An array in the file: its type and shape, and the byte it begins at."""

    dtype: str
    shape: list[int]
    at: int

    @property
    def size(self) -> int:
        """Bytes."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def rows(self, start: int, stop: int) -> _Place:
        """The part that is rows start … stop − 1."""
        row = _Place(self.dtype, self.shape[1:], 0).size
        return _Place(self.dtype, [stop - start, *self.shape[1:]], self.at + start * row)


class Journal(Many[Entry]):
    """Records by number. Open it with `with`; until then nothing is touched.

        with Journal(folder, key={"model": digest}) as journal:
            for i in range(len(journal), n):
                journal.append(make(i))
            journal.seal()
        journal[0].value        # may be read after it is closed

    Args:
        folder: the journal's own; made where it is not there.
        key: JSON; everything the records are a function of.
        wait: wait for another process that writes, instead of an error.
        block: records between two flushes to the disk.
        message: hears what was dropped.
    Raises (on entering):
        CheckpointError: it belongs to another key; the message says what differs.
        PosttrainError: another process writes to it.
    """

    def __init__(
        self,
        folder: Path,
        key: Any,
        *,
        wait: bool = False,
        block: int = BLOCK,
        message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self.key, self.sealed = folder, key, False
        self._wait, self._block, self._message = wait, block, message
        self._holds = contextlib.ExitStack()
        self._files: dict[str, int] = {}
        self._open = False
        self._lines, self._ends = array("q"), array("q", [0])  # where each line, and its data, ends
        self._size, self._chain = 0, ""

    def __enter__(self) -> Journal:
        with contextlib.ExitStack() as holds:
            holds.enter_context(lock(self.folder, wait=self._wait))
            self._begin()
            self._holds = holds.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        with self._holds:
            self.flush()

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return max(0, len(self._lines) - 1)

    def __getitem__(self, i: int) -> Entry:  # type: ignore[override] - no slices
        value, places = self._record(i)
        return Entry(value, {name: self._array(place) for name, place in places.items()})

    def part(self, i: int, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop − 1 of an array of record i; nothing else of it is read."""
        return self._array(self._record(i)[1][name].rows(start, stop))

    def _record(self, i: int) -> tuple[Any, dict[str, _Place]]:
        """The value of record i, and where its arrays are."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        start, end = self._lines[i], self._lines[i + 1]
        record = json.loads(self._at(RECORDS, start, end - start)[HEAD_SIZE : -len(TAIL)])
        places, at = {}, self._ends[i]
        for name, (dtype, shape) in record.get("arrays", {}).items():
            places[name] = _Place(dtype, shape, at)
            at += places[name].size
        return record["value"], places

    def _array(self, place: _Place) -> np.ndarray:
        data = self._at(ARRAYS, place.at, place.size)
        return np.frombuffer(data, place.dtype).reshape(place.shape)

    def __iter__(self) -> Iterator[Entry]:
        return (self[i] for i in range(len(self)))

    def _at(self, name: str, start: int, size: int) -> bytes:
        data = os.pread(self._files[name], size, start) if size else b""
        if len(data) != size:
            raise CheckpointError(
                f"{self.folder / name} became shorter while it was read",
                cure="run the same command again",
            )
        return data

    # ------------------------------------------------------------------ writing

    def append(self, value: Any = None, **arrays: np.ndarray) -> None:
        """Add a record.

        Args:
            value: JSON. arrays: numbers of any type and shape.
        """
        record: dict[str, Any] = {"value": value}
        if arrays:
            record["arrays"] = {
                name: [_little(one).dtype.str, list(one.shape)] for name, one in arrays.items()
            }
        data = b"".join(_little(one).tobytes() for one in arrays.values())
        self._write("record", record, data)
        if len(self) % self._block == 0:
            self.flush()

    def seal(self) -> None:
        """Say that it is complete: nothing can be added any more."""
        self._write("sealed", len(self), b"")
        self.flush()

    def truncate(self, n: int) -> None:
        """Take back all but the first n records, and the seal."""
        self._verify(min(n, len(self)))
        self._cut(len(self))

    def flush(self) -> None:
        """Put everything on the disk, arrays before the records that name them."""
        for name in (ARRAYS, RECORDS):
            if name in self._files:
                os.fsync(self._files[name])

    def _write(self, kind: str, body: Any, data: bytes) -> None:
        if self.sealed or not self._open:
            state = "complete" if self.sealed else "not open"
            raise CheckpointError(f"{self.folder} is {state}", cure="open another journal")
        line, chain = _line(kind, body, data, self._chain)
        try:
            if data:
                self._file(ARRAYS)
                _write_all(self._files[ARRAYS], data, self._ends[-1])
            _write_all(self._files[RECORDS], line, self._size)
        except OSError:  # a full disk: half a record must not stand before the next one
            with contextlib.suppress(OSError):
                self._cut(len(self))
            raise
        self._index(kind, len(line), chain, len(data))

    # ------------------------------------------------------------------ opening

    def _file(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
            weakref.finalize(self, os.close, self._files[name])
            fsync(self.folder)
        return self._files[name]

    def _begin(self) -> None:
        """Find every record, and drop what cannot be believed."""
        known = (self.folder / RECORDS).exists()
        size = os.fstat(self._file(RECORDS)).st_size
        if (self.folder / ARRAYS).is_file():
            self._file(ARRAYS)
        good = self._verify()
        if self._size < size or (known and not size):
            self._message(self._explain() if good else self._explain_start())
            self._cut(len(self))
        self._open = True
        if not good:
            self._write("header", self.key, b"")

    def _explain(self) -> str:
        """What is dropped: a torn end, or everything after damage."""
        with open(self.folder / RECORDS, "rb") as file:
            file.seek(self._size)
            lost = sum(1 for _ in file)
        if lost == 1:
            return (
                f"{self.folder}: the last record is not whole; going on after the {len(self):,} "
                "before it"
            )
        return (
            f"{self.folder} is damaged in record {len(self) + 1:,}: it and the {lost - 1:,} lines "
            f"after it are made again; the {len(self):,} records before it are kept"
        )

    def _explain_start(self) -> str:
        return f"{self.folder} is damaged at its start: all of it is made again"

    def _verify(self, most: int | None = None) -> bool:
        """Index the records, up to `most`, that are as they were written.

        Returns: whether at least the header is.
        """
        self._lines, self._ends, self._size = array("q"), array("q", [0]), 0
        self._chain, self.sealed = "", False
        with open(self.folder / RECORDS, "rb") as file:
            for line in file:
                kind = line[KIND].decode(errors="replace")
                good = self._believed(line, kind)
                misplaced = (kind == "header") != (self._size == 0)
                if good is None or misplaced or self.sealed or len(self) == most:
                    break
                if kind == "header":
                    self._same_key(json.loads(line[HEAD_SIZE : -len(TAIL)]))
                self._index(kind, len(line), *good)
        return self._size > 0

    def _index(self, kind: str, length: int, chain: str, data: int) -> None:
        self._size += length
        if kind == "sealed":
            self.sealed = True
            return
        self._chain = chain
        self._lines.append(self._size)
        if kind == "record":
            self._ends.append(self._ends[-1] + data)

    def _believed(self, line: bytes, kind: str) -> tuple[str, int] | None:
        """The digest of a line that is as it was written, and the bytes of its arrays."""
        if kind not in KINDS or not line.endswith(TAIL):
            return None
        body = line[HEAD_SIZE : -len(TAIL)]
        data = b""
        if b'"arrays": ' in body and kind == "record":
            try:
                shapes = json.loads(body).get("arrays", {}).values()
                sizes = [_Place(dtype, shape, 0).size for dtype, shape in shapes]
            except (ValueError, TypeError, AttributeError, RecursionError):
                return None
            # a damaged shape may be text, negative, or larger than anything that is there
            if not all(isinstance(size, int) and size >= 0 for size in sizes):
                return None
            size = sum(sizes)
            if self._ends[-1] + size > self._bytes_of_arrays():
                return None
            data = os.pread(self._files[ARRAYS], size, self._ends[-1]) if size else b""
        digest = _digest(kind, body, data, self._chain)
        return (digest, len(data)) if line.startswith(_head(kind, digest)) else None

    def _bytes_of_arrays(self) -> int:
        return os.fstat(self._files[ARRAYS]).st_size if ARRAYS in self._files else 0

    def _same_key(self, before: Any) -> None:
        now = json.loads(json.dumps(self.key))  # a tuple equals the list it was written as
        if before != now:
            changed = "; ".join(differences({"key": before}, {"key": now})[:3])
            raise CheckpointError(
                f"{self.folder} holds records of something else: {changed}",
                cure="name another folder, or delete it",
            )

    def _cut(self, n: int) -> None:
        """Leave the first n records in the files, and no seal."""
        self.sealed = False
        self._size = self._lines[n] if self._lines else 0
        os.ftruncate(self._files[RECORDS], self._size)
        if ARRAYS in self._files:
            os.ftruncate(self._files[ARRAYS], self._ends[n] if self._lines else 0)


def _line(kind: str, body: Any, data: bytes, chain: str) -> tuple[bytes, str]:
    """A line of the file, and its digest."""
    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    digest = _digest(kind, text, data, chain)
    return _head(kind, digest) + text + TAIL, digest


def _head(kind: str, digest: str) -> bytes:
    return HEAD.format(digest=digest, kind=kind).encode()


def _digest(kind: str, body: bytes, data: bytes, chain: str) -> str:
    hashed = hashlib.sha256(f"{chain} {kind} {len(body)} ".encode())
    hashed.update(body)
    hashed.update(data)
    return hashed.hexdigest()[:DIGEST]


def _little(array: Any) -> np.ndarray:
    """The array with its least significant bytes first, as every machine reads it back."""
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _write_all(handle: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written
