"""Errors a user can act on. Each says what is wrong, where, and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PosttrainError(Exception):
    """What went wrong, where, and what to do about it.

    The command line prints it and exits with code 2.

    Args:
        what: one sentence, the fact.
        cure: one sentence, what to change or run.
        where: `file:line` or another place a reader can open; empty where there is none.
    """

    exit_code = 2

    def __init__(self, what: str, *, cure: str, where: str = "") -> None:
        self.what, self.cure, self.where = what, cure, where
        super().__init__(f"{where}: {what}" if where else what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}\n  cure: {self.cure}"


class DataError(PosttrainError):
    """A row or file of data that cannot be used."""


class ConfigError(PosttrainError):
    """A setting that is unknown, missing or contradicts another.

    Args:
        option: flat name of the setting, with underscores; empty where no single one is to blame.
    """

    def __init__(self, what: str, *, cure: str, where: str = "", option: str = "") -> None:
        super().__init__(what, cure=cure, where=where)
        self.option = option


class ModelError(PosttrainError):
    """A model that cannot be loaded, or that the admission probe refused."""


class CheckpointError(PosttrainError):
    """State that cannot be written or read back."""


# what standard output could not take, its reader apart; the command line says so at its end
lost: list[OSError] = []


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the known name closest to `name`, or the whole list where none is
    close.
    """
    known = sorted(map(str, known))  # a key of YAML may be a number
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
