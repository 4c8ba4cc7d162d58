"""The account of a source: what became of each of its rows.

Rows read = used + dropped + rejected. It is asserted, and a run shows it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.core.errors import DataError
from posttrain.data.settings import Source

COMPARED = 4_000_000  # hashes compared at a time; bounds memory


@dataclass
class Account:
    """What became of a source's rows: read = used + dropped + rejected.

    Attributes:
        format: how the rows were read. columns: our column → the file's, of what was read. unread:
            columns that nothing read. notes: what else is to be known of that.
        read, used, rejected: rows. reasons: why rows were rejected → how many.
        dropped: rows without anything trainable left, by reason.
        truncated: rows that lost tokens to the length limit.
        divided: rows cut into several sequences. Every trained token is in one of them, but the
            later parts of an answer stand without its question.
        duplicates: rows with the same tokens as an earlier row.
        branched: conversations whose template rewrites history.
        special: rows with the text of a special token inside.
        sequences, tokens, targets: what is trained on. longest: tokens of the longest sequence.
        example: the first row: what is shown to the model, and what it learns to write.
    """

    format: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    used: int = 0
    rejected: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    divided: int = 0
    duplicates: int = 0
    branched: int = 0
    special: int = 0
    sequences: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    example: tuple[str, str] = ("", "")

    def summary(self) -> str:
        """The account in one line; of what did not happen nothing."""
        parts = [
            f"{self.read:,} rows → {self.sequences:,} sequences, {self.tokens:,} tokens, "
            f"{self.targets:,} trained"
        ]
        counts = {
            "cut to the length limit": self.truncated,
            "divided": self.divided,
            "in branches": self.branched,
            "duplicates": self.duplicates,
            "rejected": self.rejected,
        }
        for name, count in counts.items():
            if count:
                parts.append(f"{count:,} {name.removesuffix('s') if count == 1 else name}")
        parts += [f"{count:,} dropped: {reason}" for reason, count in self.dropped.items()]
        return ", ".join(parts)

    def shape(self) -> str:
        """The format, and which columns it was read from and which it was not."""
        parts = [self.format]
        renamed = {ours: theirs for ours, theirs in self.columns.items() if ours != theirs}
        parts += [f"{ours} from {theirs!r}" for ours, theirs in renamed.items()]
        if self.unread:
            parts.append(f"not read: {', '.join(self.unread)}")
        return "; ".join(parts)

    def json(self) -> dict[str, Any]:
        return asdict(self)


def check(account: Account, source: Source) -> None:
    """Refuse a source of whose rows less than half, or none, can be trained on.

    Raises:
        DataError: with the account of the rows.
    """
    if not account.read:
        raise DataError(f"there are no rows in {source}", cure="check the file")
    if account.used < account.read / 2:
        raise DataError(
            f"more than half of the rows of {source} cannot be trained on: {account.summary()}",
            cure="raise --max-length, or look at the data and its columns",
        )


def count_repeats(path: Path) -> int:
    """How many of a file's 8-byte hashes occur earlier in the file.

    Hashes are spread evenly, so one remainder class at a time is compared.
    """
    if not path.stat().st_size:
        return 0
    hashes = np.memmap(path, np.uint64, "r")
    classes = -(-len(hashes) // COMPARED)
    if classes == 1:
        return len(hashes) - len(np.unique(hashes))
    unique = 0
    for remainder in range(classes):
        unique += len(np.unique(hashes[hashes % classes == remainder]))
    return len(hashes) - unique
