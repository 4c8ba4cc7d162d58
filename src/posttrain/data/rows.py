"""Rows, each knowing where it came from, and the account of those that cannot be used.

Rows in = rows out + rejected: whoever reads rows counts them in a `Rejects`, and no row leaves
uncounted.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from posttrain.core.errors import DataError, nearest
from posttrain.core.files import PARTIAL


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its fields and where it stands.

    Attributes:
        fields: column → value.
        where: `file:line`, or `file:row n` for files without lines.
        raw: the line as the file has it; None for files without lines.
    """

    fields: dict[str, Any]
    where: str
    raw: bytes | None = None

    def text(self, column: str) -> str:
        """The string in `column`.

        Raises:
            DataError: there is no such column, or its value is no usable text; see `text`.
        """
        if column not in self.fields:
            raise DataError(
                f"there is no column {column!r}; {nearest(column, self.fields)}",
                where=self.where,
                cure=(
                    "say which of the file's columns is meant: --data "
                    "FILE,prompt=question,completion=answer"
                ),
            )
        return text(self.fields[column], f"column {column!r}", self.where)


ProgressCallback = Callable[[int], None]  # called with the number of bytes read so far
RowOrError = Row | tuple[DataError, bytes]  # a row, or an error with the bytes that caused it


def text(value: Any, name: str, where: str) -> str:
    """Checks that a value is text, and returns it.

    Raises:
        DataError: the value has another type, half a surrogate pair, which UTF-8 cannot write, or
            a NUL, which is a sign of binary data.
    """
    if not isinstance(value, str):
        raise DataError(
            f"{name} holds {kind(value)}, not text",
            where=where,
            cure="convert it to a string, or remove the row",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} holds half a character, \\u{ord(value[error.start]):04x}",
            where=where,
            cure="write both halves of the surrogate pair, or remove it",
        ) from None
    if "\0" in value:
        raise DataError(
            f"{name} holds a NUL character (character {value.index(chr(0)) + 1})",
            where=where,
            cure="the file is binary or damaged there; remove the character or the row",
        )
    return value


def kind(value: Any) -> str:
    """The type of a value, in JSON's words."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    words = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "text",
        bytes: "bytes",
    }
    return words.get(type(value), type(value).__name__)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A repeated key is an error: it would lose one of its values."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {repeated!r} stands twice")
    return fields


JSON = json.JSONDecoder(object_pairs_hook=_object)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


class Rejects:
    """Takes rows that cannot be used: raises at the first, or writes all of them to a file.

    The file is JSON lines: `where`, `what`, `cure` and the row, which is `raw`, the line as it was
    (`raw_base64` if it is not UTF-8), or `fields` for sources without lines. The file appears when
    `close` is called; without rejected rows there is no file.

    Args:
        path: where to write rejected rows; None raises at the first.
    Attributes:
        read: rows read, usable or not. count: rows rejected. reasons: why → how many.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.read = 0
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def add(self, error: DataError, row: Row | bytes) -> None:
        """Reject a row.

        Raises:
            DataError: `error` itself, if rejected rows are not written.
        """
        if self.path is None:
            error.cure += "; --on-bad-row reject sets such rows aside and goes on"
            raise error
        self.count += 1
        self.reasons[_without_particulars(error.what)] += 1
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        entry = {"where": error.where, "what": error.what, "cure": error.cure, **_row_entry(row)}
        self._file.write(json_line(entry).decode())

    @property
    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_name(PARTIAL + self.path.name)

    def close(self) -> None:
        """Put the file in its place, or remove an earlier attempt's."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            self._partial.replace(self.path)
        elif self.path is not None:
            self.path.unlink(missing_ok=True)  # written by an earlier attempt

    def balance(self, used: int) -> None:
        """Check that every row that was read was used or rejected."""
        assert self.read == used + self.count, (
            f"{self.read} rows read, {used} used and {self.count} rejected: {self.path}"
        )


def _row_entry(row: Row | bytes) -> dict[str, Any]:
    """The whole row, as JSON can write it."""
    raw = row if isinstance(row, bytes) else row.raw
    if raw is None:
        assert isinstance(row, Row)
        return {"fields": row.fields}
    raw = raw.removesuffix(b"\n")
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}


def json_line(value: Any) -> bytes:
    """A value as one line of JSON in UTF-8; half surrogates are written as escapes."""
    text = json.dumps(value, ensure_ascii=False, default=plain)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def plain(value: Any) -> Any:
    """A value that JSON can write, in place of one that it cannot."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def _without_particulars(what: str) -> str:
    """A reason without the numbers and long quotations of one row, so that reasons can be
    counted.
    """
    without_numbers = re.sub(r"(?<!\S)\d+", "…", what)
    return re.sub(r"'[^']{25,}'", "'…'", without_numbers)
