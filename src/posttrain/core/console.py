"""What a person sees of a run: rich progress in a terminal, plain lines elsewhere, nothing where
quiet is asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from posttrain.core.curve import draw

LINE_SECONDS = 10.0  # between plain lines, where the output is no terminal


class _Lasting:
    """A stream that survives its reader: what shows a run must not be able to end it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._gone = stream, False

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
            except (OSError, ValueError):  # a closed pipe, a closed terminal
                self._gone = True


def console(*, stderr: bool = False) -> Console:
    """Where everything is printed: no emoji in the place of `:100:`, no end of the run at the end
    of a pipe.
    """
    stream: Any = _Lasting(sys.stderr if stderr else sys.stdout)
    return Console(file=stream, highlight=False, emoji=False)


class ConsoleObserver:
    """Shows a training run as it goes.

    Args:
        to: where to write; standard error by default, so that standard output stays free for
            results.
        quiet: only messages about trouble.
    """

    def __init__(self, to: Console | None = None, quiet: bool = False) -> None:
        self.console = to or console(stderr=True)
        self.quiet = quiet
        self._progress: Progress | None = None
        self._scoring: Progress | None = None
        self._bar: Any = None
        self._rate = 0.0
        self._told = 0.0
        self._steps = self._first = 0
        self._began = time.monotonic()

    def note(self, label: str, text: str) -> None:
        """A fact about the run, before it begins."""
        if not self.quiet:
            self._line(label, escape(text))

    def _line(self, label: str, text: str) -> None:
        """A label and text: in a terminal wrapped beside the label, elsewhere one line."""
        if self.console.is_terminal:
            grid = Table.grid(padding=(0, 1))
            grid.add_column(min_width=9, no_wrap=True)
            grid.add_row(f"[bold]{label}[/bold]", text)
            self.console.print(grid)
        else:
            self.console.print(f"[bold]{label:<9}[/bold] {text}", soft_wrap=True)

    def message(self, text: str) -> None:
        self.console.print(
            f"[yellow]{escape(text)}[/yellow]", soft_wrap=not self.console.is_terminal
        )

    def progress(self, label: str, done: int, total: int) -> None:
        """How far something is that does not take long enough for a line of its own."""
        if self.quiet or not self.console.is_terminal:
            return
        if self._scoring is None:
            self._scoring = Progress(
                TextColumn("[bold]{task.description:<9}[/bold]"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._scoring.start()
            self._scoring.add_task(escape(label), total=total)
        self._scoring.update(self._scoring.task_ids[0], completed=done)
        if done >= total:
            self._close(self._scoring)
            self._scoring = None

    @contextmanager
    def working(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show work that may take long: a bar in a terminal, elsewhere a line now and then.

        Yields what to tell the progress.

        Args:
            total: what the last number told will be.
        """
        told = began = time.monotonic()

        def tell(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if self.console.is_terminal:
                if now - told > 0.1 and done < total:
                    told = now
                    self.progress(label, done, total)
            elif now - told > LINE_SECONDS and done:
                told = now
                self.note(
                    label,
                    f"{done / total:.0%}  ETA {_clock((now - began) / done * (total - done))}",
                )

        try:
            yield tell
        finally:
            self._close(self._scoring)
            self._scoring = None

    @staticmethod
    def _close(progress: Progress | None) -> None:
        if progress is not None:
            progress.stop()

    def start(self, step: int, steps: int) -> None:
        self._steps, self._first, self._began = steps, step, time.monotonic()
        if self.quiet or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]train    [/bold]"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss [cyan]{task.fields[loss]}[/cyan]"),
            TextColumn("{task.fields[rate]} tokens/s"),
            TextColumn("{task.fields[memory]} GiB"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._bar = self._progress.add_task(
            "", total=steps, completed=step, loss="–", rate="–", memory="–"
        )
        self._progress.start()

    def record(self, record: dict[str, Any]) -> None:
        if held := record.get("validation"):
            self._say_held(record["step"], held)
            return
        rate = record["tokens_per_second"]
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate
        step = record["step"]
        if self._progress:
            self._progress.update(
                self._bar,
                completed=step,
                loss=_figures(record),
                rate=f"{self._rate:,.0f}",
                memory=f"{record['memory_gib']:.2f}",
            )
        elif not self.quiet and (
            time.monotonic() - self._told > LINE_SECONDS or step == self._steps
        ):
            self._told = time.monotonic()
            left = (self._told - self._began) / max(1, step - self._first) * (self._steps - step)
            self.console.print(
                f"step {step}/{self._steps}  loss {_figures(record)}  {self._rate:,.0f} tokens/s  "
                f"{record['memory_gib']:.2f} GiB  ETA {_clock(left)}",
                soft_wrap=True,
            )

    def _say_held(self, step: int, held: dict[str, Any]) -> None:
        if not self.quiet:
            entropy = f", entropy {held['entropy']:.3f}" if "entropy" in held else ""
            unit = "rows" if "rewards/accuracies" in held else "sequences"
            self._line(
                "held out",
                f"step {step}: loss {loss(held)}, accuracy {held['accuracy']:.3f}{entropy} "
                f"(n = {held['sequences']:,} {unit})",
            )

    def stop(self) -> None:
        self._close(self._progress)
        self._close(self._scoring)
        self._progress = self._scoring = None

    def curve(self, records: list[dict[str, Any]]) -> None:
        """Draw the loss of a finished run."""
        points = [(r["step"], r["loss"]) for r in records if "loss" in r]
        held = [(r["step"], r["validation"]["loss"]) for r in records if "validation" in r]
        if not self.quiet:
            lines = [("training loss", points), *([("held-out loss", held)] if held else [])]
            self.console.print(
                draw(lines, width=min(self.console.width, 90)), markup=False, soft_wrap=True
            )


def _figures(record: dict[str, Any]) -> str:
    """A step's loss, and of comparisons how often and by how much the better answer is ahead."""
    out = f"{record['loss']:.4f}"
    if "rewards/accuracies" in record:
        out += f", accuracy {record['rewards/accuracies']:.2f}"
    if "rewards/margins" in record:
        out += f", margin {record['rewards/margins']:+.3f}"
    return out


def loss(held: dict[str, Any]) -> str:
    """A held-out loss, and its interval where there is one: a single sequence has none, nor have
    methods that couple rows.
    """
    return f"{held['loss']:.4f}" + (
        "" if held["interval"] is None else f" ± {held['interval']:.4f}"
    )


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}"


def print_error(error: Exception) -> None:
    """`error: where: what` and the cure, on standard error."""
    text = str(error).split("\n  cure: ")
    out = console(stderr=True)
    out.print("[bold red]error:[/bold red] ", end="", soft_wrap=True)
    out.print(text[0], markup=False, soft_wrap=True)
    if len(text) > 1:
        out.print("[bold]cure:[/bold]  ", end="", soft_wrap=True)
        out.print(text[1], markup=False, soft_wrap=True)
    sys.stderr.flush()
