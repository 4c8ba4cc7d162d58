"""`posttrain preference`: preference optimisation."""

from __future__ import annotations

from rich.table import Table

from posttrain.cli.options import read
from posttrain.cli.sft import where
from posttrain.core.console import console, loss
from posttrain.stages.preference import PreferenceSettings, run
from posttrain.stages.training import Outcome


def main(argv: list[str]) -> int:
    settings, observer = read(
        "preference",
        "Let a model learn which of two answers is better (DPO and its family), or that an answer"
        " is good or bad (KTO, BCO). Killed at any moment, the same command goes on where it was"
        " and ends with the same weights.",
        PreferenceSettings,
        argv,
    )
    outcome = run(settings, observer)
    show(outcome)
    return 0


def show(outcome: Outcome) -> None:
    """The result: rewards on held-out rows before and after, what the last steps were like, alarms,
    and where everything is.
    """
    out = console()
    summary = outcome.summary
    before, after = summary["held_out_before"], summary["held_out"]
    if before and after:
        table = Table(title="held-out rows (95 % interval)", title_justify="left")
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
    said = ", ".join(f"{name} {value:.3f}" for name, value in summary["last_steps"].items())
    out.print(f"last steps: {said}", soft_wrap=True)
    for alarm in summary["alarms"]:
        out.print(f"[yellow]{alarm}[/yellow]", soft_wrap=True)
    where(outcome)
