"""What a person sees of a run: rich progress in a terminal, plain lines elsewhere, nothing but
trouble where quiet is asked for. Each is a sink of events.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict
from typing import Any, TextIO

import rich.console
import rich.table
from rich.cells import cell_len
from rich.console import ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.protocol import rich_cast
from rich.segment import Segment
from rich.table import Column
from rich.text import Span, Text

from posttrain.core.curve import draw
from posttrain.core.errors import PosttrainError, lost
from posttrain.core.events import (
    TRAIN,
    Alarm,
    Done,
    Event,
    Held,
    Note,
    Progress,
    Reporter,
    Sink,
    Step,
)
from posttrain.core.terminal import escape, one_line

LENGTH = "rollout/length"  # a value of steps that learn from reward, and of no others
LINE_SECONDS = 10.0  # between plain lines about one piece of work
JSON_SECONDS = 1.0  # between two progress events of one piece of work
BAR_AND_LABELS = 38  # columns of the steps' line but for its count, figures and speed


class _Lasting:
    """A stream that survives its reader: what shows a run must not be able to end it.

    Args:
        stream: None where it was closed before the process began.
        lost: takes the error of a disk that is full.
    """

    def __init__(self, stream: Any, lost: list[OSError] | None = None) -> None:
        self._stream, self._gone, self._lost = stream, stream is None, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        if not self._gone:
            try:
                act()
            except UnicodeEncodeError:
                raise
            except (OSError, ValueError) as error:  # a closed pipe, a closed terminal
                self._gone = True
                is_reader_gone = isinstance(error, BrokenPipeError)
                if self._lost is not None and isinstance(error, OSError) and not is_reader_gone:
                    self._lost.append(error)


class Console(rich.console.Console):
    """rich's console, to which text is text: no `[markup]`, no emoji in the place of `:100:`, and
    nothing that a terminal would obey (`core.terminal.escape`).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        renderable = rich_cast(renderable)
        if isinstance(renderable, Text):
            renderable = _escaped(renderable)
        return super().render(renderable, options)

    def print_line(self, text: str, *, label: str = "", style: str = "") -> None:
        """Print a field as one line, however long, behind a label of nine characters or more."""
        head = (f"{label:<9} ", "bold") if label else ""
        self.print(Text.assemble(head, (one_line(text), style)), soft_wrap=True)

    def print_text(self, text: str, *, style: str = "") -> None:
        """Print sentences, wrapped at words in a terminal and on one line elsewhere."""
        self.print(one_line(text), style=style, soft_wrap=not self.is_terminal)

    def write(self, text: str, *, dim: bool = False) -> None:
        """Write a piece of text where the last one ended. What is no terminal gets it as it is."""
        if self.is_terminal:
            text = escape(text)
            if dim and self.color_system is not None:
                text = f"\x1b[2m{text}\x1b[22m"
        self.file.write(text)
        self.file.flush()


def _escaped(text: Text) -> Text:
    """Text with styles, harmless; what stands for a character has its styles."""
    if escape(text.plain) == text.plain:
        return text
    parts = []
    for character in text.divide(range(1, len(text))):
        shown = escape(character.plain)
        spans = [Span(0, len(shown), span.style) for span in character.spans]
        parts.append(Text(shown, character.style, spans=spans))
    out = text.blank_copy()
    for part in parts:
        out.append_text(part)
    return out


class Table(rich.table.Table):
    """rich's table with its title at the left; every text in it is a field of one line."""

    def __init__(self, *, title: str | None = None, **options: Any) -> None:
        title = None if title is None else one_line(title)
        # as wide as its title, which would be wrapped otherwise
        options.setdefault("min_width", cell_len(title or ""))
        super().__init__(title=title, title_justify="left", **options)

    def add_column(self, header: Any = "", footer: Any = "", **options: Any) -> None:
        super().add_column(_field(header), _field(footer), **options)

    def add_columns(self, *names: str, text: Container[str] = ("",)) -> None:
        """Columns of numbers, to the right, and those of text, to the left; cells are folded."""
        for name in names:
            self.add_column(name, justify="left" if name in text else "right", overflow="fold")

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_field, cells), **options)


def _field(cell: Any) -> Any:
    """A cell; texts as one line."""
    return one_line(cell) if isinstance(cell, str) else cell


def console(*, stderr: bool = False) -> Console:
    """Where everything is printed; the end of a pipe is not the end of a run."""
    stream: Any = _Lasting(sys.stderr) if stderr else _Lasting(sys.stdout, lost)
    return Console(file=stream)


def open_reporter(
    to: Console | None = None, *, quiet: bool = False, sinks: Iterable[Sink] = ()
) -> Reporter:
    """A reporter that shows a run to a person, and hands it to the user's own sinks.

    Args:
        to: where to write; standard error by default, so that standard output stays free for
            results.
        quiet: show nothing but trouble.
        sinks: functions of one event; one that fails is dropped.
    """
    to = to or console(stderr=True)
    if quiet:
        return Reporter(Trouble(to), optional=sinks)
    screen = Terminal(to) if to.is_terminal else Lines(to)
    return Reporter(screen, optional=sinks)


class Trouble:
    """With --quiet: shows warnings and alarms only."""

    def __init__(self, to: Console) -> None:
        self.console = to

    def __call__(self, event: Event) -> None:
        match event:
            case Note(always=True, text=text):
                self.console.print_text(text, style="yellow")
            case Alarm():
                self.console.print_text(str(event), style="yellow")


class Lines:
    """Shows a run as plain lines: progress every `LINE_SECONDS` and at the end."""

    def __init__(self, to: Console) -> None:
        self.console = to
        self._trouble, self._rate = Trouble(to), Rate()
        self._work: dict[str, Progress] = {}  # by label: the first event
        self._begun: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._time = 0.0

    def __call__(self, event: Event) -> None:
        self._trouble(event)
        match event:
            case Note(label, text, always=False):
                self.console.print_line(text, label=label)
            case Progress():
                self._progress(event)
            case Step():
                self._step(event)
            case Held():
                self.console.print_line(_held(event), label="held out")
            case Done(log=log):
                _curve(self.console, log)

    def _progress(self, event: Progress) -> None:
        label, now = event.label, time.monotonic()
        if label not in self._work:
            self._work[label], self._begun[label] = event, now
            # the steps' first line comes with the first step, others' when they take long
            self._shown[label] = -math.inf if label == TRAIN else now
        late = now - self._shown[label] > LINE_SECONDS
        if late and label != TRAIN and event.done and event.total:
            self._shown[label] = now
            left = self._left(label, event.done, event.total)
            self.console.print_line(f"{event.done / event.total:.0%}  ETA {left}", label=label)
        if event.over:
            for known in (self._work, self._begun, self._shown):
                known.pop(label)

    def _step(self, event: Step) -> None:
        rate, now = self._rate.add(event), time.monotonic()
        total = self._work[TRAIN].total if TRAIN in self._work else event.step
        last = self._shown.get(TRAIN, -math.inf)
        if now - last > LINE_SECONDS or event.step == total:
            self._shown[TRAIN] = now
            self.console.print_line(
                f"step {event.step}/{total}  loss {_figures(event)}  {rate:,.0f} tokens/s  "
                f"{event.values['memory_gib']:.2f} GiB  ETA {self._left(TRAIN, event.step, total)}"
            )

    def _left(self, label: str, done: int, total: int) -> str:
        """The time that the rest will take, from what this process has done."""
        first = self._work[label].done if label in self._work else done
        seconds = time.monotonic() - self._begun.get(label, time.monotonic())
        return _clock(seconds / max(1, done - first) * (total - done))


class Terminal:
    """Shows a run in a terminal: a live line for the steps and one for what else takes long."""

    def __init__(self, to: Console) -> None:
        self.console = to
        self._trouble, self._rate = Trouble(to), Rate()
        self._steps: Bar | None = None
        self._bar: Bar | None = None
        self._label = ""

    def __call__(self, event: Event) -> None:
        self._trouble(event)
        match event:
            case Note(label, text, always=False):
                self._line(label, text)
            case Progress(label=label):
                self._train(event) if label == TRAIN else self._progress(event)
            case Step():
                self._step(event)
            case Held():
                self._line("held out", _held(event))
            case Done(log=log):
                _curve(self.console, log)

    def _line(self, label: str, text: str) -> None:
        """A label, and text wrapped beside it."""
        grid = rich.table.Table.grid(padding=(0, 1))
        grid.add_column(min_width=9, no_wrap=True, style="bold")
        grid.add_row(one_line(label), one_line(text))
        self.console.print(grid)

    def _progress(self, event: Progress) -> None:
        """A bar that goes away when the work is over."""
        if self._bar is not None and event.label != self._label:
            self._bar.stop()
            self._bar = None
        if self._bar is None and not event.over:
            amount: ProgressColumn = (
                DownloadColumn() if event.unit == "bytes" else TaskProgressColumn()
            )
            self._bar = self._live(
                TextColumn("{task.description:<9}", style="bold", markup=False),
                BarColumn(bar_width=None),
                amount,
                TextColumn("ETA"),
                TimeRemainingColumn(),
                transient=True,
            )
            self._label = event.label
            self._bar.add_task(one_line(event.label), total=event.total or None)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=event.done)
            if event.over:
                self._bar.stop()
                self._bar = None

    def _train(self, event: Progress) -> None:
        """The bar of the steps, which stays."""
        if event.over:
            if self._steps is not None:
                self._steps.stop()
            self._steps = None
            return
        if self._steps is None:
            self._steps = self._live(
                TextColumn("train    ", style="bold"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("loss"),
                TextColumn("{task.fields[loss]}", style="cyan"),
                TextColumn("{task.fields[speed]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._steps.add_task("", total=event.total, completed=event.done, loss="–", speed="")

    def _step(self, event: Step) -> None:
        speed = f"{self._rate.add(event):,.0f} tokens/s {event.values['memory_gib']:.2f} GiB"
        if self._steps is not None:
            figures = _figures(event)
            count = 2 * len(str(self._steps.tasks[0].total)) + 1
            if BAR_AND_LABELS + count + len(figures) + len(speed) > self.console.width:
                speed = ""  # or rich would cut the end off: the count and the time left
            self._steps.update(
                self._steps.task_ids[0], completed=event.step, loss=figures, speed=speed
            )

    def _live(self, *columns: ProgressColumn, transient: bool = False) -> Bar:
        bar = Bar(*columns, console=self.console, transient=transient)
        bar.start()
        return bar


class JsonLines:
    """Writes every event as one JSON object a line: `event`, `time` (seconds since 1970) and what
    belongs to it. Of progress, one line every `JSON_SECONDS` and the last one.

    Args:
        to: where to write; standard output by default.
    """

    def __init__(self, to: TextIO | None = None) -> None:
        self._to: Any = to or console().file  # which survives its reader
        self._shown: dict[str, float] = {}
        self._time = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case Step() | Held():
                fields = {"step": event.step, **event.values}
            case Done(folder, summary):
                fields = {"folder": folder, "summary": dict(summary)}
            case Progress(label=label, over=over):
                if not over and time.monotonic() - self._shown.get(label, 0.0) <= JSON_SECONDS:
                    return
                self._shown[label] = 0.0 if over else time.monotonic()
                fields = asdict(event)
            case Note() | Alarm():
                fields = {name: value for name, value in asdict(event).items() if value is not None}
        self._time = max(self._time, round(time.time(), 3))  # clocks are set back
        line = {"event": type(event).__name__.lower(), "time": self._time, **fields}
        self._to.write(escape(json.dumps(line, ensure_ascii=False, default=str)) + "\n")
        self._to.flush()


class Rate:
    """Tokens a second, averaged over the last steps."""

    def __init__(self) -> None:
        self._mean = 0.0

    def add(self, event: Step) -> float:
        now = event.values["tokens_per_second"]
        self._mean = 0.9 * self._mean + 0.1 * now if self._mean else now
        return self._mean


def _curve(to: Console, log: Iterable[Step | Held]) -> None:
    """Draw the loss of a finished run, or what it learned from: its rewards."""
    steps = [event for event in log if isinstance(event, Step)]
    if any(LENGTH in event.values for event in steps):
        _reward_curve(to, log)
        return
    losses = [(event.step, event.values["loss"]) for event in log if isinstance(event, Step)]
    held = [(event.step, event.values["loss"]) for event in log if isinstance(event, Held)]
    if losses:
        lines = [("training loss", losses), *([("held-out loss", held)] if held else [])]
        to.print(draw(lines, width=min(to.width, 90)), soft_wrap=True)


def _reward_curve(to: Console, log: Iterable[Step | Held]) -> None:
    """Draw the rewards of a finished run, and what a scorer said that it was not trained on."""
    rewards: list[tuple[int, float]] = []
    gold: list[tuple[int, float]] = []
    held: list[tuple[int, float]] = []
    for event in log:
        values = event.values
        if isinstance(event, Held):
            held.append((event.step, values["reward"]["mean"]))
            continue
        if "reward" in values:
            rewards.append((event.step, values["reward"]))
        if "gold" in values:
            gold.append((event.step, values["gold"]))
    lines = [("reward", rewards), ("gold", gold), ("held-out reward", held)]
    to.print(draw([line for line in lines if line[1]], width=min(to.width, 90)), soft_wrap=True)


def _figures(event: Step) -> str:
    """A step's loss, and of comparisons how often and by how much the better answer is ahead; of
    learning from reward the reward, and how long answers are.
    """
    if LENGTH in event.values:
        values = event.values
        gold = f", gold {values['gold']:.3f}" if "gold" in values else ""
        reward = f"reward {values['reward']:.3f}" if "reward" in values else "no reward"
        return f"{values['loss']:+.3f}, {reward}{gold}, " + (
            f"{values[LENGTH]:.0f} tokens an answer"
        )
    out = f"{event.values['loss']:.4f}"
    if "rewards/accuracies" in event.values:
        out += f", accuracy {event.values['rewards/accuracies']:.2f}"
    if "rewards/margins" in event.values:
        out += f", margin {event.values['rewards/margins']:+.3f}"
    return out


def _held(event: Held) -> str:
    values = event.values
    if "unscored" in values:  # of learning from reward
        reward = estimate(values["reward"])
        text = f"step {event.step}: reward {reward}, n = {values['sequences']:,}"
        if change := values.get("difference"):
            text += f"; since step 0, paired: {estimate(change['reward'], '+.3f')}"
        return text
    entropy = f", entropy {values['entropy']:.3f}" if "entropy" in values else ""
    unit = "rows" if "rewards/accuracies" in values else "sequences"
    chance = f" (chance {values['chance']:g})" if "chance" in values else ""
    text = (
        f"step {event.step}: loss {loss(values)}, accuracy {values['accuracy']:.3f}{chance}"
        f"{entropy} (n = {values['sequences']:,} {unit})"
    )
    for name, change in values.get("difference", {}).items():
        text += f"; {name} since step 0, paired: {estimate(change, '+.3f')}"
    return text


def loss(held: Any) -> str:
    """A held-out loss, and its interval where there is one: a single sequence has none, nor have
    methods that couple rows.
    """
    return f"{held['loss']:.4f}" + (
        "" if held["interval"] is None else f" ± {held['interval']:.4f}"
    )


def estimate(value: Any, form: str = ".3f") -> str:
    """`0.512 [0.468, 0.556]`, and where there is no interval why: `0.512 (one item)`.

    Args:
        value: JSON of `posttrain.evals.stats.Estimate`.
        form: of the numbers; of a difference `+.3f`.
    """
    mean = f"{value['mean']:{form}}"
    if value["low"] is None:
        why = value.get("method")
        return f"{mean} ({why})" if why else mean
    return f"{mean} [{value['low']:{form}}, {value['high']:{form}}]"


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}"


def print_error(error: Exception) -> None:
    """`error: where: what` and the cure, on standard error."""
    what, cure = str(error), ""
    if isinstance(error, PosttrainError):
        where = f"{one_line(error.where)}: " if error.where else ""
        what, cure = where + error.what, error.cure
    out = console(stderr=True)
    out.print(Text.assemble(("error: ", "bold red"), escape(what)), soft_wrap=True)
    if cure:
        out.print(Text.assemble(("cure:  ", "bold"), escape(cure)), soft_wrap=True)
    out.file.flush()
