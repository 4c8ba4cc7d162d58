"""Errors a user can act on. Each says what is wrong, where, and the cure."""

from __future__ import annotations

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


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """`did you mean 'x'?` for the known name closest to `name`.

    Args:
        otherwise: what to say where none is close; empty lists what is known.
    """
    known = sorted(map(str, known))  # a key of YAML may be a number
    if close := nearly(name, known):
        return f"did you mean {close!r}?"
    return otherwise or f"known: {', '.join(known)}"


def nearly(name: str, known: Iterable[str]) -> str:
    """The known name that differs from `name` by a slip of the pen; empty where none does.

    One letter in three may be wrong, left out, added or exchanged with its neighbour, and three at
    most. Dashes, underscores and what follows `=` do not count.
    """
    written = _letters(name)
    distances = [(_slips(written, _letters(one)), one) for one in sorted(known)]
    distance, close = min(distances, default=(1, ""))
    return close if distance <= min(3, len(written) // 3) else ""


def _letters(name: str) -> str:
    return name.partition("=")[0].lower().replace("-", "").replace("_", "")


def _slips(a: str, b: str) -> int:
    """The edit distance of two words, neighbours exchanged being one edit (Damerau 1964)."""
    if abs(len(a) - len(b)) > 3:
        return 4
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before = last
    return row[-1]
