"""Rows, each knowing where it came from, and what becomes of those that cannot be used.

Rows in = rows out + rejected: whoever reads rows counts them in a `Rejects`, and nothing leaves
without being counted.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
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
        where: `file:line`, or `file:row n` where a file has no lines.
        raw: the line as the file has it; None where a file has no lines.
    """

    fields: dict[str, Any]
    where: str
    raw: bytes | None = None

    def text(self, column: str) -> str:
        """The string in `column`.

        Raises:
            DataError: there is no such column, or its value is not a string, or one that no text
                should hold.
        """
        if column not in self.fields:
            raise DataError(
                f"there is no column {column!r}; {nearest(column, self.fields)}",
                where=self.where,
                cure=(
                    "say which of the file's columns is meant: --data"
                    " FILE,prompt=question,completion=answer"
                ),
            )
        return text(self.fields[column], f"column {column!r}", self.where)


def text(value: Any, name: str, where: str) -> str:
    """A value that must be text.

    Raises:
        DataError: another type, half a surrogate pair, which UTF-8 cannot write, or a NUL, which is
            a sign of binary data.
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
    """What a value is, in JSON's words."""
    if isinstance(value, float) and value != value:
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
    """An object; a key that stands twice would lose one of its values."""
    out = dict(pairs)
    if len(out) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} stands twice")
    return out


JSON = json.JSONDecoder(object_pairs_hook=_object)


class Rejects:
    """Rows that cannot be used: the first one stops the work, or all are written to a file with the
    reasons.

    The file is JSON lines: `where`, `what` and `cure`, and the row: `raw`, the line as it was
        (`raw_base64` where it is not
    UTF-8), or `fields` where the source has no lines. It appears when the work is done; without
    rejects there is no file.

    Args:
        path: where to write rejected rows; None stops at the first.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.read = 0
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def add(self, error: DataError, row: Row | bytes) -> None:
        """Refuse a row.

        Raises:
            DataError: the error itself, unless rejected rows are written down.
        """
        if self.path is None:
            error.cure += "; --on-bad-row reject sets such rows aside and goes on"
            raise error
        self.count += 1
        self.reasons[_general(error.what)] += 1
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        entry = {"where": error.where, "what": error.what, "cure": error.cure, **_kept(row)}
        line = json.dumps(entry, ensure_ascii=False, default=plain)
        self._file.write(
            line.encode("utf-8", "backslashreplace").decode() + "\n"
        )  # half surrogates as their escapes

    @property
    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_name(PARTIAL + self.path.name)

    def close(self) -> None:
        """Put the file in its place."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            self._partial.replace(self.path)
        elif self.path is not None:
            self.path.unlink(missing_ok=True)  # of an earlier attempt, which had some

    def balance(self, used: int) -> None:
        """Check that every row that was read was used or refused."""
        assert self.read == used + self.count, (
            f"{self.read} rows read, {used} used and {self.count} rejected: {self.path}"
        )


def _kept(row: Row | bytes) -> dict[str, Any]:
    """The row so that nothing of it is lost."""
    raw = row if isinstance(row, bytes) else row.raw
    if raw is None:
        assert isinstance(row, Row)
        return {"fields": row.fields}
    raw = raw.removesuffix(b"\n")
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}


def plain(value: Any) -> Any:
    """What JSON cannot write, as something it can."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return (
        value.tolist()
        if hasattr(value, "tolist")
        else dict(value)
        if isinstance(value, Mapping)
        else str(value)
    )


def _general(what: str) -> str:
    """A reason without the particulars of the row, so that reasons can be counted."""
    return re.sub(r"'[^']{25,}'", "'…'", re.sub(r"(?<!\S)\d+", "…", what))
