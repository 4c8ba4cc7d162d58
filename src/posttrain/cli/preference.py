"""What `posttrain preference` shows."""

from __future__ import annotations

from posttrain.cli.sft import where
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
        chance = f"; chance {after['chance']:g}" if "chance" in after else ""
        title = f"held-out rows (95 % interval{chance})"
        table = Table(title=title)
        for column in ("", "loss", "accuracy", "margin", "n"):
            table.add_column(column, justify="left" if not column else "right", overflow="fold")
        for name, held in (("before", before), (f"step {after['step']}", after)):
            accuracy = {
                "mean": held["accuracy"],
                "low": held["accuracy_low"],
                "high": held["accuracy_high"],
            }
            table.add_row(
                name,
                loss(held),
                estimate(accuracy),
                estimate(held["margin"], "+.3f") if "margin" in held else "–",
                f"{held['sequences']:,}",
            )
        if change := after.get("difference"):
            margin = estimate(change["margin"], "+.3f") if "margin" in change else "–"
            table.add_row("difference, paired", "", estimate(change["accuracy"], "+.3f"), margin)
        out.print(table)
    last_steps = ", ".join(f"{name} {value:.3f}" for name, value in summary["last_steps"].items())
    out.print_text(f"last steps: {last_steps}")
    for alarm in summary["alarms"]:
        out.print_text(alarm, style="yellow")
    where(outcome)
