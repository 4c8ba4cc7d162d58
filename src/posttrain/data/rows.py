"""Rows of a JSON-lines file, each knowing the file and line it came from."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import DataError, nearest


@dataclass(frozen=True)
class Row:
    """One line: its fields and where it stands (`file:line`)."""

    fields: dict[str, Any]
    where: str

    def text(self, column: str) -> str:
        """The string in `column`.

        Raises:
            DataError: there is no such column, or its value is not a string, or is one that UTF-8 cannot write.
        """
        if column not in self.fields:
            raise DataError(f"there is no column {column!r}; {nearest(column, self.fields)}", where=self.where,
                            cure="name the columns with --columns, for example --columns prompt=question completion=answer")
        value = self.fields[column]
        if not isinstance(value, str):
            raise DataError(f"column {column!r} holds {type(value).__name__}, not text", where=self.where,
                            cure="convert it to a string, or remove the row")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"column {column!r} holds half a character, \\u{ord(value[error.start]):04x}", where=self.where,
                            cure="write both halves of the surrogate pair, or remove it") from None
        return value


def read(path: Path) -> Iterator[Row]:
    """The rows of a `.jsonl` or `.jsonl.gz` file; blank lines are passed over.

    Raises:
        DataError: no such file, one that cannot be read, or a line that is not a JSON object; it names file and line.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}", cure="check the path")
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json.gz", ".json")):
        raise DataError(f"{path} is not a JSON-lines file", cure="give a .jsonl or .jsonl.gz file, one object a line")
    number = 0
    try:
        with (gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")) as file:
            for number, raw in enumerate(file, 1):
                where = f"{path}:{number}"
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    value: Any = json.loads(line) if line else None
                except UnicodeDecodeError as error:
                    raise DataError(f"byte {error.start + 1} of the line is not UTF-8", where=where,
                                    cure="convert the file: iconv -f LATIN1 -t UTF-8") from None
                except json.JSONDecodeError as error:
                    raise DataError(f"not JSON: {error.msg} at character {error.pos + 1}", where=where,
                                    cure="one JSON object a line") from None
                except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
                    raise DataError(f"not readable JSON: {error}", where=where, cure="correct or remove the row") from None
                if line and not isinstance(value, dict):
                    raise DataError(f"a {type(value).__name__}, not an object", where=where, cure="one JSON object a line")
                if line:
                    yield Row(value, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the compressed file is damaged or cut off: {error}", where=f"{path}:{number + 1}",
                        cure="get the file again") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", cure="check the file and its permissions") from error
