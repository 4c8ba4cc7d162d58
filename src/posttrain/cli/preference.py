"""What `posttrain preference` shows."""

from __future__ import annotations

from posttrain.cli.reward_model import accuracy, ending, held_title
from posttrain.core.console import Table, console, estimate, loss
from posttrain.stages.stage import Outcome


def show(outcome: Outcome) -> None:
    """The result: rewards on held-out rows before and after, what the last steps were like, alarms,
    and where everything is.
    """
    out = console()
    summary = outcome.summary
    before, after = summary["held_out_before"], summary["held_out"]
    if before and after:
        table = Table(title=held_title(after))
        table.add_columns("", "loss", "accuracy", "margin", "n")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            table.add_row(
                name,
                loss(held),
                accuracy(held),
                estimate(held["margin"], "+.3f") if "margin" in held else "–",
                f"{held['sequences']:,}",
            )
        if change := after.get("difference"):
            margin = estimate(change["margin"], "+.3f") if "margin" in change else "–"
            table.add_row("difference, paired", "", estimate(change["accuracy"], "+.3f"), margin)
        out.print(table)
    ending(outcome)
