"""What `posttrain preference` shows."""

from __future__ import annotations

from posttrain.cli.sft import where
from posttrain.core.console import Table, console, loss
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """The result: rewards on held-out rows before and after, what the last steps were like, alarms,
    and where everything is.
    """
    out = console()
    summary = outcome.summary
    before, after = summary["held_out_before"], summary["held_out"]
    if before and after:
        table = Table(title="held-out rows (95 % interval)")
        for column in ("", "loss", "accuracy", "margin", "n"):
            table.add_column(column, justify="left" if not column else "right")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            margin = held.get("rewards/margins")
            low, high = held["accuracy_low"], held["accuracy_high"]
            # a single prompt has no interval
            interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
            table.add_row(
                name,
                loss(held),
                f"{held['accuracy']:.3f}{interval}",
                "–" if margin is None else f"{margin:+.3f}",
                f"{held['sequences']:,}",
            )
        out.print(table)
    last_steps = ", ".join(f"{name} {value:.3f}" for name, value in summary["last_steps"].items())
    out.print_line(f"last steps: {last_steps}")
    for alarm in summary["alarms"]:
        out.print_line(alarm, style="yellow")
    where(outcome)
