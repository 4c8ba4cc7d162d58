"""What a model would be trained on: an account of every row, a few rows token by token, lengths,
and how batches would fill.

Rows are read once and go by. What stays: the rows to show, one count for each length that occurs,
    and the sizes of a sample of
at most 100,000 rows, from which packing is measured.

Left out: the sources' weights and epochs, which say how often rows are taken; duplicates of rows in
    another source.
"""

from __future__ import annotations

import bisect
import random
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

from posttrain.core.console import ConsoleObserver
from posttrain.core.defaults import token_budget
from posttrain.core.errors import ConfigError
from posttrain.core.files import PARTIAL
from posttrain.core.seeds import derive
from posttrain.data.anatomy import Anatomy, anatomy
from posttrain.data.chat import Chat
from posttrain.data.forest import pack, size
from posttrain.data.plan import Plan
from posttrain.data.prepare import Account, Prepared, accounted, check
from posttrain.data.rows import Rejects
from posttrain.data.settings import DataSettings, Source
from posttrain.data.sources import size as bytes_of
from posttrain.data.tokens import Encoder

SAMPLE = 100_000  # rows from which packing is measured
BINS = 14  # of a histogram at most, the one that --max-length adds apart

T = TypeVar("T")


class Reservoir(Generic[T]):
    """A uniform sample of what goes by, the same one every time, in its order."""

    def __init__(self, most: int, name: str) -> None:
        self.most, self.seen = most, 0
        self._random = random.Random(derive(0, "inspect", name))
        self._kept: list[tuple[int, T]] = []

    def add(self, item: T) -> None:
        self.seen += 1
        if len(self._kept) < self.most:
            self._kept.append((self.seen, item))
        elif (place := self._random.randrange(self.seen)) < self.most:
            self._kept[place] = (self.seen, item)

    @property
    def items(self) -> list[T]:
        return [item for _, item in sorted(self._kept, key=lambda one: one[0])]


@dataclass(frozen=True)
class Lengths:
    """Lengths of sequences before the limit: each that occurs, ascending, and how often."""

    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> int:
        """The smallest length that at least this share of the sequences does not exceed."""
        at = bisect.bisect_left(list(accumulate(self.counts)), share * self.n - 1e-9)
        return self.values[min(at, len(self.values) - 1)]

    def over(self, limit: int) -> int:
        """How many are longer."""
        return sum(
            count for value, count in zip(self.values, self.counts, strict=True) if value > limit
        )

    def bins(self, limit: int) -> list[tuple[int, int, int]]:
        """(shortest, longest, how many) of about equal steps on a log scale; one ends at the limit
        where some are longer.
        """
        steps = [1, *(x for k in range(1, 32) for x in (2**k, 3 * 2 ** (k - 1)))]
        low, high = self.values[0], self.values[-1]
        edges = [max(s for s in steps if s <= low), *(s for s in steps if low < s <= high)]
        while len(edges) > BINS:
            edges = (
                [edges[0], *(e for e in edges[1:] if not e & (e - 1))]
                if any(e & (e - 1) for e in edges[1:])
                else edges[::2]
            )
        if edges[0] <= limit < high:
            inner = [e for e in edges[1:] if abs(e - limit - 1) * 5 > e]  # no slivers beside it
            edges = sorted({edges[0], *inner, limit + 1})
        ends = [*(e - 1 for e in edges[1:]), high]
        inside = [
            sum(c for v, c in zip(self.values, self.counts, strict=True) if a <= v <= b)
            for a, b in zip(edges, ends, strict=True)
        ]
        return list(zip(edges, ends, inside, strict=True))


@dataclass(frozen=True)
class Packing:
    """How the forward passes of steps would fill, in the order in which `sft` with seed 0 takes the
    rows.

    Attributes:
        budget: tokens a forward pass may hold. batch_size: rows a step. rows: from how many rows
            this is measured.
        passes: forward passes a step. tokens: tokens a step; both are means.
        filled: share of the budget that is filled.
        padded: share of the computed tokens that would be data, were each step's rows padded to its
            longest.
    """

    budget: int
    batch_size: int
    rows: int
    passes: float
    tokens: float
    filled: float
    padded: float


@dataclass(frozen=True)
class Part:
    """A source, what became of its rows, and whether they are held out."""

    source: Source
    account: Account
    held_out: bool = False

    @property
    def name(self) -> str:
        return Path(self.source.path).name + (" (held out)" if self.held_out else "")


@dataclass(frozen=True)
class Report:
    """What a model would be trained on.

    Attributes:
        parts: the sources, those that are held out last.
        examples: rows from inside. missing: numbers of rows that were asked for and are not among
            them.
        lengths: of the training sources' sequences before the limit.
        packing: None where nothing is trained.
        max_length: tokens of a sequence at most.
        template: where the chat template comes from; empty where none was needed.
        rejects: where rejected rows were written; None where they were not.
    """

    parts: tuple[Part, ...]
    examples: tuple[Anatomy, ...]
    missing: tuple[int, ...]
    lengths: Lengths
    packing: Packing | None
    max_length: int
    template: str
    rejects: Path | None

    @property
    def training(self) -> list[Account]:
        return [part.account for part in self.parts if not part.held_out]

    def total(self, name: str) -> int:
        """A count of `Account`, added up over the training sources."""
        return sum(getattr(account, name) for account in self.training)

    def reasons(self, name: str) -> list[tuple[str, int]]:
        """Why training rows were `dropped`, or rejected (`reasons`), most frequent first."""
        found: Counter[str] = Counter()
        for account in self.training:
            found.update(getattr(account, name))
        return found.most_common()

    def check(self) -> None:
        """Refuse what training would refuse.

        Raises:
            DataError: a source without rows, or of which nothing trainable is left of more than
                half of the rows.
        """
        for part in self.parts:
            check(part.account, part.source)


class _Choice:
    """The rows of one source that are shown."""

    def __init__(self, rows: tuple[str, ...], examples: int, name: str) -> None:
        self.numbers = {int(row) for row in rows if row.isdecimal()}
        self._first = examples if rows == ("first",) else 0
        self._kept: list[tuple[Prepared, str]] = []
        self._spread = Reservoir[tuple[Prepared, str]](examples if rows == ("spread",) else 0, name)

    def add(self, one: Prepared, why: str) -> None:
        if self._first or _number(one.row.where) in self.numbers:
            self._first = max(0, self._first - 1)
            self._kept.append((one, why))
        self._spread.add((one, why))

    @property
    def items(self) -> list[tuple[Prepared, str]]:
        return self._kept + self._spread.items


def _number(where: str) -> int:
    """The number of a row, as errors give it: its line, or its row in a file without lines."""
    found = re.search(r"(\d+)$", where)
    return int(found[1]) if found else 0


def inspect(
    settings: DataSettings,
    chat: Chat,
    *,
    max_length: int,
    examples: int = 3,
    rows: tuple[str, ...] = ("first",),
    batch_size: int = 8,
    budget: int | None = None,
    rejects: Path | None = None,
    observer: ConsoleObserver | None = None,
) -> Report:
    """Read the sources as training would, and say what it would train on.

    Args:
        settings: the sources and how their rows become tokens.
        chat: renders them; it brings the tokenizer.
        max_length: tokens of a sequence at most.
        examples: how many rows of each source to take apart.
        rows: which: ("first",), ("spread",) for a random sample that is always the same, or the
            numbers of lines.
        batch_size, budget: rows a step, tokens a forward pass; unset: a CPU's, or the longest row
            where that is more.
        rejects: a file for the rows that `on_bad_row="reject"` sets aside; None keeps none.
        observer: hears of the progress; None shows none.
    Raises:
        DataError: a source that cannot be read, or a row that cannot be used.
        ConfigError: a budget less than the longest sequence.
    """
    observer = observer or ConsoleObserver(quiet=True)
    encoder, sizes, lengths = (
        Encoder(chat.tokenizer),
        Reservoir[tuple[int, int, int]](SAMPLE, "packing"),
        Counter[int](),
    )
    parts, shown, found = [], [], set[int]()
    sources = [
        *((source, False) for source in settings.data),
        *((source, True) for source in settings.validation),
    ]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        aside = Rejects(
            (rejects or scratch / "rejects") if settings.on_bad_row == "reject" else None
        )
        try:
            for source, held_out in sources:
                account, choice = Account(), _Choice(rows, examples, source.path)
                with observer.working(
                    f"read {Path(source.path).name}", max(1, bytes_of(source))
                ) as told:
                    for one, trees, why in accounted(
                        source,
                        chat,
                        encoder,
                        scratch,
                        account,
                        max_length=max_length,
                        truncate=settings.truncate,
                        form=settings.format,
                        rejects=aside,
                        told=told,
                    ):
                        choice.add(one, why)
                        if not held_out:
                            lengths.update(len(encoded.ids) for encoded in one.encoded)
                            for tree in trees:
                                sizes.add((size(tree), max(len(s.tokens) for s in tree), len(tree)))
                parts.append(Part(source, account, held_out))
                shown += [
                    anatomy(one, why, chat, max_length=max_length, truncate=settings.truncate)
                    for one, why in choice.items
                ]
                found |= {_number(one.row.where) for one, _ in choice.items}
            aside.close()
        except BaseException:
            if rejects is not None:
                rejects.with_name(PARTIAL + rejects.name).unlink(missing_ok=True)
            raise
    asked = {int(row) for row in rows if row.isdecimal()}
    written = rejects if rejects is not None and aside.count else None
    return Report(
        tuple(parts),
        tuple(shown),
        tuple(sorted(asked - found)),
        Lengths(*zip(*sorted(lengths.items()), strict=True)),
        _packing(sizes.items, batch_size, budget),
        max_length,
        _template(chat),
        written,
    )


def _template(chat: Chat) -> str:
    if not chat.used:
        return ""
    origin = {"given": "the one given", "default": "a default, as the model has none"}.get(
        chat.origin, chat.origin
    )
    return f"{origin}; answers end with {chat.stop}"


def _packing(
    sizes: list[tuple[int, int, int]], batch_size: int, budget: int | None
) -> Packing | None:
    """Measure the batches of one epoch.

    Args:
        sizes: of each row: tokens in a forest, tokens of its longest sequence, sequences.
    """
    if not sizes:
        return None
    longest = max(one for _, one, _ in sizes)
    if budget is not None and budget < longest:
        raise ConfigError(
            f"--budget {budget} is less than the {longest} tokens of the longest sequence",
            cure=f"give --budget {longest} or more, or --max-length {budget} or less",
        )
    budget = token_budget(budget, "cpu", longest)
    plan = Plan(len(sizes), batch_size, seed=0)
    steps = plan.steps_per_epoch
    passes = tokens = padded = 0
    for _ in range(steps):
        batch = [sizes[i] for i in plan.next()]
        # a row of branches that is larger than the budget is cut between them; the prefix that
        # repeats then is not counted
        pieces = [min(budget, whole - a) for whole, _, _ in batch for a in range(0, whole, budget)]
        passes += len(pack(pieces, budget))
        tokens += sum(pieces)
        padded += max(one for _, one, _ in batch) * sum(paths for _, _, paths in batch)
    return Packing(
        budget,
        batch_size,
        len(sizes),
        passes / steps,
        tokens / steps,
        tokens / (passes * budget),
        tokens / padded,
    )


def table(report: Report) -> list[tuple[str, str]]:
    """The counts of the training sources as (name, value); of what did not happen only the main
    ones.
    """

    def share(n: int, of: int) -> str:
        return f"{n:,} ({n / of:.1%})" if of else f"{n:,}"

    read, total = report.total("read"), report.total
    formats = ", ".join(dict.fromkeys(account.format for account in report.training))
    rows = [("rows", f"{read:,}"), ("format", formats), ("used", share(total("used"), read))]
    rows += [(f"dropped: {why}", share(n, read)) for why, n in report.reasons("dropped")] or [
        ("dropped", "0")
    ]
    rows += [(f"rejected: {why}", share(n, read)) for why, n in report.reasons("reasons")] or [
        ("rejected", "0")
    ]
    rows += [
        ("sequences", f"{total('sequences'):,}"),
        ("tokens", f"{total('tokens'):,}"),
        ("trained tokens", share(total("targets"), total("tokens"))),
        (f"cut to {report.max_length:,} tokens", share(total("truncated"), read)),
        ("divided into several", share(total("divided"), read)),
        ("duplicates of another row", share(total("duplicates"), read)),
        ("in branches", share(total("branched"), read)),
        ("special tokens in the text", share(total("special"), read)),
    ]
    return [*rows, *([("chat template", report.template)] if report.template else [])]
