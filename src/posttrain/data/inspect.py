"""What a model would be trained on: an account of every row, a few rows token by token, lengths,
and how batches would fill.

Rows are read once and not kept. What stays is the rows to show, a count for each length that
occurs, and the sizes of a sample of at most 100,000 rows, from which packing is measured.

Left out: the sources' weights and epochs, which say how often rows are taken; duplicates of rows in
another source.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from posttrain.core.defaults import check_budget, token_budget
from posttrain.core.errors import DataError
from posttrain.core.events import Reporter
from posttrain.core.files import PARTIAL
from posttrain.core.seeds import derive
from posttrain.data.account import Account, check
from posttrain.data.anatomy import Anatomy, anatomies
from posttrain.data.chat import Chat
from posttrain.data.curate.overlap import Overlap, Samples, read_keys
from posttrain.data.examples import Kind
from posttrain.data.forest import Tree, pack, size
from posttrain.data.formats import Format
from posttrain.data.plan import Plan
from posttrain.data.prepare import Preparation, Prepared, accounted
from posttrain.data.rows import Rejects
from posttrain.data.settings import DataSettings, FormatName, Source
from posttrain.data.sources import read
from posttrain.data.sources import size as bytes_of

SAMPLE = 100_000  # rows from which packing is measured
LOOKED_AT = 100  # rows of which the first usable one says what a source is for
BINS = 14  # bars of the histogram at most, besides the one that --max-length adds

T = TypeVar("T")


class Reservoir(Generic[T]):
    """A uniform sample of a stream, the same one every time, in the stream's order.

    Args:
        capacity: items to keep at most.
        name: names the random numbers.
    """

    def __init__(self, capacity: int, name: str) -> None:
        self.capacity, self.seen = capacity, 0
        self._random = random.Random(derive(0, "inspect", name))
        self._kept: list[tuple[int, T]] = []  # (place in the stream, item)

    def add(self, item: T) -> None:
        self.seen += 1
        if len(self._kept) < self.capacity:
            self._kept.append((self.seen, item))
        elif (slot := self._random.randrange(self.seen)) < self.capacity:
            self._kept[slot] = (self.seen, item)

    @property
    def items(self) -> list[T]:
        return [item for _, item in sorted(self._kept, key=lambda kept: kept[0])]


@dataclass(frozen=True)
class Lengths:
    """Lengths of sequences, in tokens, before the limit.

    Attributes:
        values: every length that occurs, ascending. counts: how often each occurs.
    """

    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> int:
        """The smallest length that at least this share of the sequences does not exceed."""
        return int(np.quantile(self.values, share, method="inverted_cdf", weights=self.counts))

    def quantiles(self) -> list[str]:
        """The median, the longest and two between, each with its name."""
        shares = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
        return [f"{name} {self.quantile(share):,}" for name, share in shares.items()]

    def over(self, limit: int) -> int:
        """How many sequences are longer than the limit."""
        longer = np.array(self.values, int) > limit
        return int(np.array(self.counts, int)[longer].sum())

    def bins(self, limit: int) -> list[tuple[int, int, int]]:
        """(shortest, longest, how many) in about equal steps on a log scale.

        Where some sequences are longer than the limit, one bin ends at the limit.
        """
        edges, high = self._edges(limit), self.values[-1]
        counts, _ = np.histogram(self.values, [*edges, high + 1], weights=self.counts)
        ends = [*(edge - 1 for edge in edges[1:]), high]
        return list(zip(edges, ends, counts.tolist(), strict=True))

    def _edges(self, limit: int) -> list[int]:
        """Where bins begin: at 1, 2, 3, 4, 6, 8, 12, …; fewer where that is too many."""
        low, high = self.values[0], self.values[-1]
        steps = [1]
        for k in range(1, 32):
            steps += [2**k, 3 * 2 ** (k - 1)]
        first = max(step for step in steps if step <= low)
        edges = [step for step in steps if first <= step <= high]
        while len(edges) > BINS:
            powers = [edge for edge in edges[1:] if edge.bit_count() == 1]
            edges = [first, *powers] if len(powers) < len(edges) - 1 else edges[::2]
        if not first <= limit < high:
            return edges
        # no slivers beside the edge at the limit
        distant = [edge for edge in edges[1:] if abs(edge - limit - 1) * 5 > edge]
        return sorted({first, *distant, limit + 1})


@dataclass(frozen=True)
class Packing:
    """How full the forward passes of steps would be, in the order in which `sft` with seed 0 takes
    the rows.

    Attributes:
        budget: tokens a forward pass may hold.
        batch_size: rows a step.
        rows: how many rows this is measured from.
        passes: forward passes a step. tokens: tokens a step. Both are means.
        filled: share of the budget that is filled.
        padded: share of the computed tokens that would be data if each step's rows were padded to
            its longest.
    """

    budget: int
    batch_size: int
    rows: int
    passes: float
    tokens: float
    filled: float
    padded: float

    def sentences(self) -> list[str]:
        """What a step is, packed, and what it would be, padded."""
        sample = f" (a sample of {self.rows:,} rows)" if self.rows >= SAMPLE else ""
        return [
            f"a step of {self.batch_size} rows: {self.tokens:,.0f} tokens in {self.passes:.2f} "
            f"forward passes of at most {self.budget:,}{sample}",
            f"packed: {self.filled:.1%} of the budget filled, nothing padded",
            f"padded to the longest row instead: {self.padded:.1%} of the computed tokens would be "
            f"data, {1 / self.padded:.2f} times the work",
        ]


@dataclass(frozen=True)
class Part:
    """A source, the account of its rows, and whether they are held out."""

    source: Source
    account: Account
    held_out: bool = False

    @property
    def name(self) -> str:
        return Path(self.source.path).name + (" (held out)" if self.held_out else "")

    def counts(self) -> dict[str, int]:
        """The main counts, by name."""
        account = self.account
        return {
            "rows": account.read,
            "used": account.used,
            "tokens": account.tokens,
            "trained": account.targets,
            "dropped": sum(account.dropped.values()),
            "rejected": account.rejected,
        }


@dataclass(frozen=True)
class Report:
    """What a model would be trained on.

    Attributes:
        parts: the sources, held-out ones last.
        examples: rows taken apart.
        missing: row numbers that were asked for and do not exist.
        lengths: of the training sources' sequences, before the limit.
        packing: None if nothing is trained.
        max_length: tokens of a sequence at most.
        template: where the chat template comes from; empty if none was needed.
        rejects: where rejected rows were written; None if they were not.
        overlap: of training rows with held-out ones; None where none are held out.
    """

    parts: tuple[Part, ...]
    examples: tuple[Anatomy, ...]
    missing: tuple[int, ...]
    lengths: Lengths
    packing: Packing | None
    max_length: int
    template: str
    rejects: Path | None
    overlap: Overlap | None = None

    @property
    def training(self) -> list[Account]:
        return [part.account for part in self.parts if not part.held_out]

    def total(self, name: str) -> int:
        """A count of `Account`, summed over the training sources."""
        return sum(getattr(account, name) for account in self.training)

    def reasons(self, name: str) -> list[tuple[str, int]]:
        """Why training rows were `dropped`, or rejected (`reasons`), most frequent first."""
        counts: Counter[str] = Counter()
        for account in self.training:
            counts.update(getattr(account, name))
        return counts.most_common()

    def check(self) -> None:
        """Refuse what training would refuse.

        Raises:
            DataError: a source without rows, or one of which more than half of the rows have
                nothing trainable left.
        """
        for part in self.parts:
            check(part.account, part.source)


class TreeSize(NamedTuple):
    """Tokens of a tree in a forest, tokens of its longest sequence, and its sequences."""

    tokens: int
    longest: int
    sequences: int


class _Measured:
    """The lengths and sizes of training rows."""

    def __init__(self) -> None:
        self.lengths = Counter[int]()
        self.sizes = Reservoir[TreeSize](SAMPLE, "packing")

    def add(self, prepared: Prepared, trees: list[Tree]) -> None:
        self.lengths.update(len(encoded.ids) for encoded in prepared.encoded)
        for tree in trees:
            longest = max(len(sequence.tokens) for sequence in tree)
            self.sizes.add(TreeSize(size(tree), longest, len(tree)))


class _Selection:
    """The rows of one source that are shown: the first, a random sample, or those with numbers."""

    def __init__(self, rows: tuple[str, ...], examples: int, name: str) -> None:
        self._numbers = _numbers(rows)
        self._first_left = examples if rows == ("first",) else 0
        self._chosen: list[tuple[Prepared, str]] = []
        capacity = examples if rows == ("spread",) else 0
        self._sample = Reservoir[tuple[Prepared, str]](capacity, name)

    def add(self, prepared: Prepared, dropped: str) -> None:
        if self._first_left or _number(prepared.row.where) in self._numbers:
            self._first_left = max(0, self._first_left - 1)
            self._chosen.append((prepared, dropped))
        self._sample.add((prepared, dropped))

    @property
    def rows(self) -> list[tuple[Prepared, str]]:
        """Rows, and why each is dropped; empty if it is not."""
        return self._chosen + self._sample.items


def _numbers(rows: tuple[str, ...]) -> set[int]:
    return {int(row) for row in rows if row.isdecimal()}


def _number(where: str) -> int:
    """The number of a row, as errors give it: its line, or its row in a file without lines."""
    match = re.search(r"(\d+)$", where)
    return int(match[1]) if match else 0


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
    reporter: Reporter | None = None,
) -> Report:
    """Read the sources as training would, and report what it would train on.

    Args:
        settings: the sources and how their rows become tokens.
        chat: renders them; it brings the tokenizer.
        max_length: tokens of a sequence at most.
        examples: how many rows of each source to take apart.
        rows: which ones: ("first",), ("spread",) for a random sample that is always the same, or
            line numbers.
        batch_size: rows a step.
        budget: tokens a forward pass; unset: a CPU's, or the longest row if that is more.
        rejects: a file for the rows that `on_bad_row="reject"` sets aside; None keeps none.
        reporter: shows progress; None shows none.
    Raises:
        DataError: a source that cannot be read, or a row that cannot be used.
        ConfigError: a budget below the longest sequence.
    """
    reporter = reporter or Reporter()
    measured = _Measured()
    parts, shown, shown_numbers = [], [], set[int]()
    sources = [(source, False) for source in settings.data]
    sources += [(source, True) for source in settings.validation]
    sets = ("data", "held out")  # by whether they are held out
    samples = Samples({sets[held_out] for _, held_out in sources})
    keys: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as scratch, _rejects(settings, rejects, scratch) as rejected:
        for source, held_out in sources:
            learned = _learned(source, settings.format)
            preparation = Preparation(chat, max_length, settings.truncate, settings.format, learned)
            account, selection = Account(), _Selection(rows, examples, source.path)
            label, total = f"read {Path(source.path).name}", max(1, bytes_of(source))
            with reporter.working(label, total) as progress:
                for prepared, trees, dropped in accounted(
                    source, preparation, Path(scratch), account, rejected, progress
                ):
                    selection.add(prepared, dropped)
                    if not dropped:
                        samples.observe(sets[held_out])(prepared.example)
                    if not held_out:
                        measured.add(prepared, trees)
            keys.setdefault(sets[held_out], []).append(read_keys(Path(scratch)))
            parts.append(Part(source, account, held_out))
            for prepared, dropped in selection.rows:
                shown += anatomies(prepared, dropped, preparation)
                shown_numbers.add(_number(prepared.row.where))
    return Report(
        tuple(parts),
        tuple(shown),
        tuple(sorted(_numbers(rows) - shown_numbers)),
        Lengths(*zip(*sorted(measured.lengths.items()), strict=True)),
        _packing(measured.sizes.items, batch_size, budget),
        max_length,
        _template(chat),
        rejects if rejected.count else None,
        samples.overlap(keys),
    )


def _learned(source: Source, format: FormatName) -> Kind:
    """What a source's rows are for, by the first that can be used: pairs are compared, labelled
    answers are judged, all else are demonstrations.
    """
    form = Format(format)
    try:
        for row in islice(read(source, Rejects()), LOOKED_AT):
            try:
                example = form.read(row)
            except DataError:
                continue
            if example.label is not None:
                return "labels"
            return "pairs" if len(example.answers) > 1 else "demonstrations"
    except DataError:  # reading it in earnest says it
        pass
    return "demonstrations"


@contextmanager
def _rejects(settings: DataSettings, path: Path | None, scratch: str) -> Iterator[Rejects]:
    """Takes rejected rows; on an error the file that was begun is removed."""
    if settings.on_bad_row == "stop":
        yield Rejects()
        return
    try:
        rejects = Rejects(path or Path(scratch) / "rejects")
        yield rejects
        rejects.close()
    except BaseException:
        if path is not None:
            path.with_name(PARTIAL + path.name).unlink(missing_ok=True)
        raise


def _template(chat: Chat) -> str:
    if not chat.used:
        return ""
    origin = {"given": "the one given", "default": "a default, as the model has none"}.get(
        chat.template.origin, chat.template.origin
    )
    return f"{origin}; answers end with {chat.stop}"


def _packing(sizes: list[TreeSize], batch_size: int, budget: int | None) -> Packing | None:
    """Measure the batches of one epoch."""
    if not sizes:
        return None
    longest = max(tree.longest for tree in sizes)
    budget = token_budget(budget, "cpu", longest)
    check_budget(budget, longest)
    plan = Plan(len(sizes), batch_size, seed=0)
    steps = plan.steps_per_epoch
    passes = tokens = padded = 0
    for _ in range(steps):
        batch = [sizes[i] for i in plan.next()]
        pieces: list[int] = []
        for tree in batch:
            pieces += _pieces(tree.tokens, budget)
        passes += len(pack(pieces, budget))
        tokens += sum(pieces)
        padded += max(tree.longest for tree in batch) * sum(tree.sequences for tree in batch)
    return Packing(
        budget,
        batch_size,
        len(sizes),
        passes / steps,
        tokens / steps,
        tokens / (passes * budget),
        tokens / padded,
    )


def _pieces(tokens: int, budget: int) -> list[int]:
    """The sizes of a tree's pieces; one over the budget is cut between its branches.

    The prefix that the pieces then repeat is not counted.
    """
    return [min(budget, tokens - start) for start in range(0, tokens, budget)]


def table(report: Report) -> list[tuple[str, str]]:
    """The counts of the training sources as (name, value).

    Of the things that did not happen only the main ones are listed.
    """
    total, read = report.total, report.total("read")

    def share(n: int, of: int) -> str:
        return f"{n:,} ({n / of:.1%})" if of else f"{n:,}"

    def by_reason(name: str, counts: list[tuple[str, int]]) -> list[tuple[str, str]]:
        if not counts:
            return [(name, "0")]
        return [(f"{name}: {reason}", share(count, read)) for reason, count in counts]

    formats = ", ".join(dict.fromkeys(account.format for account in report.training))
    rows = [("rows", f"{read:,}"), ("format", formats), *_columns(report)]
    rows.append(("used", share(total("used"), read)))
    rows += by_reason("dropped", report.reasons("dropped"))
    rows += by_reason("rejected", report.reasons("reasons"))
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
    if report.overlap:
        held = report.overlap.held_out
        near = held.near + held.near_prompt
        rows += [
            ("held-out rows that are training rows, too", share(held.same, held.rows)),
            ("held-out rows with a near-duplicate there", share(near, held.compared)),
        ]
    if report.template:
        rows.append(("chat template", report.template))
    return rows


def _columns(report: Report) -> list[tuple[str, str]]:
    """Which columns of each source were read, and which were not; of several sources where that is
    not plain.
    """
    rows: list[tuple[str, str]] = []
    for part in report.parts:
        account = part.account
        of = f" of {part.name}" if len(report.parts) > 1 else ""
        taken = [
            ours if ours == theirs else f"{ours} from {theirs}"
            for ours, theirs in account.columns.items()
        ]
        unread = [*account.unread, *part.source.ignore]
        plain = [*account.columns] == [*account.columns.values()] and not unread
        if taken and not (plain and of):
            rows.append((f"columns read{of}", ", ".join(taken)))
        if unread:
            rows.append((f"columns not read{of}", ", ".join(unread)))
        rows += [(f"note{of}", note) for note in account.notes]
    return rows
